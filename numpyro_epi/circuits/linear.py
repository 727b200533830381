# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Two-dimensional linear system: which connections make it oscillate at 1 Hz?

The activity x of two units obeys

.. math:: \tau \dot x = A x, \qquad
    A = \begin{pmatrix} a_{11} & a_{12} \\ a_{21} & a_{22} \end{pmatrix},

so that all it does in the long run is written in the leading eigenvalue of A / tau.
Nothing is simulated: the statistics have a closed form. Pictures are left to others.

References:
    Bittner et al., Interrogating theoretical models of neural computation with emergent
    property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 2 and Methods. The
    discriminant is printed there with an ambiguous power of tau (eq. 31) and the
    condition for oscillation reversed (eq. 32); both are correct here.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_epi.primitives import emergent_property

from ._arguments import pair, positive, real, vector


class LinearConstants(NamedTuple):
    """Constants of the paper's example.

    Attributes:
        tau: Time constant, s.
        bound: Each entry of A lies in [-bound, bound], dimensionless.
        mean: Wanted means of growth (1/s) and frequency (rad/s): 0 and 1 Hz.
        var: Their wanted variances: (0.25 / s)^2 and (0.1 Hz)^2 = (pi/5 rad/s)^2.
        start: Activity at time zero in the paper's trajectories, dimensionless.
        max_entropy: Entropy of the maximum-entropy distribution, nats, from 3e7
            importance-weighted draws, to 0.005. Losing one of its two modes costs ln 2.
    """

    tau: float = 1.0
    bound: float = 10.0
    mean: tuple[float, float] = (0.0, 2 * math.pi)
    var: tuple[float, float] = (0.25**2, (math.pi / 5) ** 2)
    start: tuple[float, float] = (math.sqrt(0.5), -math.sqrt(0.5))
    max_entropy: float = 7.0416


PAPER = LinearConstants()

# Names and units of latents and statistics in figures, for `plotting`.
LABELS = {
    "a[0]": ("$a_{11}$", ""),
    "a[1]": ("$a_{12}$", ""),
    "a[2]": ("$a_{21}$", ""),
    "a[3]": ("$a_{22}$", ""),
    "growth": ("growth", "1/s"),
    "frequency": ("frequency", "rad/s"),
}

PAIR = "of growth and of frequency"


def leading_eigenvalue(
    matrix: ArrayLike, tau: float | jax.Array = PAPER.tau
) -> tuple[jax.Array, jax.Array]:
    r"""Growth and frequency: real and imaginary part of the leading eigenvalue.

    .. math:: \lambda_1 = \frac{a_{11} + a_{22} + \sqrt{D}}{2 \tau},
        \qquad D = (a_{11} - a_{22})^2 + 4 a_{12} a_{21}.

    That is the larger eigenvalue of A / tau if D > 0, and the one with positive
    imaginary part if D < 0.

    Args:
        matrix: A, shape (..., 2, 2), dimensionless.
        tau: Time constant, s, positive.

    Returns:
        Growth in 1/s and frequency in rad/s, both of shape (...). The frequency is zero
        where nothing oscillates.

    Raises:
        TypeError: If `matrix` does not consist of real numbers.
        ValueError: If its last axes are not (2, 2), or `tau` is not positive.

    Notes:
        Safe under `jit` and `vmap`. Gradients are exact where D is not zero, and finite
        everywhere: at D = 0, where the derivative of the square root is infinite, its
        part is left out. Where D > 0 the gradient of the frequency is zero.

    Example:
        >>> growth, frequency = leading_eigenvalue([[0.5, -2.0], [2.0, 0.5]])
        >>> float(growth), float(frequency)
        (0.5, 2.0)
    """
    a11, a12, a21, a22 = _entries(matrix)
    tau = positive("tau", tau)
    disc = (a11 - a22) ** 2 + 4.0 * a12 * a21
    # Both roots see a positive number on either side, so that no gradient is infinite.
    real_root = jnp.where(disc > 0, jnp.sqrt(jnp.where(disc > 0, disc, 1.0)), 0.0)
    imag_root = jnp.where(disc < 0, jnp.sqrt(jnp.where(disc < 0, -disc, 1.0)), 0.0)
    return 0.5 * (a11 + a22 + real_root) / tau, 0.5 * imag_root / tau


