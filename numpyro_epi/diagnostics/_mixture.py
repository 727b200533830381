# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws from a defensive mixture, and their weights under any tilt.

A third each comes from the prior, from the guide as it was after the warm start, and
from the trained guide. Every draw is weighted against the whole mixture, so a mode that
the trained guide has lost still counts wherever one of the others has mass (Hesterberg,
Weighted average importance sampling and defensive mixture distributions, 1995).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._checks import as_key, describe
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.importance import mixture_log_density
from numpyro_epi.result import EPIResult

# Simulations of each draw where statistics are noisy.
NUM_REPEATS = 32


class MixtureDraws(NamedTuple):
    """Independent draws of the mixture, simulated.

    Attributes:
        u: unconstrained draws, shape (n, D).
        log_mixture: log density of the mixture at u, shape (n,).
        log_prior: of u, shape (n,).
        log_likelihood: shape (n,); averaged over simulations.
        statistics: shape (m, n, S), from m simulations of each draw.
        is_valid: draws all of whose simulations are finite, shape (n,).
        num_components: proposals in the mixture.
    """

    u: np.ndarray
    log_mixture: np.ndarray
    log_prior: np.ndarray
    log_likelihood: np.ndarray
    statistics: np.ndarray
    is_valid: np.ndarray
    num_components: int

    @property
    def log_weights(self) -> np.ndarray:
        """Log weights against prior times likelihood; -inf for failed simulations."""
        log_w = self.log_prior + self.log_likelihood - self.log_mixture
        return np.where(self.is_valid & np.isfinite(log_w), log_w, -np.inf)

    def deviations(self, table: ConstraintTable) -> tuple[np.ndarray, np.ndarray]:
        """Average T, shape (n, K), and the covariance of the averages, (n, K, K).

        In scaled units, zero for failed simulations. Of one simulation, that is of a
        deterministic statistic, the covariance is zero.
        """
        stats = np.where(self.is_valid[:, None], self.statistics, 0.0)
        devs = np.where(self.is_valid[:, None], table.deviations(stats), 0.0)
        mean, num = devs.mean(axis=0), len(devs)
        if num == 1:
            return mean, np.zeros((*mean.shape, mean.shape[1]))
        centred = devs - mean
        covariance = np.einsum("snj,snk->njk", centred, centred) / (num * (num - 1))
        return mean, covariance


def draw_mixture(result: EPIResult, rng_key: Any, num_samples: int) -> MixtureDraws:
    """Draw and simulate; about `num_samples` draws, in equal parts from each proposal.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if `num_samples` is below 100.
        NotImplementedError: if the guide has no density at given points.
    """
    rng_key = as_key(rng_key)
    is_int = isinstance(num_samples, (int, np.integer))
    if not is_int or isinstance(num_samples, bool) or num_samples < 100:
        raise ValueError(
            "`num_samples` must be an integer of at least 100, because a tail is "
            f"fitted to the weights, but got {describe(num_samples)}."
        )
    engine, best = result._engine, result.best
    if not engine.guide.has_density:
        raise NotImplementedError(
            f"The guide {engine.guide.name} has no density at a given point, so draws "
            "cannot be weighted. Use `numpyro_epi.guides.AutoRealNVP`."
        )

    def one(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[best : best + 1], tree)

    keys = random.split(rng_key, 4)
    proposals = [one(result.state.average)]
    cover = one(result.state.cover)
    differs = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), cover, proposals[0])
    if any(jax.tree.leaves(differs)):
        proposals.append(cover)
    has_prior = engine.problem.can_sample_prior
    num = -(-int(num_samples) // (len(proposals) + has_prior))
    parts = [
        engine.chunks.draws(params, key[None], num)[0][0]
        for params, key in zip(proposals, keys, strict=False)
    ]
    if has_prior:
        parts.append(engine.chunks.prior_draws(keys[2][None], num)[0])
    u = np.concatenate(parts)
    log_q = [engine.chunks.log_q(params, u[None])[0] for params in proposals]
    sims = [
        engine.chunks.simulate(u[None], key[None])
        for key in random.split(keys[3], NUM_REPEATS if result.is_noisy else 1)
    ]
    log_prior = np.asarray(sims[0].log_prior[0], np.float64)
    rows = np.stack(log_q + [log_prior] * has_prior).astype(np.float64)
    stats = np.stack([np.asarray(sim.stats[0], np.float64) for sim in sims])
    log_lik = np.stack([np.asarray(sim.log_likelihood[0], np.float64) for sim in sims])
    finite = np.isfinite(stats).all(axis=(0, 2))
    finite = np.asarray(finite & np.isfinite(log_lik).all(axis=0))
    return MixtureDraws(
        u,
        mixture_log_density(rows, np.full(len(rows), num)),
        log_prior,
        log_lik.mean(axis=0),
        stats,
        finite,
        len(rows),
    )
