# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Importance weights of draws from several proposals."""

from dataclasses import dataclass

import numpy as np


def normalize_log_weights(log_weights: np.ndarray) -> np.ndarray:
    """Weights that sum to one, shape (n,); -inf is allowed, NaN is not."""
    log_weights = np.asarray(log_weights, np.float64)
    weights = np.exp(log_weights - np.max(log_weights))
    return weights / weights.sum()


def effective_sample_size(weights: np.ndarray) -> float:
    """Kish's `(sum w)^2 / sum w^2`: how many equal draws they are worth."""
    weights = np.asarray(weights, np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def mixture_log_density(log_proposals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Log density of the mixture from which a pool was drawn (balance heuristic).

    Weights against the mixture of all proposals, each in proportion to its draws, have
    a variance no larger than weights against each draw's own proposal (Veach & Guibas,
    Optimally combining sampling techniques for Monte Carlo rendering, 1995, eq. 8;
    Cornuet et al., Adaptive multiple importance sampling, 2012, eq. 3).

    Args:
        log_proposals: log density of each draw under each proposal, shape (J, ..., n).
        counts: number of draws from each proposal, shape (J,).

    Returns:
        Shape (..., n).
    """
    counts = np.asarray(counts, np.float64)
    log_terms = np.asarray(log_proposals, np.float64)
    log_share = np.log(counts / counts.sum())
    log_terms = log_terms + log_share.reshape((-1,) + (1,) * (log_terms.ndim - 1))
    top = log_terms.max(axis=0)
    return top + np.log(np.exp(log_terms - top).sum(axis=0))


def systematic_resample(
    weights: np.ndarray, num_draws: int, offset: float
) -> np.ndarray:
    """Indices of draws in proportion to their weights, with the least variance.

    Args:
        weights: non-negative, sum to one, shape (n,).
        num_draws: number of indices.
        offset: a uniform random number in [0, 1).

    Returns:
        Sorted indices, shape (num_draws,).
    """
    positions = (np.arange(num_draws) + offset) / num_draws
    edges = np.cumsum(weights)
    return np.minimum(np.searchsorted(edges, positions), len(weights) - 1)


@dataclass(frozen=True)
class GaussianProposal:
    """A Gaussian with the moments of weighted draws, a little wider.

    Attributes:
        mean: shape (D,).
        factor: lower Cholesky factor of the covariance, shape (D, D).
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def from_draws(
        cls, draws: np.ndarray, weights: np.ndarray, widening: float = 1.3
    ) -> "GaussianProposal":
        """Weighted mean, and covariance times `widening`.

        Correlations shrink to zero in proportion to D against the effective number of
        draws, which keeps the covariance regular.

        Args:
            draws: shape (n, D).
            weights: non-negative, sum to one, shape (n,).
            widening: factor of the covariance.
        """
        draws = np.asarray(draws, np.float64)
        mean = weights @ draws
        centred = draws - mean
        cov = (centred * weights[:, None]).T @ centred
        dim = mean.size
        shrink = dim / (dim + effective_sample_size(weights))
        diagonal = np.diag(np.maximum(np.diag(cov), 1e-12 * (1.0 + mean**2)))
        cov = (1.0 - shrink) * cov + shrink * diagonal
        cov[np.diag_indices(dim)] = np.diag(diagonal)
        return cls(mean, np.linalg.cholesky(widening * cov))

    def move(self, noise: np.ndarray) -> np.ndarray:
        """Draws from standard normal numbers, shape (n, D)."""
        return self.mean + noise @ self.factor.T

    def log_prob(self, draws: np.ndarray) -> np.ndarray:
        """Log density, shape (n,), of draws of shape (n, D)."""
        z = np.linalg.solve(self.factor, (draws - self.mean).T)
        log_det = np.log(np.diag(self.factor)).sum()
        dim = self.mean.size
        return -0.5 * (z**2).sum(axis=0) - log_det - 0.5 * dim * np.log(2.0 * np.pi)