def trajectory(
    matrix: ArrayLike,
    times: ArrayLike,
    start: ArrayLike | tuple[float, float] = PAPER.start,
    tau: float | jax.Array = PAPER.tau,
) -> jax.Array:
    r"""Exact activity at given times.

    With the half trace h = (a11 + a22) / 2 tau and B = A / tau - h I, the square of B
    is (D / 4 tau^2) I, so that

    .. math:: x(t) = e^{At / \tau} x(0) = e^{ht} (c(t) I + s(t) B) x(0)

    with c = cosh(rt), s = sinh(rt) / r and r = sqrt(D) / 2 tau, or with cosine and sine
    where D < 0.

    Args:
        matrix: A, shape (..., 2, 2), dimensionless.
        times: Shape (T,), s.
        start: x(0), shape (2,).
        tau: Time constant, s, positive.

    Returns:
        x(t), shape (..., T, 2).

    Raises:
        TypeError: If `matrix` does not consist of real numbers.
        ValueError: If an argument has the wrong shape, or `tau` is not positive.
    """
    times, start = vector("times", times), vector("start", start)
    if start.shape != (2,):
        raise ValueError(f"Expected two numbers as `start`, got {start.shape[0]}.")
    entries = [x[..., None] / positive("tau", tau) for x in _entries(matrix)]
    a11, a12, a21, a22 = entries
    half, diff = 0.5 * (a11 + a22), 0.5 * (a11 - a22)
    square = diff**2 + a12 * a21
    rate = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    angle = jnp.sqrt(jnp.where(square < 0, -square, 0.0)) * times
    # cosh and sinh / r with the growth taken out, so that neither overflows.
    decay = jnp.exp(-2.0 * rate * times)
    cosine = jnp.where(square > 0, 0.5 * (1.0 + decay), jnp.cos(angle))
    sine = jnp.where(
        square > 0,
        -0.5 * jnp.expm1(-2.0 * rate * times) / rate,
        times * jnp.sinc(angle / jnp.pi),
    )
    growth = jnp.exp((half + jnp.where(square > 0, rate, 0.0)) * times)
    first = cosine * start[0] + sine * (diff * start[0] + a12 * start[1])
    second = cosine * start[1] + sine * (a21 * start[0] - diff * start[1])
    return growth[..., None] * jnp.stack([first, second], axis=-1)


def growth_contours(
    growth: ArrayLike, a11: ArrayLike, tau: float = PAPER.tau
) -> jax.Array:
    """Lines of equal growth of an oscillating system: a22 = 2 tau growth - a11.

    Args:
        growth: L levels, 1/s, shape (L,).
        a11: Abscissae, shape (N,).
        tau: Time constant, s.

    Returns:
        The a22 that gives each growth, shape (L, N).
    """
    return 2.0 * tau * vector("growth", growth)[:, None] - vector("a11", a11)


def frequency_contours(
    frequency: ArrayLike,
    a12: ArrayLike,
    tau: float = PAPER.tau,
    *,
    diagonal_product: float = 0.0,
) -> jax.Array:
    """Hyperbolas of equal frequency of an oscillation that neither grows nor decays.

    Where a11 + a22 = 0, the squared frequency is (a11 a22 - a12 a21) / tau^2.

    Args:
        frequency: L levels, rad/s, shape (L,).
        a12: Abscissae, shape (N,), not zero.
        tau: Time constant, s.
        diagonal_product: The value of a11 a22, at most zero.

    Returns:
        The a21 that gives each frequency, shape (L, N).
    """
    squares = (tau * vector("frequency", frequency)[:, None]) ** 2
    return (diagonal_product - squares) / vector("a12", a12)


def model(
    mean: Any = PAPER.mean,
    var: Any = PAPER.var,
    bound: float = PAPER.bound,
    tau: float = PAPER.tau,
) -> jax.Array:
    """NumPyro model: a linear system that oscillates at 1 Hz and hardly grows.

    Pass other targets through a run: `EPI(model).run(key, mean=(0.0, 12.6))`.

    Args:
        mean: Wanted means of growth (1/s) and frequency (rad/s).
        var: Wanted variances of both, or None to constrain the means only.
        bound: Prior of each entry: uniform on [-bound, bound], dimensionless.
        tau: Time constant, s.

    Returns:
        Growth and frequency, shape (2,). Sites: `a`, shape (4,), with the entries a11,
        a12, a21, a22, and the emergent properties `growth` and `frequency`.

    Raises:
        ValueError: If `mean` or `var` is not a pair, or `bound` or `tau` not positive.
    """
    means = pair("mean", mean, of=PAIR)
    variances = (None, None) if var is None else pair("var", var, of=PAIR)
    bound = positive("bound", bound)
    a = numpyro.sample("a", dist.Uniform(-bound, bound).expand([4]).to_event(1))
    growth, frequency = leading_eigenvalue(a.reshape(2, 2), tau)
    emergent_property(growth, means[0], variances[0], name="growth")
    emergent_property(frequency, means[1], variances[1], name="frequency")
    return jnp.stack([growth, frequency])


def _entries(matrix: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """a11, a12, a21, a22 of a matrix that is checked."""
    array = real("matrix", matrix)
    if array.shape[-2:] != (2, 2):
        raise ValueError(
            f"Expected shape (..., 2, 2) as `matrix`, got {array.shape}. Reshape four "
            "entries a11, a12, a21, a22 with `a.reshape(2, 2)`."
        )
    return array[..., 0, 0], array[..., 0, 1], array[..., 1, 0], array[..., 1, 1]
