# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A failed simulation has no say in a gradient, and does not poison that of others.

Its outputs are replaced by zeros, so that no cotangent comes in; but zero times the
derivative of what is not finite is not a number. So what comes out is zero, for failed
simulations only: a derivative that is not finite where the simulation is finite still
shows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_epi._model.problem import Simulation


def is_finite(sim: Simulation) -> jax.Array:
    """Which simulations have not failed, shape (...)."""
    return jnp.isfinite(sim.stats).all(-1) & jnp.isfinite(sim.log_likelihood)


def gated(simulate: Callable[..., Simulation]) -> Callable[..., Simulation]:
    """A simulator, of u of shape (D,) and a key, whose failures have gradient zero."""

    @jax.custom_vjp
    def call(u: jax.Array, key: jax.Array) -> Simulation:
        return simulate(u, key)

    def forward(u: jax.Array, key: jax.Array) -> tuple[Simulation, Any]:
        sim, pull = jax.vjp(lambda v: simulate(v, key), u)
        return sim, (pull, is_finite(sim))

    def backward(saved: Any, cotangent: Simulation) -> tuple[jax.Array, None]:
        pull, is_valid = saved
        (change,) = pull(cotangent)
        return jnp.where(is_valid, change, 0.0), None

    call.defvjp(forward, backward)
    return call
