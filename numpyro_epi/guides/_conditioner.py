# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The network that tells a flow layer how to move some coordinates, given the others.

A multilayer perceptron on plain arrays. Its last layer starts at zero, so that a new
flow leaves its base distribution as it is.
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
Network: TypeAlias = list[dict[str, jax.Array]]


@partial(jax.jit, static_argnames="sizes")
def init_networks(
    rng_key: jax.Array, sizes: tuple[tuple[int, ...], ...]
) -> list[Network]:
    """Draw the parameters of networks that return zero whatever their input.

    Args:
        rng_key: For the hidden layers. They share one call, which compiles faster.
        sizes: For each network the number of inputs, of units in each hidden layer, and
            of outputs. Without inputs, a network is its last bias.

    Returns:
        Kernels with variance 1 / inputs, biases zero, last layers zero.
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
    for layer in hidden:
        x = activation(x @ layer["kernel"] + layer["bias"])
    if "kernel" not in last:
        return last["bias"]
    return x @ last["kernel"] + last["bias"]
