# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The ratio of two normalisers from draws of both densities."""

import numpy as np

# Halvings of the range that holds the answer: to the last digit of most.
NUM_HALVINGS = 60


def log_ratio(forward: np.ndarray, backward: np.ndarray) -> float:
    """Log (Z_b / Z_a) of unnormalised densities a and b.

    It solves sum over draws of a of f(w - x) = sum over draws of b of f(w' + x), with f
    the logistic function, w = log b - log a and w' = log a - log b: the estimate of
    least variance, also where one density has heavier tails than the other.

    Args:
        forward: w at draws of a, shape (n,); draws that are not finite do not count.
        backward: w' at draws of b, shape (m,).

    References:
        Bennett, Efficient estimation of free energy differences from Monte Carlo data,
        Journal of Computational Physics 1976, equation 12.
    """
    forward, backward = (x[np.isfinite(x)] for x in (forward, backward))
    shift = np.log(backward.size / forward.size)
    ends = np.concatenate([forward, -backward])
    low, high = ends.min() - abs(shift), ends.max() + abs(shift)
    for _ in range(NUM_HALVINGS):
        x = (low + high) / 2
        ahead = _logistic(forward - x + shift).sum()
        is_low = ahead > _logistic(backward + x - shift).sum()
        low, high = (x, high) if is_low else (low, x)
    return float((low + high) / 2)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)
