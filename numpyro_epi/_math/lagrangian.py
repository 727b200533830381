# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The augmented Lagrangian: its value and its gradient from particles.

    min_q  KL(q || p0) - E_q[log L] + lambda . V + c/2 |V|^2,     V = E_q[T].

(Bittner et al., eLife 2021, eqs. 17-19, with entropy generalised to minus the
divergence from a prior.)
"""

import jax
import jax.numpy as jnp
from jax import lax


def split_half_mean(
    values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted means of the two halves of the particles.

    Args:
        values: shape (P, K).
        weights: non-negative, shape (P,): one, or zero for particles left out.

    Returns:
        Two arrays of shape (K,).
    """
    half = values.shape[0] // 2

    def mean(values: jax.Array, weights: jax.Array) -> jax.Array:
        total = jnp.maximum(weights.sum(), 1.0)
        return (weights[:, None] * values).sum(0) / total

    return (
        mean(values[:half], weights[:half]),
        mean(values[half:], weights[half:]),
    )


def blend(running: jax.Array | float, fresh: jax.Array, rate: float) -> jax.Array:
    """Exponential moving average: `running + rate * (fresh - running)`."""
    return running + rate * (fresh - running)


def tilt_multipliers(
    multipliers: jax.Array,
    penalty: jax.Array,
    first: jax.Array,
    second: jax.Array,
    running: jax.Array | float = 0.0,
    rate: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Multipliers of the tilted model that each half of the particles is fitted to.

    `lambda + c V` with V from the *other* half makes the gradient of c/2 |V|^2
    unbiased: E[V_2 . dV_1] = E[V] . dE[V] because the halves are independent. With one
    batch for both it is biased by the gradient of c/2 trace(cov T)/P.

    The other half alone is noisy where T has heavy tails. At a rate below one it
    updates a moving average over earlier steps instead, whose particles are independent
    of this step's too; only then does V lag behind the parameters, by about 1/rate
    steps.

    Args:
        multipliers: lambda, shape (K,).
        penalty: c, scalar or one for each constraint, shape (K,).
        first: V of the first half of the particles, shape (K,).
        second: V of the second half.
        running: moving average of V before this step, shape (K,).
        rate: of the moving average, in (0, 1].

    Returns:
        Multipliers for the first and for the second half, both of shape (K,).
    """
    first, second, running = lax.stop_gradient((first, second, running))
    for_first = multipliers + penalty * blend(running, second, rate)
    return for_first, multipliers + penalty * blend(running, first, rate)


def linear_terms(
    tilts: tuple[jax.Array, jax.Array], first: jax.Array, second: jax.Array
) -> jax.Array:
    """Scalar whose gradient is that of `lambda . V + c/2 |V|^2`, without bias.

    Args:
        tilts: from `tilt_multipliers`.
        first: V of the first half of the particles, shape (K,), differentiable.
        second: V of the second half.
    """
    return 0.5 * (tilts[0] @ first + tilts[1] @ second)
