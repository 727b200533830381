# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which points does high ground connect? Passes between points, and merged peaks.

The height of a path is its lowest log q. Two peaks belong together if a path between
them lies less than so many nats below the lower one, as in persistence-based clustering
(Chazal et al., Persistence-based clustering in Riemannian manifolds, J. ACM 2013). Only
paths that were walked count, so peaks may be kept apart wrongly, never merged.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._train.guide import Params
from numpyro_epi.result import EPIResult

from ._ascent import scale_of
from ._density import in_chunks, log_q_at
from ._layout import keep, layout_of

# Neighbours of each point that a straight path is tried to.
NUM_NEIGHBOURS = 8
# Points on each straight path, without its ends; on each other one; and how often those
# are spaced anew.
NUM_BETWEEN, NUM_ON_CURVE, NUM_SPACINGS = 9, 33, 3
# Nearest pairs of points that a bent path is tried between: of two peaks, and of two
# components that would else stay apart.
NUM_PAIRS, NUM_LAST_PAIRS = 5, 200


def distinct(points: np.ndarray, heights: np.ndarray, distance: float) -> np.ndarray:
    """Rows that stand for all: the highest of those within a distance of each other."""
    kept: list[int] = []
    for row in np.argsort(-heights, kind="stable"):
        gaps = np.linalg.norm(points[kept] - points[row], axis=1)
        if not kept or gaps.min() > distance:
            kept.append(int(row))
    return np.array(kept)


def neighbour_edges(points: np.ndarray) -> np.ndarray:
    """Pairs (E, 2) of each point with its nearest ones."""
    num = min(NUM_NEIGHBOURS, len(points) - 1)
    nearest = np.argsort(distances(points, points), axis=1)[:, : num + 1]
    pairs = {
        (min(i, j), max(i, j))
        for i, row in enumerate(nearest.tolist())
        for j in row
        if i != j
    }
    return np.array(sorted(pairs), int).reshape(-1, 2)


def straight_heights(
    result: EPIResult, first: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """Lowest log q on straight paths between points w, both (E, D); shape (E,)."""
    if len(first) == 0:
        return np.zeros(0)
    share = np.linspace(0.0, 1.0, NUM_BETWEEN + 2)[:, None, None]
    paths = (1.0 - share) * first + share * last
    values = log_q_at(result, paths.reshape(-1, first.shape[-1]))
    values = np.where(np.isfinite(values), values, -np.inf)
    return values.reshape(len(share), len(first)).min(axis=0)


def bent_heights(result: EPIResult, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The same for paths that are straight in the base of the flow.

    The flow maps its base, which is convex, onto the ridge that it was trained on, so
    that such a path follows the ridge where a straight one cuts across. Where it leaps
    from one ridge to another, a short piece of it in the base is a long way in the
    latents: its points are spaced evenly in the latents, so that no valley is skipped.
    """
    if len(first) == 0:
        return np.zeros(0)
    layout, posterior = layout_of(result), result._engine.guide.posterior
    scale = jnp.asarray(scale_of(result), float)

    def make() -> Callable[[Params, dict[str, jax.Array]], jax.Array]:
        def path(params: Params, ends: dict[str, jax.Array]) -> jax.Array:
            to_base, from_base = _base_map(posterior(params))
            a, b = (to_base(layout.to_u(ends[name])) for name in ("first", "last"))

            def at(share: jax.Array) -> jax.Array:
                x = a + share[:, None] * (b - a)
                return layout.from_u(jax.vmap(from_base)(x))[0]

            share = jnp.linspace(0.0, 1.0, NUM_ON_CURVE)
            for _ in range(NUM_SPACINGS):
                share = _even(share, at(share) / scale)
            return at(share)

        return jax.jit(jax.vmap(path, in_axes=(None, 0)))

    path = keep(result, "path", make)
    params, ends = result._unconstrained_params(), {"first": first, "last": last}
    paths = in_chunks(lambda part: path(params, part), ends)
    values = log_q_at(result, paths.reshape(-1, first.shape[-1]))
    values = np.where(np.isfinite(values), values, -np.inf)
    return values.reshape(len(first), -1).min(axis=1)


def _even(share: jax.Array, points: jax.Array) -> jax.Array:
    """Shares at which a curve through points (n, D) passes evenly spaced ones."""
    steps = jnp.linalg.norm(jnp.diff(points, axis=0), axis=1) + 1e-6
    length = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    return jnp.interp(jnp.linspace(0.0, 1.0, share.size) * length[-1], length, share)


def merge(
    heights: np.ndarray, edges: np.ndarray, passes: np.ndarray, depth: float
) -> np.ndarray:
    """Label of each point: the row of the peak that it belongs to, (n,).

    Args:
        heights: log q of the points, (n,).
        edges: pairs of points, (E, 2).
        passes: lowest log q on the path of each pair, (E,).
        depth: nats below the lower peak at which a pass still connects.
    """
    peak = np.arange(len(heights))

    def root(row: int) -> int:
        while peak[row] != row:
            peak[row] = peak[peak[row]]
            row = int(peak[row])
        return row

    for edge in np.argsort(-passes, kind="stable"):
        a, b = (root(int(row)) for row in edges[edge])
        low, high = (a, b) if heights[a] < heights[b] else (b, a)
        if heights[low] - passes[edge] <= depth:
            peak[low] = high
    return np.array([root(row) for row in range(len(heights))])


def edges_between(
    points: np.ndarray, labels: np.ndarray, num_pairs: int = NUM_PAIRS
) -> np.ndarray:
    """Nearest pairs of points of different peaks, a few for each pair of peaks."""
    found = [pair for pairs in _pairs(points, labels, num_pairs) for pair in pairs]
    return np.array(found, int).reshape(-1, 2)


def _pairs(
    points: np.ndarray, labels: np.ndarray, num_pairs: int
) -> Iterator[list[tuple[int, int]]]:
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for i, first in enumerate(groups):
        gaps = [distances(points[first], points[last]) for last in groups[i + 1 :]]
        for j in np.argsort([gap.min() for gap in gaps])[:NUM_NEIGHBOURS]:
            last = groups[i + 1 + j]
            order = np.argsort(gaps[j], axis=None)[:num_pairs]
            rows, columns = np.unravel_index(order, gaps[j].shape)
            yield [(int(first[a]), int(last[b])) for a, b in zip(rows, columns)]  # noqa: B905


def distances(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Distances between points (n, D) and (m, D), shape (n, m)."""
    return np.linalg.norm(first[:, None, :] - last[None, :, :], axis=-1)


def _base_map(posterior: Any) -> tuple[Callable, Callable]:
    """From u to the base of a flow and back; the identity for other guides."""
    transforms = getattr(posterior, "transforms", ())

    def to_base(u: jax.Array) -> jax.Array:
        for transform in reversed(transforms):
            u = transform.inv(u)
        return u

    def from_base(x: jax.Array) -> jax.Array:
        for transform in transforms:
            x = transform(x)
        return x

    return to_base, from_base
