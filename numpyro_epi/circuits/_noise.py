# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Keys of the simulation noise of a model, and the choice of another generator."""

import jax
import jax.numpy as jnp
import numpyro
from jax import random

from numpyro_epi._checks import as_key, describe


def simulation_key(rng_impl: str | None = None) -> jax.Array:
    """The key of the noise of one run of a model, from `numpyro.prng_key`.

    Args:
        rng_impl: Name of the random generator of JAX to go on with, or None for that of
            the key that seeds the model.
    """
    key = numpyro.prng_key()
    if key is None:
        raise RuntimeError(
            "Expected a random key for the noise of the simulation, got none. Run the "
            "model under `numpyro.handlers.seed`, or without noise: `is_noisy=False`."
        )
    return as_key(key) if rng_impl is None else _change_impl(as_key(key), rng_impl)


def _change_impl(key: jax.Array, rng_impl: str) -> jax.Array:
    """A key of another generator, drawn with a key."""
    try:
        data = jax.eval_shape(lambda: random.key_data(random.key(0, impl=rng_impl)))
    except (TypeError, ValueError) as err:
        raise ValueError(
            "Expected None or the name of a random generator of JAX, such as "
            f"'threefry2x32' or 'unsafe_rbg', as `rng_impl`, got {describe(rng_impl)}."
        ) from err
    bits = random.bits(key, data.shape, jnp.uint32)
    return random.wrap_key_data(bits, impl=rng_impl)
