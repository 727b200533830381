# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Constraints in scaled units: what `E[T] = 0` means whatever the units of f.

For a statistic f with target mean m and target variance v, the deviations are

    T1 = (f - m) / s,            s = sqrt(v)
    T2 = ((f - m)^2 / v - 1) / sqrt(2).

Under a Gaussian statistic that meets its targets both have variance one, so one
penalty and one tolerance serve every model. A statistic without a target variance
has only T1, and takes its scale s from a pilot. f is divided by s before it is
squared: `f ~ 1e-9` and `f ~ 1e7` are equally safe in single precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.precision import subtract_parts, two_parts

SQRT2 = float(np.sqrt(2.0))


class Targets(NamedTuple):
    """The numbers of a `ConstraintTable` that enter a compiled step.

    Attributes:
        mean: target means as the computing type holds them, shape (S,), units of the
            statistics.
        scale: scales s, shape (S,), units of the statistics.
        rest: what rounding took from the means, shape (S,).
    """

    mean: jax.Array
    scale: jax.Array
    rest: jax.Array

    @classmethod
    def of(cls, mean: np.ndarray, scale: np.ndarray) -> "Targets":
        """Those of means and scales in double precision, shape (..., S)."""
        rounded, rest = (jnp.asarray(part) for part in two_parts(mean))
        return cls(rounded, jnp.asarray(scale, float), rest)

    def standardise(self, stats: jax.Array) -> jax.Array:
        """(f - m) / s of statistics, shape (..., S)."""
        return subtract_parts(stats, self.mean, self.rest) / self.scale


