# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a figure needs of a result: components of the latents, and of the statistics."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpyro_epi._checks import describe
from numpyro_epi.result import EPIResult

from ._labels import component_names, site_of

# Supports without bounds of their own, by class: NumPyro is not imported for figures.
BOUNDS = {"_Simplex": (0.0, 1.0)}


class Components(NamedTuple):
    """Scalar components of all latents, in the order of the result.

    Attributes:
        names: D of them.
        draws: stored draws, shape (n, D).
        log_density: of the draws, nats, shape (n,).
        lower: lower bounds of the support, -inf without one, shape (D,).
        upper: upper bounds, shape (D,).
    """

    names: tuple[str, ...]
    draws: np.ndarray
    log_density: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def take(self, indices: list[int]) -> "Components":
        """Only the components of these indices."""
        return Components(
            tuple(self.names[k] for k in indices),
            self.draws[:, indices],
            self.log_density,
            self.lower[indices],
            self.upper[indices],
        )

    def indices(self, latents: Sequence[str] | None) -> list[int]:
        """Indices of the components that a user names; a site means all of its own."""
        if latents is None:
            return list(range(len(self.names)))
        if isinstance(latents, str) or not isinstance(latents, Sequence):
            raise TypeError(
                f"Expected a list of names as `latents`, got {describe(latents)}."
            )
        found: list[int] = []
        for name in latents:
            new = [k for k, own in enumerate(self.names) if name in (own, site_of(own))]
            if not new:
                raise ValueError(
                    f"Expected names out of {list(self.names)}, or of their sites, as "
                    f"`latents`, got `{name}`."
                )
            found += [k for k in new if k not in found]
        if not found:
            raise ValueError("Expected at least one name as `latents`, got none.")
        return found

    def check_names(self, names: Any, where: str) -> None:
        """Refuse what was computed for another model."""
        if tuple(names) != self.names:
            raise ValueError(
                f"Expected {where} of this result, with the components "
                f"{list(self.names)}, got {list(names)}."
            )


def check_result(result: Any) -> EPIResult:
    """Refuse what is not the result of a run, or has no draws."""
    if not isinstance(result, EPIResult):
        raise TypeError(
            "Expected an `EPIResult`, as `EPI.run` returns it, as `result`, got "
            f"{describe(result)}."
        )
    if not result.restarts or not len(result.draws.log_density):
        raise ValueError(
            "Expected a result with stored draws as `result`, got one without. Run it "
            "with a larger `num_evaluation`."
        )
    return result


def components(result: EPIResult) -> Components:
    """Components of the latents of a result, with its stored draws."""
    sites = result._engine.problem.sites
    names = [name for site in sites for name in _kept_names(site)]
    bounds = [[end[s.is_kept.ravel()] for end in support_bounds(s)] for s in sites]
    return Components(
        tuple(names),
        flatten(result, result.draws.latents),
        np.asarray(result.draws.log_density, np.float64),
        np.concatenate([lower for lower, _ in bounds]),
        np.concatenate([upper for _, upper in bounds]),
    )


def flatten(result: EPIResult, latents: Mapping[str, Any]) -> np.ndarray:
    """Latents `{site: (M, *shape)}` or `{site: shape}` as an array (M, D), checked."""
    values = result._engine.problem.check_latents(latents)
    parts = []
    for site in result._engine.problem.sites:
        value = np.asarray(values[site.name], np.float64)
        parts.append(value.reshape(-1, *site.shape)[:, site.is_kept])
    return np.concatenate(parts, axis=1)


def support_bounds(site: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of the components of a site, infinite without any."""
    support = site.prior.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low, high = BOUNDS.get(type(support).__name__, (-np.inf, np.inf))
    pair = getattr(support, "lower_bound", low), getattr(support, "upper_bound", high)
    lower, upper = (
        np.broadcast_to(np.asarray(bound, np.float64), site.shape).ravel()
        for bound in pair
    )
    return lower, upper


def _kept_names(site: Any) -> list[str]:
    """Names of the components that are no masked elements."""
    names = component_names(site.name, site.shape)
    kept = site.is_kept.ravel()
    return [name for name, is_kept in zip(names, kept, strict=True) if is_kept]


class Statistic(NamedTuple):
    """One component of a statistic.

    Attributes:
        name: of the component.
        site: that it belongs to.
        place: index within the site.
    """

    name: str
    site: str
    place: tuple[int, ...]

    def of(self, values: Mapping[str, Any]) -> np.ndarray:
        """Its values, shape (...), in `{site: (..., *shape)}`."""
        index: Any = (..., *self.place)
        return np.asarray(values[self.site], np.float64)[index]


def statistics(shapes: Mapping[str, tuple[int, ...]]) -> list[Statistic]:
    """All components of statistics of given shapes."""
    return [
        Statistic(name, site, index)
        for site, shape in shapes.items()
        for name, index in zip(
            component_names(site, shape), np.ndindex(*shape), strict=True
        )
    ]


def choose_statistics(
    available: list[Statistic], names: Sequence[str] | None
) -> list[Statistic]:
    """The statistics that a user names; a site means all of its own."""
    if names is None:
        return available
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(
            f"Expected a list of names as `statistics`, got {describe(names)}."
        )
    known = {name for stat in available for name in (stat.name, stat.site)}
    for name in names:
        if name not in known:
            raise ValueError(
                f"Expected names out of {[stat.name for stat in available]}, or of "
                f"their sites, as `statistics`, got `{name}`."
            )
    chosen = [stat for stat in available if {stat.name, stat.site} & set(names)]
    if not chosen:
        raise ValueError("Expected at least one name as `statistics`, got none.")
    return chosen


def targets(result: EPIResult) -> dict[str, tuple[float, float]]:
    """Target mean and standard deviation of each statistic; NaN where none is given."""
    table = result.table
    found = statistics(dict(table.sites))
    deviations = np.sqrt(table.var)
    return {
        stat.name: (float(mean), float(sd))
        for stat, mean, sd in zip(found, table.mean, deviations, strict=True)
    }


def require(value: Any, where: str, fields: str, source: str) -> None:
    """Refuse what lacks one of the fields that `source` gives its results.

    Args:
        value: what the user passed.
        where: name of the argument.
        fields: names, separated by blanks.
        source: function that makes such values.
    """
    missing = [name for name in fields.split() if not hasattr(value, name)]
    if missing:
        raise TypeError(
            f"Expected what `{source}` returns as `{where}`, got {describe(value)}, "
            f"which has no `{missing[0]}`."
        )
