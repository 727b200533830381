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

from ._affine import Affine, cap
from ._coupling import FlowLayer, Pair

# {"matrix": (D, D), "shift": (D,)}; the triangles of the matrix are those of L and U.
Mixing: TypeAlias = dict[str, jax.Array]


def init_mixing(latent_dim: int) -> Mixing:
    """Parameters of the identity."""
    return {
        "matrix": jnp.zeros((latent_dim, latent_dim)),
        "shift": jnp.zeros(latent_dim),
    }


class LinearMixing(FlowLayer):
    r"""An invertible linear map, by its triangular factors.

    .. math:: y = L U x + t, \qquad \log |\det dy/dx| = \sum_i \log U_{ii},

    with L unit lower triangular and the diagonal of U positive, so that the map is
    invertible whatever its parameters. `log U_ii` is softly capped like the log-scales
    of `Affine`.

    Args:
        params: From `init_mixing`; zero for the identity.

    References:
        Kingma and Dhariwal, Glow: generative flow with invertible 1x1 convolutions,
        2018, arXiv:1807.03039, equation 10 (without its fixed permutation).
    """

    def __init__(self, params: Mixing) -> None:
        self.params = params

    def _factors(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """L, U and the log of the diagonal of U."""
        matrix = self.params["matrix"]
        log_diagonal = cap(jnp.diagonal(matrix), Affine.max_log_scale)
        lower = jnp.tril(matrix, -1) + jnp.eye(len(matrix), dtype=matrix.dtype)
        return (
            lower,
            jnp.triu(matrix, 1) + jnp.diag(jnp.exp(log_diagonal)),
            log_diagonal,
        )

    def call_with_intermediates(self, x: jax.Array) -> Pair:
        lower, upper, log_diagonal = self._factors()
        y = _product(x, _product(lower, upper).T) + self.params["shift"]
        return y, jnp.broadcast_to(log_diagonal.sum(), x.shape[:-1])

    def inverse_with_log_det(self, y: jax.Array) -> Pair:
        lower, upper, log_diagonal = self._factors()
        # One small inverse, then products: faster than solving for each draw.
        eye = jnp.eye(len(lower), dtype=lower.dtype)
        inverse = solve_triangular(lower, eye, lower=True, unit_diagonal=True)
        inverse = solve_triangular(upper, inverse)
        x = _product(y - self.params["shift"], inverse.T)
        return x, jnp.broadcast_to(-log_diagonal.sum(), y.shape[:-1])

    def tree_flatten(self) -> tuple:
        return (self.params,), (("params",), {})


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in full precision: else a GPU would round to 10 bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
