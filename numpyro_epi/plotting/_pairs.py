# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of a result, pair by pair, coloured by log density."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numpyro_epi._checks import describe
from numpyro_epi.result import EPIResult

from ._choose import most_dependent
from ._components import Components, check_result, components, statistics
from ._grid import PairGrid, make_chosen, make_grid, set_axes, size_of, view
from ._key import draw_key, legend_above
from ._labels import Label, resolve_labels
from ._marks import (
    Arrow,
    Contour,
    Marks,
    draw_arrows,
    draw_contours,
    draw_marks,
    read_arrows,
    read_contours,
    read_modes,
    read_points,
)
from ._style import BLACK, COLORMAP, GREY, bin_edges, new_or_given, set_ticks, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.collections import PathCollection

NUM_CHOSEN = 9
# Quantiles of the log density at the ends of the colour scale.
COLOR_RANGE = (0.02, 0.999)


class Scene(NamedTuple):
    """What a pair plot shows, checked.

    Attributes:
        parts: components that are shown, with all draws.
        order: indices of the draws that are shown, the densest last.
        labels: of the components.
        marks: modes and reference points.
        arrows: sensitivity.
        contours: of the user.
        is_whole: whether all components of the model are shown.
    """

    parts: Components
    order: np.ndarray
    labels: dict[str, Label]
    marks: list[Marks]
    arrows: list[Arrow]
    contours: list[Contour]
    is_whole: bool

    @property
    def views(self) -> dict[int, tuple[float, float]]:
        """Ends of the axis of each component."""
        parts, shown = self.parts, self.parts.draws[self.order]
        marks = np.concatenate(
            [np.empty((0, len(parts.names))), *(kind.points for kind in self.marks)]
        )
        return {
            k: view(shown[:, k], parts.lower[k], parts.upper[k], marks[:, k])
            for k in range(len(parts.names))
        }


@styled
def plot_pairs(
    result: EPIResult,
    *,
    latents: "Sequence[str] | None" = None,
    modes: Any = None,
    directions: Any = None,
    points: "Mapping[str, Any] | None" = None,
    contours: "Mapping[tuple[str, str], Any] | None" = None,
    labels: "Mapping[str, Any] | None" = None,
    max_latents: int = 12,
    max_draws: int = 4000,
    ax: Any = None,
) -> np.ndarray:
    r"""Plot the stored draws, pair by pair, coloured by log density.

    Panels on the diagonal are histograms of all stored draws. Grey lines are the bounds
    of the support. An axis spans the whole support, unless the draws fill less than a
    tenth of it. A single latent is shown as a histogram with its density.

    Of more than `max_latents` components the nine pairs that depend on each other most
    are shown, and the figure says so. Dependence is the largest correlation of ranks
    and of their squares, in absolute value: the squares see rings, crosses and arcs.
    Pairs with contours are always among the nine.

    Args:
        result: of a run.
        latents: names of sites or components to show, such as `["a[0]", "b"]`. Default:
            all.
        modes: what `sensitivity.find_modes` returns. Stars are modes inside the
            support, squares at its boundary, diamonds on ridges.
        directions: what `sensitivity.directions` returns, in constrained coordinates.
            At each point the most sensitive direction is a solid arrow and the least
            sensitive a dashed one, projected on the panel, of length
            :math:`1 / \sqrt{|\lambda|}` for the eigenvalue :math:`\lambda` of the law
            that they are directions of, the flow or the exact one. Longer ones than the
            panel has room for are cut and lose their head.
        points: reference points: latents `{site: value}` of one or several points, or
            several such mappings by label.
        contours: `{(x, y): (fn, levels)}` with names of two components, a function of
            two arrays of one shape, and levels of its value; a third entry is the label
            in the legend.
        labels: `{name: (text, unit)}` by component or site.
        max_latents: largest number of components of which all pairs are shown.
        max_draws: largest number of draws shown as points; the first are taken.
        ax: axes to draw on: an array (D, D), of which the upper triangle is left empty;
            for two components also a single one, which shows the pair alone; for one
            component a single one.

    Returns:
        Axes: an array (D, D) with None above the diagonal, (1, 1) where a single pair
        or a density is shown, (N,) where pairs were chosen. `axes.flat[0].figure` is
        the figure.

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if it names unknown components, comes from another model or has a
            wrong shape.

    Example:
        >>> axes = plot_pairs(result, labels={"a": ("gain", "mV")})
        >>> axes.shape, axes[2, 0].get_xlabel()
        ((3, 3), 'gain[0] (mV)')

    References:
        Bittner et al., Interrogating theoretical models of neural computation with
        emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 1E.
    """
    _check_counts(max_latents=max_latents, max_draws=max_draws)
    scene = _read(result, latents, modes, directions, points, labels, max_draws)
    found = read_contours(scene.parts, contours, scene.views)
    scene = scene._replace(contours=found)
    num = len(scene.parts.names)
    if num == 1:
        return _plot_density(scene, ax)
    if num > max_latents:
        return _plot_chosen(scene, ax)
    grid = make_grid(num, ax)
    cloud = _draw_pairs(grid, scene)
    _draw_margins(grid, scene)
    handles = _draw_marks(grid, scene)
    label = "log density (nats)"
    draw_key(grid, cloud, label, _note(scene), handles, extend="both")
    return grid.axes


