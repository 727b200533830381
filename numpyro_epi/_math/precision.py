# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Differences of numbers that a computing type cannot hold: what float32 loses.

A target of 1e6 + 0.03 rounds to 1e6 in single precision. As the sum of a rounded part
and the rest it loses nothing: a statistic near the target minus the rounded part is
exact (Sterbenz's lemma: Higham, Accuracy and Stability of Numerical Algorithms, 2002,
theorem 2.5), and the rest is subtracted from that small number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def two_parts(value: Any, dtype: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """A number in double precision as rounded part and rest, both of type `dtype`.

    Args:
        value: Any shape, float64.
        dtype: Of both parts; by default that in which JAX computes.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    value = np.asarray(value, np.float64)
    rounded = value.astype(dtype)
    return rounded, (value - rounded.astype(np.float64)).astype(dtype)


def subtract_parts(value: jax.Array, rounded: Any, rest: Any) -> jax.Array:
    """`value - (rounded + rest)` in this order, which the compiler is to keep.

    XLA adds up constants that are subtracted one after the other; behind a barrier it
    does not see that they are constants.
    """
    rounded, rest = lax.optimization_barrier((jnp.asarray(rounded), jnp.asarray(rest)))
    return (value - rounded) - rest


def spacing(value: Any, dtype: Any) -> np.ndarray:
    """Distance from numbers to the next ones that `dtype` can hold, float64."""
    info = jnp.finfo(dtype)
    size = np.maximum(np.abs(np.asarray(value, np.float64)), float(info.tiny))
    return 2.0 ** np.floor(np.log2(size)) * float(info.eps)
