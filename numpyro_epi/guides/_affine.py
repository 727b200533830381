# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Shift and scale: the function along which RealNVP moves a coordinate."""

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

    def forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        log_scale, shift = self._split(theta)
        return x * jnp.exp(log_scale) + shift, log_scale

    def inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        log_scale, shift = self._split(theta)
        return (y - shift) * jnp.exp(-log_scale), -log_scale

    def _split(self, theta: jax.Array) -> Pair:
        return cap(theta[..., 0], self.max_log_scale), theta[..., 1]
