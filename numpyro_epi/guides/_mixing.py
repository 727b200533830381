# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Linear layers that let the coordinates of a flow mix before each coupling.

A coupling moves coordinates one by one. What a property ties together is more often a
combination of them, such as a sum: a learned linear map brings it to one coordinate.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._affine import cap

# {"matrix": (D, D), "shift": (D,)}; the triangles of the matrix are those of L and U.
Mixing: TypeAlias = dict[str, jax.Array]

# Soft cap on |log U_ii|: a map scales by up to 20.
MAX_LOG_SCALE = 3.0


def init_mixing(latent_dim: int) -> Mixing:
    """Parameters of the identity."""
    return {
        "matrix": jnp.zeros((latent_dim, latent_dim)),
        "shift": jnp.zeros(latent_dim),
    }


def mixing_matrix(params: Mixing) -> jax.Array:
    r"""The matrix W = L U of an invertible linear map, from its triangular factors.

    L is unit lower triangular and the diagonal of U positive, so that the map is
    invertible whatever its parameters. `log U_ii` is softly capped at `MAX_LOG_SCALE`.

    Args:
        params: From `init_mixing`; zero for the identity.

    Returns:
        W, shape (D, D).

    References:
        Kingma and Dhariwal, Glow: generative flow with invertible 1x1 convolutions,
        2018, arXiv:1807.03039, equation 10 (without its fixed permutation).
    """
    return product(*_factors(params))


def inverse_matrix(params: Mixing) -> jax.Array:
    """The inverse of W, shape (D, D).

    One small inverse, then products: faster than solving for each draw.
    """
    lower, upper = _factors(params)
    return product(lower_inverse(upper.T).T, lower_inverse(lower))


@jax.custom_jvp
def lower_inverse(matrix: jax.Array) -> jax.Array:
    r"""Inverse of a lower triangular matrix, from those of its diagonal blocks.

    .. math:: \begin{pmatrix} A & 0 \\ C & B \end{pmatrix}^{-1} =
        \begin{pmatrix} A^{-1} & 0 \\ -B^{-1} C A^{-1} & B^{-1} \end{pmatrix}

    Blocks of size one are inverted first, then neighbours are joined, all pairs of one
    size at once: log2 D batched products. A call of LAPACK would do, but jaxlib 0.10
    cuts a batch of them into tasks for the very workers that wait for the batch: as
    many batches at once as there are cores never end.

    Args:
        matrix: Shape (D, D); its diagonal must not have zeros.

    Returns:
        The inverse, shape (D, D).

    References:
        Higham, Accuracy and stability of numerical algorithms, 2nd edition, 2002,
        section 14.2, on inverses of triangular matrices by blocks.
    """
    dim = len(matrix)
    full = 1 << (dim - 1).bit_length()
    # Filled up with the identity, which leaves the inverse of the rest as it is.
    filling = jnp.diag(jnp.arange(full) >= dim).astype(matrix.dtype)
    matrix = jnp.pad(matrix, (0, full - dim)) + filling
    inverses = 1.0 / jnp.diagonal(matrix).reshape(full, 1, 1)
    for size in 1 << np.arange((dim - 1).bit_length()):
        starts = range(0, full, 2 * size)
        below = jnp.stack(
            [matrix[i + size : i + 2 * size, i : i + size] for i in starts]
        )
        first, second = inverses[0::2], inverses[1::2]
        corner = -product(product(second, below), first)
        top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        bottom = jnp.concatenate([corner, second], axis=-1)
        inverses = jnp.concatenate([top, bottom], axis=-2)
    return inverses[0, :dim, :dim]


@lower_inverse.defjvp
def _lower_inverse_jvp(primals: tuple, tangents: tuple) -> tuple:
    """The inverse X, and its derivative -X dL X."""
    inverse = lower_inverse(*primals)
    return inverse, -product(product(inverse, tangents[0]), inverse)


def log_determinant(params: Mixing) -> jax.Array:
    """Log of the determinant of W."""
    return _log_diagonal(params).sum()


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in full precision: else a GPU would round to 10 bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _factors(params: Mixing) -> tuple[jax.Array, jax.Array]:
    """L and U."""
    matrix = params["matrix"]
    lower = jnp.tril(matrix, -1) + jnp.eye(len(matrix), dtype=matrix.dtype)
    return lower, jnp.triu(matrix, 1) + jnp.diag(jnp.exp(_log_diagonal(params)))


def _log_diagonal(params: Mixing) -> jax.Array:
    return cap(jnp.diagonal(params["matrix"]), MAX_LOG_SCALE)
