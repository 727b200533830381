# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What is drawn on top of the draws: modes, arrows, reference points and contours.

Each kind of mark is checked by a function that reads what the user passed, before any
figure exists, and then drawn panel by panel. Drawing returns handles for the legend.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from numpyro_epi._checks import describe, real_array
from numpyro_epi.result import EPIResult

from ._components import Components, flatten, require
from ._grid import PairGrid
from ._style import BLACK, COLORS, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Views = Mapping[int, tuple[float, float]]
# The longest arrow, as a share of the width of a panel.
MAX_ARROW = 0.45
GRID = 200


class Marks(NamedTuple):
    """Points of one kind.

    Attributes:
        points: shape (M, D).
        marker: of matplotlib.
        color: of the face; the edge is black.
        label: in the legend.
    """

    points: np.ndarray
    marker: str
    color: str
    label: str


class Arrow(NamedTuple):
    """An arrow from a point in the latent space.

    Attributes:
        start: shape (D,).
        vector: direction, shape (D,).
        length: infinite for a direction without curvature.
        is_sensitive: whether it is the most sensitive direction, or the least.
    """

    start: np.ndarray
    vector: np.ndarray
    length: float
    is_sensitive: bool


class Contour(NamedTuple):
    """Level lines of a function of two components.

    Attributes:
        pair: indices (x, y) of the components.
        x: values of the first on a grid, shape (G, G).
        y: of the second.
        values: of the function.
        levels: ascending.
        label: in the legend.
    """

    pair: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    levels: np.ndarray
    label: str


# -- reading what users pass ----------------------------------------------------------


def read_modes(result: EPIResult, modes: Any) -> list[Marks]:
    """Stars for modes inside the support, squares on its edge, diamonds on ridges."""
    if modes is None:
        return []
    require(modes, "modes", "latents at_boundary on_ridge", "sensitivity.find_modes")
    points = flatten(result, modes.latents)
    at_boundary, on_ridge = np.asarray(modes.at_boundary), np.asarray(modes.on_ridge)
    kinds = [
        (~at_boundary & ~on_ridge, "*", "mode"),
        (at_boundary, "s", "mode at the boundary"),
        (on_ridge & ~at_boundary, "D", "mode on a ridge"),
    ]
    return [Marks(points[k], mark, "w", text) for k, mark, text in kinds if k.any()]


def read_points(result: EPIResult, points: Any) -> list[Marks]:
    """Reference points: latents by site, or several such mappings by label."""
    if points is None:
        return []
    if not isinstance(points, Mapping):
        raise TypeError(
            "Expected latents {site: array}, or {label: latents}, as `points`, got "
            f"{describe(points)}."
        )
    is_labelled = all(isinstance(value, Mapping) for value in points.values())
    groups = points if is_labelled and points else {"reference": points}
    markers = "oP^vX"
    return [
        Marks(flatten(result, group), markers[k % 5], COLORS[(k + 1) % 7], str(label))
        for k, (label, group) in enumerate(groups.items())
    ]


def read_arrows(parts: Components, directions: Any) -> list[Arrow]:
    """The most and the least sensitive direction at each point."""
    if directions is None:
        return []
    fields = "eigenvalues vectors tilted_eigenvalues points names coordinates of"
    require(directions, "directions", fields, "sensitivity.directions")
    parts.check_names(directions.names, "`directions`")
    if directions.coordinates != "constrained":
        raise ValueError(
            "Expected `directions` in constrained coordinates, those of the axes, got "
            f"{directions.coordinates!r}. Call `sensitivity.directions(..., "
            'coordinates="constrained")`.'
        )
    num = len(parts.names)
    points = np.asarray(directions.points, float).reshape(-1, num)
    vectors = np.asarray(directions.vectors, float).reshape(-1, num, num)
    own = directions.of == "flow"
    values = directions.eigenvalues if own else directions.tilted_eigenvalues
    values = np.abs(np.asarray(values, float)).reshape(-1, num)
    with np.errstate(divide="ignore"):
        lengths = 1.0 / np.sqrt(values)
    chosen = [0] if num == 1 else [0, num - 1]
    return [
        Arrow(point, vector[k], float(length[k]), k == 0)
        for point, vector, length in zip(points, vectors, lengths, strict=True)
        for k in chosen
    ]


def read_contours(parts: Components, contours: Any, views: Views) -> list[Contour]:
    """`{(x, y): (fn, levels)}` or `(fn, levels, label)`, evaluated on a grid."""
    if contours is None:
        return []
    if not isinstance(contours, Mapping):
        raise TypeError(
            "Expected a mapping {(x, y): (fn, levels)} as `contours`, got "
            f"{describe(contours)}."
        )
    return [
        _read_contour(parts, pair, value, views) for pair, value in contours.items()
    ]


