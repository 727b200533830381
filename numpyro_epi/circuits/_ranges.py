# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of the shapes and ranges of what users pass to a circuit.

What JAX traces has a type and a shape, but no value yet: values are checked where they
are known.
"""

from typing import Any

import jax
import numpy as np

from numpyro_epi._checks import describe, is_traced

from ._arguments import real


def scalar(name: str, value: Any) -> jax.Array:
    """A single real number."""
    array = real(name, value)
    if array.ndim:
        raise ValueError(
            f"Expected one number as `{name}`, got shape {array.shape}. Use `jax.vmap` "
            "for several."
        )
    return array


def vector(name: str, value: Any, entries: str) -> jax.Array:
    """An array with one entry on its last axis for each word of `entries`."""
    array, length = real(name, value), len(entries.split())
    if array.ndim == 0 or array.shape[-1] != length:
        raise ValueError(
            f"Expected shape (..., {length}) as `{name}`, got {array.shape}. Its "
            f"entries are, in this order: {', '.join(entries.split())}."
        )
    return array


def table(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """An array of exactly this shape."""
    array = real(name, value)
    if array.shape != shape:
        raise ValueError(
            f"Expected shape {shape} as `{name}`, got {array.shape}. Replace a "
            "constant with one of the same shape."
        )
    return array


def check_range(
    name: str, value: Any, low: float, high: float = np.inf, *, is_open: bool = False
) -> None:
    """Refuse numbers outside [low, high], or outside (low, high)."""
    real(name, value)
    if is_traced(value):
        return
    array = np.asarray(value)
    inside = (array > low) & (array < high) if is_open else array >= low
    if not (inside & (array <= high) & np.isfinite(array)).all():
        left, right = "()" if is_open else "[]"
        bounds = f"{left}{low:g}, {high:g}{right if np.isfinite(high) else ')'}"
        shown = array.tolist() if array.size < 20 else describe(value)
        raise ValueError(f"Expected numbers in {bounds} as `{name}`, got {shown}.")


def check_positive(name: str, value: Any) -> None:
    """Refuse what is not a positive number."""
    check_range(name, value, 0.0, is_open=True)


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`; shapes depend on it, so it is no array."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole:
        raise TypeError(
            f"Expected a whole number as `{name}`, got {describe(value)}. It sets a "
            "shape, so that it cannot be traced."
        )
    if value < least:
        raise ValueError(f"Expected at least {least} as `{name}`, got {value}.")
    return int(value)


def check_known(name: str, value: Any) -> float:
    """A number that is known while JAX traces, such as the time of an event."""
    scalar(name, value)
    if is_traced(value):
        raise TypeError(
            f"Expected a number as `{name}`, got a traced one. It says in which step "
            "something happens, so that it must be known beforehand."
        )
    return float(value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse constants of another circuit, and dictionaries."""
    if not isinstance(value, kind):
        raise TypeError(
            f"Expected `{kind.__name__}` as `{name}`, got {describe(value)}. Change "
            "single constants with `PAPER._replace(...)`."
        )
