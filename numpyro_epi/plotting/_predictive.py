# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Did the draws get the property? Their statistics against the targets."""

from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_epi.result import EPIResult

from ._components import (
    Statistic,
    check_result,
    choose_statistics,
    components,
    targets,
)
from ._components import statistics as statistics_of
from ._labels import Label, resolve_labels
from ._style import BLUE, GREY, ORANGE, bin_edges, bulk, new_or_given, set_ticks, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

MAX_PANELS = 12


@styled
def plot_predictive(
    result: EPIResult,
    *,
    statistics: "Sequence[str] | None" = None,
    labels: "Mapping[str, Any] | None" = None,
    ax: Any = None,
) -> np.ndarray:
    """Plot histograms of the stored statistics against their targets.

    A dotted line and a bar with a circle are the target mean and one target standard
    deviation to either side; the bar with a square is what the draws have. A statistic
    without a target variance has a target mean only. Draws beyond the axis, and those
    that are not finite, are counted in the legend. Of more than twelve statistics those
    with the largest violations are shown, and the figure says so.

    Args:
        result: of a run.
        statistics: names of sites or components to show. Default: all.
        labels: `{name: (text, unit)}` by statistic.
        ax: axes to draw on, one for each statistic that is shown.

    Returns:
        Axes, shape (number of statistics,).

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if a name is unknown or the number of axes is wrong.

    Example:
        >>> axes = plot_predictive(result, statistics=["total"])
        >>> axes[0].get_xlabel()
        'total'
    """
    result = check_result(result)
    available = _all_statistics(result)
    chosen = choose_statistics(available, statistics)
    num = len(chosen)
    if num > MAX_PANELS:
        worst = _largest_violations(result)
        chosen = sorted(chosen, key=lambda stat: -worst[stat.name])[:MAX_PANELS]
    names = [stat.name for stat in chosen]
    known = [*components(result).names, *(stat.name for stat in available)]
    texts = resolve_labels(labels, names, known)
    values = {stat.name: _finite(result, stat) for stat in chosen}
    panels = new_or_given(ax, len(chosen), ncols=4, size=(3.4, 2.7))
    goal = targets(result)
    for stat, panel in zip(chosen, panels.axes, strict=True):
        _draw_statistic(panel, *values[stat.name], *goal[stat.name], texts[stat.name])
    if panels.is_new:
        text = f"Statistics of {len(result.draws.log_density):,} draws"
        if num > len(chosen):
            text += f": the {len(chosen)} of {num} with the largest violations"
        panels.figure.suptitle(text, ha="left", x=0.01, size="medium")
    return panels.axes


def _all_statistics(result: EPIResult) -> list[Statistic]:
    return statistics_of(dict(result.table.sites))


def _largest_violations(result: EPIResult) -> dict[str, float]:
    """Larger of the violations of mean and variance, by statistic."""
    table, violation = result.table, np.abs(result._best.violation)
    worst = violation[: table.num_statistics].copy()
    worst[table.has_var] = np.maximum(
        worst[table.has_var], violation[table.num_statistics :]
    )
    names = [stat.name for stat in _all_statistics(result)]
    return dict(zip(names, worst.tolist(), strict=True))


def _finite(result: EPIResult, stat: Statistic) -> tuple[np.ndarray, int]:
    """Values that are finite, and the number of the others."""
    values = stat.of(result.draws.statistics)
    is_finite = np.isfinite(values)
    if not is_finite.any():
        raise ValueError(
            f"Expected finite values of the statistic `{stat.name}` in the stored "
            "draws, got none. Leave it out with `statistics`."
        )
    return values[is_finite], int(np.sum(~is_finite))


def _draw_statistic(
    ax: "Axes",
    values: np.ndarray,
    num_invalid: int,
    mean: float,
    sd: float,
    label: Label,
) -> None:
    """Histogram with a bar for the target and one for the draws above it."""
    low, high = _range(values, mean, sd)
    ax.hist(values, bin_edges(values, low, high), density=True, color=GREY)
    top = ax.get_ylim()[1]
    ax.vlines(mean, 0, 1.17 * top, color=ORANGE, ls=":", lw=1.2)
    rows = [
        (1.17, ORANGE, "o", "target", mean, sd),
        (1.06, BLUE, "s", "draws", values.mean(), values.std()),
    ]
    for height, color, marker, name, m, s in rows:
        ax.errorbar(
            m,
            height * top,
            xerr=None if np.isnan(s) else s,
            label=f"{name}: {_plus_minus(float(m), float(s), high - low)}",
            fmt=marker,
            capsize=4,
            lw=2,
            ms=5,
            color=color,
        )
    ax.set(
        xlim=(low, high),
        xlabel=label.axis,
        ylabel=label.density,
    )
    set_ticks(ax.xaxis, 5)
    set_ticks(ax.yaxis, 4)
    handles: list[Any] = ax.get_legend_handles_labels()[0]
    num_beyond = int(np.sum((values < low) | (values > high)))
    for num, what in ((num_beyond, "beyond the axis"), (num_invalid, "not finite")):
        if num:
            handles += ax.plot([], [], ls="", label=f"({num:,} draws {what})")
    ax.set_ylim(0, (1.3 + 0.15 * len(handles)) * top)
    ax.legend(handles=handles, loc="upper left", borderaxespad=0, handletextpad=0.3)


def _range(values: np.ndarray, mean: float, sd: float) -> tuple[float, float]:
    """From the bulk of the draws and four target standard deviations."""
    low, high = bulk(values)
    width = 0.0 if np.isnan(sd) else 4 * sd
    low, high = min(low, mean - width), max(high, mean + width)
    pad = 0.04 * (high - low) if high > low else max(abs(mean), 1.0)
    return float(low - pad), float(high + pad)


def _plus_minus(mean: float, sd: float, width: float) -> str:
    """A mean to the digits that its spread gives a meaning, and the spread."""
    size = width if np.isnan(sd) or sd == 0 else sd
    digits = 1 + np.isnan(sd) - int(np.floor(np.log10(size)))
    if not -3 < digits < 7:
        text = f"{mean:.3g}"
        return text if np.isnan(sd) else f"{text} $\\pm$ {sd:.2g}"
    digits = max(digits, 0)
    text = f"{round(mean, digits) + 0.0:.{digits}f}"
    return text if np.isnan(sd) else f"{text} $\\pm$ {sd:.{digits}f}"
