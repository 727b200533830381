# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Coordinates x in which a density is differentiated: its eigenvectors depend on them.

A density is always that of the coordinates themselves, so it changes by |dx/du| from
one choice to another. On simplex-like supports every choice means NumPyro's
unconstrained coordinates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import describe
from numpyro_epi.result import EPIResult

from ._layout import Bounds, Layout, layout_of, stored_points

CHOICES = ("constrained", "standardised", "log", "unconstrained")


class Coordinates(NamedTuple):
    """Maps between coordinates x and unconstrained ones u, both of shape (..., D).

    Attributes:
        name: one of `CHOICES`.
        to_u: u of x.
        from_u: x of u, and log |dx/du|, shape (...).
        bounds: box that holds all x.
    """

    name: str
    to_u: Callable[[jax.Array], jax.Array]
    from_u: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    bounds: Bounds


def coordinates_of(result: EPIResult, name: Any) -> Coordinates:
    """Coordinates by name.

    Raises:
        ValueError: if there are none of that name, or the logarithm of a latent that
            may be negative is asked for.
    """
    layout = layout_of(result)
    if name == "constrained":
        return Coordinates(name, layout.to_u, layout.from_u, layout.bounds)
    if name == "standardised":
        return _standardised(layout, stored_points(result).std(axis=0))
    if name == "log":
        return _log(layout)
    if name == "unconstrained":
        ends = np.full(layout.num_latents, np.inf)
        return Coordinates(name, _same, _same_and_zero, Bounds(-ends, ends))
    raise ValueError(
        f"Expected one of {CHOICES} as `coordinates`, got {describe(name)}."
    )


def _standardised(layout: Layout, scale: np.ndarray) -> Coordinates:
    log_volume = float(np.log(scale).sum())
    unit = jnp.asarray(scale, float)

    def from_u(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, log_det = layout.from_u(u)
        return w / unit, log_det - log_volume

    bounds = Bounds(*(end / scale for end in layout.bounds))
    return Coordinates("standardised", lambda x: layout.to_u(x * unit), from_u, bounds)


def _log(layout: Layout) -> Coordinates:
    low = layout.bounds.low
    if (low < 0).any():
        first = layout.names[int(np.argmax(low < 0))]
        raise ValueError(
            "Expected latents that are positive for `coordinates='log'`, but "
            f"`{first}` may be negative. Use 'standardised' for latents of different "
            "units."
        )

    def from_u(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, log_det = layout.from_u(u)
        x = jnp.log(w)
        return x, log_det - x.sum(axis=-1)

    with np.errstate(divide="ignore"):
        bounds = Bounds(*(np.log(end) for end in layout.bounds))
    return Coordinates("log", lambda x: layout.to_u(jnp.exp(x)), from_u, bounds)


def _same(u: jax.Array) -> jax.Array:
    return u


def _same_and_zero(u: jax.Array) -> tuple[jax.Array, jax.Array]:
    return u, jnp.zeros(u.shape[:-1])
