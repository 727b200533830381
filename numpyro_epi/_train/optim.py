# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Optimisers of optax and of NumPyro behind one interface, that of optax."""

from typing import Any

import jax
import optax
from numpyro.optim import _NumPyroOptim


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


def _from_numpyro(optim: _NumPyroOptim) -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        return optim.init(params)

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        state = optim.update(grads, state)
        change = jax.tree.map(lambda a, b: a - b, optim.get_params(state), params)
        return change, state

    return optax.GradientTransformation(init, update)
