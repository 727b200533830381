# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The penalty gradient is unbiased; its one-batch twin is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi._math.lagrangian import (
    grow_penalty,
    linear_terms,
    split_half_mean,
    tilt_multipliers,
    update_multipliers,
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


@pytest.mark.parametrize(
    ("violation", "error", "previous", "expected"),
    [
        (0.5, 0.01, 0.6, 4.0),  # real, and shrinks too slowly
        (0.2, 0.01, 0.6, 2.0),  # shrinks
        (0.15, 0.1, 0.15, 2.0),  # within its noise
        (0.04, 0.001, 0.04, 2.0),  # within the tolerance
        (0.5, 0.01, None, 2.0),  # nothing to compare with
    ],
)
def test_penalty_grows_only_for_a_real_violation(violation, error, previous, expected):
    rule = {"growth": 2.0, "reduction": 0.5, "tolerance": 0.05, "max_penalty": 8.0}
    before = None if previous is None else np.array([previous])
    grown = grow_penalty(2.0, np.array([violation]), np.array([error]), before, **rule)
    assert grown == expected


def test_penalty_is_bounded():
    rule = {"growth": 4.0, "reduction": 0.5, "tolerance": 0.05, "max_penalty": 8.0}
    grown = grow_penalty(4.0, np.ones(1), np.full(1, 0.01), np.ones(1), **rule)
    assert grown == 8.0


@pytest.mark.parametrize("variance", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 8.0])
def test_one_update_solves_a_gaussian_dual(penalty, variance):
    """A tilt of N(0, v) by a T has mean -a v; T = f - m, and lambda is where it was."""
    mean, before = 0.7, 0.3
    # V = -(lambda + c V) v - m
    violation = np.array([-(before * variance + mean) / (1.0 + penalty * variance)])
    after = update_multipliers(
        np.array([before]), penalty, violation, np.array([variance])
    )
    np.testing.assert_allclose(-after * variance, mean)


@pytest.mark.parametrize(
    ("variance", "expected"), [(0.0, 1.0 + 7.0 * 0.25), (np.inf, 1.0 + 2.0 * 0.25)]
)
def test_update_of_multipliers_is_bounded(variance, expected):
    found = update_multipliers(
        np.array([1.0]), 2.0, np.array([0.25]), np.array([variance])
    )
    np.testing.assert_allclose(found, expected)
