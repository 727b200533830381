# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Supports of which some elements are kept and the others have no coordinates.

A masked element of a sample site has no prior density, and is no latent. Elements that
are dropped have one fixed value, the image of zero in the coordinates of the support,
add nothing to the Jacobian, and may have any value where coordinates are asked for.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform


class kept_rows(constraints.Constraint):  # noqa: N801
    """A support of which only some rows have coordinates.

    A row is what one element of the support fills: a number, or a simplex.

    Args:
        base_constraint: Support of each row, not `independent`.
        shape: Of a whole value.
        rows: Indices of those that are kept.
        event_dim: Rightmost axes that belong to one event of the distribution.
    """

    def __init__(
        self,
        base_constraint: constraints.Constraint,
        shape: tuple[int, ...],
        rows: tuple[int, ...],
        event_dim: int,
    ) -> None:
        self.base_constraint = base_constraint
        self.shape, self.rows, self.event_dim = shape, rows, event_dim

    @property
    def kept(self) -> np.ndarray:
        """Which rows are kept, in the shape of the value without that of a row."""
        shape = self.shape[: len(self.shape) - self.base_constraint.event_dim]
        kept = np.zeros(prod(shape), bool)
        kept[list(self.rows)] = True
        return kept.reshape(shape)

    def __call__(self, x: Any) -> jax.Array:
        good = self.base_constraint(x) | ~self.kept
        return good.all(axis=self._inner_axes)

    @property
    def _inner_axes(self) -> tuple[int, ...]:
        """Axes of rows that belong to one event."""
        return tuple(range(self.base_constraint.event_dim - self.event_dim, 0))

    def feasible_like(self, prototype: Any) -> jax.Array:
        return self.base_constraint.feasible_like(prototype)

    def __repr__(self) -> str:
        return f"kept_rows({self.base_constraint}, rows={self.rows})"

    def eq(self, other: object, static: bool = False) -> bool:  # noqa: FBT001, FBT002
        del static
        return (
            isinstance(other, kept_rows)
            and self.base_constraint == other.base_constraint
            and (self.shape, self.rows) == (other.shape, other.rows)
            and self.event_dim == other.event_dim
        )

    def tree_flatten(self) -> tuple:
        aux = {"shape": self.shape, "rows": self.rows, "event_dim": self.event_dim}
        return (self.base_constraint,), (("base_constraint",), aux)


class KeptTransform(Transform):
    """From the coordinates of the kept rows, a vector, to whole values.

    The log determinant has the axes of the value but those of an event, as that of
    other transforms of the same distribution.
    """

    domain = constraints.real_vector

    def __init__(self, support: kept_rows) -> None:
        self.support = support

    @property
    def codomain(self) -> kept_rows:
        return self.support

    @property
    def _base(self) -> Transform:
        return biject_to(self.support.base_constraint)

    @property
    def _is_kept(self) -> np.ndarray:
        """Which coordinates of the base are kept, shape of one value of them."""
        inner = self._base.inverse_shape(self.support.shape)
        kept = self.support.kept
        lead = kept.reshape(kept.shape + (1,) * (len(inner) - kept.ndim))
        return np.broadcast_to(lead, inner)

    def _fill(self, x: jax.Array) -> jax.Array:
        """Coordinates of all rows, zero at those that are dropped."""
        is_kept = self._is_kept
        place = np.where(is_kept, np.cumsum(is_kept).reshape(is_kept.shape), 0)
        zero = jnp.zeros((*x.shape[:-1], 1), x.dtype)
        return jnp.concatenate([zero, x], axis=-1)[..., place]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._base(self._fill(x))

    def _inverse(self, y: jax.Array) -> jax.Array:
        kept, is_kept = self.support.kept, self._is_kept
        filling = self._base(jnp.zeros(is_kept.shape))
        shape = kept.shape + (1,) * self.support.base_constraint.event_dim
        u = self._base.inv(jnp.where(kept.reshape(shape), y, filling))
        batch = u.shape[: u.ndim - is_kept.ndim]
        return u.reshape(*batch, -1)[..., np.flatnonzero(is_kept)]

    def log_abs_det_jacobian(
        self, x: jax.Array, y: jax.Array, intermediates: Any = None
    ) -> jax.Array:
        del y, intermediates
        u = self._fill(x)
        terms = self._base.log_abs_det_jacobian(u, self._base(u))
        terms = jnp.where(self.support.kept, terms, 0.0)
        return terms.sum(axis=self.support._inner_axes)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:-1] + self.support.shape

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        batch = shape[: len(shape) - len(self.support.shape)]
        return (*batch, int(self._is_kept.sum()))

    def eq(self, other: object, static: bool = False) -> bool:  # noqa: FBT001, FBT002
        del static
        return isinstance(other, KeptTransform) and self.support == other.support

    def tree_flatten(self) -> tuple:
        return (self.support,), (("support",), {})


@biject_to.register(kept_rows)
def _to_kept_rows(constraint: kept_rows) -> KeptTransform:
    return KeptTransform(constraint)
