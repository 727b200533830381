# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which pairs of many latents are worth a panel?"""

from collections.abc import Collection
from itertools import combinations

import numpy as np


def ranks(draws: np.ndarray) -> np.ndarray:
    """Ranks of each column, scaled to mean zero and variance one, shape (n, D).

    Equal draws share the mean of their ranks; a constant column has zeros.
    """
    return np.stack([scaled(_ranks(column)) for column in draws.T], axis=1)


def scaled(values: np.ndarray) -> np.ndarray:
    """Values with mean zero and variance one; zeros if they are all equal."""
    centred = values - values.mean()
    size = np.sqrt(np.mean(centred**2))
    return centred / size if size > 0 else centred


def _ranks(column: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - 0.5 * (counts + 1))[place]


def dependence(draws: np.ndarray) -> np.ndarray:
    r"""How strongly each pair of columns depends on each other, from 0 to 1.

    With the ranks r of the draws, scaled to variance one, and their squares s, also
    scaled, it is the largest of

    .. math:: |E[r_i r_j]|, \quad |E[s_i s_j]|, \quad |E[r_i s_j]|, \quad |E[s_i r_j]|.

    The first is Spearman's correlation; the second sees rings and crosses, the others
    see arcs, all of which have no correlation. Ranks make it blind to units and to
    outliers. Under independence each is about 1 / sqrt(n).

    Args:
        draws: shape (n, D), at least two draws.

    Returns:
        Shape (D, D), symmetric, with zeros on the diagonal.
    """
    r = ranks(draws)
    s = np.stack([scaled(column) for column in r.T**2], axis=1)
    n = len(draws)
    crossed = np.abs(r.T @ s) / n
    found = np.maximum(np.abs(r.T @ r) / n, np.abs(s.T @ s) / n)
    found = np.maximum(found, np.maximum(crossed, crossed.T))
    np.fill_diagonal(found, 0.0)
    return np.minimum(found, 1.0)


def most_dependent(
    draws: np.ndarray, num: int, always: Collection[tuple[int, int]] = ()
) -> list[tuple[int, int, float]]:
    """The pairs (i < j) of largest `dependence`, with it, strongest first.

    Args:
        draws: shape (n, D).
        num: largest number of pairs.
        always: pairs (i < j) that come before all others.
    """
    found = dependence(draws)
    pairs = list(combinations(range(draws.shape[1]), 2))
    pairs.sort(key=lambda pair: (pair not in always, -found[pair]))
    return [(i, j, float(found[i, j])) for i, j in pairs[:num]]
