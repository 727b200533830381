# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The penalty gradient is unbiased; its one-batch twin is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi._math.lagrangian import (
    linear_terms,
    split_half_mean,
    tilt_multipliers,
)

pytestmark = pytest.mark.core

NUM_PARTICLES = 10
NUM_REPLICATES = 40_000
PENALTY = 2.0


def statistic(params, noise):
    """T = a + s * noise: E[T] = a, so d/da c/2 E[T]^2 = c a and d/ds is zero."""
    return (params[0] + params[1] * noise)[:, None]


def split_loss(params, noise):
    devs = statistic(params, noise)
    first, second = split_half_mean(devs, jnp.ones(NUM_PARTICLES))
    tilts = tilt_multipliers(jnp.zeros(1), jnp.asarray(PENALTY), first, second)
    return linear_terms(tilts, first, second)


def one_batch_loss(params, noise):
    """The broken twin: the same particles on both sides."""
    mean = statistic(params, noise).mean(0)
    return 0.5 * PENALTY * (mean @ mean)


def z_scores(loss):
    """Standard errors between the mean gradient and the exact one.

    40,000 replicates: the standard error of d/ds is 0.003, its bias in the twin is
    c s / P = 0.1, thirty standard errors. Five are a false alarm of 1e-6.
    """
    params = jnp.array([0.3, 0.5])
    noise = jax.random.normal(jax.random.key(0), (NUM_REPLICATES, NUM_PARTICLES))
    grads = np.asarray(jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, noise))
    exact = np.array([PENALTY * 0.3, 0.0])
    error = grads.std(0) / np.sqrt(NUM_REPLICATES)
    return np.abs(grads.mean(0) - exact) / error


def test_penalty_gradient_is_unbiased():
    assert (z_scores(split_loss) < 5).all()


def test_one_batch_twin_is_caught():
    assert z_scores(one_batch_loss)[1] > 5


def test_running_violation_is_blended_with_the_other_half():
    first, second, running = jnp.array([1.0]), jnp.array([3.0]), jnp.array([2.0])
    tilts = tilt_multipliers(jnp.array([0.5]), 2.0, first, second, running, 0.25)
    np.testing.assert_allclose(tilts[0], 0.5 + 2.0 * (2.0 + 0.25))
    np.testing.assert_allclose(tilts[1], 0.5 + 2.0 * (2.0 - 0.25))


def test_invalid_particles_do_not_count():
    values = jnp.array([[1.0], [100.0], [2.0], [4.0]])
    first, second = split_half_mean(values, jnp.array([1.0, 0.0, 1.0, 1.0]))
    assert (float(first[0]), float(second[0])) == (1.0, 3.0)
