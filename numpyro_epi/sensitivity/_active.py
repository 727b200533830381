# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Directions that matter on average over the whole distribution."""

import warnings
from typing import NamedTuple

import numpy as np

from numpyro_epi.result import EPIResult

from ._arguments import count
from ._density import log_q_near
from ._layout import layout_of, stored_points

# An average of which one draw is more than this share is that of a few draws. Of fewer
# than 100 draws a larger share may be one's by chance.
MAX_SHARE = 0.2


class ActiveSubspace(NamedTuple):
    """Result of `active_subspace`, most sensitive direction first.

    Attributes:
        matrix: E_q[grad log q grad log q^T], (D, D).
        eigenvalues: descending, (D,).
        vectors: `vectors[i]` is the i-th direction, of length one, its largest entry
            positive, (D, D).
        names: of the components, D of them.
        coordinates: in which gradients were taken.
    """

    matrix: np.ndarray
    eigenvalues: np.ndarray
    vectors: np.ndarray
    names: tuple[str, ...]
    coordinates: str


def active_subspace(
    result: EPIResult, *, coordinates: str = "constrained", num_draws: int = 2000
) -> ActiveSubspace:
    """Average outer product of the gradient of log q, and its eigenvectors.

    Where `directions` looks at one point, this looks at all draws. For a Gaussian it is
    the precision, so both agree. At the edge of a bounded support a flow is steep, and
    the average need not exist in the constrained space: a few draws at the edge decide
    it then, of which a warning tells. In unconstrained coordinates there is no edge.

    Args:
        result: of a run; its stored draws are used.
        coordinates: as in `hessian`.
        num_draws: of the stored draws, at most, at least 2.

    Returns:
        An `ActiveSubspace`, an unbiased average over independent draws.

    Raises:
        TypeError: if `result` is no result.
        ValueError: if an option is unknown or out of range, or a draw has no finite
            gradient, as one that was rounded to the edge of its support.
        NotImplementedError: if the guide has no density at given points, as
            `AutoBNAFNormal`. Use a flow such as `AutoRealNVP`.

    Warns:
        RuntimeWarning: if one draw makes up more than a fifth of the average.

    Example:
        >>> found = active_subspace(result, num_draws=500)
        >>> bool(found.eigenvalues[0] > found.eigenvalues[1])
        True

    References:
        Constantine, Active Subspaces, SIAM 2015, doi:10.1137/1.9781611973860, eq. 3.2.
    """
    layout = layout_of(result)
    points = stored_points(result)[: count("num_draws", num_draws, 2)]
    gradient = log_q_near(result, points, coordinates).gradient.astype(np.float64)
    _check_gradient(gradient, coordinates)
    matrix = gradient.T @ gradient / len(gradient)
    eigenvalues, columns = np.linalg.eigh(matrix)
    vectors = columns.T[::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], axis=1)
    return ActiveSubspace(
        matrix=matrix,
        eigenvalues=eigenvalues[::-1],
        vectors=vectors * np.where(largest < 0, -1.0, 1.0),
        names=layout.names,
        coordinates=coordinates,
    )


def _check_gradient(gradient: np.ndarray, coordinates: str) -> None:
    """Gradients (n, D) of an average that means something, or an error or a warning."""
    sizes = (gradient**2).sum(axis=1)
    num_bad = int((~np.isfinite(sizes)).sum())
    advice = 'Use `coordinates="unconstrained"`, in which supports have no edge.'
    if coordinates == "unconstrained":
        advice = (
            "Look at the draws with the lowest log density: the fit is rough there."
        )
    if num_bad:
        raise ValueError(
            f"Expected finite gradients of log q, got others at {num_bad:,} of "
            f"{len(sizes):,} draws, as at the edge of a support. {advice}"
        )
    share = sizes.max() / max(sizes.sum(), 1e-300)
    if share > max(MAX_SHARE, 20.0 / len(sizes)):
        warnings.warn(
            f"One of {len(sizes):,} draws makes up {share:.0%} of the average, as at "
            f"the edge of a support or in a fold of the flow. {advice}",
            RuntimeWarning,
            stacklevel=3,
        )
