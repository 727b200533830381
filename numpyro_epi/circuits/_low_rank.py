# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Eigenvalues of a product of two N x 2 matrices, without an N x N matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from . import linear
from ._arguments import real

# What `regime` calls 0, 1 and 2.
REGIMES = ("stable amplification", "monotonic decay", "unstable")


def real_eigenvalue(U: ArrayLike, V: ArrayLike) -> jax.Array:
    r"""Real part of the leading eigenvalue of W = U V', from its 2 x 2 problem.

    The other N - 2 eigenvalues of W are zero. The two of :math:`W^r = V^\top U` are the
    rest, and with their trace and discriminant

    .. math:: \mathrm{Re} \lambda_1 = \frac{1}{2} \left( \mathrm{tr} W^r +
        \sqrt{\max(D, 0)} \right), \qquad D = (\mathrm{tr} W^r)^2 - 4 \det W^r.

    Args:
        U: Shape (..., N, 2), dimensionless.
        V: The same shape.

    Returns:
        Shape (...). It may be negative, where for N > 2 the largest real part of an
        eigenvalue of W is zero: that is how the paper defines it.

    Raises:
        TypeError: If an argument does not consist of real numbers.
        ValueError: If shapes differ or do not end in 2.

    Notes:
        Safe under `jit`, `vmap` and `grad`. Gradients are exact where D is not zero;
        at D = 0 the part of the square root, which is infinite, is left out.

    Example:
        >>> float(real_eigenvalue([[1, 0], [0, 1], [0, 0]], [[2, 0], [0, 1], [5, 5]]))
        2.0
    """
    U, V = factors(U, V)
    growth, _ = linear.leading_eigenvalue(jnp.swapaxes(V, -1, -2) @ U)
    return growth


def symmetric_eigenvalue(U: ArrayLike, V: ArrayLike) -> jax.Array:
    r"""Largest eigenvalue of the symmetric part (W + W') / 2 of W = U V'.

    With B = [U V], the symmetric part is :math:`B J B^\top`, where J swaps both halves
    and divides by two. Its nonzero eigenvalues are those of J G with the 4 x 4 Gram
    matrix :math:`G = B^\top B`, and of :math:`\sqrt{G} J \sqrt{G}`. Up to N = 4 the
    N x N problem is solved instead; beyond, the largest eigenvalue is never negative,
    so that it is among those.

    Args:
        U: Shape (..., N, 2), dimensionless.
        V: The same shape.

    Returns:
        Shape (...).

    Raises:
        TypeError: If an argument does not consist of real numbers.
        ValueError: If shapes differ or do not end in 2.

    Notes:
        Safe under `jit`, `vmap` and `grad`. With a unit eigenvector w, the derivative
        is :math:`w^\top dW w`, finite everywhere: no gap between eigenvalues and no
        inverse enters. If two eigenvalues lead, it is the derivative of one of them.
        Second derivatives need a single leading eigenvalue, and for N > 4 a G with
        four different eigenvalues, none of them zero.

    Example:
        >>> float(symmetric_eigenvalue([[3, 0], [0, 0]], [[0, 0], [1, 0]]))
        1.5
    """
    return _symmetric_eigenvalue(*factors(U, V))


def regime(U: ArrayLike, V: ArrayLike) -> jax.Array:
    """What a network does with its inputs, as a number that `REGIMES` names.

    Args:
        U: Shape (..., N, 2), dimensionless.
        V: The same shape.

    Returns:
        Shape (...): 2 (unstable) if the real part of the leading eigenvalue of W is at
        least one; otherwise 0 (stable amplification) if that of its symmetric part is
        above one, and 1 (monotonic decay) if not.

    Raises:
        TypeError: If an argument does not consist of real numbers.
        ValueError: If shapes differ or do not end in 2.

    Example:
        >>> REGIMES[int(regime([[3, 0], [0, 0]], [[0, 0], [1, 0]]))]
        'stable amplification'
    """
    amplifies = symmetric_eigenvalue(U, V) > 1.0
    return jnp.where(real_eigenvalue(U, V) >= 1.0, 2, jnp.where(amplifies, 0, 1))


def factors(U: Any, V: Any) -> tuple[jax.Array, jax.Array]:
    """U and V as arrays of one type and shape, checked."""
    U, V = real("U", U), real("V", V)
    for name, array in (("U", U), ("V", V)):
        if array.ndim < 2 or array.shape[-1] != 2 or not array.shape[-2]:
            raise ValueError(
                f"Expected shape (..., N, 2) as `{name}`, got {array.shape}."
            )
    if U.shape != V.shape:
        raise ValueError(
            f"Expected `U` and `V` of one shape, got {U.shape} and {V.shape}."
        )
    dtype = jnp.result_type(U, V)
    return U.astype(dtype), V.astype(dtype)


@jax.custom_jvp
def _symmetric_eigenvalue(U: jax.Array, V: jax.Array) -> jax.Array:
    return _leading_pair(U, V)[0]


@_symmetric_eigenvalue.defjvp
def _symmetric_eigenvalue_jvp(primals: tuple, tangents: tuple) -> tuple:
    """Derivative w' dW w, with w the unit eigenvector."""
    (U, V), (dU, dV) = primals, tangents
    value, w = _leading_pair(U, V)
    wU, wV = jnp.einsum("...n,...nk->...k", w, U), jnp.einsum("...n,...nk->...k", w, V)
    change = jnp.einsum("...n,...nk,...k->...", w, dU, wV)
    return value, change + jnp.einsum("...n,...nk,...k->...", w, dV, wU)


def _leading_pair(U: jax.Array, V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest eigenvalue of the symmetric part, (...), and eigenvector, (..., N)."""
    B, swapped = jnp.concatenate([U, V], -1), jnp.concatenate([V, U], -1) / 2.0
    if U.shape[-2] <= 4:
        values, vectors = jnp.linalg.eigh(B @ jnp.swapaxes(swapped, -1, -2))
        return values[..., -1], vectors[..., -1]
    squares, axes = jnp.linalg.eigh(jnp.swapaxes(B, -1, -2) @ B)
    # The root of G is `root.T @ root`: B = Q root with orthonormal columns of Q.
    root = jnp.sqrt(jnp.maximum(squares, 0.0))[..., None] * jnp.swapaxes(axes, -1, -2)
    halves = jnp.concatenate([root[..., 2:], root[..., :2]], -1) / 2.0
    values, vectors = jnp.linalg.eigh(root @ jnp.swapaxes(halves, -1, -2))
    # w is Q m, with m the eigenvector of `root J root.T`. Q is not at hand, but B J
    # root.T m = lambda w. Where lambda is zero, that is rounding noise: w is zero, and
    # so is the derivative.
    w = jnp.einsum("...nk,...jk,...j->...n", swapped, root, vectors[..., -1])
    square = jnp.sum(w**2, axis=-1, keepdims=True)
    floor = 10.0 * jnp.finfo(w.dtype).eps * jnp.sum(squares, axis=-1, keepdims=True)
    is_clear = square > floor**2
    w = jnp.where(is_clear, w / jnp.sqrt(jnp.where(is_clear, square, 1.0)), 0.0)
    return values[..., -1], w
