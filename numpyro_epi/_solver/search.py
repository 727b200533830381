# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The search for the law of a model.

Of a few latents importance sampling finds it (`population`), of many Markov chains
(`particles`). The verdict is of draws that have chosen neither multipliers nor path.
"""

from collections.abc import Callable

import jax
from jax import random

from numpyro_epi._solver.by_chains import NUM_GROUPS, run_chains
from numpyro_epi._solver.by_importance import settle_population
from numpyro_epi._solver.draws import Simulator
from numpyro_epi._solver.law import MAX_LAG, Law, Standard
from numpyro_epi._solver.particles import Particles
from numpyro_epi._solver.population import Population

# Latents up to which importance sampling is tried first.
MAX_IMPORTANCE_LATENTS = 12
# Draws of a round, and particles of chains, as shares of a search's size.
ROUND, PARTICLES = 0.2, 0.1
# Particles of a group of the second population at least.
MIN_GROUP = 10
# Nats below zero that a divergence may seem to have.
MIN_NATS = 0.05


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
    found, keys = None, random.split(rng_key, 3)
    is_narrow = simulator.problem.num_latents <= MAX_IMPORTANCE_LATENTS
    if is_narrow or simulator.num_repeats > 1:
        population = Population(simulator, int(ROUND * size))
        state = population.init(keys[0])
        is_quiet = state.draws.is_quiet
        while (is_narrow or not is_quiet) and not (state.is_done or state.is_stalled):
            state = population.advance(state)
        if state.is_done:
            state = population.refine(state)
        if state.is_done or not is_quiet:
            found = settle_population(population, state, keys[1], standard, size)
            if found.converged or not is_quiet:
                return found
    num = NUM_GROUPS * max(int(PARTICLES * size) // NUM_GROUPS, MIN_GROUP)
    particles = Particles(simulator, choose_kind(), num)
    law = run_chains(particles, rng_key, standard)
    if is_narrow and law.is_at_the_targets and not law.converged:
        # Log Z along a path lags more than the draws at its end: those show the way.
        population = Population(simulator, int(ROUND * size))
        state = population.at(law.pool, law.multipliers, keys[2])
        again = settle_population(population, state, keys[1], standard, size)
        law = again if again.converged else law
    is_better = law.converged or found is None or not found.is_usable
    return law if is_better or found is None else found
