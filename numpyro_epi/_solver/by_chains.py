# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A law by Markov chains, judged by others, and by their way back to the prior."""

import jax
import numpy as np
from jax import random

from numpyro_epi._math.bridge import log_ratio
from numpyro_epi._math.dual import solve_dual
from numpyro_epi._solver.draws import Draws
from numpyro_epi._solver.law import MAX_LAG, Law, Standard
from numpyro_epi._solver.particles import Particles, ParticleState
from numpyro_epi._solver.path import MAX_RESIDUAL

# Snapshots of the chains for the last multipliers, and for the verdict.
NUM_SNAPSHOTS = 8
# Groups of a population that checks another, and how many times as many moves it has:
# the second number where the first check tells against a law.
NUM_GROUPS, REPEATS = 8, (1, 2)
# Nats that a lag may cost, or noise: chains move under one draw of it.
MAX_COST = 0.1


def run_chains(particles: Particles, rng_key: jax.Array, standard: Standard) -> Law:
    keys = random.split(rng_key, 4)
    first = particles.init(keys[0])
    while not (first.is_done or first.is_stalled):
        first = particles.advance(first)
    if first.is_stalled:
        log_z = np.tile(first.log_normalizer, (2, 1))
        return _judge_chains(
            particles, first, first, log_z, keys[3], standard, first.draws
        )
    first = particles.settle_units(first, 1.0)
    last, settled = first, None
    log_w, lam = np.zeros(0), first.position.multipliers
    for i, repeats in enumerate(REPEATS):
        # Multipliers of all populations so far, judged by a new one.
        settle_key, trace_key, key = (random.fold_in(key, i) for key in keys[1:])
        draws, _, _ = _snapshots(particles, last, settle_key)
        settled = draws if settled is None else settled.join(draws)
        tilt = draws.deviations @ last.position.multipliers
        log_w = np.append(log_w, np.where(draws.is_valid, tilt, -np.inf))
        found = solve_dual(log_w, settled.deviations, initial=lam)
        lam = found.multipliers if found.residual < MAX_RESIDUAL else lam
        new, log_z = _retrace(particles, first, lam, trace_key, repeats)
        law = _judge_chains(particles, last, new, log_z, key, standard, settled)
        if law.converged or particles.problem.cost.is_dear:
            break
        last = new
    return law


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
) -> tuple[ParticleState, np.ndarray]:
    """Other particles, in independent groups, on the frozen path and on the way back.

    Returns:
        The particles at the law, and the log Z of each group, shape (2, NUM_GROUPS): of
        the way there, and of both ways together.
    """
    path = _halved(np.vstack([np.zeros(1 + lam.size), first.path, [1.0, *lam]]))
    state = particles.init(rng_key, NUM_GROUPS)._replace(step_size=first.step_size)
    log_z, there, back = state.log_normalizer, [], []
    for temperature, *multipliers in path[1:]:
        multipliers = np.array(multipliers)
        there.append(particles.log_weights(state, temperature, multipliers))
        state = particles.follow(state, temperature, multipliers, repeats)
    ahead = state
    for temperature, *multipliers in path[-2::-1]:
        multipliers = np.array(multipliers)
        back.append(particles.log_weights(ahead, temperature, multipliers))
        if len(back) < len(there):
            ahead = particles.follow(ahead, temperature, multipliers, repeats)
    for pair in zip(there, back[::-1], strict=True):
        groups = zip(*(x.reshape(NUM_GROUPS, -1) for x in pair), strict=True)
        log_z = log_z + np.array([log_ratio(*group) for group in groups])
    return state, np.stack([state.log_normalizer, log_z])


def _halved(path: np.ndarray) -> np.ndarray:
    """The same path in steps half as long: their length suited other particles."""
    middle = (path[1:] + path[:-1]) / 2
    return np.vstack(
        [path[:1], np.stack([middle, path[1:]], 1).reshape(-1, path.shape[1])]
    )


def _judge_chains(
    particles: Particles,
    first: ParticleState,
    second: ParticleState,
    log_normalizers: np.ndarray,
    rng_key: jax.Array,
    standard: Standard,
    settled: Draws,
) -> Law:
    draws, families, _ = _snapshots(particles, second, rng_key)
    lam = second.position.multipliers
    devs = draws.deviations
    violation, error = devs.mean(axis=0), family_error(devs, families)
    reason = standard.reason(violation, error)
    log_z, apart = log_normalizers.mean(axis=0), np.diff(log_normalizers, axis=0)[0]
    log_z_error, lag = np.nan, np.nan
    if second.is_stalled:
        left = second.position.distance
        reason = f"Markov chains end {left:.2g} of the way before the targets"
    else:
        # Particles that lag have too small a log Z on the way there, and too large a
        # one where the way back takes part: the truth lies between.
        cost = abs(float(apart.mean())) / 2
        spread = max(_standard_error(x) for x in log_normalizers)
        log_z_error = float(np.hypot(spread, cost))
        lag = 2 * cost / _standard_error(apart) if cost > MAX_COST else 0.0
        lag = max(lag, _lag(first, second))
    if lag > MAX_LAG:
        reason = (
            "Markov chains lag: another population, or the way back, leads elsewhere "
            f"({lag:.1f} standard errors, at most {MAX_LAG:g})"
        )
    noise = draws.noise_cost(lam)
    if noise > MAX_COST and not reason:
        reason = f"noise may cost {noise:.2g} nats (at most {MAX_COST:g})"
    return Law(
        "chains",
        draws,
        np.full(draws.num, 1.0 / draws.num),
        lam,
        float(log_z.mean()),
        log_z_error,
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


def _standard_error(groups: np.ndarray) -> float:
    """Of the mean of independent groups."""
    return float(groups.std(ddof=1) / np.sqrt(groups.size))


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
