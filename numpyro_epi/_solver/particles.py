# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The law of many latents by particles that Markov chains move along the path.

Sequential Monte Carlo (Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers,
2006) for statistics that are deterministic given the latents: reweigh, resample
(systematic: separate pieces keep their mass), move until T has forgotten where it was.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.importance import normalize_log_weights, systematic_resample
from numpyro_epi._solver.draws import MIN_CHANGE, Draws, Simulator
from numpyro_epi._solver.moves import Tilt, make_moves, whitening
from numpyro_epi._solver.path import MAX_STALLED, Position, has_moved, move_on

# Share of the particles that a step of the path leaves effective.
ESS_SHARE = 0.5
# Moves go on in blocks until T has forgotten where the particles were.
BLOCK, MAX_BLOCKS, MAX_CORRELATION = 2, 8, 0.5
# Rounds at the wanted targets, in which multipliers and particles settle.
NUM_LAST = 3
START_STEP = 0.3


class ParticleState(NamedTuple):
    """Equally weighted particles of the law at a position of the path.

    Attributes:
        draws: the particles.
        position: of their law.
        log_normalizer: log Z along the path, of each group of particles, shape (G,).
        step_size: of the moves.
        path: temperature and multipliers of each round so far, shape (rounds, 1 + K).
        num_last: rounds at the wanted targets.
        num_stalled: rounds without progress.
        correlation: largest one of T before and after the last moves.
        acceptance: of these moves.
        ancestors: particle of the prior that each stems from, shape (n,).
        rng_key: of the next round.
    """

    draws: Draws
    position: Position
    log_normalizer: np.ndarray
    step_size: float
    path: np.ndarray
    num_last: int
    num_stalled: int
    correlation: float
    acceptance: float
    ancestors: np.ndarray
    rng_key: jax.Array

    @property
    def is_done(self) -> bool:
        """Whether the particles have settled at the wanted targets."""
        return self.num_last >= NUM_LAST

    @property
    def is_stalled(self) -> bool:
        """Whether the particles come no nearer to the targets."""
        return self.num_stalled >= MAX_STALLED


