# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Differences and derivatives of statistics, in batches that fit into memory."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, vmap

from numpyro_epi._math.constraints import Targets, deviations
from numpyro_epi._model.cost import Cost
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.devices import Devices

# Simulated for each pilot draw: both sides of it, and a place between them.
NUM_PLACES = 3
# Memory for the derivatives of one batch of pilot draws.
PILOT_BYTES = 2**27


def make_pilot(
    problem: Problem, has_var: np.ndarray, devices: Devices | None = None
) -> Callable:
    """Paired differences and derivatives along coordinate directions.

    Returns:
        A function of (u of shape (n, D), step sizes (D,), direction indices (n,), keys
        (n,), uniforms in (-1, 1) (n,), targets), giving differences and derivatives,
        both of shape (n, K), or (n, K + 1) with the log likelihood of data.
    """

    def stat(u: jax.Array, key: jax.Array, targets: Targets) -> jax.Array:
        sim = problem.simulate(u, key)
        devs = deviations(sim.stats, targets, has_var)
        if not problem.has_likelihood:
            return devs
        return jnp.append(devs, sim.log_likelihood)

    def one(steps, targets, draw):  # noqa: ANN001, ANN202
        u, direction, key, where = draw
        size = steps[direction]
        unit = jnp.zeros_like(u).at[direction].set(1.0)
        # As one batch: simulations next to each other can hang, see `lapack`.
        places = u + size * jnp.stack([1.0, -1.0, where])[:, None] * unit
        stats, slopes = look(lambda v: stat(v, key, targets), places, unit)
        return (stats[0] - stats[1]) / 2.0, slopes[2] * size

    def many(u, steps, directions, keys, where, targets):  # noqa: ANN001, ANN202
        def share(*draws):  # noqa: ANN002, ANN202
            each = partial(one, steps, targets)
            return lax.map(each, draws, batch_size=_even(len(draws[0]), most))

        return layout.map(share, u, directions, keys, where)

    layout = Devices() if devices is None else devices
    is_backward = problem.derivatives.forward is not None
    look = _backward if is_backward else _forward
    most = pilot_batch(
        problem.cost,
        problem.table.num_statistics + problem.has_likelihood,
        is_backward=is_backward,
    )
    return jax.jit(many)


def pilot_batch(cost: Cost, num_statistics: int, *, is_backward: bool) -> int:
    """Pilot draws whose derivatives are taken at once, within `PILOT_BYTES`.

    Forward mode has a tangent beside each array; reverse mode keeps all passes of a
    loop, and goes back once for each statistic.
    """
    each = 2.0 * cost.live_bytes
    if is_backward:
        each = cost.saved_bytes + (1 + num_statistics) * cost.live_bytes
    return max(int(PILOT_BYTES / (NUM_PLACES * max(each, 1.0))), 1)


def _even(num: int, most: int) -> int:
    """A batch size; rather a divisor: else the rest is a program of its own."""
    limit = min(num, most)
    divisor = max(n for n in range(1, limit + 1) if num % n == 0)
    return divisor if 2 * divisor >= limit else limit


def _forward(
    fn: Callable, places: jax.Array, unit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Values at places (n, D) and derivatives along a unit vector, shapes (n, K)."""
    return jax.jvp(vmap(fn), (places,), (jnp.broadcast_to(unit, places.shape),))


def _backward(
    fn: Callable, places: jax.Array, unit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same in reverse mode, one pass for each statistic."""

    def both(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = fn(v)
        return value, value

    jacobian, values = vmap(jax.jacrev(both, has_aux=True))(places)
    return values, jacobian @ unit
