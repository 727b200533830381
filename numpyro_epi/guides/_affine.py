# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Shift and scale: how RealNVP moves coordinates, one by one and along a direction."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ._coupling import Pair


def cap(value: jax.Array, limit: float) -> jax.Array:
    """Bound softly: about `value` where it is small, never beyond +-`limit`."""
    return limit * jnp.tanh(value / limit)


@dataclass(frozen=True)
class Affine:
    r"""Shift and scale, the scale within bounds.

    .. math:: f(x; \theta) = x \exp(s) + t, \qquad s = c \tanh(\theta_0 / c),
        \quad t = \theta_1

    Without the soft cap c on the log-scale, exp(s) overflows in training at high
    learning rates. With c = 3, one layer scales by up to 20.

    Args:
        max_log_scale: c.
    """

    max_log_scale: float = 3.0
    num_parameters: ClassVar[int] = 2
    steps: ClassVar[tuple[float, ...]] = (1.0, 1.0)

    def forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        log_scale, shift = self._split(theta)
        return x * jnp.exp(log_scale) + shift, log_scale

    def inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        log_scale, shift = self._split(theta)
        return (y - shift) * jnp.exp(-log_scale), -log_scale

    def _split(self, theta: jax.Array) -> Pair:
        return cap(theta[..., 0], self.max_log_scale), theta[..., 1]


# Soft cap on the entries of a direction: their squares would overflow.
MAX_ENTRY = 10.0


@dataclass(frozen=True)
class DirectedAffine:
    r"""Shift and scale of each coordinate, then a scale along one direction.

    With h from `Affine`, a vector v and a number a that theta holds too,

    .. math:: y = h + g\, v\, (v^\top h), \qquad
        g = \frac{e^{a} - 1}{1 + |v|^2}, \qquad
        \log \left| \det \frac{\partial y}{\partial h} \right|
        = \log(1 + g |v|^2).

    Along v, lengths grow by a factor between 1 and exp(a); across v nothing changes. A
    property of sums of products of latents, such as an eigenvalue of a product of
    matrices, ties the moved coordinates in a direction that depends on the kept ones:
    no map of one coordinate at a time can follow it, and no fixed linear map.

    Args:
        max_log_scale: Soft cap on the log-scales and on a.

    References:
        Golub and Van Loan, Matrix computations, 4th edition, 2013, section 2.1.4: the
        inverse of a change of rank one (Sherman and Morrison).
    """

    max_log_scale: float = 3.0
    num_parameters: ClassVar[int] = 4
    steps: ClassVar[tuple[float, ...]] = (1.0, 1.0, 1.0, 1.0)

    def forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        h, log_scale = Affine(self.max_log_scale).forward(x, theta)
        v, square, gain = self._split(theta)
        along = (gain * (v * h).sum(-1))[..., None]
        return h + along * v, log_scale + _spread(jnp.log1p(gain * square), v)

    def inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        v, square, gain = self._split(theta)
        gain_back = gain / (1.0 + gain * square)
        h = y - (gain_back * (v * y).sum(-1))[..., None] * v
        x, log_scale = Affine(self.max_log_scale).inverse(h, theta)
        return x, log_scale - _spread(jnp.log1p(gain * square), v)

    def _split(self, theta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Direction v, its square, and g."""
        # At theta = 0 there is a direction, so that the gradient of a is not zero.
        v = cap(theta[..., 2], MAX_ENTRY) + theta.shape[-2] ** -0.5
        square = (v**2).sum(-1)
        log_gain = cap(theta[..., 3].mean(-1), self.max_log_scale)
        return v, square, jnp.expm1(log_gain) / (1.0 + square)


def _spread(total: jax.Array, like: jax.Array) -> jax.Array:
    """Numbers of the shape of `like` whose sum over the last axis is `total`."""
    return jnp.broadcast_to(total[..., None] / like.shape[-1], like.shape)