class Particles:
    """The compiled functions of one model.

    Args:
        simulator: of the model.
        kind: of the moves: "hmc", or "walk" where there is no gradient.
        size: number of particles.
    """

    def __init__(
        self,
        simulator: Simulator,
        kind: str,
        size: int = 1000,
    ) -> None:
        self.simulator = simulator
        self.problem = simulator.problem
        forward = kind == "hmc" and self.problem.derivatives.reverse is not None
        programs = simulator.programs
        if kind not in programs.moves:
            programs.moves[kind] = make_moves(
                self.problem, kind, programs.devices, forward=forward
            )
        self.moves, self.calls_per_move = programs.moves[kind]
        self.size = size

    @property
    def table(self) -> ConstraintTable:
        """Targets and units, which change on the way."""
        return self.simulator.table

    def settle_units(
        self, state: ParticleState, change: float = MIN_CHANGE
    ) -> ParticleState:
        """Measure mean-only statistics in their spread under the particles' law."""
        weights = np.full(state.draws.num, 1.0 / state.draws.num)
        units = self.simulator.settle_units(state.draws, weights, change)
        if units is None:
            return state
        return state._replace(
            draws=state.draws.in_units(units),
            position=state.position.in_units(units),
            path=state.path / np.append(1.0, units),
        )

    def init(self, rng_key: jax.Array, num_groups: int = 1) -> ParticleState:
        """Particles of the prior, in groups that are resampled by themselves."""
        draw_key, sim_key, key = random.split(rng_key, 3)
        u = self.simulator.prior_draws(draw_key, self.size)
        draws = self.simulator(u, sim_key)
        position = Position.start_of(draws, self.problem)
        return ParticleState(
            draws=draws,
            position=position,
            log_normalizer=np.log(draws.is_valid.reshape(num_groups, -1).mean(axis=1)),
            step_size=START_STEP,
            path=np.zeros((0, 1 + self.table.num_constraints)),
            num_last=0,
            num_stalled=0,
            correlation=0.0,
            acceptance=1.0,
            ancestors=np.arange(self.size),
            rng_key=key,
        )

    def advance(self, state: ParticleState) -> ParticleState:
        """One round: a step along the path, resampling, moves."""
        here, draws = state.position, state.draws
        there = move_on(
            here,
            draws,
            _density(draws, here.temperature, here.multipliers),
            ESS_SHARE * draws.num,
        )
        state = self.follow(state, there.temperature, there.multipliers)
        state = state._replace(
            position=there,
            num_last=state.num_last + there.is_at_the_law,
            num_stalled=0 if has_moved(here, there) else state.num_stalled + 1,
        )
        return self.settle_units(state)

    def follow(
        self,
        state: ParticleState,
        temperature: float,
        multipliers: np.ndarray,
        repeats: int = 1,
    ) -> ParticleState:
        """Reweigh the particles to a law, resample and move them.

        They move `repeats` times for as long as they need to forget where they were.
        """
        offset_key, move_key, key = random.split(state.rng_key, 3)
        here, draws = state.position, state.draws
        log_w = self.log_weights(state, temperature, multipliers)
        offset = float(random.uniform(offset_key))
        rows, gains = _resample(log_w, state.log_normalizer.size, offset)
        state = state._replace(
            draws=draws.take(rows),
            position=here._replace(temperature=temperature, multipliers=multipliers),
            log_normalizer=state.log_normalizer + gains,
            path=np.vstack([state.path, [temperature, *multipliers]]),
            ancestors=state.ancestors[rows],
            rng_key=key,
        )
        for i in range(repeats):
            state = self.move(state, random.fold_in(move_key, i))
        return state

    def log_weights(
        self, state: ParticleState, temperature: float, multipliers: np.ndarray
    ) -> np.ndarray:
        """Of the particles against another law, shape (n,)."""
        here, draws = state.position, state.draws
        log_p = draws.log_density(temperature, multipliers)
        return log_p - _density(draws, here.temperature, here.multipliers)

    def move(self, state: ParticleState, rng_key: jax.Array) -> ParticleState:
        """Move particles within their law, until T has forgotten where they were."""
        tilt = Tilt(
            jnp.asarray(state.position.temperature, float),
            jnp.asarray(state.position.multipliers, float),
            self.table.targets,
        )
        scale = whitening(state.draws.u)
        maps = [jnp.asarray(x, float) for x in (scale, np.linalg.inv(scale))]
        began, draws = state.draws, state.draws
        size = jnp.asarray(state.step_size, float)
        correlation, num_blocks = 1.0, 0
        while num_blocks < MAX_BLOCKS and correlation > MAX_CORRELATION:
            keys = random.split(random.fold_in(rng_key, num_blocks))
            u, size, acceptance = self.moves(
                jnp.asarray(draws.u, float), keys[0], tilt, *maps, size, BLOCK
            )
            num_moves = BLOCK * self.calls_per_move * draws.num
            self.simulator.num_moves += num_moves
            self.simulator.num_simulations += num_moves
            draws = self.simulator(u, keys[1])
            correlation = _correlation(began, draws)
            num_blocks += 1
        return state._replace(
            draws=draws,
            step_size=float(size),
            correlation=correlation,
            acceptance=float(acceptance),
        )


def _density(draws: Draws, temperature: float, multipliers: np.ndarray) -> np.ndarray:
    """Log density of the law that particles have; 0 of those that are invalid."""
    log_p = draws.log_density(temperature, multipliers)
    return np.where(draws.is_valid, log_p, 0.0)


def _resample(
    log_w: np.ndarray, num_groups: int, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each group in proportion to its weights, and the log of its mean weight.

    The mean is over the particles that are valid: the others are left out for good.
    """
    size = log_w.size // num_groups
    rows, gains = [], []
    for i in range(num_groups):
        part = log_w[i * size : (i + 1) * size]
        top = part.max()
        total = np.exp(part - top).sum()
        gains.append(top + np.log(total / np.isfinite(part).sum()))
        weights = normalize_log_weights(part)
        rows.append(i * size + systematic_resample(weights, size, offset))
    return np.concatenate(rows), np.array(gains)


def _correlation(first: Draws, second: Draws) -> float:
    """Largest correlation of T, or of the log likelihood, before and after moves."""
    columns: list[Callable[[Draws], np.ndarray]] = [
        lambda draws: draws.deviations,
        lambda draws: draws.log_likelihood[:, None],
    ]
    a, b = (np.hstack([column(x) for column in columns]) for x in (first, second))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    sizes = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    moving = sizes > 0
    return float(((a * b).sum(axis=0)[moving] / sizes[moving]).max(initial=0.0))
