# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What all flows share: a density in one pass, and the coupling of coordinates.

Along which function a coordinate moves is left to the guides.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform
from numpyro.distributions.util import validate_sample

from ._conditioner import Activation, Network, apply_network

# Halvings of the coordinates among which the most even one is chosen.
NUM_HALVINGS = 50

Pair: TypeAlias = tuple[jax.Array, jax.Array]
Partition: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


class FlowLayer(Transform):
    """A bijection of real vectors that yields values and log-determinants at once."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    @abstractmethod
    def call_with_intermediates(self, x: jax.Array) -> Pair:
        """Return y and log |det dy/dx|, shape (...,), at x of shape (..., D)."""

    @abstractmethod
    def inverse_with_log_det(self, y: jax.Array) -> Pair:
        """Return x and log |det dx/dy|, shape (...,), at y of shape (..., D)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call_with_intermediates(x)[0]

    def _inverse(self, y: jax.Array) -> jax.Array:
        return self.inverse_with_log_det(y)[0]

    def log_abs_det_jacobian(
        self, x: jax.Array, y: jax.Array, intermediates: jax.Array | None = None
    ) -> jax.Array:
        if intermediates is None:
            return self.call_with_intermediates(x)[1]
        return intermediates


class FlowDistribution(dist.TransformedDistribution):
    r"""A base distribution pushed through the layers of a flow.

    .. math:: \log q(y) = \log q_0(x) + \sum_i \log |\det dx_{i} / dx_{i + 1}|

    NumPyro's class evaluates each conditioner twice for the density of a given y, for
    the inverse and for its determinant. This one does so once.
    """

    @validate_sample
    def log_prob(self, value: jax.Array, intermediates: list | None = None) -> Any:
        if intermediates is not None:
            return super().log_prob(value, intermediates)
        log_det = jnp.zeros(jnp.shape(value)[:-1])
        for transform in reversed(self.transforms):
            if isinstance(transform, FlowLayer):
                value, term = transform.inverse_with_log_det(value)
            else:
                value, y = transform.inv(value), value
                term = -transform.log_abs_det_jacobian(value, y).sum(-1)
            log_det = log_det + term
        return self.base_dist.log_prob(value) + log_det


class ElementwiseMap(Protocol):
    """A family of increasing functions f of one real number. Static, hashable."""

    @property
    def num_parameters(self) -> int:
        """Length of theta. At theta = 0, f is the identity."""

    def forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        """Return f(x), like x, and log f'(x), given theta.

        Theta has the shape of x, or one that broadcasts to it, and then
        `num_parameters`. What depends on theta alone need not be broadcast to x.
        """

    def inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        """Return the x with f(x) = y, and log dx/dy, as `forward` does."""


class Coupling(FlowLayer):
    r"""Moves some coordinates one by one, in a way that the others determine.

    .. math:: y_a = x_a, \qquad y_b = f(x_b; \theta(x_a)),
        \qquad \log |\det dy/dx| = \sum_b \log f'(x_b; \theta(x_a))

    for a partition a (`kept`), b (`moved`) of the coordinates, a family of increasing
    functions f and a network :math:`\theta`. Either way costs one pass of the network.

    Args:
        network: Parameters of the network.
        function: The family f.
        kept: Indices of the coordinates that stay. If there are none, theta is learned
            without a network.
        moved: Indices of the others.
        activation: Nonlinearity of the network.

    References:
        Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, 2017,
        arXiv:1605.08803, equations 4 to 8.
    """

    def __init__(
        self,
        network: Network,
        function: ElementwiseMap,
        kept: tuple[int, ...],
        moved: tuple[int, ...],
        *,
        activation: Activation = jax.nn.silu,
    ) -> None:
        self.network = network
        self.function = function
        self.kept = kept
        self.moved = moved
        self.activation = activation

    def call_with_intermediates(self, x: jax.Array) -> Pair:
        return self._apply(self.function.forward, x)

    def inverse_with_log_det(self, y: jax.Array) -> Pair:
        return self._apply(self.function.inverse, y)

    def _apply(self, function: Callable[..., Pair], x: jax.Array) -> Pair:
        kept, moved = x[..., np.array(self.kept, int)], x[..., np.array(self.moved)]
        theta = apply_network(self.network, kept, self.activation)
        theta = theta.reshape(*theta.shape[:-1], len(self.moved), -1)
        y, log_slope = function(moved, theta)
        order = np.argsort(self.kept + self.moved)
        y = jnp.concatenate([kept, y], axis=-1)[..., order]
        return y, jnp.broadcast_to(log_slope, moved.shape).sum(-1)

    def tree_flatten(self) -> tuple:
        names = "function", "kept", "moved", "activation"
        static = {name: getattr(self, name) for name in names}
        return (self.network,), (("network",), static)


def partitions(latent_dim: int, num_layers: int) -> list[Partition]:
    """Who is kept and who is moved in each layer.

    Layers come in pairs: the second moves what the first one kept, so that any three
    consecutive layers move every coordinate. Each pair halves the coordinates anew, so
    that coordinates which were together in one pair are apart in the next where that is
    possible, and never moves first what was moved last. A single coordinate is moved in
    each layer.

    Args:
        latent_dim: Number of coordinates, D.
        num_layers: Number of layers.

    Returns:
        For each layer the indices kept and the indices moved.
    """
    if latent_dim == 1:
        return [((), (0,))] * num_layers
    together = np.zeros((latent_dim, latent_dim))
    found: list[Partition] = []
    for pair in range((num_layers + 1) // 2):
        rng = np.random.default_rng([latent_dim, pair])
        orders = [rng.permutation(latent_dim) for _ in range(NUM_HALVINGS)]
        if pair == 0:
            orders = [np.arange(latent_dim)]
        sides = [np.isin(range(latent_dim), o[: latent_dim // 2]) for o in orders]
        meetings = [(together * (s[:, None] == s)).sum() for s in sides]
        side = sides[int(np.argmin(meetings))]
        together += side[:, None] == side
        halves = [tuple(np.flatnonzero(s == side[0]).tolist()) for s in (side, ~side)]
        first, second = halves
        if found and found[-1] == (first, second):
            first, second = second, first
        found += [(first, second), (second, first)]
    return found[:num_layers]
