# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which directions are sensitive: eigenvalues and eigenvectors of the Hessian."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ._components import require
from ._labels import resolve_labels
from ._style import BLACK, BLUE, ORANGE, new_or_given, styled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

DIVERGING, SEQUENTIAL = "PuOr", "Purples"
MINUS = "\N{MINUS SIGN}"
# Entries are written into the cells of a table of vectors up to this size, and the
# signs of negative ones that are not small up to that.
MAX_WRITTEN, MAX_SIGNED, MIN_SIGNED = 10, 40, 0.1
# A larger ratio of eigenvalues needs a logarithmic axis.
MAX_RATIO = 30.0


@styled
def plot_spectrum(
    directions: Any,
    *,
    labels: "Mapping[str, Any] | None" = None,
    ax: Any = None,
) -> np.ndarray:
    """Plot eigenvalues of the Hessian of log q, and its eigenvectors.

    The left panel has the eigenvalues of log q (circles) and the curvature of the
    tilted density along the same directions (squares): where they differ, the fit
    speaks, not the model. Without it (`with_tilted=False`) there are no squares. It is
    linear around zero and logarithmic further out if eigenvalues differ by more than a
    factor of 30. The right panel has the components of each direction, one direction to
    a column. At several points the left panel has all of them, with the median as a
    line, and the right one root mean squares.

    Args:
        directions: what `sensitivity.directions` returns.
        labels: `{name: (text, unit)}` by component or site.
        ax: two axes to draw on.

    Returns:
        Axes of the eigenvalues and of the vectors, shape (2,).

    Raises:
        TypeError: if an argument is not of the kind described.
        ValueError: if a label is unknown, a shape or the number of axes is wrong.

    Example:
        >>> axes = plot_spectrum(directions)
        >>> [tick.get_text() for tick in axes[1].get_yticklabels()]
        ['a[0]', 'a[1]', 'scope/b']
    """
    fields = "eigenvalues vectors tilted_eigenvalues names coordinates"
    require(directions, "directions", fields, "sensitivity.directions")
    names, num = list(directions.names), len(directions.names)
    values, vectors = _check(directions, num)
    tilted = np.asarray(directions.tilted_eigenvalues, float).reshape(-1, num)
    texts = resolve_labels(labels, names)
    size = float(np.clip(1.6 + 0.45 * num, 3.2, 9.0))
    panels = new_or_given(ax, 2, ncols=2, size=(size + 0.6, size))
    _draw_eigenvalues(panels.axes[0], values, tilted, str(directions.coordinates))
    _draw_vectors(panels.axes[1], vectors, [texts[name].text for name in names])
    if ax is None:
        panels.legend(panels.axes[0].get_legend_handles_labels()[0])
    else:
        panels.axes[0].legend(loc="best")
    return panels.axes


def _check(directions: Any, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (M, D) and vectors (M, D, D)."""
    values = np.asarray(directions.eigenvalues, float)
    vectors = np.asarray(directions.vectors, float)
    if values.shape[-1:] != (num,) or vectors.shape != (*values.shape, num):
        raise ValueError(
            f"Expected eigenvalues (..., {num}) and vectors (..., {num}, {num}) in "
            f"`directions`, got {values.shape} and {vectors.shape}."
        )
    return values.reshape(-1, num), vectors.reshape(-1, num, num)


def _draw_eigenvalues(
    ax: "Axes", values: np.ndarray, tilted: np.ndarray, coordinates: str
) -> None:
    places = 1 + np.arange(values.shape[1])
    ax.axhline(0, color=BLACK, lw=0.7)
    rows = [
        (-0.12, values, "o", BLUE, BLUE, "log q"),
        (0.12, tilted, "s", ORANGE, "w", "tilted density"),
    ]
    for shift, points, marker, color, face, label in rows:
        if not np.isfinite(points).any():
            continue  # the tilted density was not asked for
        style: dict[str, Any] = {
            "marker": marker,
            "color": color,
            "mfc": face,
            "ls": "",
            "label": label,
        }
        if len(points) == 1:
            ax.vlines(places + shift, 0, points[0], color=color, lw=1.2)
            ax.plot(places + shift, points[0], ms=6, **style)
            continue
        x = np.broadcast_to(places + shift, points.shape)
        ax.plot(x.ravel(), points.ravel(), ms=3.5, alpha=0.6, **style)
        median = np.median(points, axis=0)
        ax.hlines(median, x[0] - 0.1, x[0] + 0.1, color=BLACK, lw=2.5, zorder=3)
    _scale(ax, np.concatenate([values, tilted]))
    unit = "nats" if coordinates == "standardised" else "nats per unit$^2$"
    ax.set(
        xlabel="direction, most sensitive first",
        ylabel=f"eigenvalue ({unit})",
        title=f"Curvature ({coordinates} coordinates)",
        xticks=places,
    )


def _scale(ax: "Axes", values: np.ndarray) -> None:
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if sizes.size and sizes.max() > MAX_RATIO * sizes.min():
        smallest = max(sizes.min(), 1e-4 * sizes.max())
        ax.set_yscale("symlog", linthresh=10.0 ** np.floor(np.log10(smallest)))


def _draw_vectors(ax: "Axes", vectors: np.ndarray, names: list[str]) -> None:
    """A table of entries, coloured and written out; of a large one, signs alone."""
    num, num_points = len(names), len(vectors)
    if num_points == 1:
        table, low, title = vectors[0].T, -1, "Directions"
    else:
        table, low = np.sqrt(np.mean(vectors**2, axis=0)).T, 0
        title = f"Directions, rms of {num_points:,} points"
    colors = SEQUENTIAL if low == 0 else DIVERGING
    image = ax.imshow(table, cmap=colors, vmin=low, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        color = "w" if abs(value) > 0.6 else BLACK
        text = _written(float(value), num)
        ax.text(j, i, text, ha="center", va="center", color=color, size="small")
    ax.set(
        xticks=np.arange(num),
        xticklabels=[str(k + 1) for k in range(num)],
        yticks=np.arange(num),
        yticklabels=names,
        xlabel="direction",
        title=title,
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="component", shrink=0.8)


def _written(value: float, num: int) -> str:
    """What is written into a cell of a table of `num` rows: greyscale hides signs."""
    if num > MAX_WRITTEN:
        return MINUS if value < -MIN_SIGNED and num <= MAX_SIGNED else ""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", MINUS)
