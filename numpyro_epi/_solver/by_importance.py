# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A law by importance sampling, judged by draws that have chosen nothing of it."""

from typing import NamedTuple

import jax
import numpy as np
from jax import random

from numpyro_epi._math.importance import effective_sample_size, normalize_log_weights
from numpyro_epi._math.psis import MAX_KHAT, pareto_smooth
from numpyro_epi._solver.draws import Draws
from numpyro_epi._solver.law import Law, Standard
from numpyro_epi._solver.population import (
    Population,
    PopulationState,
    noise_bias,
)
from numpyro_epi._solver.proposal import DefensiveMixture

# Draws of the verdict at first and at most, as shares of a search's size.
VERDICT, MAX_VERDICT = 0.4, 3.2
# Simulations of importance sampling in all, as shares of the same: at the end of it a
# verdict is what it is. Of dear ones there are fewer.
BUDGET, DEAR_BUDGET = 20.0, 8.0
# Verdicts, of which the next has all that the last one has simulated.
MAX_VERDICTS = 4
# Effective draws of the verdict for each constraint.
MIN_ESS = 400.0


class Verdict(NamedTuple):
    """Fresh draws, which have chosen nothing of the law that they judge.

    Attributes:
        attempt: number of verdicts on the same law before.
        proposal: from which they come.
        draws: so far, None before the first.
        most: of them.
        rng_key: of the next ones.
    """

    attempt: int
    proposal: DefensiveMixture
    draws: Draws | None
    most: int
    rng_key: jax.Array

    @property
    def is_last(self) -> bool:
        """Whether it is what it is."""
        return self.attempt + 1 == MAX_VERDICTS


def start_verdict(
    population: Population,
    state: PopulationState,
    rng_key: jax.Array,
    size: int,
    attempt: int = 0,
) -> Verdict:
    """A verdict on the multipliers of a population.

    Args:
        population: of the model.
        state: of the population.
        rng_key: of all verdicts on it.
        size: of the search.
        attempt: number of verdicts before.
    """
    fit_key, key = random.split(random.fold_in(rng_key, attempt))
    proposal = population.fit_proposal(state, fit_key)
    most = min(int(MAX_VERDICT * size), draws_left(population, state, size))
    return Verdict(attempt, proposal, None, most, key)


def advance_verdict(
    population: Population,
    state: PopulationState,
    verdict: Verdict,
    standard: Standard,
    size: int,
) -> tuple[Verdict, Law | None, PopulationState]:
    """More fresh draws, twice as many in all; and the law where these are enough.

    They are where they show that the law is met, or that not, or where even more of
    them would hardly show it. What they leave open, or tell against, is for another
    verdict: they choose better multipliers, which are those of the new state.
    """
    first_key, key = random.split(verdict.rng_key)
    old, lam = verdict.draws, state.position.multipliers
    num = int(VERDICT * size) if old is None else old.num
    more = population.simulate(verdict.proposal, num, tuple(random.split(first_key)))
    draws = more if old is None else old.join(more)
    verdict = verdict._replace(draws=draws, rng_key=key)
    log_q = verdict.proposal.log_prob(draws)
    log_w = draws.log_density(1.0, lam) - log_q
    weights = normalize_log_weights(log_w)
    violation, error, noise = violation_of(draws, log_q, lam)
    ess = effective_sample_size(weights)
    is_enough = standard.is_met(violation, error, noise) and ess >= MIN_ESS * lam.size
    is_enough |= standard.is_missed(violation, error) or not state.is_done
    least_error = error * min(1.0, np.sqrt(draws.num / max(verdict.most, 1)))
    is_enough |= not (verdict.is_last or standard.is_met(violation, least_error, noise))
    if not is_enough and 2 * draws.num <= verdict.most:
        return verdict, None, state
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
    state = state.with_draws(verdict.proposal, draws)
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
    return verdict, law, state


def is_final(
    population: Population,
    state: PopulationState,
    verdict: Verdict,
    law: Law,
    size: int,
) -> bool:
    """Whether a law is not worth another verdict, or there is none left."""
    is_spent = draws_left(population, state, size) <= 0
    return law.converged or not law.is_at_the_targets or is_spent or verdict.is_last


def draws_left(population: Population, state: PopulationState, size: int) -> int:
    """How many more draws the budget has simulations for."""
    simulator = population.simulator
    spent = simulator.num_simulations - state.num_before
    budget = DEAR_BUDGET if simulator.problem.cost.is_dear else BUDGET
    return int((budget * size - spent) / simulator.num_repeats)


def violation_of(
    draws: Draws, log_q: np.ndarray, multipliers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E[T] of draws weighted to a law, its standard errors, and its bias by noise."""
    weights = normalize_log_weights(draws.log_density(1.0, multipliers) - log_q)
    values = draws.deviations + draws.noise_shift(1.0, multipliers)
    violation = weights @ values
    error = np.sqrt(weights**2 @ (values - violation) ** 2)
    return violation, error, np.abs(noise_bias(draws, log_q, multipliers))
