# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Linear layers that let the coordinates of a flow mix before each coupling.

A coupling moves coordinates one by one. What a property ties together is more often a
combination of them, such as a sum: a learned linear map brings it to one coordinate.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

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
    eye = jnp.eye(len(lower), dtype=lower.dtype)
    inverse = solve_triangular(lower, eye, lower=True, unit_diagonal=True)
    return solve_triangular(upper, inverse)


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
