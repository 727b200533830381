# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Panels of a figure of pairs: a triangle, one pair, or the pairs that were chosen."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._components import Components
from ._labels import Label
from ._style import GREY, bulk, check_axes, new_or_given, set_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Draws that span less of a bounded support than this get axes of their own size.
MIN_SHARE = 0.1
PAD = 0.05


class PairGrid(NamedTuple):
    """Axes of a figure of pairs, and which components they show.

    Attributes:
        axes: as the user gets them: (D, D) with None above the diagonal, or one pair as
            (1, 1), or chosen pairs as (N,).
        pairs: axes by the indices (x, y) of the components on abscissa and ordinate.
        margins: axes of single components by index, on the diagonal.
        corner: the cell at the top right, and how many columns up to it are empty, for
            the key; None without one.
    """

    axes: np.ndarray
    pairs: dict[tuple[int, int], "Axes"]
    margins: dict[int, "Axes"]
    corner: "tuple[Axes, int] | None" = None


def view(
    values: np.ndarray, lower: float, upper: float, marks: np.ndarray
) -> tuple[float, float]:
    """Ends of an axis: the support where the draws fill it, otherwise the draws.

    Args:
        values: draws of a component, shape (n,); may be empty.
        lower: bound of its support, or -inf.
        upper: bound, or inf.
        marks: other values that must be seen, shape (M,).
    """
    ends = np.array(bulk(values)) if len(values) else np.empty(0)
    seen = np.concatenate([ends, marks[np.isfinite(marks)]])
    if not seen.size:
        seen = np.array([0.0, 1.0])
    low, high = float(seen.min()), float(seen.max())
    width = upper - lower
    if np.isfinite(width) and high - low >= MIN_SHARE * width:
        low, high = min(low, lower), max(high, upper)
        return low - PAD * width, high + PAD * width
    pad = 2 * PAD * (high - low) if high > low else PAD * max(abs(low), 1.0)
    return low - pad, high + pad


def make_grid(num: int, ax: Any) -> PairGrid:
    """A triangle of panels for `num` components, or one pair on single axes."""
    if num == 2 and _is_single(ax):
        (only,) = check_axes(ax, 1)
        return PairGrid(np.array([[only]], dtype=object), {(0, 1): only}, {})
    axes = _new_triangle(num) if ax is None else check_axes(ax, num * num)
    axes = axes.reshape(num, num)
    shown = np.full((num, num), None, dtype=object)
    for (i, j), cell in np.ndenumerate(axes):
        if i >= j:
            shown[i, j] = cell
        else:
            cell.axis("off")
    # About two inches for the key; these columns are empty at least wide rows down.
    wide = max(1, min(num - 1, round(2.0 / size_of(axes[0, -1])[0])))
    return PairGrid(
        shown,
        {(j, i): shown[i, j] for i in range(num) for j in range(i)},
        {i: shown[i, i] for i in range(num)},
        (axes[0, -1], wide),
    )


def make_chosen(pairs: list[tuple[int, int]], ax: Any) -> PairGrid:
    """One panel for each pair of a list."""
    panels = new_or_given(ax, len(pairs), ncols=3, size=(2.8, 2.6))
    return PairGrid(panels.axes, dict(zip(pairs, panels.axes, strict=True)), {})


def set_axes(
    grid: PairGrid,
    parts: Components,
    labels: dict[str, Label],
    views: dict[int, tuple[float, float]],
) -> None:
    """Limits, labels and the bounds of the support, on all panels."""
    last = max((y for _, y in grid.pairs), default=0)
    for (x, y), ax in grid.pairs.items():
        _draw_bounds(ax, parts, x, y)
        ax.set(xlim=views[x], ylim=views[y])
        set_ticks(ax.xaxis, num_ticks(ax))
        set_ticks(ax.yaxis, num_ticks(ax))
        is_lowest = y == last or grid.corner is None
        is_first = x == 0 or grid.corner is None
        ax.tick_params(labelbottom=is_lowest, labelleft=is_first)
        if is_lowest:
            ax.set_xlabel(labels[parts.names[x]].axis)
        if is_first:
            ax.set_ylabel(labels[parts.names[y]].axis)
    for k, ax in grid.margins.items():
        _draw_bounds(ax, parts, k, None)
        ax.set(xlim=views[k], yticks=[])
        set_ticks(ax.xaxis, num_ticks(ax))
        ax.spines["left"].set_visible(False)
        ax.tick_params(labelbottom=k == last)
        if k == last:
            ax.set_xlabel(labels[parts.names[k]].axis)


def _draw_bounds(ax: "Axes", parts: Components, x: int, y: int | None) -> None:
    for draw, k in ((ax.axvline, x), (ax.axhline, y)):
        for bound in () if k is None else (parts.lower[k], parts.upper[k]):
            if np.isfinite(bound):
                draw(bound, color=GREY, lw=0.7, zorder=0)


def _is_single(ax: Any) -> bool:
    return ax is not None and np.size(np.asarray(ax, dtype=object)) == 1


def _new_triangle(num: int) -> np.ndarray:
    """A square figure with fixed margins: laying out 144 panels takes seconds."""
    import matplotlib.pyplot as plt

    cell = float(np.clip(7.6 / num, 0.95, 2.3))
    left, bottom, right, top = 0.75, 0.6, 0.15, 0.5
    width, height = num * cell + left + right, num * cell + bottom + top
    figure, axes = plt.subplots(num, num, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left / width,
        bottom / height,
        1 - right / width,
        1 - top / height,
        wspace=0.12,
        hspace=0.12,
    )
    figure.align_ylabels(axes[:, 0])
    return axes.ravel()


def num_ticks(ax: "Axes") -> int:
    """Intervals between ticks that there is room for."""
    return 4 if min(size_of(ax)) > 1.3 else 2


def size_of(ax: "Axes") -> tuple[float, float]:
    """Width and height of axes, inches."""
    extent = ax.get_window_extent()
    return extent.width / ax.figure.dpi, extent.height / ax.figure.dpi
