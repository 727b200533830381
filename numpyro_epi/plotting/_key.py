# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The key of a figure of pairs: a note, a colour bar and a legend.

In a triangle they stand in its empty corner, at the top right, in inches whatever the
size of the panels; beside a single pair the bar is on the right and the legend above.
"""

from typing import TYPE_CHECKING, Any

from ._grid import PairGrid, size_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_WIDTH, BAR_HEIGHT = 2.2, 0.13
NOTE_HEIGHT, BAR_TO_LEGEND = 0.45, 0.55


def draw_key(
    grid: PairGrid,
    mappable: Any,
    label: str,
    note: str,
    handles: list[Any],
    extend: Any = "neither",
) -> None:
    """Explain colours and marks of a triangle or of a single pair.

    Args:
        grid: the panels.
        mappable: with the colours of the bar.
        label: of the bar.
        note: above the bar, left out beside a single pair.
        handles: of the legend.
        extend: which ends of the bar stand for more than their number.
    """
    if grid.corner is None:
        (only,) = grid.pairs.values()
        only.figure.colorbar(mappable, ax=only, extend=extend).set_label(label)
        legend_above(only, handles)
        return
    ax, wide = grid.corner
    x_inch, y_inch = (1.0 / size for size in size_of(ax))
    width = 1.0 + 1.12 * (wide - 1)  # of the block, in cells with gaps
    left = 1.0 - width + 0.1 * x_inch
    top = 1.0 - NOTE_HEIGHT * y_inch
    ax.text(left, 1.0, note, va="top", size="small", transform=ax.transAxes)
    length = min(width - 0.2 * x_inch, BAR_WIDTH * x_inch)
    inset = ax.inset_axes((left, top, length, BAR_HEIGHT * y_inch))
    bar = ax.figure.colorbar(
        mappable, cax=inset, orientation="horizontal", extend=extend
    )
    bar.ax.locator_params(nbins=4)
    bar.ax.tick_params(labelsize="small")
    bar.set_label(label, size="small")
    if handles:
        anchor = (left - 0.06 * x_inch, top - BAR_TO_LEGEND * y_inch)
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": anchor}
        ax.legend(handles=handles, borderaxespad=0, **place)


def legend_above(ax: "Axes", handles: list[Any]) -> None:
    """A legend above the axes, where it covers nothing."""
    if handles:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.01)}
        ax.legend(handles=handles, ncols=2, borderaxespad=0, **place)
