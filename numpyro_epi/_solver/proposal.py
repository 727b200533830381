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
from math import lgamma, log, pi
from typing import NamedTuple

import jax
import numpy as np
from jax import random

from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._solver.draws import Draws

# Neighbours of a centre for each latent.
NUM_NEIGHBOURS = 5
# Degrees of freedom of the tails.
FREEDOM = 5
# Squared width of a kernel in units of the local covariance.
WIDTH = 0.5
# Points whose density is taken at once: what a cache holds.
CHUNK = 200
# Of the prior in a mixture.
PRIOR_SHARE = 0.05


class LocalMixture(NamedTuple):
    """A multivariate t around each centre.

    Attributes:
        weights: of the centres, shape (m,).
        centres: shape (m, D).
        factors: lower Cholesky factors of the scales, shape (m, D, D).
    """

    weights: np.ndarray
    centres: np.ndarray
    factors: np.ndarray

    @classmethod
    def fit(cls, u: np.ndarray) -> "LocalMixture":
        """Around draws u, shape (n, D), resampled ones: a repeated draw weighs more."""
        u, counts = np.unique(np.asarray(u, np.float64), axis=0, return_counts=True)
        sd = np.maximum(u.std(axis=0), 1e-6)
        factors = sd[:, None] * np.linalg.cholesky(_local_covariances(u / sd))
        return cls(counts / counts.sum(), u, factors)

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Draws, shape (num, D), from each centre as often as its weight says."""
        dim = self.centres.shape[1]
        rows = systematic_resample(self.weights, num, rng.uniform())
        normal = rng.normal(size=(num, dim))
        chi = rng.chisquare(FREEDOM, size=(num, 1)) / FREEDOM
        steps = np.einsum("nij,nj->ni", self.factors[rows], normal / np.sqrt(chi))
        return rng.permutation(self.centres[rows] + steps)

    def log_prob(self, u: np.ndarray) -> np.ndarray:
        """Log density at u, shape (n, D), float64; at least that of 1e-300."""
        dim = self.centres.shape[1]
        loc = self.centres.mean(axis=0)
        forms = self._quadratic_forms(loc)
        diagonals = np.diagonal(self.factors, axis1=1, axis2=2)
        log_heights = np.log(self.weights) - np.log(diagonals).sum(axis=1)
        top = log_heights.max()
        heights = np.exp(log_heights - top)
        u = np.asarray(u, np.float64) - loc
        density = [
            # Whole powers: a tenth of the time that logarithms take.
            _power(1.0 / np.sqrt(np.maximum(_monomials(part) @ forms, 1.0)), dim)
            @ heights
            for part in (u[i : i + CHUNK] for i in range(0, len(u), CHUNK))
        ]
        constant = (
            lgamma((FREEDOM + dim) / 2)
            - lgamma(FREEDOM / 2)
            - 0.5 * dim * log(FREEDOM * pi)
        )
        return top + constant + np.log(np.maximum(np.concatenate(density), 1e-300))

    def _quadratic_forms(self, loc: np.ndarray) -> np.ndarray:
        """Coefficients of 1 + x' P x / FREEDOM about each centre, (monomials, m).

        One product with monomials of draws less `loc` gives it for all pairs of them.
        """
        dim = self.centres.shape[1]
        inverses = np.linalg.inv(self.factors)
        precisions = np.swapaxes(inverses, 1, 2) @ inverses / FREEDOM
        at = self.centres - loc
        linear = np.einsum("mij,mj->mi", precisions, at)
        constant = 1.0 + np.einsum("mi,mi->m", linear, at)
        i, j = np.triu_indices(dim)
        squares = precisions[:, i, j] * np.where(i == j, 1.0, 2.0)
        return np.column_stack([squares, -2.0 * linear, constant]).T.copy()


def _monomials(x: np.ndarray) -> np.ndarray:
    """Products of pairs of coordinates, coordinates, and one, shape (n, monomials)."""
    i, j = np.triu_indices(x.shape[1])
    return np.column_stack([x[:, i] * x[:, j], x, np.ones(len(x))])


def _power(x: np.ndarray, dim: int) -> np.ndarray:
    """The power FREEDOM + dim of x, by squaring; x is overwritten."""
    exponent, result = FREEDOM + dim, np.ones(())
    while exponent:
        if exponent % 2:
            result = result * x
        exponent //= 2
        x *= x
    return result


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


class DefensiveMixture(NamedTuple):
    """A local mixture with a share of what a search starts from: mostly the prior.

    Attributes:
        local: around draws of the law.
    """

    local: LocalMixture

    def sample(
        self,
        rng_key: jax.Array,
        num: int,
        prior_draws: Callable[[jax.Array, int], np.ndarray],
    ) -> np.ndarray:
        """Draws, shape (num, D); those of the prior come last.

        Args:
            rng_key: random key.
            num: of draws.
            prior_draws: function of a key and a number n that draws the prior, (n, D).
        """
        keys = random.split(rng_key)
        rng = np.random.default_rng(np.asarray(random.key_data(keys[0])))
        num_prior = int(PRIOR_SHARE * num)
        local = self.local.sample(rng, num - num_prior)
        prior = prior_draws(keys[1], num_prior)
        return np.concatenate([local.astype(prior.dtype), prior])

    def log_prob(self, draws: Draws) -> np.ndarray:
        """Log density of simulated draws, shape (n,)."""
        local = self.local.log_prob(draws.u)
        return np.logaddexp(
            np.log1p(-PRIOR_SHARE) + local, np.log(PRIOR_SHARE) + draws.log_start
        )
