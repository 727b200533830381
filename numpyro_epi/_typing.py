# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Names for the types that several modules share, and what types cannot say."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from jax.typing import ArrayLike

# What a primitive sends through NumPyro's stack, and a trace keeps for each site.
Message: TypeAlias = dict[str, Any]
# A callable with NumPyro primitives in it.
Model: TypeAlias = Callable[..., Any]
# Site name -> (2, *stat.shape) array, or (1, *stat.shape) if only the mean is set.
Multipliers: TypeAlias = Mapping[str, ArrayLike]

T = TypeVar("T")


def existing(value: T | None) -> T:
    """A part of a state that is there at the stage that asks for it."""
    if value is None:
        raise RuntimeError("A state lacks what its stage has.")
    return value
