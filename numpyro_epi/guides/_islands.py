# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws that lie apart: which of them form an island of their own?

Two draws are neighbours if each is among the few nearest of the other: a stray draw
between two islands has neighbours on both, but is nobody's. Islands are what a chain of
neighbours connects, whatever its shape (Brito, Chavez, Quiroz and Yukich, Connectivity
of the mutual k-nearest-neighbor graph in clustering and outlier detection, Statistics &
Probability Letters 1997).
"""

import numpy as np

# Neighbours of each draw. Fewer than 2 log n would cut what belongs together.
NUM_NEIGHBOURS = 24
# Draws that count a draw among their nearest; with fewer it is a stray, a bridge to no
# other.
MIN_FOLLOWERS = 10
# Fewer draws show no islands.
MIN_DRAWS = 400
# Share of the draws below which they are strays of another island.
MIN_SHARE = 0.02


def find_islands(draws: np.ndarray) -> np.ndarray:
    """The island of each draw, 0 and up; all zero if there is one, or too few draws.

    Args:
        draws: Distinct, shape (n, D); time and memory grow with the square of n.

    Returns:
        Shape (n,). Strays belong to the island of the nearest draw that is none.
    """
    n = len(draws)
    if n < MIN_DRAWS:
        return np.zeros(n, int)
    x = _whiten(np.asarray(draws, np.float64))
    square = (x**2).sum(1)
    distances = square[:, None] + square - 2.0 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argpartition(distances, NUM_NEIGHBOURS, axis=1)[:, :NUM_NEIGHBOURS]
    is_near = np.zeros((n, n), bool)
    is_near[np.arange(n)[:, None], nearest] = True
    is_mutual = np.take_along_axis(is_near.T, nearest, axis=1)
    is_inner = is_near.sum(axis=0) >= MIN_FOLLOWERS
    is_mutual &= is_inner[:, None] & is_inner[nearest]
    labels = _connect(nearest, is_mutual)
    names, counts = np.unique(labels, return_counts=True)
    large = names[counts >= MIN_SHARE * n]
    if len(large) < 2:
        return np.zeros(n, int)
    settled = np.flatnonzero(np.isin(labels, large))
    closest = settled[np.argmin(distances[:, settled], axis=1)]
    closest[settled] = settled
    return np.searchsorted(large, labels[closest])


def _connect(nearest: np.ndarray, is_edge: np.ndarray) -> np.ndarray:
    """The lowest row that a chain of edges leads to, of each row."""
    rows = np.arange(len(nearest))
    labels, before = rows.copy(), np.full(len(rows), -1)
    while (labels != before).any():
        before = labels.copy()
        others = np.where(is_edge, labels[nearest], labels[:, None])
        lowest = np.minimum(labels, others.min(axis=1))
        # A row that is named passes on what its followers have found.
        np.minimum.at(lowest, labels, lowest)
        labels = lowest[lowest]
    return labels


def _whiten(draws: np.ndarray) -> np.ndarray:
    """Linear coordinates without correlations; those that do not vary are left out."""
    centred = draws - draws.mean(axis=0)
    scales = centred.std(axis=0)
    centred = centred[:, scales > 0] / scales[scales > 0]
    values, vectors = np.linalg.eigh(centred.T @ centred / len(draws))
    return centred @ (vectors / np.sqrt(np.maximum(values, 1e-8)))
