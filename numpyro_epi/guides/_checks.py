# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Options of guides that are out of range."""

from typing import Any


def check_count(name: str, value: Any, *, minimum: int) -> None:
    """Refuse what is not an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(
            f"Expected an integer of at least {minimum} as `{name}`, got {value!r}."
        )


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither a bool nor None."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(
            f"Expected True, False or None as `{name}`, got {value!r}. None, the "
            "default, leaves it to the number of latent coordinates."
        )


def check_hidden_dims(hidden_dims: Any) -> None:
    is_tuple = isinstance(hidden_dims, tuple) and len(hidden_dims) > 0
    if not is_tuple or not all(isinstance(n, int) and n > 0 for n in hidden_dims):
        raise ValueError(
            "Expected a tuple of positive integers as `hidden_dims`, got "
            f"{hidden_dims!r}. For example, (50, 50) for two hidden layers of 50 units."
        )
