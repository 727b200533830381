# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of what users pass, made once, in Python, before anything is traced.

Every message says what was expected, what was got, where, and how to mend it. `where`
names the argument and the site, as in "`var` of emergent property `hub`".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_name(name: Any, *, where: str) -> str:
    """Return `name` if it is a string with something in it."""
    if not isinstance(name, str):
        raise TypeError(f"Expected a string as {where}, got {describe(name)}.")
    if not name:
        raise ValueError(f"Expected a string that is not empty as {where}, got ''.")
    return name


def is_traced(value: Any) -> bool:
    """Whether JAX knows the value, or a part of it, only while it traces a function."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def describe(value: Any) -> str:
    """What a message says that it got: a number itself, else a type and a shape."""
    if isinstance(value, bool | int | float | complex | str | None):
        return repr(value)
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    return f"an object of type {kind}" + (f" and shape {shape}" if shape else "")


def is_real(dtype: Any) -> bool:
    """Whether values of this type are real numbers (booleans are not)."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def real_array(value: Any, *, where: str) -> np.ndarray:
    """A finite array of real numbers, in double precision, on the host."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"Expected real numbers as {where}, got {describe(value)}: {err}"
        ) from err
    if not is_real(array.dtype):
        raise TypeError(f"Expected real numbers as {where}, got {describe(value)}.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite numbers as {where}, got {array.tolist()}.")
    return array


def check_positive(array: np.ndarray, *, where: str, fix: str) -> None:
    """Refuse zero and negative numbers."""
    if not (array > 0).all():
        raise ValueError(
            f"Expected positive numbers as {where}, got {array.tolist()}. {fix}"
        )


def broadcast(array: np.ndarray, shape: tuple[int, ...], *, where: str) -> np.ndarray:
    """Broadcast to `shape`, which the array must not enlarge."""
    try:
        return np.broadcast_to(array, shape)
    except ValueError as err:
        raise ValueError(
            f"Expected a shape that broadcasts to that of the statistic, {shape}, as "
            f"{where}, got {array.shape}."
        ) from err


def as_key(rng_key: Any, *, where: str = "`rng_key`") -> jax.Array:
    """One random key; a legacy `PRNGKey` is wrapped."""
    if isinstance(rng_key, jax.Array):
        if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) and rng_key.ndim == 0:
            return rng_key
        if rng_key.dtype == jnp.uint32 and rng_key.shape == (2,):
            return jax.random.wrap_key_data(rng_key)
    raise TypeError(
        f"Expected a random key such as `jax.random.key(0)` as {where}, got "
        f"{describe(rng_key)}."
    )


def as_count(name: str, value: Any) -> int:
    """A positive integer."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < 1:
        raise ValueError(
            f"Expected an integer of at least 1 as `{name}`, got {describe(value)}."
        )
    return int(value)
