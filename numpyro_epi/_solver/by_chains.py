# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A law by Markov chains, judged by others that move for longer."""

import jax
import numpy as np
from jax import random

from numpyro_epi._math.dual import solve_dual
from numpyro_epi._solver.draws import Draws
from numpyro_epi._solver.law import MAX_LAG, Law, Standard
from numpyro_epi._solver.particles import Particles, ParticleState
from numpyro_epi._solver.path import MAX_RESIDUAL

# Snapshots of the chains for the last multipliers, and for the verdict.
NUM_SNAPSHOTS = 8
# Groups of a population that checks another, and how many times as many moves it has:
# the second number where it tells against the first one.
NUM_GROUPS, REPEATS = 4, (2, 4)
# Nats that the noise of statistics may cost: chains move under one draw of it.
MAX_NOISE = 0.02


def run_chains(particles: Particles, rng_key: jax.Array, standard: Standard) -> Law:
    keys = random.split(rng_key, 4)
    first = particles.init(keys[0])
    while not (first.is_done or first.is_stalled):
        first = particles.advance(first)
    if first.is_stalled:
        return _judge_chains(particles, first, first, keys[3], standard, first.draws)
    first = particles.settle_units(first, 1.0)
    last = first
    for i, repeats in enumerate(REPEATS):
        # The multipliers of the last population, judged by a new one.
        settle_key, trace_key, key = (random.fold_in(key, i) for key in keys[1:])
        settled, lam = _settle(particles, last, settle_key)
        new = _retrace(particles, first, lam, trace_key, repeats)
        law = _judge_chains(particles, last, new, key, standard, settled)
        if law.converged or particles.problem.cost.is_dear:
            break
        last = new
    return law


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
    particles: Particles,
    first: ParticleState,
    lam: np.ndarray,
    rng_key: jax.Array,
    repeats: int,
) -> ParticleState:
    """Other particles, in independent groups, on the frozen path with more moves."""
    state = particles.init(rng_key, NUM_GROUPS)._replace(step_size=first.step_size)
    for temperature, *multipliers in first.path:
        state = particles.follow(state, temperature, np.array(multipliers), repeats)
    return particles.follow(state, 1.0, lam, repeats)


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
    noise = draws.noise_cost(lam)
    if noise > MAX_NOISE and not reason:
        reason = f"noise may cost {noise:.2g} nats (at most {MAX_NOISE:g})"
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
