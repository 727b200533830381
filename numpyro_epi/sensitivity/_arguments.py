# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of arguments that several functions take."""

from typing import Any

import numpy as np

from numpyro_epi._checks import describe, real_array


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < least:
        raise ValueError(
            f"Expected an integer of at least {least} as `{name}`, got "
            f"{describe(value)}."
        )
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected True or False as `{name}`, got {describe(value)}.")
    return value


def number(name: str, value: Any, *, low: float, high: float) -> float:
    """A number strictly between two others."""
    array = real_array(value, where=f"`{name}`")
    if array.shape != () or not low < array < high:
        raise ValueError(
            f"Expected a number between {low:g} and {high:g} as `{name}`, got "
            f"{describe(value)}."
        )
    return float(array)


def numbers(name: str, value: Any, least: int = 1) -> np.ndarray:
    """A one-dimensional array of finite numbers, at least so many."""
    array = real_array(value, where=f"`{name}`")
    if array.ndim != 1 or array.size < least:
        raise ValueError(
            f"Expected at least {least} numbers in one dimension as `{name}`, got "
            f"shape {array.shape}."
        )
    return array
