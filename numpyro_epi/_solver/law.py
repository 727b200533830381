# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law of a model, and whether it is one: by draws that fitted nothing.

Of a few latents importance sampling finds it (`population`), of many Markov chains
(`particles`). The verdict is of draws that have chosen neither multipliers nor path.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax import random

from numpyro_epi._math.dual import solve_dual
from numpyro_epi._math.importance import effective_sample_size, normalize_log_weights
from numpyro_epi._math.psis import MAX_KHAT, pareto_smooth
from numpyro_epi._solver import population
from numpyro_epi._solver.draws import Draws, Simulator
from numpyro_epi._solver.particles import Particles, ParticleState

# Latents up to which importance sampling is tried first.
MAX_IMPORTANCE_LATENTS = 12
# Draws of the verdict, first and at most.
FIRST_DRAWS, MAX_DRAWS = 4000, 32_000
# Effective draws of the verdict for each constraint.
MIN_ESS = 400.0
# Snapshots of the chains for the last multipliers, and for the verdict.
NUM_SNAPSHOTS = 8
# Groups of the second population, and how many times as many moves it has.
NUM_GROUPS, REPEATS = 4, 2
# Standard errors by which two populations may differ, in any number that is compared.
MAX_LAG = 4.0


class Law(NamedTuple):
    """The exact law p0 L exp(-lambda . E[T | z]) / Z as weighted draws.

    Attributes:
        method: "importance" or "chains".
        draws: of the verdict, simulated.
        weights: of the draws, sum to one, shape (n,).
        multipliers: lambda, scaled units, shape (K,).
        log_normalizer: log Z, nats.
        log_normalizer_error: its standard error.
        violation: E[T], scaled units, shape (K,).
        violation_error: its standard errors, shape (K,).
        ess: effective number of draws.
        khat: Pareto shape of the weights; NaN of chains.
        lag: how far a second population with more moves is from the first, in standard
            errors; NaN of importance sampling.
        reason: why it is not trusted, in words; empty if it is.
        num_simulations: spent.
    """

    method: str
    draws: Draws
    weights: np.ndarray
    multipliers: np.ndarray
    log_normalizer: float
    log_normalizer_error: float
    violation: np.ndarray
    violation_error: np.ndarray
    ess: float
    khat: float
    lag: float
    reason: str
    num_simulations: int


def find_law(
    simulator: Simulator,
    rng_key: jax.Array,
    *,
    kind: str = "hmc",
    tolerance: float = 0.05,
    z_score: float = 1.645,
) -> Law:
    """Find the law of a model.

    Args:
        simulator: of the model.
        rng_key: random key.
        kind: moves of chains: "hmc", or "walk" where there is no gradient.
        tolerance: largest harmless violation, scaled units.
        z_score: standard errors added to a violation before it is compared.
    """
    is_noisy = simulator.num_repeats > 1
    test = _Test(tolerance, z_score)
    if is_noisy or simulator.problem.num_latents <= MAX_IMPORTANCE_LATENTS:
        keys = random.split(rng_key)
        state = population.init(simulator, keys[0])
        while not (state.is_done or state.is_stalled):
            state = population.advance(simulator, state)
        if state.is_done:
            state = population.refine(simulator, state)
        if state.is_done or is_noisy:
            return _judge_population(simulator, state, keys[1], test)
    return _chains(simulator, rng_key, kind, test)


class _Test(NamedTuple):
    tolerance: float
    z_score: float

    def shown(self, violation: np.ndarray, error: np.ndarray) -> bool:
        bound = np.abs(violation) + self.z_score * error
        return bool((bound <= self.tolerance).all())

    def reason(self, violation: np.ndarray, error: np.ndarray) -> str:
        if self.shown(violation, error):
            return ""
        worst = int(np.argmax(np.abs(violation) + self.z_score * error))
        return (
            f"constraint {worst} is off by {violation[worst]:+.3g} +- "
            f"{error[worst]:.2g} scaled units"
        )


# -- importance sampling --------------------------------------------------------------


