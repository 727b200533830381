# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the model does along a line through a point, and how soon it loses the property.

These functions run the simulator, as those of `_interventions` do, and `hessian` where
it is asked for the tilted density.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc

from numpyro_epi._checks import as_key, real_array
from numpyro_epi.result import EPIResult

from ._arguments import count, numbers
from ._layout import Layout, layout_of

# Simulations that run at a time.
BATCH = 1000


class Perturbation(NamedTuple):
    """Result of `perturb`: L points on a line.

    Attributes:
        deltas: distances along the direction, in units of the latents, (L,).
        points: flat points, (L, D).
        statistics: means over simulations, `{site: (L, *stat)}`.
        standard_errors: of `statistics`, zero without noise, `{site: (L, *stat)}`.
        standard_deviations: of single simulations, `{site: (L, *stat)}`.
        names: of the components, D of them.
        direction: of length one, (D,).
    """

    deltas: np.ndarray
    points: np.ndarray
    statistics: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    standard_deviations: dict[str, np.ndarray]
    names: tuple[str, ...]
    direction: np.ndarray


class DirectionTest(NamedTuple):
    """Result of `direction_test`: V directions.

    Attributes:
        slope: of the property's error against distance: its unit is the spread of the
            targets per unit of the latents, (V,).
        slope_error: standard error of the regression, (V,).
        p_value: of a slope of zero, two-sided, (V,).
        directions: of length one, (V, D).
        angles: of the directions in the plane, rad, (V,); None if they were given.
        names: of the components, D of them.
    """

    slope: np.ndarray
    slope_error: np.ndarray
    p_value: np.ndarray
    directions: np.ndarray
    angles: np.ndarray | None
    names: tuple[str, ...]


def perturb(
    result: EPIResult,
    at: Mapping[str, Any],
    direction: Any,
    deltas: Any,
    rng_key: Any,
    *,
    num_simulations: int = 25,
) -> Perturbation:
    """Simulate along a line through a point, inside the support.

    Args:
        result: of a run.
        at: the point, `{site: shape}`.
        direction: D numbers in the order of the components, such as a row of
            `directions(...).vectors`, or `{component: number}`. Scaled to length one.
        deltas: distances from the point, positive and negative, (L,).
        rng_key: random key, for simulation noise, which is new at each point.
        num_simulations: at each point; one is enough without noise.

    Returns:
        A `Perturbation`. NaN where a simulation is.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a point leaves the support (the message names the component), a
            component is unknown, or a number is out of range.

    Example:
        >>> at = {"z": [1.0, -1.0]}
        >>> found = perturb(result, at, {"z[0]": 1.0}, [-0.1, 0.1], jax.random.key(0))
        >>> found.statistics["f"].shape, found.direction
        ((2, 2), array([1., 0.]))
    """
    layout, key = layout_of(result), as_key(rng_key)
    num = count("num_simulations", num_simulations)
    distances = numbers("deltas", deltas)
    centre = layout.check_one(at, where="`at`")
    unit = layout.check_direction(direction, where="`direction`")
    points = _line(layout, centre, unit, distances)
    stats = _simulate(result, points, key, num)
    split = result.table.split
    deviation = stats.std(axis=1, ddof=1) if num > 1 else np.zeros_like(stats[:, 0])
    return Perturbation(
        deltas=distances,
        points=points,
        statistics=split(stats.mean(axis=1)),
        standard_errors=split(deviation / np.sqrt(num)),
        standard_deviations=split(deviation),
        names=layout.names,
        direction=unit,
    )


