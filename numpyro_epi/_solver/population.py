# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The law of a few latents by importance sampling alone.

It needs no derivative, averages over simulation noise, and uses every simulation again.
Weighted draws move on along the path as far as enough of them stay effective; a local
mixture is fitted to them, its draws are simulated, and with them it goes on (population
Monte Carlo: Cappe et al., 2004, with the weights of adaptive multiple importance
sampling: Cornuet et al., 2012, equation 3).
"""

from typing import NamedTuple

import jax
import numpy as np
from jax import random

from numpyro_epi._math.importance import (
    mixture_log_density,
    normalize_log_weights,
    systematic_resample,
)
from numpyro_epi._solver.draws import MIN_CHANGE, Draws, Simulator
from numpyro_epi._solver.path import MAX_STALLED, Position, has_moved, move_on
from numpyro_epi._solver.proposal import DefensiveMixture, LocalMixture

# Share of a round that stays effective along the path, and rounds whose draws count.
ESS_SHARE, WINDOW = 0.2, 3
# Centres of a local mixture.
NUM_CENTRES = 500
# Rounds at the wanted targets, in which the proposal settles there.
NUM_LAST = 2
# Rounds that a search may take.
MAX_ROUNDS = 60
# Scaled units that the noise of averages may leave in a violation, and mean square of
# the variance of log weights with which halves of them tell it.
MAX_BIAS, MAX_SQUARE = 0.01, 0.02
# Simulations of each draw: halves of fewer have no variance of their own.
MIN_REPEATS, MAX_REPEATS = 4, 32


class PopulationState(NamedTuple):
    """Weighted draws on their way.

    Attributes:
        draws: of the last rounds.
        log_proposals: log density of each under the proposal of each round, (J, n).
        counts: draws of each round, shape (J,).
        proposals: of these rounds; None is what the search starts from.
        position: of the law that their weights are for.
        num_rounds: so far.
        num_last: rounds at the wanted targets.
        num_stalled: rounds without progress.
        num_before: simulations of the search before this population, whose budget is
            its own.
        rng_key: of the next round.
    """

    draws: Draws
    log_proposals: np.ndarray
    counts: np.ndarray
    proposals: tuple[DefensiveMixture | None, ...]
    position: Position
    num_rounds: int
    num_last: int
    num_stalled: int
    num_before: int
    rng_key: jax.Array

    @property
    def log_q(self) -> np.ndarray:
        """Log density of the mixture of all proposals, shape (n,)."""
        return mixture_log_density(self.log_proposals, self.counts)

    @property
    def log_weights(self) -> np.ndarray:
        """Log weights against the law at the position, shape (n,)."""
        here = self.position
        log_p = self.draws.log_density(here.temperature, here.multipliers)
        return log_p - self.log_q

    @property
    def is_done(self) -> bool:
        """Whether the proposal has settled at the wanted targets."""
        return self.num_last >= NUM_LAST

    @property
    def is_stalled(self) -> bool:
        """Whether importance sampling leads no farther."""
        return self.num_stalled >= MAX_STALLED or self.num_rounds >= MAX_ROUNDS

    def with_draws(self, proposal: DefensiveMixture, new: Draws) -> "PopulationState":
        """Add draws of a proposal, and forget the oldest if there are too many."""
        proposals = (*self.proposals, proposal)
        seen = proposal.log_prob(self.draws)[None]
        old = np.concatenate([self.log_proposals, seen])
        rows = [new.log_start if q is None else q.log_prob(new) for q in proposals]
        both, counts = self.draws.join(new), np.append(self.counts, new.num)
        log_proposals = np.concatenate([old, np.stack(rows)], axis=1)
        if len(proposals) > WINDOW:
            kept = np.arange(counts[0], both.num)
            both, log_proposals = both.take(kept), log_proposals[1:, kept]
            proposals, counts = proposals[1:], counts[1:]
        return self._replace(
            draws=both,
            log_proposals=log_proposals,
            counts=counts,
            proposals=proposals,
        )


def weighted_moments(
    draws: Draws, log_q: np.ndarray, multipliers: np.ndarray
) -> np.ndarray:
    """E[T] under the law of some multipliers, shape (K,)."""
    weights = normalize_log_weights(draws.log_density(1.0, multipliers) - log_q)
    return weights @ (draws.deviations + draws.noise_shift(1.0, multipliers))


def noise_bias(draws: Draws, log_q: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """What the noise of averages leaves in E[T], from halves of them, shape (K,).

    It falls with the square of their number: a third of what halving it brings.
    """
    if len(draws.repeats) == 1:
        return np.zeros(multipliers.size)
    halves = [weighted_moments(d, log_q, multipliers) for d in draws.halves()]
    return (np.mean(halves, axis=0) - weighted_moments(draws, log_q, multipliers)) / 3


class Population:
    """Rounds of importance sampling for one model.

    Args:
        simulator: of the model.
        size: draws of a round.
    """

    def __init__(self, simulator: Simulator, size: int) -> None:
        self.simulator = simulator
        self.size = size

    def init(self, rng_key: jax.Array) -> PopulationState:
        """Draws of the prior."""
        num_before = self.simulator.num_simulations
        draw_key, sim_key, key = random.split(rng_key, 3)
        prior = self.simulator.prior_draws(draw_key, self.size)
        draws = self.simulator(prior, sim_key)
        return PopulationState(
            draws,
            draws.log_start[None],
            np.array([self.size]),
            (None,),
            Position.start_of(draws, self.simulator.problem),
            0,
            0,
            0,
            num_before,
            key,
        )

    def at(
        self, draws: Draws, multipliers: np.ndarray, rng_key: jax.Array
    ) -> PopulationState:
        """A round around equally weighted draws of the law."""
        position = Position(1.0, 0.0, multipliers)
        log_p = draws.log_density(1.0, multipliers)[None]
        counts = np.array([draws.num])
        num_before = self.simulator.num_simulations
        state = PopulationState(
            draws, log_p, counts, (None,), position, 0, NUM_LAST, 0, num_before, rng_key
        )
        return self.solve(self._draw(state, 2 * self.size, keeps=False))

    def advance(self, state: PopulationState) -> PopulationState:
        """One round: move on along the path, then draw and simulate there."""
        before, wanted = state.position, ESS_SHARE * self.size
        there = move_on(before, state.draws, state.log_q, wanted)
        state = state._replace(
            position=there,
            num_rounds=state.num_rounds + 1,
            num_last=state.num_last + there.is_at_the_law,
            num_stalled=0 if has_moved(before, there) else state.num_stalled + 1,
        )
        if state.is_stalled:
            return state
        # Where draws are too few to go on from, more of them.
        num = self.size * 2**state.num_stalled
        return self._draw(self.settle_units(state), num)

    def settle_units(
        self, state: PopulationState, change: float = MIN_CHANGE
    ) -> PopulationState:
        """Measure mean-only statistics in their spread at the position."""
        weights = normalize_log_weights(state.log_weights)
        units = self.simulator.settle_units(state.draws, weights, change)
        if units is None:
            return state
        return state._replace(
            draws=state.draws.in_units(units), position=state.position.in_units(units)
        )

    def refine(self, state: PopulationState) -> PopulationState:
        """The multipliers once more, with a larger round at the law.

        Noisy simulations are averaged over as many as it takes for the moments to be
        the same with half of them.
        """
        simulator = self.simulator
        is_noisy = simulator.num_repeats > 1
        state = self._draw(state, 2 * self.size, keeps=not is_noisy)
        state = self.solve(self.settle_units(state, 1.0))
        lam = state.position.multipliers
        while is_noisy and simulator.num_repeats < MAX_REPEATS:
            bias = np.abs(noise_bias(state.draws, state.log_q, lam)).max()
            weights = normalize_log_weights(state.log_weights)
            square = weights @ state.draws.noise_variance(1.0, lam) ** 2
            is_right = bias <= MAX_BIAS and square <= MAX_SQUARE
            if is_right and simulator.num_repeats >= MIN_REPEATS:
                break
            key, sim_key = random.split(state.rng_key)
            more = simulator(state.draws.u, sim_key)
            draws = state.draws.with_repeats(more)
            simulator.num_repeats *= 2
            state = self.solve(state._replace(draws=draws, rng_key=key))
            lam = state.position.multipliers
        return state

    def solve(self, state: PopulationState) -> PopulationState:
        """Multipliers on the draws that there are."""
        there = move_on(state.position, state.draws, state.log_q, 0.0)
        return state._replace(position=there)

    def fit_proposal(
        self, state: PopulationState, rng_key: jax.Array
    ) -> DefensiveMixture:
        """A local mixture around the weighted draws, with a share of the prior."""
        weights = normalize_log_weights(state.log_weights)
        offset = float(random.uniform(rng_key))
        rows = systematic_resample(weights, NUM_CENTRES, offset)
        mixture = LocalMixture.fit(state.draws.u[rows])
        return DefensiveMixture(mixture)

    def simulate(
        self, proposal: DefensiveMixture, num: int, keys: tuple[jax.Array, ...]
    ) -> Draws:
        """Draws of a proposal, with a key for them and one for their simulations."""
        u = proposal.sample(keys[0], num, self.simulator.prior_draws)
        return self.simulator(u, keys[1])

    def _draw(
        self, state: PopulationState, num: int, *, keeps: bool = True
    ) -> PopulationState:
        """A round of draws at the position, added to the others or in their place."""
        fit_key, draw_key, sim_key, key = random.split(state.rng_key, 4)
        proposal = self.fit_proposal(state, fit_key)
        new = self.simulate(proposal, num, (draw_key, sim_key))
        if keeps:
            return state.with_draws(proposal, new)._replace(rng_key=key)
        return state._replace(
            draws=new,
            log_proposals=proposal.log_prob(new)[None],
            counts=np.array([num]),
            proposals=(proposal,),
            rng_key=key,
        )
