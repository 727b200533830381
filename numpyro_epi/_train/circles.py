# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Where are circles cut? Where the law is rare, as weighted simulations tell.

A flow whose law lies across the cut of a circle has two halves at the ends of its
coordinate. So, before anything else, draws are simulated and weighted to the targets,
as a search for the law begins. One half comes from the prior, in the other half the
angles with a fixed prior are uniform: a law may lie where its prior is rare. Weights
may be rough, since nothing but the place of a cut depends on them.
"""

from typing import Any

import jax
import numpy as np

from numpyro_epi._charts import Charted, find_centre
from numpyro_epi._math.importance import mixture_log_density, normalize_log_weights
from numpyro_epi._model.problem import Problem
from numpyro_epi._sites import Latent
from numpyro_epi._solver.draws import Draws
from numpyro_epi._solver.path import Position, move_on
from numpyro_epi._train.chunks import Chunks
from numpyro_epi._train.options import Options
from numpyro_epi._train.status import plain_solver_errors

# Most draws, and how many of them the weights must be worth on the way to the targets.
NUM_DRAWS, MIN_ESS = 4000, 50.0


def cut_circles(problem: Problem, guide: Any, options: Options) -> None:
    """Cut the circles of a problem where the law is rare.

    A guide that has met its model has cut them already: there they stay.
    """
    circles = [site for site in problem.sites if site.centre is not None]
    if not circles:
        return
    met = getattr(guide, "prototype_trace", None)
    if met is not None:
        priors = {s.name: met[s.name]["fn"] for s in circles if s.name in met}
        problem.cut_circles(
            {
                name: prior.centre if isinstance(prior, Charted) else 0.0
                for name, prior in priors.items()
            }
        )
        return
    with plain_solver_errors():
        u, weights = _weighted_draws(problem, circles, options)
    latents, _ = problem.constrain_draws(u)
    found = {}
    for site in circles:
        angles = np.asarray(latents[site.name]).reshape(len(u), -1)
        found[site.name] = find_centre(angles, weights).reshape(site.shape)
    problem.cut_circles(found)


def _weighted_draws(
    problem: Problem, circles: list[Latent], options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Draws u, shape (n, D), with weights that bring them to the targets, or nearer."""
    num = min(NUM_DRAWS, 2 * options.warm_start_size)
    # The same in every run, so that the key of a run alone decides on its result.
    keys = jax.random.split(jax.random.key(0), 3)[:, None]
    # Neither prior draws nor simulations ask for a guide.
    chunks = Chunks(problem, None, num, options.num_particles)  # type: ignore[arg-type]
    u = chunks.prior_draws(keys[0], num)
    half = num // 2
    u[0, half:] = _spread(problem, circles, u[0, half:], keys[1, 0])
    sim = chunks.simulate(u, keys[2])
    problem.num_pilot_simulations = num
    stats, log_lik = sim.stats[0], sim.log_likelihood[0]
    is_valid = np.isfinite(stats).all(axis=-1) & np.isfinite(log_lik)
    log_ratio = _log_ratio(problem, circles, u[0])
    is_valid &= np.isfinite(sim.log_prior[0] + log_ratio)
    if not is_valid.any():
        return u[0], np.ones(num)
    table = problem.table.with_scale(stats[is_valid])
    devs = table.deviations(np.where(is_valid[:, None], stats, 0.0))
    log_prior = np.where(is_valid, sim.log_prior[0], 0.0)
    known_lik = np.where(is_valid, log_lik, 0.0)
    draws = Draws(u[0], log_prior, log_prior, known_lik[None], devs[None], is_valid)
    rows = np.stack([log_prior, log_prior - np.where(is_valid, log_ratio, 0.0)])
    log_q = mixture_log_density(rows, np.array([half, num - half]))
    here = Position.start_of(draws, problem)
    for _ in range(2):  # the data, then the targets
        here = move_on(here, draws, log_q, MIN_ESS)
    log_w = draws.log_density(here.temperature, here.multipliers) - log_q
    return u[0], normalize_log_weights(log_w)


def _spread(
    problem: Problem, circles: list[Latent], u: np.ndarray, key: jax.Array
) -> np.ndarray:
    """Draws whose angles with a fixed prior are replaced by uniform ones."""
    uniform = jax.random.uniform(key, u.shape, minval=1e-6, maxval=1.0 - 1e-6)
    logits = np.asarray(jax.scipy.special.logit(uniform))
    names = [site.name for site in _fixed(circles)]
    spread, start = u.copy(), 0
    for site in problem.sites:
        stop = start + site.num_coordinates
        if site.name in names:
            spread[:, start:stop] = logits[:, start:stop]
        start = stop
    return spread


def _log_ratio(problem: Problem, circles: list[Latent], u: np.ndarray) -> np.ndarray:
    """Log density of the angles that are spread, over that of uniform ones; (n,)."""
    latents, _ = problem.constrain_draws(u)
    total = np.zeros(len(u))
    for site in _fixed(circles):
        terms = site.prior.log_prob(latents[site.name])
        total += np.asarray(terms, np.float64).reshape(len(u), -1).sum(axis=1)
        total += site.num_coordinates * np.log(2 * np.pi)
    return total


def _fixed(circles: list[Latent]) -> list[Latent]:
    return [site for site in circles if site.is_fixed and site.has_density]