def direction_test(
    result: EPIResult,
    at: Mapping[str, Any],
    directions: Any,
    deltas: Any,
    rng_key: Any,
    *,
    num_simulations: int = 25,
    num_angles: int | None = None,
) -> DirectionTest:
    r"""Test how fast the property is lost along each direction from a point.

    The error of a point is how far its mean statistics are from the targets,

    .. math:: e(z) = \sqrt{\tfrac1S \sum_i (E[f_i | z] - m_i)^2 / s_i^2},

    with s the target's standard deviation (or the spread of a pilot, if none was
    given). It is regressed on the distance |delta| by least squares.

    Args:
        result: of a run.
        at: the point, `{site: shape}`.
        directions: (V, D), or one of shape (D,); see `perturb`.
        deltas: distances, at least three, not all of one size, (L,).
        rng_key: random key, for simulation noise.
        num_simulations: at each point. Noise adds to the error, at all distances.
        num_angles: if given, `directions` are two that span a plane, and directions at
            so many angles in [0, pi) from the first towards the second are tested.

    Returns:
        A `DirectionTest`, p-values from Student's t with L - 2 degrees of freedom.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a point leaves the support (the message names the component), two
            directions do not span a plane, or a number is out of range.

    Example:
        >>> at, deltas = {"z": [1.5, -1.0]}, [0.0, 0.1, 0.2, 0.3]
        >>> found = direction_test(result, at, np.eye(2), deltas, jax.random.key(0))
        >>> bool((found.slope > 0).all())
        True
    """
    layout, key = layout_of(result), as_key(rng_key)
    num = count("num_simulations", num_simulations)
    distances = numbers("deltas", deltas, 3)
    if np.ptp(np.abs(distances)) == 0:
        raise ValueError(
            "Expected `deltas` of different sizes, got "
            f"{distances.tolist()}. Add zero, for example."
        )
    centre = layout.check_one(at, where="`at`")
    rows = np.atleast_2d(real_array(directions, where="`directions`"))
    units = np.stack([layout.check_direction(v, where="`directions`") for v in rows])
    angles = None
    if num_angles is not None:
        angles = np.arange(count("num_angles", num_angles, 2)) * np.pi / num_angles
        units = _fan(units, angles)
    lines = [_line(layout, centre, unit, distances) for unit in units]
    points = np.concatenate(lines)
    means = _simulate(result, points, key, num).mean(axis=1)
    errors = (means - result.table.mean) / result.table.scale
    size = np.sqrt((errors**2).mean(axis=-1)).reshape(len(units), -1)
    slope, slope_error = _regress(np.abs(distances), size)
    return DirectionTest(
        slope=slope,
        slope_error=slope_error,
        p_value=_p_values(slope, slope_error, distances.size - 2),
        directions=units,
        angles=angles,
        names=layout.names,
    )


def _line(
    layout: Layout, centre: np.ndarray, unit: np.ndarray, deltas: np.ndarray
) -> np.ndarray:
    points = centre.astype(np.float64) + deltas[:, None] * unit
    reach = f"`deltas` up to {np.abs(deltas).max():g}"
    return layout.check_points(points, where=reach)


def _simulate(
    result: EPIResult, points: np.ndarray, rng_key: jax.Array, num: int
) -> np.ndarray:
    """Statistics (n, num, S) of simulations at points w, shape (n, D)."""
    num_run = num if result.is_noisy else 1
    u = np.asarray(layout_of(result).to_u(jnp.asarray(points, float)))
    stats, _ = result._simulate(np.repeat(u, num_run, axis=0), rng_key, BATCH)
    stats = np.asarray(stats, np.float64).reshape(len(points), num_run, -1)
    return np.repeat(stats, num // num_run, axis=1)


def _fan(units: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Unit vectors at angles from the first of two, towards the second."""
    if len(units) != 2:
        raise ValueError(
            "Expected two `directions` that span a plane with `num_angles`, got "
            f"{len(units)}."
        )
    first, second = units
    second = second - (first @ second) * first
    length = np.linalg.norm(second)
    if length < 1e-6:
        raise ValueError(
            "Expected two `directions` that span a plane, got parallel ones."
        )
    return np.outer(np.cos(angles), first) + np.outer(np.sin(angles), second / length)


def _regress(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and their standard errors of y (V, L) on x (L,)."""
    centred = x - x.mean()
    spread = (centred**2).sum()
    slope = y @ centred / spread
    rest = y - y.mean(axis=1, keepdims=True) - slope[:, None] * centred
    variance = (rest**2).sum(axis=1) / (x.size - 2)
    return slope, np.sqrt(variance / spread)


def _p_values(slope: np.ndarray, error: np.ndarray, freedom: int) -> np.ndarray:
    """Two-sided, of Student's t: I_{n / (n + t^2)}(n / 2, 1 / 2)."""
    share = freedom * error**2 / (freedom * error**2 + slope**2 + 1e-300)
    found = betainc(0.5 * freedom, 0.5, jnp.clip(jnp.asarray(share, float), 0.0, 1.0))
    return np.asarray(found, np.float64)
