# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Climbing log q inside a box: one damped Newton ascent for many starts at once.

Coordinates are the latents over the standard deviations of the stored draws. A step
divides the gradient by the *sizes* of the curvatures, so that it climbs at saddles too
(Dauphin et al., Identifying and attacking the saddle point problem, 2014), is shortened
to a trust radius, and is taken only if it climbs. Coordinates that a bound or the
caller holds are left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_epi._train.guide import Params
from numpyro_epi.result import EPIResult

from ._coordinates import coordinates_of
from ._density import Local, density, expand, in_chunks
from ._layout import Bounds, keep, layout_of, stored_points

MAX_STEPS = 100
MAX_RADIUS = 1.0
# Distance from a bound that counts as at it: a share of the width of the support, or
# of a standard deviation of the draws where the support is infinite.
MARGIN = 1e-3
# Flat is a curvature below this share of that of a Gaussian with the correlations of
# the draws in its widest direction, where a standard deviation is less than so steep.
FLAT_CURVATURE, FLAT_SLOPE = 0.3, 0.3
# Curvatures are taken to be at least this.
MIN_CURVATURE = 1e-2
# A step so short, or a gain so small, ends an ascent.
MIN_STEP, MIN_GAIN = 1e-3, 1e-6
# Starts that climb together.
BATCH = 256


class Ascent(NamedTuple):
    """Where ascents ended.

    Attributes:
        points: w, constrained, (n, D).
        log_prob: log q there, nats, (n,).
        converged: whether no step was left to take, (n,).
        at_bound: which components a bound holds, (n, D).
    """

    points: np.ndarray
    log_prob: np.ndarray
    converged: np.ndarray
    at_bound: np.ndarray


class _Task(NamedTuple):
    """One ascent: start x, shape (D,), what is free, what is held, what is flat."""

    x: Any
    is_free: Any
    held: Any
    flat: Any


class _State(NamedTuple):
    x: jax.Array
    local: Local
    radius: jax.Array
    num_steps: jax.Array
    is_done: jax.Array


def scale_of(result: EPIResult) -> np.ndarray:
    """Standard deviations of the stored draws, (D,)."""
    return stored_points(result).std(axis=0)


def flat_curvature(result: EPIResult) -> float:
    """Curvature below which log q is flat, standardised coordinates."""
    correlations = np.corrcoef(stored_points(result), rowvar=False)
    return float(FLAT_CURVATURE / np.linalg.eigvalsh(np.atleast_2d(correlations))[-1])


def box(result: EPIResult) -> Bounds:
    """Where points w may go: the support without its edge."""
    low, high = layout_of(result).bounds
    width = np.where(np.isfinite(high - low), high - low, scale_of(result))
    return Bounds(low + MARGIN * width, high - MARGIN * width)


def climb(
    result: EPIResult,
    points: np.ndarray,
    *,
    is_free: np.ndarray | None = None,
    held: np.ndarray | None = None,
    flat: float = 0.0,
) -> Ascent:
    """Climb log q from points w, shape (n, D), in the constrained space.

    Args:
        result: of a run.
        points: starts.
        is_free: which components move, (D,); None is all.
        held: a direction in standardised coordinates along which a point stays, (n, D).
        flat: curvature, standardised, below which a gentle slope is not climbed.
    """
    scale, bounds = scale_of(result), box(result)
    low, high = (jnp.asarray(end / scale, float) for end in bounds)

    def make() -> Callable[[Params, _Task], tuple[_State, jax.Array]]:
        one = _make_ascent(result, Bounds(low, high))  # type: ignore[arg-type]
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    compiled = keep(result, "climb", make)
    free = np.ones(points.shape[1]) if is_free is None else is_free
    task = _Task(
        points / scale,
        np.broadcast_to(free, points.shape),
        np.zeros_like(points) if held is None else held,
        np.full(len(points), flat),
    )
    params = result._unconstrained_params()
    state, at_bound = in_chunks(lambda part: compiled(params, part), task, BATCH)
    return Ascent(
        state.x.astype(np.float64) * scale,
        state.local.value,
        state.is_done,
        at_bound,
    )


def _make_ascent(result: EPIResult, bounds: Bounds) -> Callable:
    """`(params, task) -> (state, at_bound)`; bounds are standardised."""
    log_q = density(result, coordinates_of(result, "standardised"))
    offset = float(np.log(scale_of(result)).sum())
    low, high = bounds

    def ascend(params: Params, task: _Task) -> tuple[_State, jax.Array]:
        def look(x: jax.Array) -> Local:
            return expand(lambda x: log_q(params, x) - offset, x)

        def step(state: _State) -> _State:
            move = _newton_step(state.local, _is_held(state, task), task)
            length = jnp.linalg.norm(move)
            move = move * jnp.minimum(1.0, state.radius / jnp.maximum(length, 1e-30))
            x = jnp.clip(state.x + move, low, high)
            local = look(x)
            is_better = local.value > state.local.value
            gain = jnp.abs(state.local.gradient @ (x - state.x))
            size = jnp.linalg.norm(x - state.x)
            radius = jnp.where(
                is_better, 2.0 * state.radius, 0.25 * jnp.minimum(state.radius, size)
            )
            is_done = (size < MIN_STEP) | (gain < MIN_GAIN)
            new = _State(x, local, radius, state.num_steps, is_done)
            old = state._replace(radius=radius, is_done=is_done)
            taken = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, old)
            return taken._replace(
                radius=jnp.minimum(radius, MAX_RADIUS), num_steps=state.num_steps + 1
            )

        def goes_on(state: _State) -> jax.Array:
            return ~state.is_done & (state.num_steps < MAX_STEPS)

        def _is_held(state: _State, task: _Task) -> jax.Array:
            slope = state.local.gradient
            at_bound = ((state.x <= low) & (slope < 0)) | (
                (state.x >= high) & (slope > 0)
            )
            return at_bound | (task.is_free == 0)

        x = jnp.clip(task.x, low, high)
        radius = jnp.asarray(0.5 * MAX_RADIUS, x.dtype)
        start = _State(x, look(x), radius, jnp.asarray(0), jnp.zeros((), bool))
        end = lax.while_loop(goes_on, step, start)
        return end, _is_held(end, task) & (task.is_free != 0)

    return ascend


def _newton_step(local: Local, is_held: jax.Array, task: _Task) -> jax.Array:
    """Saddle-free Newton step of the coordinates that are not held."""
    free = jnp.where(is_held, 0.0, 1.0)
    along = task.held * free
    along = along / jnp.maximum(jnp.linalg.norm(along), 1e-30)
    projector = jnp.diag(free) - jnp.outer(along, along)
    hessian = projector @ local.hessian @ projector
    gradient = projector @ local.gradient
    values, vectors = jnp.linalg.eigh(hessian)
    slopes = vectors.T @ gradient
    is_flat = (jnp.abs(values) < task.flat) & (jnp.abs(slopes) < FLAT_SLOPE)
    parts = slopes / jnp.maximum(jnp.abs(values), MIN_CURVATURE)
    return vectors @ jnp.where(is_flat, 0.0, parts)