def _read_contour(parts: Components, pair: Any, value: Any, views: Views) -> Contour:
    is_pair = isinstance(pair, tuple) and len(pair) == 2 and len(set(pair)) == 2
    if not is_pair or not set(pair) <= set(parts.names):
        raise ValueError(
            f"Expected pairs of two names out of {list(parts.names)} in `contours`, "
            f"got {pair!r}."
        )
    is_known = isinstance(value, Sequence) and 2 <= len(value) <= 3
    if not is_known or not callable(value[0]):
        raise TypeError(
            f"Expected (function, levels) or (function, levels, label) in `contours` "
            f"for {pair}, got {value!r}."
        )
    x, y = (parts.names.index(name) for name in pair)
    u, v = np.meshgrid(
        *(
            np.linspace(
                max(views[k][0], parts.lower[k]), min(views[k][1], parts.upper[k]), GRID
            )
            for k in (x, y)
        )
    )
    values = np.asarray(value[0](u, v), float)
    if values.shape != u.shape:
        raise ValueError(
            f"Expected a function in `contours` for {pair} that returns the shape of "
            f"its arguments, {u.shape}, got {values.shape}. Use functions that act on "
            "each element."
        )
    levels = real_array(value[1], where=f"levels in `contours` for {pair}")
    levels = np.unique(levels.ravel())
    if not np.isfinite(values).any():
        raise ValueError(
            f"Expected a function in `contours` for {pair} with finite values in view, "
            "got none."
        )
    low, high = np.nanmin(values), np.nanmax(values)
    if not np.any((levels > low) & (levels < high)):
        raise ValueError(
            f"Expected levels between {low:.4g} and {high:.4g}, the values in view, in "
            f"`contours` for {pair}, got {levels.tolist()}."
        )
    return Contour((x, y), u, v, values, levels, str((*value, "contours")[2]))


# -- drawing --------------------------------------------------------------------------


def draw_marks(grid: PairGrid, marks: list[Marks]) -> list[Any]:
    """Draw points on all panels."""
    for (x, y), ax in grid.pairs.items():
        for kind in marks:
            ax.plot(kind.points[:, x], kind.points[:, y], **_style(kind))
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=kind.label, **_style(kind)) for kind in marks]


def _style(kind: Marks) -> dict[str, Any]:
    size = {"*": 10.0, "s": 6.0, "D": 5.5}.get(kind.marker, 7.0)
    style: dict[str, Any] = {
        "ls": "",
        "marker": kind.marker,
        "ms": size,
        "mfc": kind.color,
    }
    return style | {"mec": BLACK, "mew": 0.9, "zorder": 6}


def draw_arrows(grid: PairGrid, arrows: list[Arrow]) -> list[Any]:
    """Draw arrows on all pairs of components; those longer than a panel are cut."""
    from matplotlib.lines import Line2D

    drawn = [
        (arrow.is_sensitive, _draw_arrow(ax, arrow, [x, y]))
        for (x, y), ax in grid.pairs.items()
        for arrow in arrows
    ]
    handles = []
    for is_sensitive, name, ls in ((True, "most", "-"), (False, "least", "--")):
        is_cut = {cut for kind, cut in drawn if kind == is_sensitive} - {None}
        if is_cut:
            text = f"{name} sensitive{' (some cut)' if True in is_cut else ''}"
            handles.append(Line2D([], [], color=BLACK, lw=1.6, ls=ls, label=text))
    if handles:
        handles.append(Line2D([], [], ls="", label=r"(length $1/\sqrt{|\lambda|}$)"))
    return handles


def _draw_arrow(ax: "Axes", arrow: Arrow, pair: list[int]) -> bool | None:
    """Draw one arrow; return whether it was cut, None if it leaves the plane."""
    from matplotlib import patheffects

    start, vector = arrow.start[pair], arrow.vector[pair]
    limits = np.array([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())])
    share = np.max(np.abs(vector) / limits)
    if share * min(arrow.length, 1e30) < 1e-6:  # it leaves the plane
        return None
    longest = MAX_ARROW / share
    is_cut = arrow.length > longest
    drawn = ax.annotate(
        "",
        xy=tuple(start + min(arrow.length, longest) * vector),
        xytext=tuple(start),
        arrowprops={
            "arrowstyle": "-" if is_cut else "-|>",
            "linestyle": "-" if arrow.is_sensitive else (0, (3, 1.5)),
            "color": BLACK,
            "lw": 1.6,
            "mutation_scale": 8,
            "shrinkA": 0,
            "shrinkB": 0,
            "path_effects": [patheffects.withStroke(linewidth=3.2, foreground="w")],
        },
        zorder=7,
    )
    drawn.set_clip_on(True)
    return is_cut


def draw_contours(grid: PairGrid, contours: list[Contour]) -> list[Any]:
    """Draw level lines; the middle one of an odd number is thick, the others dashed."""
    from matplotlib.lines import Line2D

    handles = []
    for k, contour in enumerate(contours):
        x, y = contour.pair
        ax = grid.pairs.get((x, y)) or grid.pairs.get((y, x))
        if ax is None:
            continue
        _draw_contour(ax, contour, is_swapped=(x, y) not in grid.pairs)
        if contour.label not in [c.label for c in contours[:k]]:
            handles.append(Line2D([], [], color=ORANGE, lw=1.5, label=contour.label))
    return handles


def _draw_contour(ax: "Axes", contour: Contour, *, is_swapped: bool) -> None:
    x, y = (contour.y, contour.x) if is_swapped else (contour.x, contour.y)
    middle = len(contour.levels) // 2 if len(contour.levels) % 2 else None
    is_main = [k == middle for k in range(len(contour.levels))]
    ax.contour(
        x,
        y,
        contour.values,
        levels=contour.levels,
        colors=ORANGE,
        linewidths=[1.5 if main else 0.8 for main in is_main],
        linestyles=["-" if main else "--" for main in is_main],
        zorder=4,
    )
