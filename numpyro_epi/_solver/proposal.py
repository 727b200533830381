# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A proposal that follows the shape of particles: a local Gaussian around each.

The covariance around a particle is that of its nearest neighbours, so that a ridge, a
ring or an island has proposals along itself (adaptive kernels: Givens & Raftery, Local
adaptive importance sampling for multivariate densities with strong nonlinear
relationships, JASA 1996). Tails are those of Student's t, and a share comes from the
prior (defensive mixture: Hesterberg 1995).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import gammaln, logsumexp

from numpyro_epi._solver.draws import Draws

# Neighbours of a centre for each latent.
NUM_NEIGHBOURS = 5
# Degrees of freedom of the tails.
FREEDOM = 5.0
# Squared width of a kernel in units of the local covariance.
WIDTH = 0.5
CHUNK = 500
# Of the prior in a mixture.
PRIOR_SHARE = 0.05


class LocalMixture(NamedTuple):
    """A multivariate t around each centre; their number is fixed, for the compiler.

    Attributes:
        log_weights: of the centres, shape (m,); -inf for those that fill up.
        centres: shape (m, D).
        factors: lower Cholesky factors of the scales, shape (m, D, D).
        inverses: of the factors, shape (m, D, D).
    """

    log_weights: np.ndarray
    centres: np.ndarray
    factors: np.ndarray
    inverses: np.ndarray

    @classmethod
    def fit(cls, u: np.ndarray, num_centres: int) -> "LocalMixture":
        """Around draws u, shape (n, D), resampled ones: a repeated draw weighs more."""
        rows = np.linspace(0, len(u) - 1, min(len(u), num_centres)).astype(int)
        u, counts = np.unique(
            np.asarray(u, np.float64)[rows], axis=0, return_counts=True
        )
        num, dim = u.shape
        sd = np.maximum(u.std(axis=0), 1e-6)
        factors = sd[:, None] * np.linalg.cholesky(_local_covariances(u / sd))
        fill = np.arange(num_centres) % num
        log_weights = np.where(
            np.arange(num_centres) < num, np.log(counts / counts.sum())[fill], -np.inf
        )
        parts = (log_weights, u[fill], factors[fill], np.linalg.inv(factors)[fill])
        dtype = jnp.result_type(float)
        return cls(*(np.asarray(part, dtype) for part in parts))

    def sample(self, rng_key: jax.Array, num: int) -> jax.Array:
        """Draws, shape (num, D), from each centre as often as its weight says."""
        return _sample(self, rng_key, num)

    def log_prob(self, u: jax.Array) -> np.ndarray:
        """Log density at u, shape (n, D), float64."""
        return np.asarray(_log_prob(self, jnp.asarray(u)), np.float64)


def _local_covariances(x: np.ndarray) -> np.ndarray:
    """Of the neighbours of each point, about the point, shape (n, D, D)."""
    num, dim = x.shape
    size = min(NUM_NEIGHBOURS * dim + 5, num)
    norms = (x**2).sum(axis=1)
    distances = norms[:, None] + norms - 2.0 * x @ x.T
    near = np.argpartition(distances, size - 1, axis=1)[:, :size]
    away = x[near] - x[:, None]
    local = np.einsum("mki,mkj->mij", away, away) / size
    trace = np.trace(local, axis1=1, axis2=2)[:, None, None] / dim
    return WIDTH * (local + 1e-3 * trace * np.eye(dim)) + 1e-12 * np.eye(dim)


@partial(jax.jit, static_argnums=2)
def _sample(mixture: LocalMixture, rng_key: jax.Array, num: int) -> jax.Array:
    keys = random.split(rng_key, 4)
    dim = mixture.centres.shape[1]
    positions = (jnp.arange(num) + random.uniform(keys[0])) / num
    edges = jnp.cumsum(jnp.exp(mixture.log_weights))
    rows = jnp.searchsorted(edges / edges[-1], positions)
    rows = random.permutation(keys[1], rows)
    normal = random.normal(keys[2], (num, dim))
    chi = random.chisquare(keys[3], FREEDOM, (num, 1)) / FREEDOM
    factors, centres = mixture.factors[rows], mixture.centres[rows]
    return centres + jnp.einsum("nij,nj->ni", factors, normal / jnp.sqrt(chi))


@jax.jit
def _log_prob(mixture: LocalMixture, u: jax.Array) -> jax.Array:
    dim = mixture.centres.shape[1]
    log_det = jnp.log(jnp.diagonal(mixture.factors, axis1=1, axis2=2)).sum(axis=1)
    constant = (
        gammaln((FREEDOM + dim) / 2)
        - gammaln(FREEDOM / 2)
        - 0.5 * dim * jnp.log(FREEDOM * jnp.pi)
    )

    def one(v: jax.Array) -> jax.Array:
        white = jnp.einsum("mij,mj->mi", mixture.inverses, v - mixture.centres)
        power = -0.5 * (FREEDOM + dim) * jnp.log1p((white**2).sum(axis=1) / FREEDOM)
        return logsumexp(power - log_det + mixture.log_weights) + constant

    return lax.map(one, u, batch_size=CHUNK)


class DefensiveMixture(NamedTuple):
    """A local mixture with a share of what a search starts from: the prior if it is proper.

    Attributes:
        local: around draws of the law.
        prior_draws: function of a key and a number n that draws the prior, (n, D).
    """

    local: LocalMixture
    prior_draws: Callable[[jax.Array, int], np.ndarray]

    def sample(self, rng_key: jax.Array, num: int) -> np.ndarray:
        """Draws, shape (num, D); those of the prior come last."""
        keys = random.split(rng_key)
        num_prior = int(PRIOR_SHARE * num)
        local = self.local.sample(keys[0], num - num_prior)
        prior = self.prior_draws(keys[1], num_prior)
        return np.concatenate([np.asarray(local), prior])

    def log_prob(self, draws: Draws) -> np.ndarray:
        """Log density of simulated draws, shape (n,)."""
        local = self.local.log_prob(jnp.asarray(draws.u, float))
        return np.logaddexp(
            np.log1p(-PRIOR_SHARE) + local, np.log(PRIOR_SHARE) + draws.log_start
        )
