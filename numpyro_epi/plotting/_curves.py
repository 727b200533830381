# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Statistics along a line or an axis of interventions: curves with bands."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numpyro_epi.result import EPIResult

from ._components import (
    Statistic,
    check_result,
    choose_statistics,
    components,
    require,
    targets,
)
from ._components import statistics as statistics_of
from ._labels import Label, resolve_labels
from ._style import (
    BLACK,
    LINES,
    MARKERS,
    PALE,
    Panels,
    color_of,
    new_or_given,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes


class Curve(NamedTuple):
    """One curve of all statistics.

    Attributes:
        label: in the legend.
        x: shape (L,).
        middle: `{site: (L, *shape)}`.
        lower: of the band.
        upper: of the band.
    """

    label: str
    x: np.ndarray
    middle: dict[str, np.ndarray]
    lower: dict[str, np.ndarray]
    upper: dict[str, np.ndarray]


@styled
def plot_perturbation(
    perturbations: Any,
    *,
    result: EPIResult | None = None,
    statistics: "Sequence[str] | None" = None,
    labels: "Mapping[str, Any] | None" = None,
    ax: Any = None,
) -> np.ndarray:
    """Plot statistics along one or several lines through a point, with error bands.

    Bands are two standard errors to either side. With a result, a dotted line is the
    target mean and grey is one target standard deviation to either side.

    Args:
        perturbations: what `sensitivity.perturb` returns, or several by label, such as
            `{"sensitive": ..., "robust": ...}`.
        result: whose targets to draw.
        statistics: names of sites or components to show. Default: all.
        labels: `{name: (text, unit)}` by statistic, and by latent: if all latents that
            the direction moves have one unit, distances have it too.
        ax: axes to draw on, one for each statistic that is shown.

    Returns:
        Axes, shape (number of statistics,).

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if a name is unknown, there is nothing to draw, perturbations have
            different statistics, or the number of axes is wrong.

    Example:
        >>> axes = plot_perturbation({"sensitive": perturbation}, result=result)
        >>> axes[0].get_xlabel()
        'distance along the direction'
    """
    curves, names = _read_perturbations(perturbations)
    panels, _ = _draw_curves(curves, result, statistics, labels, names, ax)
    unit = _unit(perturbations, labels)
    for panel in panels.axes:
        panel.axvline(0, color=BLACK, lw=0.7, zorder=0)
        panel.set_xlabel(Label("distance along the direction", unit).axis)
    return panels.axes


@styled
def plot_bands(
    bands: Any,
    *,
    groups: "Sequence[Any] | None" = None,
    result: EPIResult | None = None,
    statistics: "Sequence[str] | None" = None,
    labels: "Mapping[str, Any] | None" = None,
    ax: Any = None,
) -> np.ndarray:
    """Plot predictions of an experiment, a band for each group of draws.

    Lines are means, bands reach from `bands.lower` to `bands.upper`. With a result, a
    dotted line is the target mean and grey is one target standard deviation to either
    side.

    Args:
        bands: what `sensitivity.intervene` returns, of G groups.
        groups: G names for the legend. Default: `bands.names`.
        result: whose targets to draw.
        statistics: names of sites or components to show. Default: all.
        labels: `{name: (text, unit)}` by statistic, and of the argument that is varied.
        ax: axes to draw on, one for each statistic that is shown.

    Returns:
        Axes, shape (number of statistics,).

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if a name is unknown, or the number of groups or axes is wrong.

    Example:
        >>> axes = plot_bands(bands, groups=["regime 1", "regime 2"])
        >>> axes[0].get_xlabel()
        'gamma'
    """
    curves = _read_bands(bands, groups)
    names = [*bands.latents, bands.argument]
    panels, texts = _draw_curves(
        curves, result, statistics, labels, names, ax, argument=bands.argument
    )
    for panel in panels.axes:
        panel.set_xlabel(texts[bands.argument].axis)
    return panels.axes


# -- reading what users pass ----------------------------------------------------------


def _read_perturbations(value: Any) -> tuple[list[Curve], list[str]]:
    """Curves, and the names of the latents."""
    given = value if isinstance(value, Mapping) else {"": value}
    if not given:
        raise ValueError("Expected at least one perturbation, got an empty mapping.")
    curves: list[Curve] = []
    names: list[str] = []
    for label, one in given.items():
        where = f"perturbations[{label!r}]" if label else "perturbations"
        fields = "deltas statistics standard_errors names direction"
        require(one, where, fields, "sensitivity.perturb")
        middle = {k: np.asarray(v, float) for k, v in one.statistics.items()}
        errors = {k: 2 * np.asarray(v, float) for k, v in one.standard_errors.items()}
        lower = {k: middle[k] - errors[k] for k in middle}
        upper = {k: middle[k] + errors[k] for k in middle}
        x = np.asarray(one.deltas, float)
        if not middle:
            raise ValueError(f"Expected at least one statistic in `{where}`, got none.")
        curves.append(_sorted(Curve(str(label), x, middle, lower, upper)))
        names += one.names
    return curves, names


def _unit(perturbations: Any, labels: Any) -> str:
    """The unit that all latents have along which points move, or nothing."""
    given = perturbations if isinstance(perturbations, Mapping) else {"": perturbations}
    units = set()
    for one in given.values():
        texts = resolve_labels(labels, list(one.names), labels or ())
        moved = np.abs(np.asarray(one.direction, float)) > 0
        units |= {
            texts[name].unit for name, m in zip(one.names, moved, strict=True) if m
        }
    return units.pop() if len(units) == 1 else ""


def _read_bands(bands: Any, groups: Any) -> list[Curve]:
    fields = "argument values mean lower upper names latents"
    require(bands, "bands", fields, "sensitivity.intervene")
    if not bands.mean:
        raise ValueError("Expected at least one statistic in `bands`, got none.")
    num = len(next(iter(bands.mean.values())))
    groups = list(bands.names) if groups is None else groups
    if isinstance(groups, str) or len(groups) != num:
        raise ValueError(
            f"Expected {num} names as `groups`, one for each group in `bands`, got "
            f"{groups!r}."
        )
    labels = [name if isinstance(name, str) else f"group {name}" for name in groups]
    x = np.asarray(bands.values, float)
    return [
        _sorted(
            Curve(
                labels[g],
                x,
                *(
                    {k: np.asarray(v, float)[g] for k, v in part.items()}
                    for part in (bands.mean, bands.lower, bands.upper)
                ),
            )
        )
        for g in range(num)
    ]


def _sorted(curve: Curve) -> Curve:
    order = np.argsort(curve.x)
    parts = [{k: v[order] for k, v in part.items()} for part in curve[2:]]
    return Curve(curve.label, curve.x[order], *parts)


# -- drawing --------------------------------------------------------------------------


def _draw_curves(
    curves: list[Curve],
    result: EPIResult | None,
    names: "Sequence[str] | None",
    labels: Any,
    latents: list[str],
    ax: Any,
    argument: str | None = None,
) -> tuple[Panels, dict[str, Label]]:
    """A panel for each statistic with all curves."""
    available = _statistics(curves)
    chosen = choose_statistics(available, names)
    goal = {} if result is None else targets(check_result(result))
    known = [*latents, *(stat.name for stat in available)]
    known += [] if result is None else components(result).names
    drawn = [stat.name for stat in chosen] + ([argument] if argument else [])
    texts = resolve_labels(labels, drawn, known)
    size = (3.6, 2.9) if len(chosen) > 1 else (5.2, 3.6)
    panels = new_or_given(ax, len(chosen), ncols=3, size=size)
    for stat, panel in zip(chosen, panels.axes, strict=True):
        _draw_target(panel, *goal.get(stat.name, (np.nan, np.nan)))
        for k, curve in enumerate(curves):
            _draw_curve(panel, curve, stat, k, len(curves))
        panel.set_ylabel(texts[stat.name].axis)
        panel.margins(x=0.02)
    panels.legend(_handles(panels.axes[0]))
    return panels, texts


def _statistics(curves: list[Curve]) -> list[Statistic]:
    shapes = [
        {name: value.shape[1:] for name, value in curve.middle.items()}
        for curve in curves
    ]
    for curve, other in zip(curves, shapes, strict=True):
        if other != shapes[0]:
            raise ValueError(
                f"Expected curves of the same statistics, {shapes[0]}, got {other} in "
                f"{curve.label!r}. Draw them in figures of their own."
            )
    return statistics_of(shapes[0])


def _draw_target(ax: "Axes", mean: float, sd: float) -> None:
    if np.isnan(mean):
        return
    if np.isnan(sd):
        ax.axhline(mean, color=BLACK, ls=":", lw=1.2, label="target")
        return
    ax.axhspan(mean - sd, mean + sd, color=PALE, lw=0, zorder=0)
    ax.axhline(mean, color=BLACK, ls=":", lw=1.2, label="target $\\pm$ sd")


def _draw_curve(ax: "Axes", curve: Curve, stat: Statistic, k: int, num: int) -> None:
    color = color_of(k, num) if num > 1 else color_of(0, 2)
    alpha = 0.25 if num < 5 else 0.1
    lower, upper = stat.of(curve.lower), stat.of(curve.upper)
    ax.fill_between(curve.x, lower, upper, color=color, alpha=alpha, lw=0)
    ax.plot(
        curve.x,
        stat.of(curve.middle),
        color=color,
        ls=LINES[k % len(LINES)],
        marker=MARKERS[k % len(MARKERS)],
        ms=4.5,
        lw=1.4,
        label=curve.label or None,
    )


def _handles(ax: "Axes") -> list[Any]:
    return ax.get_legend_handles_labels()[0]
