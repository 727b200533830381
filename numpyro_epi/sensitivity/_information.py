# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""How many nats the property takes from each latent, alone and given the others.

.. math:: \mathrm{alone}_i = KL(q(z_i) \| p_0(z_i)), \qquad
    \mathrm{given}_i = E_q\, KL(q(z_i | z_{-i}) \| p_0(z_i | z_{-i})).

Alone small and given others large is a latent that can be anything as long as others
follow. For an independent prior the difference is the mutual information of the latent
with the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import as_key
from numpyro_epi._train.guide import Params
from numpyro_epi.result import EPIResult

from ._arguments import count
from ._ascent import scale_of
from ._coordinates import coordinates_of
from ._density import density, in_chunks
from ._layout import Layout, keep, layout_of, stored_points

# Neighbours of the estimator, and blocks that its error is from.
NUM_NEIGHBOURS, NUM_BLOCKS = 10, 10
# Levels of draws that an integral's grid passes through, and steps near its point.
NUM_LEVELS, NUM_NEAR = 65, 16
# Grids that are evaluated at a time.
GRIDS = 64


class Information(NamedTuple):
    """Result of `information`, in nats.

    Attributes:
        alone: KL of each component's marginal to its prior, (D,).
        alone_error: standard errors, (D,).
        given_others: expected KL of each component given all others, (D,).
        given_others_error: standard errors, (D,).
        joint: KL(q || p0) of all components together.
        names: of the components, D of them.
    """

    alone: np.ndarray
    alone_error: np.ndarray
    given_others: np.ndarray
    given_others_error: np.ndarray
    joint: float
    names: tuple[str, ...]


def information(
    result: EPIResult,
    rng_key: Any,
    *,
    num_draws: int = 20_000,
    num_conditional: int = 500,
) -> Information:
    """Nats that the property takes from each component, alone and given the others.

    `alone` is the nearest-neighbour estimator of a divergence (Wang, Kulkarni & Verdu,
    Divergence estimation for multidimensional densities via k-nearest-neighbor
    distances, IEEE Trans. Inf. Theory 2009), with k = 10 and as many draws of the prior
    as of the flow; its error is from ten blocks. `given_others` has no such bias: the
    flow's exact density is integrated along the component by the trapezoid rule, and
    averaged over draws of the others.

    Args:
        result: of a run.
        rng_key: random key, for draws of the flow and of the prior.
        num_draws: draws behind `alone`, at least 1,000.
        num_conditional: draws behind `given_others`, at least 10.

    Returns:
        An `Information`; `alone` may be slightly negative where the truth is zero.

    Raises:
        TypeError: if `result` is no result, or `rng_key` no key.
        ValueError: if a number is out of range, or the prior is improper.
        NotImplementedError: if the guide has no density at given points.

    Notes:
        The simulator is not run. The draws are not restricted to latents that can be
        simulated, except those behind `joint`.

    Example:
        >>> found = information(result, jax.random.key(0), num_draws=2000)
        >>> bool((found.given_others > found.alone).all())
        True
    """
    layout, key = layout_of(result), as_key(rng_key)
    num = count("num_draws", num_draws, 1000)
    num_points = count("num_conditional", num_conditional, 10)
    engine = result._engine
    if not engine.problem.can_sample_prior:
        raise ValueError(
            "Expected proper priors at all sites, got an improper, masked or scaled "
            "one: there is no prior to compare with."
        )
    flow_key, prior_key, point_key = jax.random.split(key, 3)
    prior = _points(layout, engine.chunks.prior_draws(prior_key[None], num)[0])
    flow = _points(layout, result._draws(flow_key, num))
    alone, error = np.array(
        [_marginal(q, p) for q, p in zip(flow.T, prior.T, strict=True)]
    ).T
    at = _points(layout, result._draws(point_key, num_points))
    given = np.stack(
        [
            _conditional(result, at, column, flow[:, column], prior[:, column])
            for column in range(layout.num_latents)
        ],
        axis=1,
    )
    draws = result.draws
    return Information(
        alone=alone,
        alone_error=error,
        given_others=given.mean(axis=0),
        given_others_error=given.std(axis=0, ddof=1) / np.sqrt(num_points),
        joint=float(np.mean(draws.log_density.astype(float) - draws.log_prior)),
        names=layout.names,
    )


def _points(layout: Layout, u: np.ndarray) -> np.ndarray:
    return np.asarray(layout.from_u(jnp.asarray(u))[0], np.float64)


def _marginal(flow: np.ndarray, prior: np.ndarray) -> tuple[float, float]:
    """Estimate of a one-dimensional KL, with its standard error."""
    blocks = [
        neighbour_divergence(q, p)
        for q, p in zip(
            np.array_split(flow, NUM_BLOCKS),
            np.array_split(prior, NUM_BLOCKS),
            strict=True,
        )
    ]
    error = np.std(blocks, ddof=1) / np.sqrt(NUM_BLOCKS)
    return neighbour_divergence(flow, prior), float(error)


