# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How a mode moves while one component is held at one value after another."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numpyro_epi.result import EPIResult

from ._arguments import numbers
from ._ascent import box, climb, scale_of
from ._layout import Layout, layout_of, stored_points

# Draws nearest to the first value that climb; the highest end is where a path starts.
NUM_STARTS = 32


class ModePath(NamedTuple):
    """Result of `conditional_modes`: S conditional modes.

    Attributes:
        component: name of the component that is held.
        values: that it is held at, (S,).
        latents: `{site: (S, *shape)}`.
        points: the same as flat points, (S, D).
        log_prob: log q there, in the constrained space, nats, (S,).
        converged: whether the ascent of the other components came to rest, (S,).
        names: of the components, D of them.
    """

    component: str
    values: np.ndarray
    latents: dict[str, np.ndarray]
    points: np.ndarray
    log_prob: np.ndarray
    converged: np.ndarray
    names: tuple[str, ...]


def conditional_modes(
    result: EPIResult,
    site: str,
    values: Any,
    *,
    start: Mapping[str, Any] | None = None,
) -> ModePath:
    """Follow the mode of the other components while one is held at each value in turn.

    Each ascent starts where the one before ended, so that a path stays on one branch as
    long as there is one. For a Gaussian the path is the regression line.

    Args:
        result: of a run.
        site: component that is held, such as "sW" or "a[0]".
        values: that it is held at, in the order of the path, (S,).
        start: latents from which the first ascent starts; its held component is
            replaced. None: the highest end of ascents from the stored draws nearest to
            the first value.

    Returns:
        A `ModePath`.

    Raises:
        TypeError: if `result` is no result, or `values` no numbers.
        ValueError: if the component is unknown, or a value or `start` lies outside the
            support.
        NotImplementedError: if the guide has no density at given points.

    Example:
        >>> path = conditional_modes(result, "z[0]", [0.5, 1.0, 1.5])
        >>> path.points[:, 0]
        array([0.5, 1. , 1.5])

    References:
        Bittner et al., eLife 2021, doi:10.7554/eLife.56265, Methods: z*(sW).
    """
    layout = layout_of(result)
    column = layout.index(site, where="`site`")
    levels = numbers("values", values)
    _check_levels(result, layout, column, levels)
    is_free = np.arange(layout.num_latents) != column
    if start is None:
        starts = stored_points(result)
        gaps = np.abs(starts[:, column] - levels[0])
        starts = starts[np.argsort(gaps, kind="stable")[:NUM_STARTS]].copy()
    else:
        starts = layout.check_one(start, where="`start`")[None].astype(np.float64)
    found = []
    for level in levels:
        starts[:, column] = level
        ends = climb(result, starts, is_free=is_free)
        best = int(np.argmax(ends.log_prob))
        starts = ends.points[best : best + 1].copy()
        found.append((starts[0], ends.log_prob[best], ends.converged[best]))
    points, log_prob, converged = (np.array(x) for x in zip(*found, strict=True))
    points[:, column] = levels
    return ModePath(
        component=layout.names[column],
        values=levels,
        latents=layout.latents(points),
        points=points,
        log_prob=log_prob,
        converged=converged,
        names=layout.names,
    )


def _check_levels(
    result: EPIResult, layout: Layout, column: int, levels: np.ndarray
) -> None:
    low, high = (end[column] for end in box(result))
    outside = (levels < low) | (levels > high)
    if outside.any():
        scale = scale_of(result)[column]
        raise ValueError(
            f"Expected `values` inside the support of `{layout.names[column]}`, from "
            f"{low:.6g} to {high:.6g}, got {levels[outside][0]:.6g}. Its draws have a "
            f"standard deviation of {scale:.3g}."
        )
