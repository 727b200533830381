# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Which frequency dominates a signal? A statistic with a gradient.

A signal r is smoothed by a moving average of w samples, its mean is subtracted, and its
Fourier sums are taken on a grid of frequencies:

.. math:: s_n = \frac{1}{w} \sum_{j=0}^{w-1} r_{n+j}, \qquad
    X_k = \sum_n (s_n - \bar s) \, e^{-2 \pi i f_k n \, dt}.

A softmax stands for the largest magnitude:

.. math:: \omega = \sum_k f_k \, \mathrm{softmax}_k(\beta |X_k|).

X is linear in r, so that :math:`X_k = \sum_t C_{tk} r_t` with one table C. A simulation
can add up C_t r_t as it goes and keep no trace.

References:
    Bittner et al., Interrogating theoretical models of neural computation with emergent
    property inference, eLife 2021, doi:10.7554/eLife.56265, Methods, "STG model". The
    softmax is printed there with a product in place of the sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_epi._checks import check_positive, real_array

from ._arguments import count, positive, real


def fourier_table(
    num_samples: int,
    dt: float,
    frequencies: ArrayLike,
    *,
    discard: int = 0,
    window: int = 1,
) -> np.ndarray:
    """Weights C of the samples in the Fourier sums of the smooth, centred signal.

    Args:
        num_samples: Length T of the signal.
        dt: Time between samples, ms.
        frequencies: f, shape (F,), Hz.
        discard: Samples at the start that do not count.
        window: Samples w in the moving average. Only full windows count.

    Returns:
        Shape (T, 2, F), double precision, on the host: real and imaginary parts. The
        sum of C[t] r[t] over t is X.

    Raises:
        TypeError: If a count is not an integer, or an argument not real.
        ValueError: If `dt` or a count is out of range, or no full window is left.

    Example:
        >>> fourier_table(301, 25.0, [0.5, 1.0], discard=20, window=20).shape
        (301, 2, 2)
    """
    num_samples = count("num_samples", num_samples)
    discard, window = count("discard", discard, least=0), count("window", window)
    num_windows = num_samples - discard - window + 1
    if num_windows < 1:
        raise ValueError(
            f"Expected more than `discard` + `window` - 1 = {discard + window - 1} "
            f"samples, got `num_samples` = {num_samples}. Take a longer signal."
        )
    step = real_array(dt, where="`dt`")
    check_positive(step, where="`dt`", fix="It is in ms.")
    cycles = np.outer(np.arange(num_windows), _grid(frequencies)) * step / 1000.0
    waves = np.exp(-2j * np.pi * cycles)
    waves -= waves.mean(axis=0)
    table = np.zeros((num_samples, waves.shape[1]), complex)
    for shift in range(window):
        table[discard + shift : discard + shift + num_windows] += waves / window
    return np.stack([table.real, table.imag], axis=1)


def soft_frequency(
    sums: ArrayLike, frequencies: ArrayLike, sharpness: float | jax.Array
) -> jax.Array:
    r"""Softmax average of the frequencies, weighted by the magnitudes of Fourier sums.

    Args:
        sums: X, shape (..., 2, F): real and imaginary parts, in units of the signal.
        frequencies: f, shape (F,), Hz.
        sharpness: beta, positive, in one over the units of the signal. Much more than
            one over the gap between the two largest magnitudes selects the largest.

    Returns:
        :math:`\omega`, shape (...), Hz. Without any signal, it is the mean of
        `frequencies`.

    Raises:
        TypeError: If an argument is not real.
        ValueError: If shapes disagree, or `sharpness` is not positive.

    Notes:
        Safe under `jit`, `vmap` and `grad` with respect to `sums` and `sharpness`. The
        derivative of a magnitude counts as zero where the magnitude is zero.

    Example:
        >>> sums = [[0.0, 3.0, 1.0], [0.0, 4.0, 0.0]]
        >>> float(soft_frequency(sums, [0.0, 0.5, 1.0], sharpness=100.0))
        0.5
    """
    sums, grid = real("sums", sums), _grid(frequencies)
    if sums.shape[-2:] != (2, grid.size):
        raise ValueError(
            f"Expected shape (..., 2, {grid.size}) as `sums`, for {grid.size} "
            f"frequencies, got {sums.shape}."
        )
    power = jnp.sum(sums**2, axis=-2)
    magnitude = jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1.0)), 0.0)
    weights = jax.nn.softmax(positive("sharpness", sharpness) * magnitude, axis=-1)
    return weights @ jnp.asarray(grid, weights.dtype)


def dominant_frequency(
    signal: ArrayLike,
    dt: float,
    frequencies: ArrayLike,
    *,
    sharpness: float | jax.Array,
    discard: int = 0,
    window: int = 1,
) -> jax.Array:
    """Soft dominant frequency of stored signals.

    Args:
        signal: r, shape (..., T), in any unit.
        dt: Time between samples, ms.
        frequencies: f, shape (F,), Hz, at most 500 / dt.
        sharpness: beta, positive, in one over the unit of the signal; it acts on sums
            over samples, which grow with T.
        discard: Samples at the start that do not count.
        window: Samples in the moving average, one for none.

    Returns:
        Shape (...), Hz.

    Raises:
        TypeError: If a count is not an integer, or an argument not real.
        ValueError: If an argument is out of range, or the signal is too short.

    Notes:
        Safe under `jit`, `vmap` and `grad` with respect to `signal` and `sharpness`.
        The frequency resolution is about one over the duration of the signal.

    Example:
        >>> import jax.numpy as jnp
        >>> signal = jnp.sin(2 * jnp.pi * 0.5 * 0.025 * jnp.arange(400))  # 0.5 Hz, 10 s
        >>> grid = [0.4, 0.45, 0.5, 0.55, 0.6]
        >>> round(float(dominant_frequency(signal, 25.0, grid, sharpness=10.0)), 3)
        0.5
    """
    signal = real("signal", signal)
    if not signal.ndim:
        raise ValueError("Expected shape (..., T) as `signal`, got one number.")
    table = fourier_table(
        signal.shape[-1], dt, frequencies, discard=discard, window=window
    )
    sums = jnp.tensordot(signal, jnp.asarray(table, signal.dtype), axes=1)
    return soft_frequency(sums, frequencies, sharpness)


def _grid(frequencies: Any) -> np.ndarray:
    grid = real_array(frequencies, where="`frequencies`")
    if grid.ndim != 1 or not grid.size:
        raise ValueError(f"Expected a vector as `frequencies`, got shape {grid.shape}.")
    return grid
