# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The circle, cut opposite to a chosen angle, and where to cut it.

With the centre c, a coordinate u is the angle

    x = wrap(c + v),    v = pi tanh(u / 2),    wrap(x) in [-pi, pi],

so that c = 0 gives NumPyro's own coordinate, whose cut is at +-pi.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

# Places at which a circle may be cut.
NUM_PLACES = 256
# Of the smoothed density of draws: a von Mises kernel with an sd of 0.3.
KERNEL_CONCENTRATION = 11.0


class turned_circular(constraints.Constraint):  # noqa: N801
    """Angles between -pi and pi, whose coordinates are cut opposite to `centre`.

    Args:
        centre: Angle, a number or an array of the shape of the value.
    """

    lower_bound, upper_bound = -np.pi, np.pi

    def __init__(self, centre: Any) -> None:
        self.centre = centre

    def __call__(self, x: Any) -> jax.Array:
        return constraints.circular(x)

    def __repr__(self) -> str:
        return f"turned_circular(centre={self.centre})"

    def feasible_like(self, prototype: Any) -> jax.Array:
        return jnp.broadcast_to(self.centre, jnp.shape(prototype))

    def eq(self, other: object, static: bool = False) -> bool:  # noqa: FBT001, FBT002
        del static
        if not isinstance(other, turned_circular):
            return False
        return np.array_equal(self.centre, other.centre)

    def tree_flatten(self) -> tuple:
        return (self.centre,), (("centre",), {})


class TurnedTransform(Transform):
    """From real numbers to the circle; see the module.

    The cut itself has the coordinate of a point as near to it as rounding goes: it is
    no edge of the support.
    """

    domain = constraints.real

    def __init__(self, centre: Any) -> None:
        self.centre = centre

    @property
    def codomain(self) -> turned_circular:
        return turned_circular(self.centre)

    def __call__(self, x: jax.Array) -> jax.Array:
        return wrap(self.centre + jnp.pi * jnp.tanh(x / 2))

    def _inverse(self, y: jax.Array) -> jax.Array:
        share = wrap(y - self.centre) / jnp.pi
        inside = 1.0 - jnp.finfo(jnp.result_type(share, float)).eps
        return 2.0 * jnp.arctanh(jnp.clip(share, -inside, inside))

    def log_abs_det_jacobian(
        self, x: jax.Array, y: jax.Array, intermediates: Any = None
    ) -> jax.Array:
        del y, intermediates
        return np.log(2 * np.pi) + jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x)

    def eq(self, other: object, static: bool = False) -> bool:  # noqa: FBT001, FBT002
        del static
        if not isinstance(other, TurnedTransform):
            return False
        return np.array_equal(self.centre, other.centre)

    def tree_flatten(self) -> tuple:
        return (self.centre,), (("centre",), {})


@biject_to.register(turned_circular)
def _to_turned_circular(constraint: turned_circular) -> TurnedTransform:
    return TurnedTransform(constraint.centre)


def wrap(angle: Any) -> jax.Array:
    """The same angle between -pi and pi, with derivative one."""
    turns = jnp.floor((angle + jnp.pi) / (2 * jnp.pi))
    return jnp.clip(angle - 2 * jnp.pi * turns, -jnp.pi, jnp.pi)


def find_centre(angles: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Centre whose cut lies where weighted draws are rarest.

    Args:
        angles: draws, shape (n, d).
        weights: of the draws, shape (n,); equal by default.

    Returns:
        Shape (d,), between -pi and pi.
    """
    if weights is None:
        weights = np.ones(len(angles))
    turns = np.asarray(angles, np.float64) / (2 * np.pi)
    bins = np.floor(turns * NUM_PLACES).astype(int) % NUM_PLACES
    middles = 2 * np.pi * (np.arange(NUM_PLACES) + 0.5) / NUM_PLACES
    distance = middles[:, None] - middles
    kernel = np.exp(KERNEL_CONCENTRATION * (np.cos(distance) - 1.0))
    counts = [np.bincount(b, weights, NUM_PLACES) for b in bins.T]
    density = np.reshape(counts, (-1, NUM_PLACES)) @ kernel
    # The cut at a angle between 0 and 2 pi is opposite to a centre, pi less.
    return middles[density.argmin(axis=1)] - np.pi
