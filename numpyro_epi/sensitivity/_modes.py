# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""All modes of log q, and the ridges that they sit on."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import as_key
from numpyro_epi.result import EPIResult

from . import _passes as passes
from ._arguments import count, number
from ._ascent import climb, flat_curvature, scale_of
from ._density import log_q_near
from ._layout import layout_of, stored_points

# Ends of ascents this near to each other, in standard deviations, are one.
SAME = 0.05
# Points of the terrain climb only where it is steeper than this, standardised.
STEEP = 4.0
# On a ridge, at least this share of the starts ends so many standard deviations from
# the highest mode.
RIDGE_SHARE, RIDGE_DISTANCE = 0.1, 1.0


class Modes(NamedTuple):
    """Result of `find_modes`, highest first.

    Attributes:
        latents: `{site: (M, *shape)}`.
        points: the same as flat points, (M, D).
        log_prob: log q in the constrained space, nats, (M,).
        share: of the stored draws that lie nearest, along the high ground, (M,).
        eigenvalues: of the Hessian of log q, constrained, ascending, (M, D).
        at_boundary: whether the edge of the support holds the mode, (M,).
        on_ridge: whether much of its component is far from the component's highest
            mode and yet no slope leads there: a ridge, or several modes that high
            ground connects. Then the component is what counts, not the mode, (M,).
        component: label of the connected component of high ground, 0 for that of the
            highest mode, (M,).
        names: of the components of a point, D of them.
    """

    latents: dict[str, np.ndarray]
    points: np.ndarray
    log_prob: np.ndarray
    share: np.ndarray
    eigenvalues: np.ndarray
    at_boundary: np.ndarray
    on_ridge: np.ndarray
    component: np.ndarray
    names: tuple[str, ...]


class _Terrain(NamedTuple):
    """Points that stand for the high ground, in standardised coordinates."""

    points: np.ndarray  # (n, D)
    heights: np.ndarray  # (n,)
    mode_of: np.ndarray  # row of the highest point of the same mode, (n,)
    component_of: np.ndarray  # row of that of the same component, (n,)
    crest: np.ndarray  # where each start came to the crest, (num_starts, D)
    basin: np.ndarray  # row of the top that each start climbed to, (num_starts,)


def find_modes(
    result: EPIResult,
    rng_key: Any,
    *,
    num_starts: int = 200,
    prominence: float = 0.5,
    depth: float = 2.5,
    min_share: float = 0.01,
) -> Modes:
    """Find all modes of log q in the constrained space, and merge those on one ridge.

    Draws of the flow climb together: first to the crest, then along it to the top.
    Tops that high ground connects are merged; paths are straight in the latents, or in
    the base of the flow. Where the property leaves a curve or a
    surface of latents free, the exact density is constant there, and where along it the
    fit is highest means nothing: such modes are flagged `on_ridge`.

    Args:
        result: of a run.
        rng_key: random key, for the starts.
        num_starts: draws that climb. A mode with a share s of the draws is missed with
            probability `(1 - s) ** num_starts`.
        prominence: nats by which a mode stands out: lower ones are merged with the mode
            that they are connected to.
        depth: nats below the lower of two modes at which a path still connects them to
            one component. At least `prominence`.
        min_share: modes with a smaller share of the draws are left out: a fit may have
            spikes where it hardly ever draws. 0 keeps all.

    Returns:
        A `Modes`.

    Raises:
        TypeError: if `result` is no result, or `rng_key` no key.
        ValueError: if an option is out of range, or no mode has `min_share`.
        NotImplementedError: if the guide has no density at given points.

    Notes:
        The simulator is not run. The density is that of the latents; on simplex-like
        sites that of NumPyro's unconstrained coordinates.

    Example:
        >>> modes = find_modes(result, jax.random.key(0), num_starts=50)
        >>> modes.points.shape, modes.on_ridge
        ((1, 2), array([False]))
    """
    layout, key = layout_of(result), as_key(rng_key)
    num = count("num_starts", num_starts, 2)
    prominence = number("prominence", prominence, low=0.0, high=np.inf)
    depth = number("depth", depth, low=0.0, high=np.inf)
    if depth < prominence:
        raise ValueError(
            "Expected a `depth` of at least `prominence`, got "
            f"{depth:g} and {prominence:g}."
        )
    if min_share != 0:
        min_share = number("min_share", min_share, low=0.0, high=1.0)
    starts = np.asarray(layout.from_u(jnp.asarray(result._draws(key, num)))[0], float)
    terrain = _survey(result, starts, prominence, depth)
    tops = np.unique(terrain.mode_of)
    tops = tops[np.argsort(-terrain.heights[tops])]
    share = _shares(result, terrain, tops)
    if not (share >= min_share).any():
        raise ValueError(
            f"Expected a `min_share` that some mode has, got {min_share:g}: the "
            f"largest share is {share.max():.3g}."
        )
    tops, share = tops[share >= min_share], share[share >= min_share]
    found = climb(result, terrain.points[tops] * scale_of(result))
    component, on_ridge = _components(result, terrain, tops, starts)
    eigenvalues = np.linalg.eigvalsh(
        log_q_near(result, found.points, "constrained").hessian.astype(np.float64)
    )
    return Modes(
        latents=layout.latents(found.points),
        points=found.points,
        log_prob=found.log_prob,
        share=share,
        eigenvalues=eigenvalues,
        at_boundary=np.any(found.at_bound, axis=1),
        on_ridge=on_ridge,
        component=component,
        names=layout.names,
    )