@dataclass(frozen=True)
class ConstraintTable:
    """Targets of all statistics of a model, flattened to S numbers; K constraints.

    The K rows are the S means, then the variances of those statistics that have one.

    Attributes:
        sites: site names with the shape of their statistic, in order.
        mean: target means, shape (S,), float64.
        var: target variances, shape (S,), float64, NaN where only the mean is given.
        scale: scale s of each statistic, shape (S,), NaN until measured on a pilot.
    """

    sites: tuple[tuple[str, tuple[int, ...]], ...]
    mean: np.ndarray
    var: np.ndarray
    scale: np.ndarray

    @classmethod
    def from_targets(cls, targets: dict) -> "ConstraintTable":
        """Flatten `{site: (shape, mean, var or None)}`."""
        sites = tuple((name, tuple(shape)) for name, (shape, _, _) in targets.items())
        means, variances = [], []
        for shape, mean, var in targets.values():
            means.append(np.broadcast_to(np.asarray(mean, np.float64), shape).ravel())
            var = np.nan if var is None else np.asarray(var, np.float64)
            variances.append(np.broadcast_to(var, shape).ravel())
        var = np.concatenate(variances)
        return cls(sites, np.concatenate(means), var, np.sqrt(var))

    @property
    def num_statistics(self) -> int:
        """S."""
        return self.mean.size

    @property
    def has_var(self) -> np.ndarray:
        """Which statistics have a target variance, shape (S,)."""
        return ~np.isnan(self.var)

    @property
    def num_constraints(self) -> int:
        """K."""
        return self.num_statistics + int(self.has_var.sum())

    @property
    def statistic_labels(self) -> tuple[str, ...]:
        """A name for each statistic: `site`, or `site[0, 1]` for an element of one."""
        labels = []
        for name, shape in self.sites:
            for index in np.ndindex(*shape):
                inside = ", ".join(map(str, index))
                labels.append(f"{name}[{inside}]" if index else name)
        return tuple(labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each constraint."""
        names = np.array(self.statistic_labels, dtype=object)
        means = [f"mean of {name}" for name in names]
        return tuple(means + [f"variance of {name}" for name in names[self.has_var]])

    @property
    def targets(self) -> Targets:
        """The arrays that a compiled step needs."""
        return Targets.of(self.mean, self.scale)

    def with_scale(self, stats: np.ndarray) -> "ConstraintTable":
        """Freeze the missing scales from pilot statistics, shape (n, S).

        The scale of a mean-only statistic is its interquartile range over 1.349 (the
        standard deviation of a Gaussian), or, where half of the draws coincide, its
        standard deviation; a constant statistic is measured in units of its target.
        """
        stats = np.asarray(stats, np.float64)
        low, high = np.percentile(stats, [25, 75], axis=0)
        spread = (high - low) / 1.349
        spread = np.where(spread > 0, spread, stats.std(axis=0))
        spread = np.where(spread > 0, spread, np.maximum(np.abs(self.mean), 1.0))
        return replace(self, scale=np.where(self.has_var, self.scale, spread))

    def units_in(self, other: "ConstraintTable") -> np.ndarray:
        """What T is to be multiplied by, to have the scales of another table, (K,)."""
        return np.append(self.scale / other.scale, np.ones(self.has_var.sum()))

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Statistics of shape (..., S) as `{site: (..., *shape)}`."""
        result, start = {}, 0
        for name, shape in self.sites:
            size = int(np.prod(shape, dtype=int))
            part = values[..., start : start + size]
            result[name] = part.reshape(values.shape[:-1] + shape)
            start += size
        return result

    def flatten(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inverse of `split` for statistics of n simulations, shape (n, S)."""
        parts = [
            np.reshape(
                values[name], (len(values[name]), int(np.prod(shape, dtype=int)))
            )
            for name, shape in self.sites
        ]
        return np.concatenate(parts, axis=1)

    def raw_multipliers(self, scaled: np.ndarray) -> dict[str, np.ndarray]:
        """Multipliers of raw T = (f - m, (f - m)^2 - v) from those of scaled T.

        Args:
            scaled: shape (K,).

        Returns:
            `{site: (2, *shape)}`, or `(1, *shape)` where only means are constrained.
        """
        scaled = np.asarray(scaled, np.float64)
        num = self.num_statistics
        second = np.zeros(num)
        second[self.has_var] = scaled[num:] / (SQRT2 * self.var[self.has_var])
        both = np.stack([scaled[:num] / self.scale, second])
        return {
            name: both_site if self._site_has_var(name) else both_site[:1]
            for name, both_site in self.split(both).items()
        }

    def scaled_multipliers(self, raw: Mapping[str, Any]) -> np.ndarray:
        """Inverse of `raw_multipliers`, shape (K,).

        Raises:
            ValueError: if a site is unknown, missing, or has the wrong shape.
        """
        names = [name for name, _ in self.sites]
        if not isinstance(raw, Mapping) or set(raw) != set(names):
            found = sorted(raw) if isinstance(raw, Mapping) else type(raw).__name__
            raise ValueError(
                f"`multipliers` must be a mapping with the sites {names}, but got "
                f"{found}. Start from `result.multipliers`."
            )
        first, second = [], []
        for name, shape in self.sites:
            value = np.asarray(raw[name], np.float64)
            rows = 2 if self._site_has_var(name) else 1
            if value.shape != (rows, *shape) or not np.isfinite(value).all():
                raise ValueError(
                    f"The multipliers of `{name}` must be finite numbers of shape "
                    f"{(rows, *shape)}, but got shape {value.shape}."
                )
            first.append(value[0].ravel())
            if rows == 2:
                second.append(value[1].ravel())
        return np.concatenate(first + second) * self.raw_sizes

    def deviations(self, stats: np.ndarray) -> np.ndarray:
        """T in scaled units, float64, shape (..., K), of statistics (..., S)."""
        first = (np.asarray(stats, np.float64) - self.mean) / self.scale
        second = (first[..., self.has_var] ** 2 - 1.0) / SQRT2
        return np.concatenate([first, second], axis=-1)

    @property
    def raw_sizes(self) -> np.ndarray:
        """Size of a unit of each scaled deviation in raw units, shape (K,)."""
        second = SQRT2 * self.var[self.has_var]
        return np.concatenate([self.scale, second])

    def _site_has_var(self, name: str) -> bool:
        return bool(np.all(self.split(self.has_var)[name]))


def deviations(stats: jax.Array, targets: Targets, has_var: np.ndarray) -> jax.Array:
    """T in scaled units.

    Args:
        stats: statistics f, shape (..., S).
        targets: their targets.
        has_var: which statistics have a target variance, shape (S,), static.

    Returns:
        Shape (..., K).
    """
    first = targets.standardise(stats)
    second = (first[..., np.flatnonzero(has_var)] ** 2 - 1.0) / SQRT2
    return jnp.concatenate([first, second], axis=-1)
