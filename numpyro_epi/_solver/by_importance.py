# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A law by importance sampling, judged by draws that have chosen nothing of it."""

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

# Draws of the verdict at first and at most, as shares of a search's size.
VERDICT, MAX_VERDICT = 0.4, 3.2
# Simulations of importance sampling in all, as shares of the same: at the end of it a
# verdict is what it is. Of dear ones there are fewer.
BUDGET, DEAR_BUDGET = 20.0, 8.0
# Verdicts, of which the next has all that the last one has simulated.
MAX_VERDICTS = 4
# Effective draws of the verdict for each constraint.
MIN_ESS = 400.0


def settle_population(
    population: Population,
    state: PopulationState,
    rng_key: jax.Array,
    standard: Standard,
    size: int,
) -> Law:
    """The law by fresh draws; those that tell against it improve it for others."""
    for i in range(MAX_VERDICTS):
        key = random.fold_in(rng_key, i)
        is_last = i + 1 == MAX_VERDICTS
        law, state = _judge_population(
            population, state, key, standard, size, is_last=is_last
        )
        is_spent = draws_left(population, size) <= 0
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
    *,
    is_last: bool,
) -> tuple[Law, PopulationState]:
    """Fresh draws of a proposal, until they show that the law is met, or that not.

    Or until more of them would hardly show it: those that there are choose better
    multipliers, unless this is the last verdict.
    """
    fit_key, key = random.split(rng_key)
    proposal = population.fit_proposal(state, fit_key)
    lam = state.position.multipliers
    draws: Draws | None = None
    num = int(VERDICT * size)
    most = min(int(MAX_VERDICT * size), draws_left(population, size))
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
        least_error = error * min(1.0, np.sqrt(draws.num / max(most, 1)))
        is_enough |= not (is_last or standard.is_met(violation, least_error, noise))
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


def draws_left(population: Population, size: int) -> int:
    """How many more draws the budget has simulations for."""
    simulator = population.simulator
    spent = simulator.num_simulations - population.num_before
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
