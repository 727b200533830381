# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Pareto-smoothed importance sampling: can a set of weights be trusted?

The largest weights are compared with a generalised Pareto law, whose shape k-hat tells
how heavy their tail is: below 0.7 an average over them converges at a useful rate
(Vehtari, Simpson, Gelman, Yao & Gabry, Pareto smoothed importance sampling, JMLR 2024,
arXiv:1507.02646).
"""

from typing import NamedTuple

import numpy as np

# Fewer weights than this in the tail tell nothing about it.
MIN_TAIL = 5
# Above it, averages over the weights cannot be trusted (Vehtari et al., section 3.3).
MAX_KHAT = 0.7
# The shape has no scale: of weights that crowd below a bound it is that of their noise.
# None that is at most so many times the mean makes an average heavy: a shape of finite
# variance at most.
HARMLESS, FLAT_KHAT = 3.0, 0.5


class SmoothedWeights(NamedTuple):
    """Result of `pareto_smooth`.

    Attributes:
        log_weights: smoothed and normalised to sum to one, shape (n,).
        khat: shape of the tail; infinite where the tail is too short to tell, and at
            most 0.5 where no weight is more than three times their mean.
    """

    log_weights: np.ndarray
    khat: float


def fit_generalised_pareto(excesses: np.ndarray) -> tuple[float, float]:
    """Shape k and scale sigma of positive excesses over a threshold.

    The profile of Zhang & Stephens (A new and efficient estimation method for the
    generalized Pareto distribution, Technometrics 2009), and the weak prior at k = 0.5
    of Vehtari et al. (appendix C) that steadies it in small samples.

    Args:
        excesses: ascending, positive, shape (n,).
    """
    x = np.asarray(excesses, np.float64)
    num = x.size
    grid = 30 + int(np.sqrt(num))
    quartile = x[int(num / 4 + 0.5) - 1]
    index = np.arange(1, grid + 1)
    theta = 1.0 / x[-1] + (1.0 - np.sqrt(grid / (index - 0.5))) / (3.0 * quartile)
    shape = np.log1p(-theta[:, None] * x).mean(axis=1)
    profile = num * (np.log(-theta / shape) - shape - 1.0)
    weights = np.exp(profile - profile.max())
    theta_hat = float((theta * weights).sum() / weights.sum())
    k = float(np.log1p(-theta_hat * x).mean())
    sigma = -k / theta_hat
    return (num * k + 10.0 * 0.5) / (num + 10.0), sigma


def pareto_smooth(log_weights: np.ndarray) -> SmoothedWeights:
    """Replace the largest weights by quantiles of the Pareto law fitted to them.

    Smoothing lowers the variance of self-normalised averages. It also lowers the
    average weight itself, so bounds on a normaliser use raw weights.

    Args:
        log_weights: log of unnormalised weights, shape (n,); -inf is allowed.

    Raises:
        ValueError: if `log_weights` is not a vector with a finite number and no NaN.
    """
    log_w = np.array(log_weights, np.float64)
    if log_w.ndim != 1 or np.isnan(log_w).any() or not np.isfinite(log_w.max()):
        raise ValueError(
            "`log_weights` must be a vector of numbers without NaN or +inf, at least "
            f"one of them finite, but got an array of shape {log_w.shape} with "
            f"{int(np.isnan(log_w).sum())} NaN. Drop failed draws or set them to -inf."
        )
    log_w -= log_w.max()
    num = log_w.size
    is_flat = bool(HARMLESS * np.exp(log_w).mean() >= 1.0)
    num_tail = int(np.ceil(min(0.2 * num, 3.0 * np.sqrt(num))))
    khat = np.inf
    if num > num_tail >= MIN_TAIL:
        order = np.argsort(log_w, kind="stable")
        tail = order[-num_tail:]
        # Weights below the smallest positive double are equal to it.
        cutoff = max(log_w[order[-num_tail - 1]], np.log(np.finfo(float).tiny))
        excesses = np.exp(log_w[tail]) - np.exp(cutoff)
        if excesses[0] > 0.0:
            khat, sigma = fit_generalised_pareto(excesses)
            probability = (np.arange(num_tail) + 0.5) / num_tail
            quantile = sigma * np.expm1(-khat * np.log1p(-probability)) / khat
            # No weight may exceed the largest raw one.
            log_w[tail] = np.minimum(np.log(quantile + np.exp(cutoff)), 0.0)
        elif excesses[-1] == 0.0:
            khat = -np.inf  # equal weights: no tail at all
    if is_flat and np.isfinite(khat):
        khat = min(khat, FLAT_KHAT)
    total = np.log(np.exp(log_w).sum())
    return SmoothedWeights(log_w - total, float(khat))
