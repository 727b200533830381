# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A law by Markov chains, judged by others, and by their way back to the prior."""

from typing import NamedTuple

import jax
import numpy as np
from jax import random

from numpyro_epi._math.bridge import log_ratio
from numpyro_epi._math.dual import solve_dual
from numpyro_epi._solver.draws import Draws
from numpyro_epi._solver.law import MAX_LAG, Law, Standard
from numpyro_epi._solver.particles import Particles, ParticleState
from numpyro_epi._solver.path import MAX_RESIDUAL
from numpyro_epi._typing import existing

# Snapshots of the chains for the last multipliers, and for the verdict.
NUM_SNAPSHOTS = 8
# Groups of a population that checks another, and how many times as many moves it has:
# the second number where the first check tells against a law.
NUM_GROUPS, REPEATS = 8, (1, 2)
# Nats that a lag may cost, or noise: chains move under one draw of it.
MAX_COST = 0.1


class Retrace(NamedTuple):
    """Other particles, in independent groups, on a frozen path and on the way back.

    Attributes:
        path: temperature and multipliers of each step, from the prior to the law.
        particles: where they are.
        at_law: where they were at the law; None on the way there.
        log_start: log of the share of valid draws of the prior, of each group.
        there: log weights of each step on the way there, shape (n,).
        back: of each step on the way back.
    """

    path: np.ndarray
    particles: ParticleState
    at_law: ParticleState | None
    log_start: np.ndarray
    there: tuple[np.ndarray, ...]
    back: tuple[np.ndarray, ...]

    @property
    def is_done(self) -> bool:
        """Whether the particles are back."""
        return len(self.back) == len(self.path) - 1

    @property
    def log_normalizers(self) -> np.ndarray:
        """Log Z of each group: of the way there, and of both together, (2, G)."""
        log_z = self.log_start
        for pair in zip(self.there, self.back[::-1], strict=True):
            groups = zip(*(x.reshape(NUM_GROUPS, -1) for x in pair), strict=True)
            log_z = log_z + np.array([log_ratio(*group) for group in groups])
        return np.stack([existing(self.at_law).log_normalizer, log_z])


class ChainsState(NamedTuple):
    """How far a law by chains is.

    Attributes:
        first: particles that choose the path.
        last: the latest ones at the law.
        settled: draws of all populations at the law so far.
        log_w: their log weights against the model without the tilt.
        retrace: the population that checks the last one, once it has begun.
        num_checks: that are done.
        law: once it is judged.
        rng_key: of the search by chains.
    """

    first: ParticleState
    last: ParticleState
    settled: Draws | None
    log_w: np.ndarray
    retrace: Retrace | None
    num_checks: int
    law: Law | None
    rng_key: jax.Array


def init_chains(particles: Particles, rng_key: jax.Array) -> ChainsState:
    """Particles of the prior."""
    first = particles.init(random.split(rng_key, 4)[0])
    return ChainsState(first, first, None, np.zeros(0), None, 0, None, rng_key)


def advance_chains(
    particles: Particles, state: ChainsState, standard: Standard
) -> ChainsState:
    """One round of particles on their way, or a step of the check, or its verdict."""
    first, retrace = state.first, state.retrace
    keys = random.split(state.rng_key, 4)[1:]
    settle_key, trace_key, key = (random.fold_in(k, state.num_checks) for k in keys)
    if first.is_stalled:
        log_z = np.tile(first.log_normalizer, (2, 1))
        law = _judge_chains(
            particles, first, first, log_z, keys[2], standard, first.draws
        )
        return state._replace(law=law)
    if not first.is_done:
        first = particles.advance(first)
        if first.is_done:
            first = particles.settle_units(first, 1.0)
        return state._replace(first=first, last=first)
    repeats = REPEATS[state.num_checks]
    if retrace is None:
        return _settle(particles, state, settle_key, trace_key)
    if not retrace.is_done:
        return state._replace(retrace=_advance_retrace(particles, retrace, repeats))
    new, settled = existing(retrace.at_law), existing(state.settled)
    log_z = retrace.log_normalizers
    law = _judge_chains(particles, state.last, new, log_z, key, standard, settled)
    num_checks = state.num_checks + 1
    is_final = law.converged or particles.problem.cost.is_dear
    if is_final or num_checks == len(REPEATS):
        return state._replace(law=law)
    return state._replace(last=new, retrace=None, num_checks=num_checks)


def _settle(
    particles: Particles,
    state: ChainsState,
    settle_key: jax.Array,
    trace_key: jax.Array,
) -> ChainsState:
    """Multipliers of all populations so far, to be judged by a new one."""
    first, last = state.first, state.last
    draws, _, _ = _snapshots(particles, last, settle_key)
    settled = draws if state.settled is None else state.settled.join(draws)
    lam = last.position.multipliers
    tilt = np.where(draws.is_valid, draws.deviations @ lam, -np.inf)
    log_w = np.append(state.log_w, tilt)
    found = solve_dual(log_w, settled.deviations, initial=lam)
    lam = found.multipliers if found.residual < MAX_RESIDUAL else lam
    path = _halved(np.vstack([np.zeros(1 + lam.size), first.path, [1.0, *lam]]))
    new = particles.init(trace_key, NUM_GROUPS)._replace(step_size=first.step_size)
    retrace = Retrace(path, new, None, new.log_normalizer, (), ())
    return state._replace(settled=settled, log_w=log_w, retrace=retrace)


def _snapshots(
    particles: Particles, state: ParticleState, rng_key: jax.Array
) -> tuple[Draws, np.ndarray, ParticleState]:
    """Draws of the chains as they go on, and the ancestor of each."""
    draws = state.draws
    for i in range(NUM_SNAPSHOTS - 1):
        state = particles.move(state, random.fold_in(rng_key, i))
        draws = draws.join(state.draws)
    return draws, np.tile(state.ancestors, NUM_SNAPSHOTS), state


def _advance_retrace(particles: Particles, state: Retrace, repeats: int) -> Retrace:
    """One step along the path, or of the way back."""
    now, num = state.particles, len(state.there)
    is_there = num == len(state.path) - 1
    step = len(state.path) - 2 - len(state.back) if is_there else num + 1
    temperature, multipliers = state.path[step][0], state.path[step][1:]
    log_w = particles.log_weights(now, temperature, multipliers)
    if step > 0:
        now = particles.follow(now, temperature, multipliers, repeats)
    if is_there:
        return state._replace(particles=now, back=(*state.back, log_w))
    is_last = num + 1 == len(state.path) - 1
    return state._replace(
        particles=now, there=(*state.there, log_w), at_law=now if is_last else None
    )


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
