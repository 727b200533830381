# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The dual problem on weighted draws: multipliers by damped Newton steps.

With draws of weight w_i (summing to one) from p0(z) L(z), the dual

    g(lambda) = -log sum_i w_i exp(-lambda . T_i)

is smooth and concave; its gradient is the violation of the tilted weights, its Hessian
minus the covariance of T under them (Boyd & Vandenberghe, Convex Optimization, 5.1.6
and 5.7.3). Everything is in float64 on the host: K is small and n is at most about 1e6.
"""

from typing import NamedTuple

import numpy as np

from numpyro_epi._math.importance import effective_sample_size, normalize_log_weights

# Weight of |lambda|^2 / 2 that keeps multipliers finite where nothing else does.
RIDGE = 1e-4
# Weights that are left out of the covariance, as a fraction of the mean weight.
NEGLIGIBLE = 1e-9


class DualSolution(NamedTuple):
    """Result of `solve_dual`.

    Attributes:
        multipliers: shape (K,), in the units of the deviations that were passed.
        weights: tilted weights, sum to one, shape (n,).
        ess: effective sample size of `weights`.
        residual: largest absolute violation that is left.
        slope: largest absolute derivative of what was to be maximised.
        log_normalizer: estimate of log E[L exp(-lambda . T)] under the prior.
    """

    multipliers: np.ndarray
    weights: np.ndarray
    ess: float
    residual: float
    slope: float
    log_normalizer: float


def _log_mean(log_weights: np.ndarray) -> float:
    top = log_weights.max()
    return float(top + np.log(np.mean(np.exp(log_weights - top))))


def solve_dual(
    log_weights: np.ndarray,
    deviations: np.ndarray,
    *,
    initial: np.ndarray | None = None,
    max_steps: int = 100,
    ridge: float = RIDGE,
    tolerance: float = 1e-6,
    least_ess: float = 0.0,
) -> DualSolution:
    """Maximise the dual by Newton steps with backtracking.

    Args:
        log_weights: log of unnormalised weights of draws against prior times
            likelihood, shape (n,); -inf drops a draw.
        deviations: T of each draw, shape (n, K), finite where the weight is not zero.
        initial: multipliers to start from, shape (K,); zero by default.
        max_steps: bound on the Newton steps.
        ridge: weight of |lambda|^2 / 2 subtracted from the dual. It keeps the
            multipliers finite when no reweighting of the draws is feasible, at the
            price of a violation of ridge * lambda.
        tolerance: a gradient this small ends the search.
        least_ess: an effective sample size below it ends the search without success.

    Returns:
        The solution; `residual` is large where the draws cannot meet the constraints.
    """
    keep = np.isfinite(log_weights)
    log_w = np.asarray(log_weights, np.float64)[keep]
    devs = np.asarray(deviations, np.float64)[keep]
    num = devs.shape[1]
    lam = np.zeros(num) if initial is None else np.asarray(initial, np.float64).copy()

    def loss(lam: np.ndarray) -> float:
        return _log_mean(log_w - devs @ lam) + 0.5 * ridge * lam @ lam

    value = loss(lam)
    for _ in range(max_steps):
        weights = normalize_log_weights(log_w - devs @ lam)
        mean = weights @ devs
        gradient = mean - ridge * lam
        if np.abs(gradient).max() < tolerance:
            break
        if effective_sample_size(weights) < least_ess:
            break
        rows = weights > NEGLIGIBLE / weights.size
        centred = devs[rows] - mean
        hessian = (centred * weights[rows, None]).T @ centred + ridge * np.eye(num)
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            break  # draws of a diverged guide outweigh the ridge: no success
        step *= min(1.0, 10.0 / np.abs(step).max())
        size, slope = 1.0, gradient @ step
        while loss(lam + size * step) > value - 1e-4 * size * slope and size > 1e-8:
            size *= 0.5
        lam = lam + size * step
        value = loss(lam)
    weights = normalize_log_weights(log_w - devs @ lam)
    violation = weights @ devs
    residual = float(np.abs(violation).max())
    slope = float(np.abs(violation - ridge * lam).max())
    log_normalizer = _log_mean(log_w - devs @ lam) + np.log(keep.mean())
    everything = np.zeros(keep.shape)
    everything[keep] = weights
    return DualSolution(
        lam, everything, effective_sample_size(weights), residual, slope, log_normalizer
    )


def solve_noisy_dual(
    log_weights: np.ndarray,
    deviations: np.ndarray,
    covariance: np.ndarray,
    initial: np.ndarray,
    num_iterations: int = 3,
) -> DualSolution:
    """The dual where T of each draw is an average of simulations, with an error.

    `E[exp(-lambda . T)]` exceeds `exp(-lambda . E[T])`; to second order in the error of
    covariance C its logarithm does so by `lambda . C lambda / 2` (the cumulant
    expansion), which is taken off here, with its derivative `C lambda` added to T.

    Args:
        log_weights: as in `solve_dual`.
        deviations: averages of T, shape (n, K).
        covariance: C of each average, shape (n, K, K).
        initial: multipliers to start from, shape (K,).
        num_iterations: of the correction, whose lambda is that of the last iteration.
    """
    multipliers = np.asarray(initial, np.float64)
    for _ in range(num_iterations):
        shift = covariance @ multipliers
        found = solve_dual(
            log_weights + 0.5 * shift @ multipliers,
            deviations + shift,
            initial=multipliers,
            max_steps=40,
        )
        multipliers = found.multipliers
    return found
