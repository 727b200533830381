# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""All layers of a flow: a linear map, a coupling, a linear map, and so on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._conditioner import Activation, Network, apply_network
from ._coupling import CouplingMap, FlowLayer, Pair, Partition
from ._mixing import Mixing, inverse_matrix, log_determinant, mixing_matrix, product

# Even layers are alike in their shapes, and so are odd ones.
PERIOD = 2


class _Layer(NamedTuple):
    """One layer.

    `linear` maps from the order of the layer before to that of this one, by a matrix
    and a shift. Where there is none, `order` alone does.
    """

    network: Network
    num_kept: int
    linear: Pair | None
    order: np.ndarray


class CouplingStack(FlowLayer):
    r"""Layers that each move some coordinates, in a way that the others determine.

    With a partition a (`kept`), b (`moved`) of the coordinates, a family of bijections
    f, a network :math:`\theta` and an invertible matrix W, a layer is

    .. math:: h = W x + t, \quad y_a = h_a, \quad y_b = f(h_b; \theta(h_a)), \qquad
        \log |\det dy/dx| = \log |\det W| + \log |\det f'(h_b; \theta(h_a))|.

    Either way costs one pass of each network. Between layers, coordinates stay in the
    order kept, moved: W is permuted once for all draws, instead of the draws.

    Args:
        networks: Parameters of the networks, of even layers and of odd ones, each with
            a leading axis of layers. The last dimension is that of theta.
        mixings: The same for the linear maps; empty if there are none.
        function: The family f.
        partitions: For each layer the indices kept and the indices moved, as many of
            each in all even layers, and in all odd ones. If nothing is kept, theta is
            learned without a network.
        activation: Nonlinearity of the networks.

    References:
        Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, 2017,
        arXiv:1605.08803, equations 4 to 8.
    """

    def __init__(
        self,
        networks: list[Network],
        mixings: list[Mixing],
        function: CouplingMap,
        partitions: tuple[Partition, ...],
        *,
        activation: Activation = jax.nn.silu,
    ) -> None:
        self.networks = networks
        self.mixings = mixings
        self.function = function
        self.partitions = partitions
        self.activation = activation

    def call_with_intermediates(self, x: jax.Array) -> Pair:
        layers, log_det = self._layers(is_inverse=False)
        log_det = jnp.broadcast_to(log_det, x.shape[:-1])
        for layer in layers:
            if layer.linear is None:
                x = x[..., layer.order]
            else:
                matrix, shift = layer.linear
                x = product(x, matrix) + shift
            x, term = self._couple(self.function.forward, layer, x)
            log_det = log_det + term
        return x[..., np.argsort(self._orders[-1])], log_det

    def inverse_with_log_det(self, y: jax.Array) -> Pair:
        layers, log_det = self._layers(is_inverse=True)
        log_det = jnp.broadcast_to(-log_det, y.shape[:-1])
        y = y[..., self._orders[-1]]
        for layer in reversed(layers):
            y, term = self._couple(self.function.inverse, layer, y)
            log_det = log_det + term
            if layer.linear is None:
                y = y[..., layer.order]
            else:
                matrix, shift = layer.linear
                y = product(y - shift, matrix)
        return y, log_det

    @property
    def _orders(self) -> np.ndarray:
        """The order kept, moved of the coordinates in each layer, shape (L, D)."""
        return np.array([kept + moved for kept, moved in self.partitions], int)

    def _layers(self, *, is_inverse: bool) -> tuple[list["_Layer"], jax.Array]:
        """What each layer needs, and the log-determinant of all linear maps."""
        orders = self._orders
        before = np.concatenate([np.arange(orders.shape[1])[None], orders[:-1]])
        matrices = [
            jax.vmap(inverse_matrix if is_inverse else mixing_matrix)(params)
            for params in self.mixings
        ]
        log_det = sum(jax.vmap(log_determinant)(p).sum() for p in self.mixings)
        layers = []
        for i, (kept, _) in enumerate(self.partitions):
            group, row = i % PERIOD, i // PERIOD
            network = jax.tree.map(lambda a, row=row: a[row], self.networks[group])
            # Where each coordinate of one order is in the other.
            order = np.argsort(before[i])[orders[i]]
            order = np.argsort(order) if is_inverse else order
            linear = None
            if self.mixings:
                ends = (before[i], orders[i])[:: -1 if is_inverse else 1]
                matrix = matrices[group][row].T[np.ix_(*ends)]
                linear = matrix, self.mixings[group]["shift"][row, orders[i]]
            layers.append(_Layer(network, len(kept), linear, order))
        return layers, jnp.asarray(log_det)

    def _couple(
        self, function: Callable[..., Pair], layer: "_Layer", x: jax.Array
    ) -> Pair:
        kept, moved = x[..., : layer.num_kept], x[..., layer.num_kept :]
        theta = apply_network(layer.network, kept, self.activation)
        theta = theta.reshape(*theta.shape[:-1], moved.shape[-1], -1)
        y, log_slope = function(moved, theta)
        y = jnp.concatenate([kept, y], axis=-1)
        return y, jnp.broadcast_to(log_slope, moved.shape).sum(-1)

    def tree_flatten(self) -> tuple:
        names = "function", "partitions", "activation"
        static = {name: getattr(self, name) for name in names}
        return (self.networks, self.mixings), (("networks", "mixings"), static)


def stack_layers(layers: list[Any]) -> list[Any]:
    """Parameters of single layers, stacked by group along a leading axis."""
    groups = [layers[start::PERIOD] for start in range(min(PERIOD, len(layers)))]
    return [jax.tree.map(lambda *a: jnp.stack(a), *group) for group in groups]
