# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What all flows share: a density in one pass, and who moves whom.

Along which function a coordinate moves is left to the guides.
"""

from abc import abstractmethod
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform
from numpyro.distributions.util import validate_sample

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


class CouplingMap(Protocol):
    """A family of bijections f of the moved coordinates. Static, hashable."""

    @property
    def num_parameters(self) -> int:
        """Length of theta for each coordinate. At theta = 0, f is the identity."""

    @property
    def steps(self) -> tuple[float, ...]:
        """Change of each element of theta that moves coordinates by about one."""

    def forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        """Return f(x), like x, and terms, like x, of log |det df/dx|.

        The terms are the log-slopes where f moves coordinates one by one; only their
        sum over the last axis counts. Theta has the shape of x, or one that broadcasts
        to it, and then `num_parameters`. What depends on theta alone need not be
        broadcast to x.
        """

    def inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        """Return the x with f(x) = y, and terms of log |det dx/dy|, as `forward`."""


def partitions(latent_dim: int, num_layers: int) -> list[Partition]:
    """Who is kept and who is moved in each layer.

    Layers come in pairs: the second moves what the first one kept, so that any three
    consecutive layers move every coordinate. Each pair halves the coordinates anew, so
    that coordinates which were together in one pair are apart in the next where that is
    possible, and never moves first what was moved last. All first layers keep as many
    coordinates, and so do all second ones. A single coordinate is moved in each layer.

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
        if latent_dim % 2 == 0 and not side[0]:
            side = ~side
        first, second = (tuple(np.flatnonzero(s).tolist()) for s in (side, ~side))
        if found and found[-1] == (first, second):
            first, second = second, first
        found += [(first, second), (second, first)]
    return found[:num_layers]
