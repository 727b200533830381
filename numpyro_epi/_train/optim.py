# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Optimisers of optax and of NumPyro behind one interface, that of optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from numpyro.optim import _NumPyroOptim

Params = Any


def as_optax(optim: Any) -> optax.GradientTransformation | None:
    """Accept None, an optax transformation, or a NumPyro optimiser.

    Raises:
        TypeError: for anything else.
    """
    if optim is None:
        return None
    if isinstance(optim, _NumPyroOptim):
        return _from_numpyro(optim)
    if isinstance(optim, optax.GradientTransformation):
        return optim
    raise TypeError(
        "`optim` must be None, an optax optimiser such as `optax.adam(1e-3)`, or a "
        f"NumPyro optimiser such as `numpyro.optim.Adam(1e-3)`, but got {optim!r}."
    )


def in_weights(
    optim: optax.GradientTransformation, step_sizes: Callable[[Params], Params]
) -> optax.GradientTransformation:
    """An optimiser whose steps are those of the weights behind the parameters.

    Parameters of a flow come in units in which steps on the gradient of one draw are
    safe. Gradients of a thousand draws bear longer ones.

    Args:
        optim: of the weights.
        step_sizes: the weight of each parameter is this number times the parameter.
    """

    def init(params: Params) -> Any:
        return optim.init(jax.tree.map(jnp.multiply, params, step_sizes(params)))

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        sizes = step_sizes(params)
        change, state = optim.update(
            jax.tree.map(jnp.divide, grads, sizes),
            state,
            jax.tree.map(jnp.multiply, params, sizes),
        )
        return jax.tree.map(jnp.divide, change, sizes), state

    return optax.GradientTransformation(init, update)


def _from_numpyro(optim: _NumPyroOptim) -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        return optim.init(params)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        state = optim.update(grads, state)
        change = jax.tree.map(lambda a, b: a - b, optim.get_params(state), params)
        return change, state

    return optax.GradientTransformation(init, update)
