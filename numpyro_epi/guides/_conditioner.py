# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The network that tells a flow layer how to move some coordinates, given the others.

A multilayer perceptron on plain arrays, with a linear path beside it where that is
wanted. All that leads to outputs starts at zero, so that a new flow leaves its base
distribution as it is.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import jax
import jax.numpy as jnp

Activation: TypeAlias = Callable[[jax.Array], jax.Array]
# One {"kernel": (inputs, outputs), "bias": (outputs,)} for each layer of the network.
# The last may have "linear" too, from the inputs of the network to its outputs.
Network: TypeAlias = list[dict[str, jax.Array]]


@partial(jax.jit, static_argnames=("sizes", "is_linear_too"))
def init_networks(
    rng_key: jax.Array, sizes: tuple[tuple[int, ...], ...], *, is_linear_too: bool
) -> list[Network]:
    """Draw the parameters of networks that return zero whatever their input.

    Args:
        rng_key: For the hidden layers. They share one call, which compiles faster.
        sizes: For each network the number of inputs, of units in each hidden layer, and
            of outputs. Without inputs, a network is its last bias.
        is_linear_too: Whether a linear map of the inputs is added to the outputs.

    Returns:
        Kernels with variance 1 / inputs, biases zero, last layers and linear maps zero.
    """
    shapes = [list(pairwise(units)) if units[0] else [] for units in sizes]
    total = sum(math.prod(shape) for network in shapes for shape in network[:-1])
    normal = jax.random.normal(rng_key, (total,))
    networks: list[Network] = []
    start = 0
    for network, units in zip(shapes, sizes, strict=True):
        networks.append([])
        for shape in network[:-1]:
            stop = start + math.prod(shape)
            kernel = normal[start:stop].reshape(shape) / shape[0] ** 0.5
            networks[-1].append({"kernel": kernel, "bias": jnp.zeros(shape[1])})
            start = stop
        last = {"kernel": jnp.zeros(network[-1])} if network else {}
        if network and is_linear_too:
            last["linear"] = jnp.zeros((units[0], units[-1]))
        networks[-1].append({**last, "bias": jnp.zeros(units[-1])})
    return networks


def apply_network(network: Network, x: jax.Array, activation: Activation) -> jax.Array:
    """Evaluate a network.

    Args:
        network: Its parameters.
        x: Inputs, shape (..., inputs).
        activation: Nonlinearity of the hidden layers. A smooth one makes the density of
            the flow smooth.

    Returns:
        Outputs, shape (..., outputs), or (outputs,) of a network without inputs.
    """
    *hidden, last = network
    if "kernel" not in last:
        return last["bias"]
    units = x
    for layer in hidden:
        units = activation(units @ layer["kernel"] + layer["bias"])
    outputs = units @ last["kernel"] + last["bias"]
    return outputs + x @ last["linear"] if "linear" in last else outputs