def _survey(
    result: EPIResult, starts: np.ndarray, prominence: float, depth: float
) -> _Terrain:
    """Climb to the crest and to the tops, and find out what is connected."""
    crest = climb(result, starts, flat=STEEP)
    top = climb(result, crest.points)
    points = np.concatenate([crest.points, top.points])
    heights = np.concatenate([crest.log_prob, top.log_prob])
    scale = scale_of(result)
    rows = passes.distinct(points / scale, heights, SAME)
    points, heights = points[rows], heights[rows]
    edges = passes.neighbour_edges(points / scale)
    levels = passes.straight_heights(result, *points[edges.T])
    labels = passes.merge(heights, edges, levels, prominence)
    # What straight paths leave apart may be connected by bent ones.
    more = passes.edges_between(points / scale, labels)
    bent = passes.bent_heights(result, *points[more.T])
    edges, levels = np.concatenate([edges, more]), np.concatenate([levels, bent])
    # A narrow pass needs many tries, which few components can afford.
    labels = passes.merge(heights, edges, levels, depth)
    more = passes.edges_between(points / scale, labels, passes.NUM_LAST_PAIRS)
    for find in (passes.straight_heights, passes.bent_heights):
        edges = np.concatenate([edges, more])
        levels = np.concatenate([levels, find(result, *points[more.T])])
    return _Terrain(
        points / scale,
        heights,
        passes.merge(heights, edges, levels, prominence),
        passes.merge(heights, edges, levels, depth),
        crest.points / scale,
        passes.distances(top.points / scale, points / scale).argmin(axis=1),
    )


def _components(
    result: EPIResult, terrain: _Terrain, tops: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label of the component of each mode, and whether it is a ridge."""
    roots = terrain.component_of[tops]
    order = list(dict.fromkeys(roots.tolist()))
    component = np.array([order.index(root) for root in roots])
    scale = scale_of(result)
    ends = climb(result, starts, flat=flat_curvature(result)).points / scale
    mine = terrain.component_of[terrain.basin]
    is_ridge = []
    for label in range(len(order)):
        top = terrain.points[tops[component == label][0]]
        inside = ends[mine == order[label]]
        is_far = np.linalg.norm(inside - top, axis=1) > RIDGE_DISTANCE
        is_ridge.append(is_far.sum() > RIDGE_SHARE * max(len(inside), 1))
    return component, np.array(is_ridge)[component]


def _shares(result: EPIResult, terrain: _Terrain, tops: np.ndarray) -> np.ndarray:
    """Share of stored draws that lie nearest to starts that climbed to each mode.

    Starts on their crest, not modes, so that a long ridge has all of its draws.
    """
    draws = stored_points(result)[:4000] / scale_of(result)
    nearest = [
        passes.distances(part, terrain.crest).argmin(axis=1)
        for part in np.array_split(draws, -(-len(draws) // 500))
    ]
    modes = terrain.mode_of[terrain.basin[np.concatenate(nearest)]]
    return (modes[:, None] == tops).mean(axis=0)
