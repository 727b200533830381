# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Points that fill the unit cube more evenly than independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random


def shifted_lattice(rng_key: jax.Array, num_points: int, dim: int) -> jax.Array:
    """Points of a Kronecker sequence with a random shift.

    The i-th point is `i * alpha + shift` modulo one, with `alpha_j = g^-j` and g the
    root of `g^(dim + 1) = g + 1` (Roberts, The unreasonable effectiveness of
    quasirandom sequences, 2018). The shift (Cranley & Patterson, 1976,
    doi:10.1137/0713071) makes each point uniform, so means of functions are unbiased.

    Args:
        rng_key: key of the shift.
        num_points: n.
        dim: d.

    Returns:
        Shape (n, d), strictly inside (0, 1).
    """
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (dim + 1))
    alpha = root ** -np.arange(1.0, dim + 1)
    points = (np.arange(num_points)[:, None] * alpha) % 1.0
    shifted = jnp.asarray(points, float) + random.uniform(rng_key, (dim,))
    tiny = jnp.finfo(shifted.dtype).eps
    return jnp.clip(shifted - jnp.floor(shifted), tiny, 1.0 - tiny)
