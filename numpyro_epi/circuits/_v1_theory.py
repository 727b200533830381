# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Theory of the model of primary visual cortex: steady state and linear response.

With u = W x + h at the steady state and the slopes Phi = diag(2 u), small deviations of
rates and noise obey

.. math:: \frac{d}{dt} \begin{pmatrix} \delta x \\ \epsilon \end{pmatrix} =
    \begin{pmatrix} (\Phi W - I) / \tau & \Phi / \tau \\ 0 & -I / \tau_n \end{pmatrix}
    \begin{pmatrix} \delta x \\ \epsilon \end{pmatrix} +
    \begin{pmatrix} 0 \\ \sqrt{2 / \tau_n}\, \tilde\Sigma \end{pmatrix} \dot B.

Time is in ms here, so that the matrix is in 1/ms. Simulations are left to `v1`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import lax
from jax.typing import ArrayLike

from ._ranges import vector
from ._v1_constants import PAPER, POPULATIONS, V1Constants, check_constants, inputs

# Relaxation before Newton's method: steps of tau / 10.
RELAXATION_STEPS = 1000
NEWTON_STEPS = 10


def steady_state(
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    r"""Rates at which the network rests without noise: x = [W x + h]_+^2.

    The noise-free network is run from the middle of its starting range until it rests.
    Gradients are those of the implicit function.

    Args:
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        Rates of E, P, S, V, Hz, shape (4,). Not a number, or without meaning, if the
        network does not come to rest.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> print(steady_state().round(1))
        [45.9 54.  27.5 49.3]
    """
    drive = inputs(contrast, change, constants)
    weights = jnp.asarray(constants.weights, drive.dtype)
    return _rest(weights, drive, jnp.full(4, sum(constants.start) / 2.0, drive.dtype))


def gains(
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """Change of each steady rate with each input: (I - Phi W)^-1 Phi.

    A population is paradoxical if its own gain is negative: more input, lower rate.

    Args:
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        dx_i / dh_j, rate by input, sqrt(Hz), shape (4, 4).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> (jnp.diag(gains()) < 0).tolist()  # E, P, S, V
        [False, True, False, False]
    """
    weights, slopes = _linearise(contrast, change, constants)
    return jnp.linalg.solve(jnp.eye(4) - slopes[:, None] * weights, jnp.diag(slopes))


def isn_coefficient(
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """1 - 2 u_E W_EE: below zero, the E population alone would be unstable.

    The network is then stabilised by inhibition.

    Args:
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        The coefficient, dimensionless, a scalar.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> f"{isn_coefficient():.2f}"
        '-1.95'
    """
    weights, slopes = _linearise(contrast, change, constants)
    return 1.0 - slopes[0] * weights[0, 0]


def jacobian(
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """Matrix of the linear dynamics of rates and noise about the steady state.

    Args:
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        The matrix of the module docstring, 1/ms, shape (8, 8). Its first four rows and
        columns are those of the rates.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> slowest = jnp.linalg.eigvals(jacobian()[:4, :4]).real.max()
        >>> f"{1000 * slowest:.0f} per second"  # it decays
        '-143 per second'
    """
    weights, slopes = _linearise(contrast, change, constants)
    rates = (slopes[:, None] * weights - jnp.eye(4)) / constants.tau
    noise = -jnp.eye(4) / constants.noise_tau
    coupling = jnp.diag(slopes) / constants.tau
    return jnp.block([[rates, coupling], [jnp.zeros((4, 4)), noise]])


def linear_covariance(
    sigma: ArrayLike,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    r"""Covariance of rates and noise in linear theory, over an endless time.

    It solves A C + C A^T = -B B^T, with A the `jacobian` and
    :math:`B = (0; \sqrt{2 / \tau_n}\, \tilde\Sigma)`, and with the levels
    :math:`\tilde\sigma = \sigma \sqrt{1 + \tau / \tau_n}` on the diagonal of the last.

    Args:
        sigma: Noise levels of E, P, S, V, sqrt(Hz), shape (4,).
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        C, shape (8, 8): rates first, Hz^2; then noise, Hz.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> covariance = linear_covariance([0.02, 0.0, 0.0, 0.0])
        >>> f"{jnp.sqrt(covariance[0, 0]):.1f} Hz"  # of the E rate
        '3.7 Hz'
    """
    variances = noise_variances(sigma, constants)
    matrix = jacobian(contrast, change, constants)
    source = jnp.concatenate([jnp.zeros(4), 2.0 * variances / constants.noise_tau])
    return _lyapunov(matrix, jnp.diag(source))


def linear_std(
    sigma: ArrayLike,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """Standard deviation of the rates in linear theory, over an endless time.

    Simulations at small noise are about 13% above it, by their nonlinearity; a window
    of 25 ms lowers what they show by about 16%.

    Args:
        sigma: Noise levels of E, P, S, V, sqrt(Hz), shape (4,).
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        Standard deviations of E, P, S, V, Hz, shape (4,).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> f"{linear_std([0.1, 0.0, 0.0, 0.0])[0]:.1f} Hz"  # of the E rate
        '18.5 Hz'
    """
    return jnp.sqrt(jnp.diag(linear_covariance(sigma, contrast, change, constants))[:4])


def input_covariance(
    sigma: ArrayLike,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    r"""Covariance of the inputs v = W x + h + epsilon in linear theory.

    With :math:`S = (I - W \Phi) / \tau` and the variances of the noise on the diagonal
    of :math:`\Lambda_\epsilon`, it solves

    .. math:: S \Lambda + \Lambda S^T = \frac{2 \Lambda_\epsilon}{\tau_n} +
        \frac{\tau_n^2 - \tau^2}{(\tau \tau_n)^2} (K + K^T),
        \qquad K = (I / \tau_n + S)^{-1} \Lambda_\epsilon.

    Args:
        sigma: Noise levels of E, P, S, V, sqrt(Hz), shape (4,).
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        The covariance, Hz, shape (4, 4).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> input_covariance([0.02, 0.02, 0.02, 0.02]).shape
        (4, 4)

    References:
        Bittner et al. 2021, eqs. 81 to 86, with their slips mended: S is printed
        without 1 / tau, and the noise with a factor of tau_n too many.
    """
    variances = noise_variances(sigma, constants)
    weights, slopes = _linearise(contrast, change, constants)
    tau, noise_tau = constants.tau, constants.noise_tau
    decay = (jnp.eye(4) - weights * slopes) / tau
    noise = jnp.diag(variances)
    mixed = jnp.linalg.solve(jnp.eye(4) / noise_tau + decay, noise)
    factor = (noise_tau**2 - tau**2) / (tau * noise_tau) ** 2
    return _lyapunov(-decay, 2.0 * noise / noise_tau + factor * (mixed + mixed.T))


def noise_variances(sigma: ArrayLike, constants: V1Constants = PAPER) -> jax.Array:
    r"""Stationary variances of the noise: sigma^2 (1 + tau / tau_n).

    Filtered by tau, such noise has the variance sigma^2.

    Args:
        sigma: Noise levels of E, P, S, V, sqrt(Hz), shape (..., 4).
        constants: `V1Constants`.

    Returns:
        Variances, Hz, shape (..., 4).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> print(noise_variances([0.1, 0.0, 0.0, 0.0]).round(3))
        [0.012 0.    0.    0.   ]

    References:
        Bittner et al. 2021, eq. 70.
    """
    check_constants(constants)
    level = vector("sigma", sigma, POPULATIONS)
    return level**2 * (1.0 + constants.tau / constants.noise_tau)


@jax.jit
def _rest(weights: jax.Array, drive: jax.Array, start: jax.Array) -> jax.Array:
    """Fixed point that is reached from `start`, with its implicit derivative."""

    def drift(rates: jax.Array) -> jax.Array:
        return jnp.maximum(weights @ rates + drive, 0.0) ** 2 - rates

    def solve(drift: Callable, rates: jax.Array) -> jax.Array:
        def relax(_: Any, x: jax.Array) -> jax.Array:
            return x + 0.1 * drift(x)

        def newton(_: Any, x: jax.Array) -> jax.Array:
            return x - jnp.linalg.solve(jax.jacfwd(drift)(x), drift(x))

        rates = lax.fori_loop(0, RELAXATION_STEPS, relax, rates)
        return lax.fori_loop(0, NEWTON_STEPS, newton, rates)

    def tangent_solve(linear: Callable, y: jax.Array) -> jax.Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(y)), y)

    return lax.custom_root(drift, start, solve, tangent_solve)


def _linearise(
    contrast: ArrayLike | None, change: ArrayLike, constants: V1Constants
) -> tuple[jax.Array, jax.Array]:
    """W, and the slopes 2 u of the steady state, sqrt(Hz)."""
    rates = steady_state(contrast, change, constants)
    drive = inputs(contrast, change, constants)
    weights = jnp.asarray(constants.weights, rates.dtype)
    return weights, 2.0 * jnp.maximum(weights @ rates + drive, 0.0)


def _lyapunov(matrix: jax.Array, source: jax.Array) -> jax.Array:
    """C with A C + C A^T = -Q, from its n^2 linear equations."""
    size = matrix.shape[0]
    identity = jnp.eye(size, dtype=matrix.dtype)
    system = jnp.kron(matrix, identity) + jnp.kron(identity, matrix)
    return jsl.solve(system, -source.reshape(-1)).reshape(size, size)
