# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Maximum-likelihood fit of a guide to draws, stopped by draws held out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax, random, vmap
from jax.flatten_util import ravel_pytree

from numpyro_epi._train.guide import GuideFunctions, Params
from numpyro_epi._train.step import cosine_decay

# Steps between two looks at the draws held out, and draws of each.
FIT_CHUNK, FIT_BATCH = 50, 500
FIT_RATE = 3e-3


def make_fit(guide: GuideFunctions) -> Callable[..., tuple[Params, jax.Array]]:
    """Compiled fit of all restarts.

    Call as `fit(params, train, held_out, keys, num_chunks)`, draws of shape (R, n, D).
    Returns the parameters with the best mean log q on `held_out` and that value, shape
    (R,).
    """
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(FIT_RATE))

    def one(params, train, held_out, key, num_chunks):  # noqa: ANN001, ANN202
        # Parameters travel as one vector, which compiles faster.
        flat, unravel = ravel_pytree(params)

        def loss(flat: jax.Array, u: jax.Array) -> jax.Array:
            return -guide.log_prob(unravel(flat), u).mean()

        def step(carry, key, rate):  # noqa: ANN001, ANN202
            flat, state = carry
            rows = random.randint(key, (FIT_BATCH,), 0, train.shape[0])
            grad = jax.grad(loss)(flat, train[rows])
            change, new_state = optim.update(grad, state, flat)
            return jax.tree.map(
                lambda a, b: jnp.where(jnp.isfinite(grad).all(), a, b),
                (flat + rate * change, new_state),
                (flat, state),
            )

        def look(flat, best, best_value):  # noqa: ANN001, ANN202
            value = -loss(flat, held_out)
            is_better = value > best_value
            best = jnp.where(is_better, flat, best)
            return best, jnp.where(is_better, value, best_value)

        def chunk(i, carry):  # noqa: ANN001, ANN202
            (flat, state), best, best_value = carry
            best, best_value = look(flat, best, best_value)
            keys = random.split(random.fold_in(key, i), FIT_CHUNK)
            rate = cosine_decay(i, num_chunks)
            # The last look follows the last chunk: nothing is trained after it.
            keys_used = jnp.where(i < num_chunks, FIT_CHUNK, 0)
            flat, state = lax.fori_loop(
                0, keys_used, lambda k, c: step(c, keys[k], rate), (flat, state)
            )
            return (flat, state), best, best_value

        start = ((flat, optim.init(flat)), flat, jnp.asarray(-jnp.inf))
        _, best, value = lax.fori_loop(0, num_chunks + 1, chunk, start)
        return unravel(best), value

    return jax.jit(vmap(one, in_axes=(0, 0, 0, 0, None)))
