# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How a run went: entropy, violations, multipliers and penalties after each epoch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numpyro_epi._checks import describe
from numpyro_epi.result import EPIResult

from ._components import check_result, components, statistics
from ._labels import resolve_labels
from ._style import (
    BLACK,
    GREEN,
    LINES,
    MARKERS,
    PALE,
    color_of,
    legend_beside,
    new_or_given,
    set_ticks,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

PANELS = ("entropy", "violation", "multipliers", "penalty")
# Constraints that are drawn; of more, those with the largest final violations.
MAX_CONSTRAINTS = 8


class Constraint(NamedTuple):
    """How one constraint is drawn.

    Attributes:
        row: of the constraint table.
        label: in the legend.
        style: of its line and markers.
    """

    row: int
    label: str
    style: dict[str, Any]


@styled
def plot_history(
    result: EPIResult,
    *,
    panels: Sequence[str] = PANELS,
    max_entropy: float | None = None,
    labels: "Mapping[str, Any] | None" = None,
    ax: Any = None,
) -> np.ndarray:
    """Plot what happened during training, epoch by epoch, for the best restart.

    `entropy`, in nats, is shown with a correction: violation times final multiplier is
    subtracted, which is what a missed target adds to the entropy. `violation` is E[T]
    in scaled units (a mean is off by so many target standard deviations, a variance by
    so many times sqrt(2) target variances) with standard errors, and the tolerance of
    the run in grey. `multipliers`, in nats per scaled unit, are those of each epoch;
    pale lines are the final ones of the result. `penalty` is the coefficient of the
    augmented Lagrangian. Of more than eight constraints those with the largest final
    violations are shown, and the figure says so.

    Args:
        result: of a run.
        panels: which to draw, from top to bottom.
        max_entropy: a known maximum of the entropy to compare with, nats.
        labels: `{name: (text, unit)}` by statistic.
        ax: axes to draw on, one for each panel.

    Returns:
        Axes, shape (number of panels,).

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if a panel or a label is unknown, or the number of axes is wrong.

    Example:
        >>> axes = plot_history(result, panels=["entropy", "violation"])
        >>> [ax.get_ylabel() for ax in axes]
        ['entropy (nats)', 'violation (scaled units)']
    """
    result = check_result(result)
    names = _check_panels(panels)
    limit = _check_entropy(max_entropy)
    shown = _constraints(result, labels)
    drawn = new_or_given(ax, len(names), ncols=1, size=(8.0, 2.3), share_x=True)
    for panel, name in zip(drawn.axes, names, strict=True):
        if name == "entropy":
            _draw_entropy(panel, result, limit)
        else:
            DRAW[name](panel, result, shown)
        legend_beside(panel)
        set_ticks(panel.xaxis, 10, integer=True)
    drawn.axes[-1].set_xlabel("epoch")
    return drawn.axes


def _check_panels(panels: Any) -> list[str]:
    if not isinstance(panels, str | Sequence):
        raise TypeError(
            f"Expected a list of names as `panels`, got {describe(panels)}."
        )
    names = [panels] if isinstance(panels, str) else list(panels)
    for name in names:
        if name not in PANELS:
            raise ValueError(
                f"Expected names out of {list(PANELS)} as `panels`, got {name!r}."
            )
    if not names:
        raise ValueError(f"Expected at least one of {list(PANELS)} as `panels`.")
    return names


def _check_entropy(value: Any) -> float | None:
    if value is None or (np.ndim(value) == 0 and np.isreal(value)):
        return value
    raise TypeError(f"Expected a number as `max_entropy`, got {describe(value)}.")


def _constraints(result: EPIResult, labels: Any) -> list[Constraint]:
    """Constraints to draw, in order: means filled and solid, variances hollow."""
    table = result.table
    stats = [stat.name for stat in statistics(dict(table.sites))]
    texts = resolve_labels(labels, stats, components(result).names)
    with_var = [k for k, has_var in enumerate(table.has_var) if has_var]
    rows = [(k, "mean") for k in range(len(stats))] + [
        (k, "variance") for k in with_var
    ]
    final = np.abs(result.history.violation[-1])
    worst = sorted(np.argsort(-final, kind="stable")[:MAX_CONSTRAINTS].tolist())
    numbers = sorted({rows[row][0] for row in worst})
    found = []
    for row in worst:
        stat, moment = rows[row]
        place = numbers.index(stat)
        color = color_of(place, len(numbers))
        style: dict[str, Any] = {
            "color": color,
            "marker": MARKERS[place % len(MARKERS)],
            "ls": "-" if moment == "mean" else "--",
            "mfc": color if moment == "mean" else "w",
            "ms": 4.5,
            "lw": 1.0,
        }
        found.append(Constraint(row, f"{moment} of {texts[stats[stat]].text}", style))
    return found


# -- panels ---------------------------------------------------------------------------


def _epochs(result: EPIResult) -> np.ndarray:
    return 1 + np.arange(len(result.history.entropy))


def _draw_entropy(ax: "Axes", result: EPIResult, limit: float | None) -> None:
    history, epochs = result.history, _epochs(result)
    final = result.table.scaled_multipliers(result.multipliers)
    corrected = history.entropy - history.violation @ final
    if limit is not None:
        ax.axhline(limit, color=BLACK, lw=1.0, label=f"maximum, {limit:.2f}")
    style: dict[str, Any] = {"ms": 4.5, "lw": 1.2}
    ax.plot(epochs, history.entropy, "o-", color=GREEN, label="entropy", **style)
    label = "corrected for violations"
    ax.plot(epochs, corrected, "d:", color=BLACK, label=label, **style)
    ax.set(ylabel="entropy (nats)", title=f"Final entropy: {result.entropy:.2f} nats")


def _draw_violation(ax: "Axes", result: EPIResult, shown: list[Constraint]) -> None:
    history, epochs, bound = result.history, _epochs(result), result.tolerance
    ax.axhspan(-bound, bound, color=PALE, lw=0, label=f"tolerance, {bound:g}")
    ax.axhline(0, color=BLACK, lw=0.7)
    shifts = 0.24 * (np.arange(len(shown)) / max(len(shown) - 1, 1) - 0.5)
    for shift, one in zip(shifts, shown, strict=True):
        ax.errorbar(
            epochs + shift,
            history.violation[:, one.row],
            history.violation_error[:, one.row],
            label=one.label,
            **one.style,
        )
    num = result.table.num_constraints
    some = "" if num == len(shown) else f"; {len(shown)} of {num}, the largest at last"
    title = f"Violations (bars: standard errors{some})"
    ax.set(ylabel="violation (scaled units)", title=title)


def _draw_multipliers(ax: "Axes", result: EPIResult, shown: list[Constraint]) -> None:
    final = result.table.scaled_multipliers(result.multipliers)
    ax.axhline(0, color=BLACK, lw=0.7)
    for one in shown:
        ax.axhline(final[one.row], color=one.style["color"], lw=3.5, alpha=0.3)
        values = result.history.multipliers[:, one.row]
        ax.plot(_epochs(result), values, label=one.label, **one.style)
    sources = {"dual": "exact dual", "guide": "end of the training"}
    title = f"Multipliers (pale: of the result, {sources[result.multipliers_source]})"
    ax.set(ylabel="multiplier\n(nats per scaled unit)", title=title)


def _draw_penalty(ax: "Axes", result: EPIResult, shown: list[Constraint]) -> None:
    penalty, epochs = result.history.penalty, _epochs(result)
    if np.all(penalty == penalty[:, :1]):
        style: dict[str, Any] = {"marker": "o", "ms": 4.5, "lw": 1.2, "color": BLACK}
        ax.plot(epochs, penalty[:, 0], ls=LINES[0], label="all constraints", **style)
    else:
        for one in shown:
            ax.plot(epochs, penalty[:, one.row], label=one.label, **one.style)
    if np.nanmax(penalty) > 10 * np.nanmin(penalty) > 0:
        ax.set_yscale("log")
    ax.set(ylabel="penalty\n(nats per scaled unit$^2$)", title="Penalty coefficients")


DRAW = {
    "violation": _draw_violation,
    "multipliers": _draw_multipliers,
    "penalty": _draw_penalty,
}
