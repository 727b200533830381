# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""How far a flow goes when its parameters take a step.

Adam moves each parameter by about the learning rate, whatever its gradient. Parameters
that act together add up: 50 units behind an output move it 15 times as far, 8 layers
each shift and scale what the one before them moved, and the knots of a spline are sums
over its bins. With gradients of single draws, as in NumPyro's `SVI`, such a flow may be
lost within ten steps. A parameter p is therefore not a weight w of the flow itself:

.. math:: w = \sigma p,

with :math:`\sigma` such that a step of 0.01 of all parameters moves draws by a few
times 0.01, whatever the width of networks and the number of layers.

References:
    Yang and Hu, Tensor programs IV: feature learning in infinite-width neural networks,
    2021, arXiv:2011.14522, table 1, on steps that do not grow with the width.
"""

from typing import Any

import jax
import numpy as np

from ._conditioner import Network
from ._mixing import Mixing


def step_sizes(
    flow: dict[str, Any], theta_steps: tuple[float, ...], num_layers: int
) -> dict[str, Any]:
    r"""The factor :math:`\sigma` of each parameter of a flow, in the shape of a tree.

    Args:
        flow: Parameters: "networks" and "mixings", stacked by group, and perhaps
            "components", which no step moves.
        theta_steps: Of each parameter of the functions that move coordinates.
        num_layers: Layers of the flow. They share one step.
    """
    # One coordinate has neither networks nor linear maps, whose steps add to those of
    # biases: there it is enough if steps of layers in random directions stay small.
    is_coupled = "kernel" in flow["networks"][0][-1]
    layer_step = 1.0 / num_layers if is_coupled else num_layers**-0.5
    share = layer_step * np.asarray(theta_steps, float)
    rest = {name: flow[name] for name in flow if name not in ("networks", "mixings")}
    return {
        **jax.tree.map(lambda _: 1.0, rest),
        "networks": [_of_network(network, share) for network in flow["networks"]],
        "mixings": [_of_mixing(mixing, layer_step) for mixing in flow["mixings"]],
    }


def times(flow: Any, steps: Any) -> Any:
    """Weights, given parameters."""
    return jax.tree.map(lambda x, size: x * np.asarray(size, x.dtype), flow, steps)


def divided(weights: Any, steps: Any) -> Any:
    """Parameters, given weights."""
    return jax.tree.map(lambda x, size: x / np.asarray(size, x.dtype), weights, steps)


def _of_network(network: Network, share: np.ndarray) -> list[dict[str, Any]]:
    """Kernels of hidden layers have variance one as parameters.

    An output is a mean over the units behind it, not a sum.
    """
    *hidden, last = network
    sizes = [
        {"kernel": layer["kernel"].shape[-2] ** -0.5, "bias": 1.0} for layer in hidden
    ]
    outputs = np.tile(share, last["bias"].shape[-1] // share.size)
    of_last = {
        name: outputs / x.shape[-2] for name, x in last.items() if name != "bias"
    }
    return [*sizes, {**of_last, "bias": outputs}]


def _of_mixing(mixing: Mixing, layer_step: float) -> dict[str, float]:
    """Each coordinate is a sum over all of those before."""
    latent_dim = mixing["shift"].shape[-1]
    return {"matrix": layer_step / latent_dim, "shift": layer_step}