def _judge_population(
    simulator: Simulator,
    state: population.PopulationState,
    rng_key: jax.Array,
    test: _Test,
) -> Law:
    """Fresh draws of the last proposal, until they show that the law is met, or not."""
    fit_key, key = random.split(rng_key)
    proposal = population.fit_proposal(simulator, state, fit_key)
    lam = state.position.multipliers
    draws: Draws | None = None
    num = FIRST_DRAWS
    while True:
        first_key, key = random.split(key)
        keys = random.split(first_key)
        more = simulator(proposal.sample(keys[0], num), keys[1])
        draws = more if draws is None else draws.join(more)
        log_w = draws.log_density(1.0, lam) - proposal.log_prob(draws)
        weights = normalize_log_weights(log_w)
        values = draws.deviations + draws.noise_shift(lam)
        violation = weights @ values
        error = np.sqrt(weights**2 @ (values - violation) ** 2)
        ess = effective_sample_size(weights)
        is_enough = test.shown(violation, error) and ess >= MIN_ESS * lam.size
        if is_enough or draws.num >= MAX_DRAWS:
            break
        num = draws.num
    khat = pareto_smooth(log_w).khat
    reason = test.reason(violation, error)
    if not state.is_done:
        left = state.position.distance
        reason = f"importance sampling stalled at distance {left:.2g} of the targets"
    elif khat > MAX_KHAT:
        reason = f"the weights have a k-hat of {khat:.2f}, above {MAX_KHAT}"
    top = log_w.max()
    raw = np.exp(log_w - top)
    return Law(
        "importance",
        draws,
        weights,
        lam,
        float(top + np.log(raw.mean())),
        float(raw.std(ddof=1) / raw.mean() / np.sqrt(raw.size)),
        violation,
        error,
        ess,
        khat,
        np.nan,
        reason,
        simulator.num_simulations,
    )


# -- chains ---------------------------------------------------------------------------


def _chains(simulator: Simulator, rng_key: jax.Array, kind: str, test: _Test) -> Law:
    keys = random.split(rng_key, 4)
    particles = Particles(simulator, kind)
    first = particles.init(keys[0])
    while not first.is_done:
        first = particles.advance(first)
    lam = _settle(particles, first, keys[1])
    second = _retrace(particles, first, lam, keys[2])
    return _judge_chains(particles, first, second, keys[3], test)


def _settle(
    particles: Particles, state: ParticleState, rng_key: jax.Array
) -> np.ndarray:
    """Multipliers from many snapshots of the chains."""
    draws, _, _ = _snapshots(particles, state, rng_key)
    lam = state.position.multipliers
    log_w = np.where(draws.is_valid, draws.deviations @ lam, -np.inf)
    return solve_dual(log_w, draws.deviations, initial=lam).multipliers


def _snapshots(
    particles: Particles, state: ParticleState, rng_key: jax.Array
) -> tuple[Draws, np.ndarray, ParticleState]:
    """Draws of the chains as they go on, and the ancestor of each."""
    draws = state.draws
    for i in range(NUM_SNAPSHOTS - 1):
        state = particles.move(state, random.fold_in(rng_key, i))
        draws = draws.join(state.draws)
    return draws, np.tile(state.ancestors, NUM_SNAPSHOTS), state


def _retrace(
    particles: Particles, first: ParticleState, lam: np.ndarray, rng_key: jax.Array
) -> ParticleState:
    """Other particles, in independent groups, on the frozen path with more moves."""
    state = particles.init(rng_key, NUM_GROUPS)._replace(step_size=first.step_size)
    for temperature, *multipliers in first.path:
        state = particles.follow(state, temperature, np.array(multipliers), REPEATS)
    return particles.follow(state, 1.0, lam, REPEATS)


def _judge_chains(
    particles: Particles,
    first: ParticleState,
    second: ParticleState,
    rng_key: jax.Array,
    test: _Test,
) -> Law:
    draws, families, _ = _snapshots(particles, second, rng_key)
    lam = second.position.multipliers
    devs = draws.deviations
    violation, error = devs.mean(axis=0), family_error(devs, families)
    log_z = second.log_normalizer
    spread = float(log_z.std(ddof=1) / np.sqrt(log_z.size))
    # The law of the first population differs a little in its multipliers.
    change = (lam - first.position.multipliers) @ devs.mean(axis=0)
    lag = _lag(first, second)
    apart = abs(log_z.mean() + change - first.log_normalizer.mean())
    lag = max(lag, float(apart / np.hypot(spread, spread)))
    reason = test.reason(violation, error)
    if lag > MAX_LAG:
        reason = f"particles with more moves lead elsewhere ({lag:.1f} standard errors)"
    return Law(
        "chains",
        draws,
        np.full(draws.num, 1.0 / draws.num),
        lam,
        float(log_z.mean()),
        spread,
        violation,
        error,
        float(devs.var(axis=0).min() / (error**2).max()),
        np.nan,
        lag,
        reason,
        particles.simulator.num_simulations,
    )


def _lag(first: ParticleState, second: ParticleState) -> float:
    """Largest difference of mean log densities of two populations, in errors."""
    moments = []
    for state in (first, second):
        none = np.zeros_like(state.position.multipliers)
        log_p = state.draws.log_density(1.0, none)[:, None]
        moments.append((log_p.mean(axis=0), family_error(log_p, state.ancestors)))
    (a, a_error), (b, b_error) = moments
    return float((np.abs(a - b) / np.hypot(a_error, b_error)).max())


def family_error(values: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Standard errors of means of draws that are independent between families only."""
    centred = values - values.mean(axis=0)
    _, index = np.unique(families, return_inverse=True)
    totals = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(totals, index, centred)
    return np.sqrt((totals**2).sum(axis=0)) / len(values)
