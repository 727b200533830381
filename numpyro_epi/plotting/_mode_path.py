# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The path of a mode as one component is held at one value after the other."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_epi.result import EPIResult

from ._components import Components, check_result, components, require, statistics
from ._grid import PairGrid, make_grid, set_axes, view
from ._key import draw_key
from ._labels import Label, resolve_labels
from ._style import BLACK, COLORMAP, GREY, bin_edges, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.colors import Normalize

MAX_DRAWS = 4000
# Components of which all are shown, and how many of more.
MAX_LATENTS, NUM_CHOSEN = 12, 6


@styled
def plot_mode_path(
    path: Any,
    result: EPIResult | None = None,
    *,
    latents: "Sequence[str] | None" = None,
    labels: "Mapping[str, Any] | None" = None,
    ax: Any = None,
) -> np.ndarray:
    """Plot a path of conditional modes over the draws, pair by pair.

    The path is coloured by the value at which its component is held. Circles are modes;
    hollow ones did not converge. The draws are grey.

    Args:
        path: what `sensitivity.conditional_modes` returns.
        result: that it belongs to. Default: the path alone, without draws or bounds.
        latents: names of at least two components to show. Default: all, or of more than
            12 the one that is held and the five that move most along the path, in
            standard deviations of the draws; the figure says so.
        labels: `{name: (text, unit)}` by component or site.
        ax: axes to draw on: an array (D, D), or single axes for two components.

    Returns:
        Axes, shape (D, D) with None above the diagonal, or (1, 1) for a single pair.

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if a name is unknown, there are fewer than two components, or the
            path comes from another model.

    Example:
        >>> axes = plot_mode_path(path, result, latents=["a"])
        >>> axes.shape
        (2, 2)

    References:
        Bittner et al., Interrogating theoretical models of neural computation with
        emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 4C.
    """
    fields = "component values points converged names"
    require(path, "path", fields, "sensitivity.conditional_modes")
    every = _components(path, result)
    shown = every.indices(latents)
    is_chosen = latents is None and len(shown) > MAX_LATENTS
    if is_chosen:
        shown = _moving(path, every)
    if len(shown) < 2:
        raise ValueError(
            f"Expected at least two components as `latents`, got {len(shown)}. A path "
            "is drawn in planes."
        )
    parts, points = every.take(shown), np.asarray(path.points, float)[:, shown]
    known = [*every.names, path.component]
    if result is not None:
        known += [stat.name for stat in statistics(dict(result.table.sites))]
    texts = resolve_labels(labels, [*parts.names, path.component], known)
    grid = make_grid(len(shown), ax)
    _draw_draws(grid, parts)
    set_axes(grid, parts, texts, _views(parts, points))
    norm = _draw_path(grid, points, np.asarray(path.values, float), path.converged)
    _draw_key(grid, norm, texts[path.component], parts, path.converged)
    if is_chosen and ax is None:
        text = (
            f"{len(shown)} of {len(every.names)} latents: the one that is held, and "
            "those that move most"
        )
        grid.axes[0, 0].figure.suptitle(text, ha="left", x=0.01, size="medium")
    return grid.axes


def _components(path: Any, result: EPIResult | None) -> Components:
    names = tuple(path.names)
    shape = np.shape(path.points)
    if len(shape) != 2 or shape[1] != len(names) or not shape[0]:
        raise ValueError(
            f"Expected points of shape (S, {len(names)}) in `path`, got {shape}. Give "
            "`conditional_modes` at least one value."
        )
    if result is None:
        none, unbounded = np.empty((0, len(names))), np.full(len(names), np.inf)
        return Components(names, none, np.empty(0), -unbounded, unbounded)
    found = components(check_result(result))
    found.check_names(names, "`path`")
    return found


def _moving(path: Any, parts: Components) -> list[int]:
    """The held component, and those that move most along the path."""
    spread = np.ptp(np.asarray(path.points, float), axis=0)
    if len(parts.draws):
        spread = spread / np.maximum(parts.draws.std(axis=0), 1e-12)
    if path.component in parts.names:
        spread[parts.names.index(path.component)] = np.inf
    return sorted(np.argsort(-spread, kind="stable")[:NUM_CHOSEN].tolist())


def _views(parts: Components, points: np.ndarray) -> dict[int, tuple[float, float]]:
    return {
        k: view(parts.draws[:, k], parts.lower[k], parts.upper[k], points[:, k])
        for k in range(len(parts.names))
    }


def _draw_draws(grid: PairGrid, parts: Components) -> None:
    draws = parts.draws[:MAX_DRAWS]
    style = dict[str, Any](c="0.78", s=3, lw=0, rasterized=True, zorder=1)
    for (x, y), ax in grid.pairs.items() if len(draws) else ():
        ax.scatter(draws[:, x], draws[:, y], **style)
    for k, ax in grid.margins.items():
        if len(draws):
            values = parts.draws[:, k]
            edges = bin_edges(values, values.min(), values.max())
            ax.hist(values, edges, density=True, color=GREY)
        else:
            ax.axis("off")


def _draw_path(
    grid: PairGrid, points: np.ndarray, values: np.ndarray, converged: Any
) -> "Normalize":
    """Lines between modes in the colour of their middle, and the modes."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    norm = Normalize(values.min(), values.max() + 1e-9 * (1 + abs(values.max())))
    colormap = colormaps[COLORMAP]
    is_good = np.asarray(converged, bool)
    for (x, y), ax in grid.pairs.items():
        for a, b in pairwise(range(len(values))):
            color = colormap(norm(0.5 * (values[a] + values[b])))
            ax.plot(points[[a, b], x], points[[a, b], y], color=BLACK, lw=3.6, zorder=3)
            ax.plot(points[[a, b], x], points[[a, b], y], color=color, lw=2.2, zorder=4)
        faces = colormap(norm(values))
        faces[~is_good] = 1.0
        style = dict[str, Any](s=34, edgecolors=BLACK, linewidths=0.9, zorder=5)
        ax.scatter(points[:, x], points[:, y], c=faces, **style)
    return norm


def _draw_key(
    grid: PairGrid,
    norm: "Normalize",
    label: Label,
    parts: Components,
    converged: Any,
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    style = dict[str, Any](ls="", marker="o", ms=5.5, mec=BLACK, mew=0.9)
    faces = {"conditional mode": GREY}
    if not np.all(converged):
        faces["did not converge"] = "w"
    handles = [Line2D([], [], mfc=face, label=k, **style) for k, face in faces.items()]
    num = min(len(parts.draws), MAX_DRAWS)
    note = f"Grey points: {num:,} draws\ngrey lines: bounds" if num else ""
    bar = ScalarMappable(norm, COLORMAP)
    draw_key(grid, bar, f"{label.axis}, held", note, handles)
