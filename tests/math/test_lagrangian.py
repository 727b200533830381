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
    scatter_of_steps,
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


RULE = {"growth": 2.0, "reduction": 0.5, "min_penalty": 1.0, "max_penalty": 8.0}


@pytest.mark.parametrize(
    ("penalty", "violation", "error", "previous", "scatter", "expected"),
    [
        pytest.param(2.0, 0.5, 0.01, 0.6, 0.0, 4.0, id="real, shrinks too slowly"),
        pytest.param(2.0, 0.2, 0.01, 0.6, 0.0, 2.0, id="shrinks"),
        pytest.param(2.0, 0.02, 0.01, 0.02, 0.0, 2.0, id="within its noise"),
        pytest.param(2.0, 0.5, 0.01, None, 0.0, 2.0, id="nothing to compare with"),
        pytest.param(6.0, 0.5, 0.01, 0.6, 0.0, 8.0, id="upper bound"),
        pytest.param(4.0, 0.5, 0.01, 0.6, 0.3, 2.0, id="swings"),
        pytest.param(1.5, 0.5, 0.01, 0.6, 0.3, 1.0, id="lower bound"),
        pytest.param(2.0, 0.5, 0.01, 0.6, np.nan, 4.0, id="swings are not known"),
    ],
)
def test_penalty_grows_for_a_real_violation_and_shrinks_if_the_guide_swings(
    penalty, violation, error, previous, scatter, expected
):
    before = None if previous is None else np.array([previous])
    found = grow_penalty(
        penalty, np.array([violation]), np.array([error]), before, scatter, **RULE
    )
    assert found == expected


def steps_of(swing=0.0, trend=0.0, noise=0.04, num_steps=100):
    """V of two constraints at each step; the second has noise alone."""
    time = np.linspace(-0.5, 0.5, num_steps)
    noises = noise * np.random.default_rng(0).standard_normal((num_steps, 2))
    first = swing * np.sin(2 * np.pi * 4 * time) + trend * time
    return noises + np.stack([first, 0 * first], axis=1)


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        pytest.param({}, 0.0, id="noise of particles"),
        pytest.param({"trend": 1.0}, 0.0, id="on its way"),
        pytest.param({"swing": 0.4}, 0.4 / 2**0.5, id="swings"),
        pytest.param({"swing": 0.4, "trend": 1.0}, 0.4 / 2**0.5, id="both"),
    ],
)
def test_scatter_is_that_of_the_guides(signal, expected):
    # Noise of 0.04 hides a scatter of about 0.04 (2 / 100)^(1/4) = 0.015; three of it.
    # A sine of four periods correlates with a trend: that takes 4% of its variance.
    found = scatter_of_steps(steps_of(**signal))
    assert found == pytest.approx(expected, abs=0.045)
    if expected:  # the twin: noise and trend left in
        assert steps_of(trend=1.0).std(axis=0).max() > 0.25


def test_scatter_of_unknown_violations_is_unknown_or_zero():
    steps = steps_of()
    steps[3] = np.nan
    assert not scatter_of_steps(steps) > 0.0


def test_update_of_multipliers():
    updated = update_multipliers(np.array([1.0]), 2.0, np.array([0.25]))
    np.testing.assert_allclose(updated, 1.5)
