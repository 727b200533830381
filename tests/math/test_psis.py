# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Pareto smoothing against ArviZ, both majors, and against known tails."""

import arviz as az
import numpy as np
import pytest

from numpyro_epi._math.psis import fit_generalised_pareto, pareto_smooth

pytestmark = pytest.mark.core


IS_ARVIZ_0 = az.__version__.startswith("0.")


def log_weights(shape, num=5000, seed=0):
    """Pareto weights, whose tail has exactly this shape."""
    return shape * np.random.default_rng(seed).exponential(size=num)


def arviz_psis(log_w):
    """ArviZ 0.23 takes log weights; the function of 1.x takes minus those."""
    if IS_ARVIZ_0:
        smoothed, khat = az.psislw(log_w.copy())
        return np.asarray(smoothed), float(khat)
    from arviz_stats.base import array_stats

    smoothed, khat = array_stats.psislw(-log_w)
    return np.asarray(smoothed), float(khat)


@pytest.mark.parametrize("shape", [0.1, 0.4, 0.7, 1.0, 1.6])
def test_agrees_with_arviz(shape):
    """The same algorithm as in 0.23; 1.x fits the tail in a slightly other way."""
    tolerance = 1e-6 if IS_ARVIZ_0 else 5e-3
    log_w = log_weights(shape)
    found = pareto_smooth(log_w)
    smoothed, khat = arviz_psis(log_w)
    assert found.khat == pytest.approx(khat, abs=tolerance)
    np.testing.assert_allclose(
        found.log_weights - found.log_weights.max(),
        smoothed - smoothed.max(),
        atol=tolerance,
    )


@pytest.mark.parametrize("shape", [0.2, 0.7, 1.6])
def test_finds_the_shape_of_a_pareto_tail(shape):
    """20 samples: the standard deviation of one k-hat is at most 0.12 here."""
    khats = [pareto_smooth(log_weights(shape, seed=seed)).khat for seed in range(20)]
    # The prior pulls towards 0.5 by 10 draws' worth of 212 in the tail.
    expected = (212 * shape + 10 * 0.5) / 222
    assert abs(np.mean(khats) - expected) < 4 * 0.12 / np.sqrt(20)
    # The twin with the sign of the log weights turned sees no heavy tail.
    assert pareto_smooth(-log_weights(shape)).khat < 0.0


def test_smoothed_weights_are_weights():
    found = pareto_smooth(log_weights(0.9))
    assert np.exp(found.log_weights).sum() == pytest.approx(1.0)
    assert found.log_weights.max() <= 0.0


def test_equal_weights_and_few_weights():
    assert pareto_smooth(np.zeros(1000)).khat == -np.inf
    assert pareto_smooth(np.array([0.0, 1.0, 2.0])).khat == np.inf


def test_dropped_draws_have_no_weight():
    log_w = np.concatenate([log_weights(0.3), np.full(100, -np.inf)])
    found = pareto_smooth(log_w)
    assert np.isneginf(found.log_weights[-100:]).all()


@pytest.mark.parametrize(
    "bad", [np.array([0.0, np.nan]), np.full(3, -np.inf), np.zeros((2, 2))]
)
def test_bad_weights_are_refused(bad):
    with pytest.raises(ValueError, match="log_weights"):
        pareto_smooth(bad)


def test_exponential_excesses_have_shape_zero():
    x = np.sort(np.random.default_rng(0).exponential(scale=3.0, size=20_000))
    shape, scale = fit_generalised_pareto(x)
    assert abs(shape) < 0.03
    assert scale == pytest.approx(3.0, rel=0.05)


def test_bounded_weights_that_crowd_below_their_bound_are_no_tail():
    """Of a mixture with a good proposal: 1 / (2 / 3 + x / 3), and a little noise."""
    rng = np.random.default_rng(0)
    weights = 1.0 / (2.0 / 3.0 + rng.exponential(size=20_000) ** 4 / 3.0)
    weights *= 1.0 + 0.001 * rng.standard_cauchy(20_000).clip(-50, 50)
    assert pareto_smooth(np.log(weights)).khat <= 0.5
    # The twin has one weight in a hundred that counts for more than all others.
    heavy = np.where(rng.uniform(size=20_000) < 0.01, rng.pareto(0.8, 20_000) * 20, 1.0)
    assert pareto_smooth(np.log(weights * np.maximum(heavy, 1.0))).khat > 0.5
