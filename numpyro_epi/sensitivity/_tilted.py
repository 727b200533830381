# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Curvature of the exact law that belongs to the multipliers: the model, not the fit.

.. math:: \log \tilde p(z) = \log p_0(z) + E[\log L | z] - \lambda \cdot E[T | z]

is constant where E[T | z] and the prior are, so its flat directions are those of the
model. Averages over simulation noise use the same noise at every point.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random, vmap

from numpyro_epi._checks import describe
from numpyro_epi._math.constraints import deviations
from numpyro_epi._model.derivatives import exists
from numpyro_epi.result import EPIResult

from ._coordinates import Coordinates, coordinates_of
from ._density import CHUNK, expand, in_chunks
from ._layout import keep, layout_of, stored_points

DERIVATIVES = ("auto", "autodiff", "differences")
# Step of a difference, in standard deviations of the draws.
STEP = 0.25


def tilted_hessian(
    result: EPIResult,
    points: np.ndarray,
    coordinates: str,
    rng_key: jax.Array,
    *,
    num_simulations: int,
    derivative: str,
) -> np.ndarray:
    """Hessian of the log tilted density at points w (n, D), shape (n, D, D)."""
    method = _method(result, derivative)
    num = num_simulations if result._needs_averages else 1
    chosen = coordinates_of(result, coordinates)

    def make() -> Callable[[jax.Array, jax.Array], jax.Array]:
        def one(u: jax.Array, keys: jax.Array) -> jax.Array:
            x, _ = chosen.from_u(u)
            tilt = curvature(lambda x: _tilt(result, chosen, x, keys), x)
            if is_smooth:
                return tilt + prior(x)
            return tilt + curvature(lambda x: _log_prior(result, chosen, x), x)

        def prior(x: jax.Array) -> jax.Array:
            return expand(lambda x: _log_prior(result, chosen, x), x).hessian

        curvature = _curvature(result, chosen, method)
        # A prior may depend on a part of the model that has no second derivatives.
        is_smooth = exists(prior, jnp.zeros(result._engine.problem.num_latents))
        return jax.jit(vmap(one, in_axes=(0, None)))

    compiled = keep(result, ("tilted", coordinates, method, num), make)
    keys = random.split(rng_key, num)
    u = np.asarray(layout_of(result).to_u(jnp.asarray(points, float)))
    size = max(1, CHUNK // num)
    return in_chunks(lambda part: compiled(part, keys), u, size)


def _method(result: EPIResult, derivative: Any) -> str:
    if derivative not in DERIVATIVES:
        raise ValueError(
            f"Expected one of {DERIVATIVES} as `derivative`, got "
            f"{describe(derivative)}."
        )
    is_used = result.gradient.choice in ("reverse", "forward")
    if derivative == "differences" or (derivative == "auto" and not is_used):
        return "differences"
    method = keep(result, ("second derivatives",), lambda: _second(result))
    if method is None and derivative == "autodiff":
        raise ValueError(
            "Expected a model with second derivatives for `derivative='autodiff'`, but "
            "JAX refuses them. Use 'auto' or 'differences'."
        )
    return method or "differences"


def _second(result: EPIResult) -> str | None:
    """How to take second derivatives: as training took the first ones, if possible.

    Forward mode where training took none; None where there are no second ones.
    """
    chosen = coordinates_of(result, "unconstrained")
    x = jnp.zeros(result._engine.problem.num_latents)
    keys = random.split(random.key(0), 1)
    modes = ["forward", "reverse"]
    if result.gradient.choice == "reverse":
        modes.reverse()
    for mode in modes:
        curvature = _curvature(result, chosen, mode)

        def hessian(x: jax.Array, curvature: Callable = curvature) -> jax.Array:
            return curvature(lambda x: _tilt(result, chosen, x, keys), x)

        if exists(hessian, x):
            return mode
    return None


def _curvature(result: EPIResult, chosen: Coordinates, method: str) -> Callable:
    if method == "reverse":
        return lambda fn, x: expand(fn, x).hessian
    if method == "forward":
        return lambda fn, x: jax.jacfwd(jax.jacfwd(fn))(x)
    u = layout_of(result).to_u(jnp.asarray(stored_points(result), float))
    spread = np.asarray(chosen.from_u(u)[0]).std(axis=0)
    return lambda fn, x: _differences(fn, x, STEP * spread, chosen)


def _differences(
    fn: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    step: np.ndarray,
    chosen: Coordinates,
) -> jax.Array:
    """Hessian from central differences; steps are halved where they reach a bound."""
    low, high = (jnp.asarray(end, float) for end in chosen.bounds)
    room = 0.5 * jnp.minimum(x - low, high - x)
    h = jnp.minimum(jnp.asarray(step, float), room)
    dim = x.size
    axes = np.eye(dim)
    rows, columns = np.triu_indices(dim, 1)
    shifts = [np.zeros((1, dim)), axes, -axes]
    for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        shifts.append(a * axes[rows] + b * axes[columns])
    values = vmap(lambda shift: fn(x + shift * h))(jnp.asarray(np.concatenate(shifts)))
    centre, up, down = values[0], values[1 : dim + 1], values[dim + 1 : 2 * dim + 1]
    pp, pm, mp, mm = values[2 * dim + 1 :].reshape(4, -1)
    hessian = jnp.diag((up - 2.0 * centre + down) / h**2)
    mixed = (pp - pm - mp + mm) / (4.0 * h[rows] * h[columns])
    return hessian.at[rows, columns].set(mixed).at[columns, rows].set(mixed)


def _log_prior(result: EPIResult, chosen: Coordinates, x: jax.Array) -> jax.Array:
    u = chosen.to_u(x)
    return result._engine.problem.log_prior(u) - chosen.from_u(u)[1]


def _tilt(
    result: EPIResult, chosen: Coordinates, x: jax.Array, keys: jax.Array
) -> jax.Array:
    """Mean of log L - lambda . T over simulations with the given keys."""
    table, problem = result.table, result._engine.problem
    multipliers = jnp.asarray(table.scaled_multipliers(result.multipliers), float)
    u = chosen.to_u(x)
    sims = vmap(lambda key: problem.simulate(u, key))(keys)
    devs = deviations(sims.stats, table.targets, table.has_var)
    return (sims.log_likelihood - devs @ multipliers).mean()
