# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Latents as one flat point: names, bounds and units of its D components.

The sites of a result are laid out in the order of its guide. A component is named
after its site, `g_el`, with an index if the site is an array, `a[0]` or `J[0,1]`.
Masked elements have none. Angles go from half a turn before the centre of their circle
to half a turn behind it: they do not jump where the law is. A site whose values have
more numbers than its support has dimensions (a simplex, a correlation matrix) is laid
out in NumPyro's unconstrained coordinates, and its components say so: `p(u)[0]`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from numpyro_epi._charts import kept_rows, wrap
from numpyro_epi._checks import describe, real_array
from numpyro_epi._model.problem import Problem
from numpyro_epi._sites import Latent
from numpyro_epi.result import EPIResult


def keep(result: EPIResult, key: Any, make: Callable[[], Any]) -> Any:
    """Make something of a result once, such as a compiled function.

    The result itself holds it, so that both go together, although compiled functions
    refer to their result.
    """
    if key not in result._kept:
        result._kept[key] = make()
    return result._kept[key]


class Bounds(NamedTuple):
    """Lower and upper end of each component, infinite where there is none, (D,)."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """How a result's latents become a flat point w, shape (..., D), and back.

    Attributes:
        problem: the model of the result.
    """

    problem: Problem

    @property
    def num_latents(self) -> int:
        """D."""
        return self.problem.num_latents

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, (D,)."""
        return tuple(name for site in self.problem.sites for name in _names(site))

    @property
    def bounds(self) -> Bounds:
        """Box that holds the support."""
        ends = [_ends(site) for site in self.problem.sites]
        return Bounds(*(np.concatenate(side) for side in zip(*ends, strict=True)))

    def to_u(self, w: jax.Array) -> jax.Array:
        """Unconstrained coordinates of points, shape (..., D)."""
        return jnp.concatenate(
            [
                site.transform.inv(_value(site, part)).reshape(part.shape)
                if _is_flat(site)
                else part
                for site, part in self._parts(w)
            ],
            axis=-1,
        )

    def from_u(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Points (..., D) of unconstrained coordinates, and log |dw/du| (...)."""
        points, log_det = [], jnp.zeros(u.shape[:-1])
        for site, part in self._parts(u):
            if _is_flat(site):
                inner = _shaped(part, site.unconstrained_shape)
                value = site.transform(inner)
                term = site.transform.log_abs_det_jacobian(inner, value)
                log_det = log_det + term.sum(tuple(range(u.ndim - 1, term.ndim)))
                part = _points(site, value)
            points.append(part)
        return jnp.concatenate(points, axis=-1), log_det

    def flatten(self, latents: Mapping[str, Any]) -> np.ndarray:
        """Points (..., D) of latents that are known to be well formed."""
        parts = []
        for site in self.problem.sites:
            value = jnp.asarray(latents[site.name])
            if _is_flat(site):
                parts.append(np.asarray(_points(site, value)))
                continue
            u = site.transform.inv(value)
            batch = u.shape[: u.ndim - len(site.unconstrained_shape)]
            parts.append(np.reshape(np.asarray(u), (*batch, -1)))
        return np.concatenate(parts, axis=-1)

    def latents(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Latents `{site: (..., *shape)}` of points (..., D)."""
        found = {}
        for site, part in self._parts(jnp.asarray(points, float)):
            if _is_flat(site):
                value = _value(site, part)
            else:
                value = site.transform(_shaped(part, site.unconstrained_shape))
            found[site.name] = np.asarray(value)
        return found

    def _parts(self, flat: jax.Array) -> list[tuple[Latent, jax.Array]]:
        parts, start = [], 0
        for site in self.problem.sites:
            parts.append((site, flat[..., start : start + site.num_coordinates]))
            start += site.num_coordinates
        return parts

    # -- what users pass --------------------------------------------------------------

    def check(self, latents: Mapping[str, Any], *, where: str) -> np.ndarray:
        """Points (..., D) inside the support, or an error naming the component."""
        values = self.problem.check_latents(latents)
        for name, value in values.items():
            if np.size(value) == 0:
                raise ValueError(
                    f"Expected at least one point as {where}, got `{name}` of shape "
                    f"{np.shape(value)}."
                )
        inside = np.asarray(self.problem.is_inside(values))
        if not inside.all():
            first = np.argwhere(~inside)[0]
            row = {k: np.asarray(v)[tuple(first)] for k, v in values.items()}
            raise ValueError(self._outside(row, tuple(map(int, first)), where))
        return self.flatten(values)

    def check_one(self, latents: Mapping[str, Any], *, where: str) -> np.ndarray:
        """One point (D,), or an error; leading axes of length 1 are dropped."""
        points = self.check(latents, where=where)
        if points.size != self.num_latents:
            raise ValueError(
                f"Expected one point as {where}, got leading axes of shape "
                f"{points.shape[:-1]}. Pick one, as in "
                "`{site: value[0] for site, value in latents.items()}`."
            )
        return points.reshape(-1)

    def check_points(self, points: np.ndarray, *, where: str) -> np.ndarray:
        """Points (n, D) inside the support, or an error naming the component."""
        low, high = self.bounds
        outside = (points <= low) | (points >= high) | ~np.isfinite(points)
        if outside.any():
            row, column = map(int, np.argwhere(outside)[0])
            raise ValueError(
                f"Expected points inside the support at {where}, got "
                f"`{self.names[column]}` = {points[row, column]:.6g}, which is not "
                f"between {low[column]:.6g} and {high[column]:.6g}. Stay nearer."
            )
        # Other supports, such as ordered vectors, have more than a box.
        self.check(self.latents(points), where=where)
        return points

    def _outside(self, row: dict, index: tuple[int, ...], where: str) -> str:
        place = f" (at index {index})" if index else ""
        for site in self.problem.sites:
            alone = {s.name: row[s.name] for s in (site,)}
            if not _is_flat(site):
                continue
            values, (low, high) = np.ravel(alone[site.name][site.is_kept]), _ends(site)
            for name, value, a, b in zip(_names(site), values, low, high, strict=True):
                if not a < value < b:
                    return (
                        f"Expected points inside the support as {where}, got `{name}` "
                        f"= {value:.6g}{place}, which is not between {a:.6g} and "
                        f"{b:.6g}. The edge itself does not count as inside."
                    )
        sites = [site.name for site in self.problem.sites]
        shown = {name: np.round(row[name], 6).tolist() for name in sites}
        return (
            f"Expected points inside the supports of {sites} as {where}, got "
            f"{shown}{place}."
        )

    def index(self, name: Any, *, where: str) -> int:
        """Position of a component; a site of one component may be named itself."""
        if name in self.names:
            return self.names.index(name)
        for site in self.problem.sites:
            if name == site.name and site.num_coordinates == 1:
                return self.names.index(_names(site)[0])
        raise ValueError(
            f"Expected one of the components {list(self.names)} as {where}, got "
            f"{describe(name)}."
        )

    def check_direction(self, direction: Any, *, where: str) -> np.ndarray:
        """A vector of length one, from (D,) numbers or `{component: number}`."""
        if isinstance(direction, Mapping):
            vector = np.zeros(self.num_latents)
            for name, value in direction.items():
                number = real_array(value, where=f"`{name}` of {where}")
                vector[self.index(name, where=f"a key of {where}")] = number
        else:
            vector = real_array(direction, where=where)
        if vector.shape != (self.num_latents,):
            raise ValueError(
                f"Expected {self.num_latents} numbers as {where}, one for each of "
                f"{list(self.names)}, got shape {vector.shape}."
            )
        length = np.linalg.norm(vector)
        if not length > 0:
            raise ValueError(f"Expected a vector that is not zero as {where}.")
        return vector / length


def layout_of(result: Any) -> Layout:
    """Layout of a result, or an error if it is not one."""
    if not isinstance(result, EPIResult):
        raise TypeError(
            f"Expected an `EPIResult` as `result`, got {describe(result)}. It is what "
            "`EPI(model).run(key)` returns."
        )
    return keep(result, "layout", lambda: Layout(result._engine.problem))


def stored_points(result: EPIResult) -> np.ndarray:
    """Stored draws of a result as points, (n, D), float64."""
    layout = layout_of(result)

    def make() -> np.ndarray:
        return layout.flatten(result.draws.latents).astype(np.float64)

    return keep(result, "points", make)


def _is_flat(site: Latent) -> bool:
    """Whether the values themselves are coordinates, as many as the support has."""
    return int(site.is_kept.sum()) == site.num_coordinates


def _names(site: Latent) -> list[str]:
    kept = site.is_kept if _is_flat(site) else np.ones(site.unconstrained_shape, bool)
    base = site.name if _is_flat(site) else f"{site.name}(u)"
    return [
        f"{base}[{','.join(map(str, index))}]" if index else base
        for index in np.ndindex(*kept.shape)
        if kept[index]
    ]


def _points(site: Latent, value: jax.Array) -> jax.Array:
    """Components (..., d) of values of a flat site."""
    batch = value.shape[: value.ndim - len(site.shape)]
    if site.centre is not None:
        value = site.centre + wrap(value - site.centre)
    return value.reshape(*batch, -1)[..., np.flatnonzero(site.is_kept)]


def _value(site: Latent, part: jax.Array) -> jax.Array:
    """Values of a flat site with these components (..., d)."""
    kept = site.is_kept
    if not kept.all():
        filling = site.transform(jnp.zeros(site.unconstrained_shape))
        every = jnp.broadcast_to(filling.ravel(), (*part.shape[:-1], kept.size))
        part = every.at[..., np.flatnonzero(kept)].set(part)
    value = _shaped(part, site.shape)
    return value if site.centre is None else wrap(value)


def _ends(site: Latent) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the components of a site."""
    support: Any = site.prior.support
    while isinstance(support, (constraints.independent, kept_rows)):
        support = support.base_constraint
    size = site.num_coordinates
    if support.event_dim > 0 or not _is_flat(site):
        return np.full(size, -np.inf), np.full(size, np.inf)
    middle = 0.0 if site.centre is None else np.asarray(site.centre, np.float64)
    low = middle + np.asarray(getattr(support, "lower_bound", -np.inf), np.float64)
    high = middle + np.asarray(getattr(support, "upper_bound", np.inf), np.float64)
    return (
        np.broadcast_to(low, site.shape)[site.is_kept],
        np.broadcast_to(high, site.shape)[site.is_kept],
    )


def _shaped(part: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return part.reshape(part.shape[:-1] + shape)