def _read(
    result: Any,
    latents: Any,
    modes: Any,
    directions: Any,
    points: Any,
    labels: Any,
    max_draws: int,
) -> Scene:
    """Check everything before anything is drawn."""
    result = check_result(result)
    every = components(result)
    shown = every.indices(latents)
    parts = every.take(shown)
    known = [*every.names, *(s.name for s in statistics(dict(result.table.sites)))]
    marks = read_points(result, points) + read_modes(result, modes)
    arrows = read_arrows(every, directions)
    first = np.arange(min(max_draws, len(every.draws)))
    return Scene(
        parts=parts,
        order=first[np.argsort(every.log_density[first])],
        labels=resolve_labels(labels, parts.names, known),
        marks=[kind._replace(points=kind.points[:, shown]) for kind in marks],
        arrows=[
            arrow._replace(start=arrow.start[shown], vector=arrow.vector[shown])
            for arrow in arrows
        ],
        contours=[],
        is_whole=len(shown) == len(every.names),
    )


# -- parts of the figure --------------------------------------------------------------


def _draw_pairs(grid: PairGrid, scene: Scene) -> "PathCollection":
    """Draws on all panels, then limits and labels; returns what a colour bar needs."""
    draws = scene.parts.draws[scene.order]
    low, high = np.quantile(scene.parts.log_density, COLOR_RANGE)
    cell = min(size_of(next(iter(grid.pairs.values()))))
    size = float(np.clip(12_000 / len(draws), 2.5, 14.0)) * min(1.0, cell / 2.0)
    for (x, y), ax in grid.pairs.items():
        cloud = ax.scatter(
            draws[:, x],
            draws[:, y],
            c=scene.parts.log_density[scene.order],
            cmap=COLORMAP,
            vmin=low,
            vmax=high,
            s=size,
            lw=0,
            rasterized=True,
            zorder=2,
        )
    set_axes(grid, scene.parts, scene.labels, scene.views)
    return cloud


def _draw_margins(grid: PairGrid, scene: Scene) -> None:
    views = scene.views
    for k, ax in grid.margins.items():
        values = scene.parts.draws[:, k]
        low, high = views[k]
        low, high = max(low, scene.parts.lower[k]), min(high, scene.parts.upper[k])
        ax.hist(values, bin_edges(values, low, high), density=True, color=GREY)


def _draw_marks(grid: PairGrid, scene: Scene) -> list[Any]:
    """Everything on top of the draws; returns handles for the legend."""
    handles = draw_contours(grid, scene.contours)
    handles += draw_marks(grid, scene.marks)
    return handles + draw_arrows(grid, scene.arrows)


def _note(scene: Scene, sep: str = "\n") -> str:
    """How many draws are shown, and what grey lines are."""
    shown, num = len(scene.order), len(scene.parts.draws)
    draws = f"{num:,} draws" if shown == num else f"{shown:,} of {num:,} draws"
    has_bounds = np.isfinite([scene.parts.lower, scene.parts.upper]).any()
    return f"{draws}{sep + 'grey lines: bounds' if has_bounds else ''}"


# -- one latent, and many -------------------------------------------------------------


def _plot_density(scene: Scene, ax: Any) -> np.ndarray:
    """Histogram of one component; with the density if it is the only one."""
    panels = new_or_given(ax, 1, ncols=1, size=(5.0, 3.4))
    only, parts = panels.axes[0], scene.parts
    grid = PairGrid(panels.axes, {}, {0: only})
    set_axes(grid, parts, scene.labels, scene.views)
    _draw_margins(grid, scene)
    name = f"histogram of {len(parts.draws):,} draws"
    only.patches[0].set_label(name)
    if scene.is_whole:
        order = np.argsort(parts.draws[:, 0])
        density = np.exp(parts.log_density[order])
        only.plot(parts.draws[order, 0], density, color=BLACK, lw=1.2, label="density")
    for kind in scene.marks:
        for k, value in enumerate(kind.points[:, 0]):
            label = None if k else kind.label
            ls = "--" if kind.marker in "*sD" else ":"
            only.axvline(value, color=BLACK, lw=1.2, ls=ls, label=label)
    only.spines["left"].set_visible(True)
    set_ticks(only.yaxis, 4)
    only.set_ylabel(scene.labels[parts.names[0]].density)
    legend_above(only, only.get_legend_handles_labels()[0])
    return np.array([[only]], dtype=object)


def _plot_chosen(scene: Scene, ax: Any) -> np.ndarray:
    """The pairs of strongest dependence, and how they were chosen."""
    parts = scene.parts
    num = len(parts.names)
    num_pairs = num * (num - 1) // 2
    wanted = {(min(c.pair), max(c.pair)) for c in scene.contours}
    found = most_dependent(parts.draws, NUM_CHOSEN, always=wanted)
    grid = make_chosen([(i, j) for i, j, _ in found], ax)
    cloud = _draw_pairs(grid, scene)
    for (_, _, strength), panel in zip(found, grid.axes, strict=True):
        panel.set_title(f"dependence {strength:.2f}", size="small")
    handles = _draw_marks(grid, scene)
    figure = grid.axes[0].figure
    bar = figure.colorbar(cloud, ax=list(grid.axes), extend="both", shrink=0.6)
    bar.set_label("log density (nats)")
    if ax is None:
        text = (
            f"{len(found)} of {num_pairs:,} pairs of {num} latents: those of largest "
            "dependence\n(correlation of ranks or of their squares; by chance about "
            f"{1 / np.sqrt(len(parts.draws)):.2f}). {_note(scene, '; ')}."
        )
        figure.suptitle(text, ha="left", x=0.01, size="medium")
        if handles:
            ncols = min(4, len(handles))
            figure.legend(handles=handles, loc="outside lower left", ncols=ncols)
    else:
        legend_above(grid.axes[0], handles)
    return grid.axes


def _check_counts(**values: Any) -> None:
    for name, value in values.items():
        is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_int or value < 1:
            raise ValueError(
                f"Expected an integer of at least 1 as `{name}`, got {describe(value)}."
            )
