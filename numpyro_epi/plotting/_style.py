# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The look of all figures, and the axes that they are drawn on.

Colours are those of Okabe and Ito and of viridis, which people with colour blindness
tell apart; line styles and markers tell the same things apart in greyscale. Nothing
here changes matplotlib's global settings, and nothing shows a figure.

matplotlib is imported by the functions that draw, not with the package.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from numpyro_epi._checks import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

BLACK, GREY, PALE = "black", "0.6", "0.88"
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER = "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK)
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
COLORMAP = "viridis"

# Sizes are relative, so that the user's font size counts.
STYLE: dict[Any, Any] = {
    "axes.titlesize": "medium",
    "axes.labelsize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": "small",
    "legend.title_fontsize": "small",
    "legend.frameon": False,
}


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Draw in the style of this package, and leave matplotlib's settings as they were.

    Args:
        plot: a function that draws.
    """

    @wraps(plot)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return plot(*args, **kwargs)

    return in_style


class Panels(NamedTuple):
    """Axes to draw on.

    Attributes:
        axes: object array of axes, shape (N,).
        figure: that they are in.
        is_new: whether the figure was made here, so that its margins are free.
    """

    axes: np.ndarray
    figure: "Figure"
    is_new: bool

    def legend(self, handles: list[Any]) -> None:
        """One legend for all panels: above a new figure, else where there is room."""
        if not handles:
            return
        if self.is_new:
            width = self.figure.get_figwidth()
            ncols = min(len(handles), max(1, int(width / 1.6)))
            self.figure.legend(handles=handles, loc="outside upper left", ncols=ncols)
        else:
            self.axes[0].legend(handles=handles, loc="best")


def new_or_given(
    ax: Any,
    num: int,
    *,
    ncols: int,
    size: tuple[float, float],
    share_x: bool = False,
) -> Panels:
    """The given axes, checked, or those of a new figure.

    Args:
        ax: None, axes, or an array of them.
        num: how many are needed.
        ncols: columns of a new figure, at most.
        size: width and height of a panel of a new figure, inches.
        share_x: whether the panels of a new figure share their abscissa.
    """
    if ax is not None:
        axes = check_axes(ax, num)
        return Panels(axes, axes[0].figure, is_new=False)
    import matplotlib.pyplot as plt

    ncols = min(ncols, num)
    nrows = -(-num // ncols)
    figure, axes = plt.subplots(
        nrows,
        ncols,
        figsize=(size[0] * ncols, size[1] * nrows),
        squeeze=False,
        sharex=share_x,
        layout="constrained",
    )
    for unused in axes.ravel()[num:]:
        unused.remove()
    return Panels(axes.ravel()[:num], figure, is_new=True)


def check_axes(ax: Any, num: int) -> np.ndarray:
    """Exactly `num` axes as an object array of shape (num,), or an error."""
    from matplotlib.axes import Axes

    given = np.empty(1, dtype=object)
    given[0] = ax
    if isinstance(ax, np.ndarray | list | tuple):
        given = np.asarray(ax, dtype=object).ravel()
    for one in given:
        if not isinstance(one, Axes):
            raise TypeError(f"Expected matplotlib axes as `ax`, got {describe(one)}.")
    if len(given) != num:
        raise ValueError(
            f"Expected {num} axes as `ax`, one for each panel, got {len(given)}. "
            "Leave `ax` out for a new figure."
        )
    return given


def set_ticks(axis: "Axis", num: int, *, integer: bool = False) -> None:
    """At most `num` intervals between ticks at round numbers, or at integers."""
    from matplotlib.ticker import MaxNLocator

    options = dict[str, Any](steps=[1, 2, 5, 10], integer=integer)
    if num < 3:  # labels at the ends would run into those of the next panel
        options["prune"] = "both"
    axis.set_major_locator(MaxNLocator(num, **options))


def bulk(values: np.ndarray) -> tuple[float, float]:
    """Ends of an interval that holds all values but outliers.

    It is wider by a quarter on either side than the one that holds 99.6% of them.
    """
    low = np.quantile(values, 0.002, method="higher")
    high = np.quantile(values, 0.998, method="lower")
    pad = 0.25 * (high - low)
    return max(values.min(), low - pad), min(values.max(), high + pad)


def bin_edges(values: np.ndarray, low: float, high: float) -> list[float]:
    """Edges of a histogram from `low` to `high`, by the rule of Freedman and Diaconis.

    Their number is at least 1.5 times the cube root of that of the values, as peaks far
    apart would make bins wide, and from 15 to 60.
    """
    quartiles = np.quantile(values, [0.25, 0.75])
    width = 2 * np.ptp(quartiles) / len(values) ** (1 / 3)
    wanted = (high - low) / width if width > 0 else 60
    least = max(15.0, 1.5 * len(values) ** (1 / 3))
    num = int(np.clip(np.ceil(wanted), min(least, 60), 60))
    return np.linspace(low, high, num + 1).tolist()


def legend_beside(ax: "Axes", **options: Any) -> None:
    """A legend to the right of the axes, where it covers nothing."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, **options)


def color_of(index: int, num: int) -> Any:
    """Colour of one of `num` things: of few by name, of many along viridis."""
    if num <= len(COLORS):
        return COLORS[index]
    from matplotlib import colormaps

    return colormaps[COLORMAP](0.9 * index / (num - 1))
