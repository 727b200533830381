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
from numpyro_epi._solver.draws import Draws, Simulator
from numpyro_epi._solver.path import Position, move_on
from numpyro_epi._solver.proposal import DefensiveMixture, LocalMixture

# Draws of a round, share of them that must stay effective along the path, and rounds
# whose draws are used.
ROUND_SIZE, ESS_SHARE, WINDOW = 2000, 0.2, 3
# Centres of a local mixture.
NUM_CENTRES = 500
# Rounds at the wanted targets, in which the proposal settles there.
NUM_LAST = 2
# Rounds without a tenth of what was left: importance sampling leads no farther.
MAX_STALLED, PROGRESS = 5, 0.9


class PopulationState(NamedTuple):
    """Weighted draws on their way.

    Attributes:
        draws: of the last rounds.
        log_proposals: log density of each under the proposal of each round, (J, n).
        counts: draws of each round, shape (J,).
        proposals: of these rounds; None is the prior.
        position: of the law that their weights are for.
        num_last: rounds at the wanted targets.
        num_stalled: rounds without progress.
        rng_key: of the next round.
    """

    draws: Draws
    log_proposals: np.ndarray
    counts: np.ndarray
    proposals: tuple[DefensiveMixture | None, ...]
    position: Position
    num_last: int
    num_stalled: int
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
        return self.num_stalled >= MAX_STALLED


def init(simulator: Simulator, rng_key: jax.Array) -> PopulationState:
    """Draws of the prior."""
    draw_key, sim_key, key = random.split(rng_key, 3)
    problem = simulator.problem
    draws = simulator(simulator.prior_draws(draw_key, ROUND_SIZE), sim_key)
    num = simulator.table.num_constraints
    start = draws.deviations[draws.is_valid].mean(axis=0)
    position = Position(
        0.0 if problem.has_likelihood else 1.0, 1.0, np.zeros(num), start
    )
    counts = np.array([ROUND_SIZE])
    return PopulationState(
        draws, draws.log_prior[None], counts, (None,), position, 0, 0, key
    )


def advance(simulator: Simulator, state: PopulationState) -> PopulationState:
    """One round: move on along the path, then draw and simulate there."""
    before = state.position
    has_var = simulator.table.has_var
    wanted = ESS_SHARE * ROUND_SIZE
    position = move_on(before, state.draws, state.log_q, has_var, wanted)
    state = state._replace(
        position=position, num_last=state.num_last + position.is_at_the_law
    )
    has_moved = (
        position.is_at_the_law
        or position.distance < PROGRESS * before.distance
        or position.temperature > before.temperature + 0.1 * (1 - before.temperature)
        or position.temperature > before.temperature / PROGRESS
    )
    state = state._replace(num_stalled=0 if has_moved else state.num_stalled + 1)
    fit_key, draw_key, sim_key, key = random.split(state.rng_key, 4)
    proposal = fit_proposal(simulator, state, fit_key)
    draws = simulator(proposal.sample(draw_key, ROUND_SIZE), sim_key)
    return _add(state, proposal, draws)._replace(rng_key=key)


def refine(simulator: Simulator, state: PopulationState) -> PopulationState:
    """The multipliers once more, with another and larger round at the law."""
    fit_key, draw_key, sim_key, key = random.split(state.rng_key, 4)
    proposal = fit_proposal(simulator, state, fit_key)
    draws = simulator(proposal.sample(draw_key, 2 * ROUND_SIZE), sim_key)
    state = _add(state, proposal, draws)._replace(rng_key=key)
    has_var = simulator.table.has_var
    position = move_on(state.position, state.draws, state.log_q, has_var, 0.0)
    return state._replace(position=position)


def fit_proposal(
    simulator: Simulator, state: PopulationState, rng_key: jax.Array
) -> DefensiveMixture:
    """A local mixture around the weighted draws, with a share of the prior."""
    weights = normalize_log_weights(state.log_weights)
    offset = float(random.uniform(rng_key))
    rows = systematic_resample(weights, NUM_CENTRES, offset)
    mixture = LocalMixture.fit(state.draws.u[rows], NUM_CENTRES)
    return DefensiveMixture(mixture, simulator.prior_draws)


def _add(
    state: PopulationState, proposal: DefensiveMixture, draws: Draws
) -> PopulationState:
    """Add a round and forget the oldest, if there are too many."""
    proposals = (*state.proposals, proposal)
    old = np.concatenate([state.log_proposals, proposal.log_prob(state.draws)[None]])
    new = np.stack(
        [draws.log_prior if q is None else q.log_prob(draws) for q in proposals]
    )
    both, counts = state.draws.join(draws), np.append(state.counts, draws.num)
    rows = np.concatenate([old, new], axis=1)
    if len(proposals) > WINDOW:
        kept = np.arange(counts[0], both.num)
        both, rows = both.take(kept), rows[1:, kept]
        proposals, counts = proposals[1:], counts[1:]
    return state._replace(
        draws=both, log_proposals=rows, counts=counts, proposals=proposals
    )
