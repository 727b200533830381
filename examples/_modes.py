# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Modes of a density in a box, and the directions in which it falls off fast."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax


class Mode(NamedTuple):
    """A mode, perhaps with some coordinates held fixed.

    Attributes:
        point: Shape (D,).
        eigenvalues: Of the Hessian of the log density there, ascending, shape (D,):
            the most negative one, the most sensitive direction, comes first.
        directions: Unit eigenvectors in the same order, a row each, shape (D, D).
    """

    point: np.ndarray
    eigenvalues: np.ndarray
    directions: np.ndarray


def find_mode(log_prob, start, low, high, *, is_free=True, num_steps=400) -> Mode:
    """Climb the log density from `start`, and look around at the top.

    Adam in units of the box, with a step that falls from 0.01 to 0. It stays a
    thousandth of the box away from its faces.

    Args:
        log_prob: Function of a point, shape (D,), differentiable twice.
        start: Shape (D,), inside the box.
        low: Lower corner of the box, a number or shape (D,).
        high: Upper corner.
        is_free: Which coordinates move, a bool or shape (D,).
        num_steps: Steps of the climb.

    Returns:
        `Mode`. The Hessian is that of all coordinates.
    """
    start = jnp.asarray(start)
    low, high, is_free = (
        jnp.broadcast_to(jnp.asarray(x), start.shape) for x in (low, high, is_free)
    )
    point, hessian = _climb(log_prob, num_steps, start, low, high, is_free)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(hessian))
    return Mode(np.asarray(point), eigenvalues, vectors.T)


@partial(jax.jit, static_argnums=(0, 1))
def _climb(log_prob, num_steps, start, low, high, is_free):
    """Top and Hessian; compiled once for each function."""
    span = high - low
    optim = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
    slope = jax.grad(lambda s: -log_prob(low + span * s))

    def step(carry, _):
        s, state = carry
        moves, state = optim.update(jnp.where(is_free, slope(s), 0.0), state)
        return (jnp.clip(s + moves, 1e-3, 1 - 1e-3), state), None

    first = (start - low) / span
    (top, _), _ = lax.scan(step, (first, optim.init(first)), length=num_steps)
    point = jnp.where(is_free, low + span * top, start)
    return point, jax.hessian(log_prob)(point)
