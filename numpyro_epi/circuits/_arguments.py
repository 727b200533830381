# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of what users pass to a circuit: arrays, numbers and constants."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import check_positive, describe, is_real, is_traced, real_array


def real(name: str, value: Any) -> jax.Array:
    """A floating point array."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"Expected real numbers as `{name}`, got {describe(value)}: {err}"
        ) from err
    if not is_real(array.dtype):
        raise TypeError(
            f"Expected real numbers as `{name}`, got {describe(value)} with dtype "
            f"{array.dtype}."
        )
    return array.astype(jnp.result_type(array.dtype, jnp.float32))


def number(name: str, value: Any) -> jax.Array:
    """One real number."""
    array = real(name, value)
    if array.shape:
        raise ValueError(
            f"Expected one number as `{name}`, got shape {array.shape}. Use `jax.vmap` "
            "for several."
        )
    return array


def vector(name: str, value: Any) -> jax.Array:
    """A vector; a number becomes one of length one."""
    array = jnp.atleast_1d(real(name, value))
    if array.ndim > 1:
        raise ValueError(
            f"Expected a number or a vector as `{name}`, got shape {array.shape}."
        )
    return array


def ascending(name: str, value: Any) -> jax.Array:
    """Times at which to look, from zero on."""
    times = vector(name, value)
    if not is_traced(value):
        steps = np.diff(np.ravel(np.asarray(value)), prepend=0.0)
        if not steps.size or (steps < 0).any() or not steps.sum() > 0:
            raise ValueError(
                f"Expected ascending times, at least zero and not all zero, as `{name}`"
                f", got {describe(value)}."
            )
    return times


def positive(name: str, value: Any) -> Any:
    """A positive number, unless JAX will know it only later."""
    if not is_traced(value) and not value > 0:
        raise ValueError(f"Expected a positive number as `{name}`, got {value!r}.")
    return value


def count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number that is known now: it decides shapes."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < least:
        kind = ValueError if is_int else TypeError
        got = "a traced value" if is_traced(value) else describe(value)
        raise kind(
            f"Expected an integer of at least {least} as `{name}`, got {got}."
            + (" Keep it out of the arguments of `jit`." if is_traced(value) else "")
        )
    return int(value)


def pair(name: str, value: Any, *, of: str) -> Any:
    """Two targets; what they are is checked by the primitive."""
    if np.shape(value) != (2,):
        raise ValueError(
            f"Expected two numbers as `{name}`, {of}, got {describe(value)}."
        )
    return value if is_traced(value) else np.asarray(value)


def check_interval(name: str, value: Any) -> None:
    """Refuse ends of a support that are in the wrong order."""
    if not is_traced(value) and not value[0] < value[1]:
        raise ValueError(
            f"Expected a lower and a larger upper end as `{name}`, got {value!r}."
        )


def check_constants(
    constants: Any,
    kind: type,
    *,
    shapes: dict[str, tuple[int, ...]],
    above_zero: Collection[str] = (),
) -> None:
    """Check the fields of a structure of constants.

    Args:
        constants: What a user passed.
        kind: What it must be, a `NamedTuple`.
        shapes: Shapes of the fields to look at.
        above_zero: Those of them that must be positive.
    """
    if not isinstance(constants, kind):
        raise TypeError(
            f"Expected `{kind.__name__}` as `constants`, got {describe(constants)}. "
            "Start from the default: `PAPER._replace(...)`."
        )
    for name, shape in shapes.items():
        array = _field(name, getattr(constants, name), shape)
        if name in above_zero and not isinstance(array, jax.Array):
            fix = f"Set it with `PAPER._replace({name}=...)`."
            check_positive(array, where=f"`constants.{name}`", fix=fix)


def _field(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array | np.ndarray:
    """A field as an array: of JAX if it is traced, else of NumPy."""
    where = f"`constants.{name}`"
    array = jnp.asarray(value) if is_traced(value) else real_array(value, where=where)
    if array.shape != shape:
        expected = f"{shape[0]} numbers" if shape else "one number"
        raise ValueError(
            f"Expected {expected} as {where}, got shape {array.shape}. Set it with "
            f"`PAPER._replace({name}=...)`."
        )
    return array
