# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Averages of noisy simulations, for weights that contain their exponential.

With averages :math:`\bar l` of the log likelihood and :math:`\bar T` of the deviations
over m simulations of one draw, :math:`E[\exp(\bar l - \lambda \cdot \bar T)]` exceeds
:math:`\exp(E[l] - \lambda \cdot E[T])`: to second order in the errors its logarithm
does so by half the variance of the exponent (the cumulant expansion),

.. math:: (v - 2 \lambda \cdot c + \lambda \cdot C \lambda) / 2,

with the variance v of :math:`\bar l`, its covariance c with :math:`\bar T`, and the
covariance C of :math:`\bar T`. So v / 2 comes off the log likelihood and c off T.
"""

from typing import NamedTuple

import numpy as np

# Variance of averaged log weights, square nats, beyond which the second order does not
# do: simulations with the skewness of a squared Gaussian then miss a weight by 2%.
MAX_VARIANCE = 0.25
# Simulations of each draw with which that was found, and which estimate a variance.
MIN_REPEATS = 32


class Averages(NamedTuple):
    """Of m simulations of each draw; zero errors of one.

    Attributes:
        log_likelihood: average less half its variance v, shape (...).
        deviations: average of T less its covariance c with it, shape (..., K).
        covariance: C of the averages of T, (..., K, K); (..., 0, K) if not wanted.
        variance: v, shape (...).
        cross: c, shape (..., K).
    """

    log_likelihood: np.ndarray
    deviations: np.ndarray
    covariance: np.ndarray
    variance: np.ndarray
    cross: np.ndarray


class Averager:
    """Adds up simulations; deviations from the first one, which keeps the precision.

    Args:
        has_covariance: whether C is wanted.
    """

    def __init__(self, *, has_covariance: bool = True) -> None:
        self.has_covariance = has_covariance
        self.num = 0

    def add(self, log_likelihood: np.ndarray, deviations: np.ndarray) -> None:
        """One simulation of each draw: shapes (...) and (..., K), finite."""
        values = np.concatenate([log_likelihood[..., None], deviations], axis=-1)
        values = values.astype(np.float64)
        if self.num == 0:
            self._first = values
            self._sum = np.zeros_like(values)
            num = values.shape[-1]
            shape = (num if self.has_covariance else 1, num)
            self._products = np.zeros(values.shape[:-1] + shape)
        self.num += 1
        change = values - self._first
        rows = change if self.has_covariance else change[..., :1]
        self._sum += change
        self._products += rows[..., :, None] * change[..., None, :]

    def averages(self) -> Averages:
        """Of all simulations so far."""
        mean = self._sum / self.num
        rows = mean if self.has_covariance else mean[..., :1]
        products = self._products - self.num * rows[..., :, None] * mean[..., None, :]
        products /= max(self.num * (self.num - 1), 1)
        value = self._first + mean
        variance, cross = products[..., 0, 0], products[..., 0, 1:]
        return Averages(
            value[..., 0] - 0.5 * variance,
            value[..., 1:] - cross,
            products[..., 1:, 1:],
            variance,
            cross,
        )


def log_weight_variance(averages: Averages, multipliers: np.ndarray) -> np.ndarray:
    r"""Variance of :math:`\bar l - \lambda \cdot \bar T`, shape (...)."""
    variance = averages.variance - 2.0 * averages.cross @ multipliers
    return variance + np.einsum(
        "...jk,j,k->...", averages.covariance, multipliers, multipliers
    )
