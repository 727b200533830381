# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law of a model, and whether it is one: by draws that fitted nothing.

Of a few latents importance sampling finds it (`population`), of many Markov chains
(`particles`). The verdict is of draws that have chosen neither multipliers nor path.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import random

from numpyro_epi._math.dual import solve_dual
from numpyro_epi._math.importance import effective_sample_size, normalize_log_weights
from numpyro_epi._math.psis import MAX_KHAT, pareto_smooth
from numpyro_epi._solver.draws import Draws, Simulator
from numpyro_epi._solver.particles import Particles, ParticleState
from numpyro_epi._solver.path import MAX_RESIDUAL
from numpyro_epi._solver.population import (
    Population,
    PopulationState,
    noise_bias,
)

# Latents up to which importance sampling is tried first.
MAX_IMPORTANCE_LATENTS = 12
# Draws of a round, of the verdict at first and at most, and particles of chains, as
# shares of a search's size.
ROUND, VERDICT, MAX_VERDICT, PARTICLES = 0.2, 0.4, 3.2, 0.1
# Simulations of importance sampling in all, as a share of the same: at the end of it a
# verdict is what it is.
BUDGET = 20.0
# Verdicts, of which the next has all that the last one has simulated.
MAX_VERDICTS = 4
# Effective draws of the verdict for each constraint.
MIN_ESS = 400.0
# Violation and effective draws of a law that is not trusted, but may start a guide.
MAX_MISS, MIN_USABLE = 0.5, 100.0
# Nats below zero that a divergence may seem to have.
MIN_NATS = 0.05
# Snapshots of the chains for the last multipliers, and for the verdict.
NUM_SNAPSHOTS = 8
# Groups of the second population, particles of one at least, and how many times as many
# moves it has.
NUM_GROUPS, MIN_GROUP, REPEATS = 4, 10, 2
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
        noise_error: bias that the noise of averaged simulations leaves, shape (K,).
        ess: effective number of draws.
        khat: Pareto shape of the weights; NaN of chains.
        lag: how far a second population with more moves is from the first, in standard
            errors; NaN of importance sampling.
        reason: why it is not trusted, in words; empty if it is.
        pool: the draws of the verdict, and those that chose the multipliers.
        pool_weights: of these, sum to one.
        is_at_the_targets: whether the multipliers are those of the targets, so that it
            is a law, if not a trusted one.
    """

    method: str
    draws: Draws
    weights: np.ndarray
    multipliers: np.ndarray
    log_normalizer: float
    log_normalizer_error: float
    violation: np.ndarray
    violation_error: np.ndarray
    noise_error: np.ndarray
    ess: float
    khat: float
    lag: float
    reason: str
    pool: Draws
    pool_weights: np.ndarray
    is_at_the_targets: bool

    @property
    def converged(self) -> bool:
        """Whether fresh draws show that the law meets its targets."""
        return not self.reason

    def in_units(self, units: np.ndarray) -> "Law":
        """The same where T is measured in others: it is times `units`, shape (K,)."""
        return self._replace(
            draws=self.draws.in_units(units),
            pool=self.pool.in_units(units),
            multipliers=self.multipliers / units,
            violation=self.violation * units,
            violation_error=self.violation_error * units,
            noise_error=self.noise_error * units,
        )

    @property
    def is_usable(self) -> bool:
        """Whether it may be trusted enough for a guide to start from."""
        if self.converged:
            return True
        is_near = bool((np.abs(self.violation) <= MAX_MISS).all())
        is_sound = self.ess >= MIN_USABLE and not self.lag > MAX_LAG
        return self.is_at_the_targets and is_near and is_sound


class Standard(NamedTuple):
    """What the verdict asks for.

    Attributes:
        tolerance: largest harmless violation, scaled units.
        z_score: standard errors added to a violation before it is compared.
        labels: of the constraints, for messages.
    """

    tolerance: float
    z_score: float
    labels: tuple[str, ...]

    def bounds(
        self, violation: np.ndarray, error: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Violations that are not ruled out, shape (K,)."""
        return np.abs(violation) + self.z_score * error + bias

    def is_met(
        self, violation: np.ndarray, error: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> bool:
        """Whether all constraints are shown to be met."""
        return bool((self.bounds(violation, error, bias) <= self.tolerance).all())

    def is_missed(self, violation: np.ndarray, error: np.ndarray) -> bool:
        """Whether one is shown to be missed."""
        low = np.abs(violation) - self.z_score * error
        return bool((low > self.tolerance).any())

    def reason(
        self, violation: np.ndarray, error: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> str:
        """Why they are not, in words; empty if they are."""
        if self.is_met(violation, error, bias):
            return ""
        worst = int(np.argmax(self.bounds(violation, error, bias)))
        return (
            f"its {self.labels[worst]} is off by {violation[worst]:+.3g} +- "
            f"{error[worst]:.2g} scaled units (tolerance {self.tolerance:g})"
        )


def find_law(
    simulator: Simulator,
    rng_key: jax.Array,
    standard: Standard,
    choose_kind: Callable[[], str],
    *,
    size: int = 10_000,
) -> Law:
    """Find the law of a model.

    Args:
        simulator: of the model.
        rng_key: random key.
        standard: of the verdict.
        choose_kind: moves of chains, if these are needed: "hmc", or "walk" where
            gradients are of no use.
        size: of the search: a round of importance sampling has a fifth of it.
    """
    law = _search(simulator, rng_key, standard, choose_kind, size)
    if not (law.converged and simulator.problem.can_sample_prior):
        return law
    fit = law.weights @ law.draws.log_likelihood
    divergence = fit - law.multipliers @ law.violation - law.log_normalizer
    if divergence > -(MIN_NATS + MAX_LAG * law.log_normalizer_error):
        return law
    return law._replace(
        reason=f"its KL from the prior is {divergence:.2g} nats, and none is negative: "
        "the density of a prior does not integrate to one"
    )


def _search(
    simulator: Simulator,
    rng_key: jax.Array,
    standard: Standard,
    choose_kind: Callable[[], str],
    size: int,
) -> Law:
    """By importance sampling, and by chains where that does not lead there."""
    is_noisy, found = simulator.num_repeats > 1, None
    keys = random.split(rng_key, 3)
    population = Population(simulator, int(ROUND * size))
    is_narrow = simulator.problem.num_latents <= MAX_IMPORTANCE_LATENTS
    if is_noisy or is_narrow:
        state = population.init(keys[0])
        while not (state.is_done or state.is_stalled):
            state = population.advance(state)
        if state.is_done:
            state = population.refine(state)
        if state.is_done or is_noisy:
            found = _settle_population(population, state, keys[1], standard, size)
            if found.converged or is_noisy:
                return found
    num = NUM_GROUPS * max(int(PARTICLES * size) // NUM_GROUPS, MIN_GROUP)
    particles = Particles(simulator, choose_kind(), num)
    law = _chains(particles, rng_key, standard)
    if is_narrow and law.is_at_the_targets and not law.converged:
        # Log Z along a path lags more than the draws at its end: those show the way.
        state = population.at(law.pool, law.multipliers, keys[2])
        again = _settle_population(population, state, keys[1], standard, size)
        law = again if again.converged else law
    is_better = law.converged or found is None or not found.is_usable
    return law if is_better or found is None else found


# -- importance sampling --------------------------------------------------------------


def _settle_population(
    population: Population,
    state: PopulationState,
    rng_key: jax.Array,
    standard: Standard,
    size: int,
) -> Law:
    """The law by fresh draws; those that tell against it improve it for others."""
    for i in range(MAX_VERDICTS):
        key = random.fold_in(rng_key, i)
        law, state = _judge_population(population, state, key, standard, size)
        is_spent = _draws_left(population.simulator, size) <= 0
        if law.converged or not law.is_at_the_targets or is_spent:
            break
        state = population.solve(state)
    return law


def _judge_population(
    population: Population,
    state: PopulationState,
    rng_key: jax.Array,
    standard: Standard,
    size: int,
) -> tuple[Law, PopulationState]:
    """Fresh draws of a proposal, until they show that the law is met, or that not."""
    fit_key, key = random.split(rng_key)
    proposal = population.fit_proposal(state, fit_key)
    lam = state.position.multipliers
    draws: Draws | None = None
    num = int(VERDICT * size)
    most = min(int(MAX_VERDICT * size), _draws_left(population.simulator, size))
    while True:
        first_key, key = random.split(key)
        keys = random.split(first_key)
        more = population.simulator(proposal.sample(keys[0], num), keys[1])
        draws = more if draws is None else draws.join(more)
        log_q = proposal.log_prob(draws)
        log_w = draws.log_density(1.0, lam) - log_q
        weights = normalize_log_weights(log_w)
        violation, error, noise = violation_of(draws, log_q, lam)
        ess = effective_sample_size(weights)
        is_enough = (
            standard.is_met(violation, error, noise) and ess >= MIN_ESS * lam.size
        )
        is_enough |= standard.is_missed(violation, error) or not state.is_done
        if is_enough or 2 * draws.num > most:
            break
        num = draws.num
    khat = pareto_smooth(log_w).khat
    reason = standard.reason(violation, error, noise)
    if not state.is_done:
        left = state.position.distance
        reason = f"importance sampling ends {left:.2g} of the way before the targets"
    elif khat > MAX_KHAT:
        reason = f"its weights have a k-hat of {khat:.2f} (at most {MAX_KHAT})"
    elif not reason and ess < MIN_ESS * lam.size:
        wanted = MIN_ESS * lam.size
        reason = f"it has {ess:.0f} effective draws (at least {wanted:.0f})"
    raw = np.exp(log_w - log_w.max())
    state = state.with_draws(proposal, draws)
    law = Law(
        "importance",
        draws,
        weights,
        lam,
        float(log_w.max() + np.log(raw.mean())),
        float(raw.std(ddof=1) / raw.mean() / np.sqrt(raw.size)),
        violation,
        error,
        noise,
        ess,
        khat,
        np.nan,
        reason,
        state.draws,
        normalize_log_weights(state.log_weights),
        state.position.is_at_the_law,
    )
    return law, state


def _draws_left(simulator: Simulator, size: int) -> int:
    """How many more draws the budget has simulations for."""
    spent = simulator.num_simulations - simulator.num_moves
    return int((BUDGET * size - spent) / simulator.num_repeats)


def violation_of(
    draws: Draws, log_q: np.ndarray, multipliers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E[T] of draws weighted to a law, its standard errors, and its bias by noise."""
    weights = normalize_log_weights(draws.log_density(1.0, multipliers) - log_q)
    values = draws.deviations + draws.noise_shift(1.0, multipliers)
    violation = weights @ values
    error = np.sqrt(weights**2 @ (values - violation) ** 2)
    return violation, error, np.abs(noise_bias(draws, log_q, multipliers))


# -- chains ---------------------------------------------------------------------------


def _chains(particles: Particles, rng_key: jax.Array, standard: Standard) -> Law:
    keys = random.split(rng_key, 4)
    first = particles.init(keys[0])
    while not (first.is_done or first.is_stalled):
        first = particles.advance(first)
    if first.is_stalled:
        return _judge_chains(particles, first, first, keys[3], standard, first.draws)
    first = particles.settle_units(first, 1.0)
    settled, lam = _settle(particles, first, keys[1])
    second = _retrace(particles, first, lam, keys[2])
    return _judge_chains(particles, first, second, keys[3], standard, settled)


def _settle(
    particles: Particles, state: ParticleState, rng_key: jax.Array
) -> tuple[Draws, np.ndarray]:
    """Many snapshots of the chains, and the multipliers that these have."""
    draws, _, _ = _snapshots(particles, state, rng_key)
    lam = state.position.multipliers
    log_w = np.where(draws.is_valid, draws.deviations @ lam, -np.inf)
    found = solve_dual(log_w, draws.deviations, initial=lam)
    return draws, found.multipliers if found.residual < MAX_RESIDUAL else lam


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
    standard: Standard,
    settled: Draws,
) -> Law:
    draws, families, _ = _snapshots(particles, second, rng_key)
    lam = second.position.multipliers
    devs = draws.deviations
    violation, error = devs.mean(axis=0), family_error(devs, families)
    reason = standard.reason(violation, error)
    log_z = second.log_normalizer
    spread, lag = np.nan, np.nan
    if second.is_stalled:
        left = second.position.distance
        reason = f"Markov chains end {left:.2g} of the way before the targets"
    else:
        spread = float(log_z.std(ddof=1) / np.sqrt(log_z.size))
        # The law of the first population differs a little in its multipliers.
        change = (lam - first.position.multipliers) @ violation
        apart = abs(log_z.mean() + change - first.log_normalizer.mean())
        lag = max(_lag(first, second), float(apart / np.hypot(spread, spread)))
    if lag > MAX_LAG:
        reason = (
            "Markov chains that move for longer lead elsewhere "
            f"({lag:.1f} standard errors, at most {MAX_LAG:g})"
        )
    return Law(
        "chains",
        draws,
        np.full(draws.num, 1.0 / draws.num),
        lam,
        float(log_z.mean()),
        spread,
        violation,
        error,
        np.zeros_like(error),
        float(devs.var(axis=0).min() / (error**2).max()),
        np.nan,
        lag,
        reason,
        pool := draws.join(settled),
        np.full(pool.num, 1.0 / pool.num),
        not second.is_stalled,
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
