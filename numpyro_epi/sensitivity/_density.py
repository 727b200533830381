# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Log q with gradient and Hessian in chosen coordinates, compiled once per result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._train.guide import Params
from numpyro_epi.result import EPIResult

from ._coordinates import Coordinates, coordinates_of
from ._layout import keep, layout_of

# Points that are worked on at once: enough to be fast, little memory.
CHUNK = 512

# Log density of coordinates x, shape (D,), with the parameters of a guide.
Density = Callable[[Params, jax.Array], jax.Array]


class Local(NamedTuple):
    """A function near points.

    Attributes:
        value: shape (...).
        gradient: shape (..., D).
        hessian: shape (..., D, D).
    """

    value: Any
    gradient: Any
    hessian: Any


def density(result: EPIResult, coordinates: Coordinates) -> Density:
    """Log q of coordinates x as a pure function; -inf where x is not a number in u."""
    guide = result._engine.guide

    def log_q(params: Params, x: jax.Array) -> jax.Array:
        u = coordinates.to_u(x)
        inside = jnp.isfinite(u).all(axis=-1)
        u = jnp.where(inside, u, 0.0)
        value = guide.log_prob(params, u) - coordinates.from_u(u)[1]
        return jnp.where(inside, value, -jnp.inf)

    return log_q


def expand(fn: Callable[[jax.Array], jax.Array], x: jax.Array) -> Local:
    """Value, gradient and Hessian of a function of x, shape (D,), in one pass.

    Each column of the Hessian is the derivative of the gradient along an axis: forward
    over reverse mode.
    """

    def gradient(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        value, grad = jax.value_and_grad(fn)(x)
        return grad, (value, grad)

    hessian, (value, grad) = jax.jacfwd(gradient, has_aux=True)(x)
    return Local(value, grad, 0.5 * (hessian + hessian.T))


def log_q_near(result: EPIResult, points: np.ndarray, coordinates: str) -> Local:
    """Log q with its derivatives at points w, shape (n, D)."""
    chosen = coordinates_of(result, coordinates)

    def make() -> Callable[[Params, jax.Array], Local]:
        log_q = density(result, chosen)

        def one(params: Params, u: jax.Array) -> Local:
            return expand(lambda x: log_q(params, x), chosen.from_u(u)[0])

        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    local = keep(result, ("local", coordinates), make)
    params = result._unconstrained_params()
    u = layout_of(result).to_u(jnp.asarray(points, float))
    return in_chunks(lambda part: local(params, part), np.asarray(u))


def log_q_at(result: EPIResult, points: np.ndarray) -> np.ndarray:
    """Log q of points w, shape (n, D), in the constrained space."""

    def make() -> Callable[[Params, jax.Array], jax.Array]:
        log_q = density(result, coordinates_of(result, "constrained"))
        return jax.jit(jax.vmap(log_q, in_axes=(None, 0)))

    log_q = keep(result, "log_q", make)
    params = result._unconstrained_params()
    return in_chunks(lambda part: log_q(params, part), np.asarray(points, float), 4096)


def in_chunks(fn: Callable[[Any], Any], rows: Any, size: int = CHUNK) -> Any:
    """Apply a compiled function to arrays of rows (n, ...), in few shapes for every n.

    The last chunk is filled up with repeated rows. Returns arrays on the host.
    """
    num = len(jax.tree.leaves(rows)[0])
    size = min(size, 2 ** int(np.ceil(np.log2(max(num, 1)))))
    order = np.arange(-(-num // size) * size) % num
    chunks = []
    for start in range(0, order.size, size):
        part = order[start : start + size]
        found = fn(jax.tree.map(lambda x: jnp.asarray(x[part], float), rows))  # noqa: B023
        chunks.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num], *chunks)