def neighbour_divergence(first: np.ndarray, last: np.ndarray) -> float:
    r"""KL between the laws of two samples of numbers, in nats.

    .. math:: \frac1n \sum_i \log \frac{\nu_k(x_i)}{\rho_k(x_i)} + \log \frac{m}{n - 1}

    with the distances rho and nu of x_i to its k-th neighbour among n - 1 others, and
    among m draws of the other law.
    """
    own = _neighbour_distances(first, first, NUM_NEIGHBOURS + 1)  # one is itself
    other = _neighbour_distances(first, last, NUM_NEIGHBOURS)
    tiny = np.finfo(np.float32).eps * first.std()
    ratio = np.log(np.maximum(other, tiny)) - np.log(np.maximum(own, tiny))
    return float(ratio.mean() + np.log(last.size / (first.size - 1)))


def _neighbour_distances(x: np.ndarray, sample: np.ndarray, k: int) -> np.ndarray:
    """Distance of each x to its k-th nearest number of a sample."""
    pad = np.full(k, np.inf)
    ordered = np.concatenate([-pad, np.sort(sample), pad])
    window = np.searchsorted(ordered, x)[:, None] + np.arange(-k, k + 1)
    gaps = np.abs(ordered[np.minimum(window, ordered.size - 1)] - x[:, None])
    return np.partition(gaps, k - 1, axis=1)[:, k - 1]


def _conditional(
    result: EPIResult,
    at: np.ndarray,
    column: int,
    flow: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """Log ratio of both conditional densities of a component at points (n, D), (n,)."""
    levels = np.linspace(0.0, 1.0, NUM_LEVELS)
    near = scale_of(result)[column] * np.logspace(-3, 0.5, NUM_NEAR)
    common = np.concatenate([np.quantile(flow, levels), np.quantile(prior, levels)])
    steps = np.concatenate([-near, [0.0], near])
    local = at[:, column, None] + steps
    grid = np.concatenate(
        [local, np.broadcast_to(common, (len(at), common.size))], axis=1
    )
    low, high = (end[column] for end in layout_of(result).bounds)
    lowest, highest = common.min(), common.max()
    width = 1e-4 * (highest - lowest)
    low = low + width if np.isfinite(low) else lowest
    high = high - width if np.isfinite(high) else highest
    grid = np.clip(np.sort(grid, axis=1), low, high)
    compiled = keep(result, "line", lambda: _make_line(result))
    params, row = result._unconstrained_params(), np.arange(at.shape[1]) == column
    lines = {"at": at, "grid": grid, "row": np.broadcast_to(row, at.shape)}
    values = in_chunks(lambda part: compiled(params, part), lines, GRIDS)
    log_q, log_p = (
        value[:, -1] - _log_integral(value[:, :-1], grid)
        for value in (x.astype(np.float64) for x in values)
    )
    return log_q - log_p


def _make_line(result: EPIResult) -> Callable:
    """Log q and log prior along a line, and last at its point: both (num_grid + 1,)."""
    chosen = coordinates_of(result, "constrained")
    log_q, problem = density(result, chosen), result._engine.problem

    def line(params: Params, part: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at, row = part["at"], part["row"]
        moved = at + row * (part["grid"][:, None] - at)
        points = jnp.concatenate([moved, at[None]])
        u = chosen.to_u(points)
        prior = jax.vmap(problem.log_prior)(u) - chosen.from_u(u)[1]
        return jax.vmap(lambda x: log_q(params, x))(points), prior

    return jax.jit(jax.vmap(line, in_axes=(None, 0)))


def _log_integral(log_density: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Logarithm of the integral along each row, by the trapezoid rule."""
    top = log_density.max(axis=1, keepdims=True)
    values = np.exp(log_density - top)
    area = 0.5 * (values[:, 1:] + values[:, :-1]) * np.diff(grid, axis=1)
    return np.log(area.sum(axis=1)) + top[:, 0]


class Correlations(NamedTuple):
    """Result of `correlations`.

    Attributes:
        matrix: Pearson's, (D, D).
        error: standard errors of `matrix` for a Gaussian, (1 - r^2) / sqrt(n - 1).
        rank: Spearman's, which do not change with monotone units, (D, D).
        partial: of each pair given all other components, for a Gaussian, (D, D).
        names: of the components, D of them.
    """

    matrix: np.ndarray
    error: np.ndarray
    rank: np.ndarray
    partial: np.ndarray
    names: tuple[str, ...]


def correlations(result: EPIResult) -> Correlations:
    """Correlations of the components over the stored draws.

    A large correlation is a compensation: one component may change if the other does.
    They see no bent or many-peaked dependence; `information` does.

    Args:
        result: of a run.

    Returns:
        A `Correlations`.

    Raises:
        TypeError: if `result` is no result.

    Example:
        >>> correlations(result).matrix.shape
        (2, 2)
    """
    layout, points = layout_of(result), stored_points(result)
    matrix = np.atleast_2d(np.corrcoef(points, rowvar=False))
    ranks = points.argsort(axis=0).argsort(axis=0)
    inverse = np.linalg.inv(matrix)
    size = np.sqrt(np.diag(inverse))
    partial = -inverse / np.outer(size, size)
    np.fill_diagonal(partial, 1.0)
    return Correlations(
        matrix=matrix,
        error=(1.0 - matrix**2) / np.sqrt(len(points) - 1),
        rank=np.atleast_2d(np.corrcoef(ranks, rowvar=False)),
        partial=partial,
        names=layout.names,
    )
