# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Maximum-likelihood fit of a guide to draws, stopped by draws held out.

A network that may take any shape learns the gaps between the draws. Densities hardly
change by that, but their curvature does. Weight decay keeps a network as plain as the
draws allow, and costs where they call for more: held-out draws tell which is the case.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random, vmap
from jax.flatten_util import ravel_pytree

from numpyro_epi._solver.devices import Devices
from numpyro_epi._train.guide import GuideFunctions, Params
from numpyro_epi._train.state import choose_rows

# Steps between two looks at the draws held out, and draws of each.
FIT_CHUNK, FIT_BATCH = 50, 500
# The rate at first, and where it ends as a fraction of that.
FIT_RATE, FINAL_RATE = 3e-3, 0.02
# Decays of which the last fit takes the better one. Ten times as much suits a Gaussian
# law even better, and takes 0.1 nats from one of two curved ridges.
DECAYS = (0.0, 0.3)

Fit = Callable[..., tuple[Params, Any]]


def make_fit(guide: GuideFunctions, devices: Devices) -> Fit:
    """Compiled fit of all restarts; the devices share the draws of a step.

    Call as `fit(params, train, held_out, keys, num_chunks, decay)`, draws of shape
    (R, n, D). Returns the parameters with the best mean log q on `held_out` and that
    value, shape (R,). In each step kernels of networks lose the share `decay` times the
    learning rate of themselves (decoupled weight decay: Loshchilov and Hutter, ICLR
    2019, arXiv:1711.05101, algorithm 2); biases and linear maps lose nothing.
    """
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(FIT_RATE))

    def one(params, train, held_out, key, num_chunks, decay):  # noqa: ANN001, ANN202
        # The weights of the guide travel as one vector, which compiles faster.
        flat, unravel_params = ravel_pytree(params)
        sizes = ravel_pytree(guide.step_sizes(params))[0]
        flat = flat * sizes
        shrink = FIT_RATE * decay * ravel_pytree(_is_kernel(params))[0]

        def unravel(flat: jax.Array) -> Params:
            return unravel_params(flat / sizes)

        def loss(flat: jax.Array, u: jax.Array) -> jax.Array:
            return -guide.log_prob(unravel(flat), devices.spread(u)).mean()

        def step(carry, key, rate):  # noqa: ANN001, ANN202
            flat, state = carry
            rows = random.randint(key, (FIT_BATCH,), 0, train.shape[0])
            grad = jax.grad(loss)(flat, train[rows])
            change, new_state = optim.update(grad, state, flat)
            return jax.tree.map(
                lambda a, b: jnp.where(jnp.isfinite(grad).all(), a, b),
                (flat + rate * (change - shrink * flat), new_state),
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
            rate = _cosine_decay(i, num_chunks)
            # The last look follows the last chunk: nothing is trained after it.
            keys_used = jnp.where(i < num_chunks, FIT_CHUNK, 0)
            flat, state = lax.fori_loop(
                0, keys_used, lambda k, c: step(c, keys[k], rate), (flat, state)
            )
            return (flat, state), best, best_value

        start = ((flat, optim.init(flat)), flat, jnp.asarray(-jnp.inf))
        _, best, value = lax.fori_loop(0, num_chunks + 1, chunk, start)
        return unravel(best), value

    return jax.jit(vmap(one, in_axes=(0, 0, 0, 0, None, None)))


def fit_best(fit: Fit, params: Params, *args: Any) -> Params:
    """The fit that held-out draws prefer, with decay or without, for each restart.

    Args:
        fit: from `make_fit`.
        params: where to start.
        args: further arguments of `fit` but the decay.
    """
    best, best_value = fit(params, *args, DECAYS[0])
    if not any(x.any() for x in jax.tree.leaves(_is_kernel(params))):
        return best
    for decay in DECAYS[1:]:
        new, value = fit(params, *args, decay)
        is_better = np.asarray(value) > np.asarray(best_value)
        best = choose_rows(is_better, new, best)
        best_value = np.where(is_better, value, best_value)
    return best


def _cosine_decay(num_steps: jax.Array, horizon: jax.Array) -> jax.Array:
    """Factor of the learning rate: from 1 to `FINAL_RATE` along half a cosine."""
    progress = jnp.minimum(num_steps / horizon, 1.0)
    return FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _is_kernel(params: Params) -> Params:
    """One at each entry of a kernel of a network, zero elsewhere."""

    def mark(path: tuple, x: jax.Array) -> np.ndarray:
        name = getattr(path[-1], "key", None) if path else None
        return np.full(jnp.shape(x), name == "kernel", x.dtype)

    return jax.tree_util.tree_map_with_path(mark, params)
