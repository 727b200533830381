# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from numpyro_epi._math.noisy import (
    MAX_VARIANCE,
    MIN_REPEATS,
    Averager,
    log_weight_variance,
)

RNG = np.random.default_rng(0)


def averages(log_lik, devs, **options):
    averager = Averager(**options)
    for pair in zip(log_lik, devs, strict=True):
        averager.add(*pair)
    return averager.averages()


def test_agrees_with_numpy_and_keeps_the_precision():
    log_lik = -1e5 + RNG.normal(size=(7, 4))
    devs = RNG.normal(size=(7, 4, 2)) + log_lik[..., None]
    found = averages(log_lik, devs)
    for i in range(4):
        rows = np.column_stack([log_lik[:, i], devs[:, i]])
        cov = np.cov(rows, rowvar=False) / 7
        np.testing.assert_allclose(found.variance[i], cov[0, 0])
        np.testing.assert_allclose(found.cross[i], cov[0, 1:])
        np.testing.assert_allclose(found.covariance[i], cov[1:, 1:])
        mean = rows.mean(0)
        np.testing.assert_allclose(found.log_likelihood[i], mean[0] - cov[0, 0] / 2)
        np.testing.assert_allclose(found.deviations[i], mean[1:] - cov[0, 1:])


def test_leaves_single_and_deterministic_simulations_as_they_are():
    log_lik, devs = RNG.normal(size=(1, 4)), RNG.normal(size=(1, 4, 2))
    for num in (1, 3):
        found = averages(np.repeat(log_lik, num, 0), np.repeat(devs, num, 0))
        np.testing.assert_array_equal(found.log_likelihood, log_lik[0])
        np.testing.assert_array_equal(found.deviations, devs[0])
        assert not found.variance.any()
        assert not found.covariance.any()
    few = averages(log_lik, devs, has_covariance=False)
    assert few.covariance.shape == (4, 0, 2)


NOISE = {
    "gaussian": lambda shape: RNG.normal(size=shape),
    "skewed": lambda shape: (1.0 - RNG.normal(size=shape) ** 2) / np.sqrt(2.0),
}


def check_weights(found, multipliers, log_weight):
    """Mean weight against its value without noise, in nats.

    Estimator: log of the mean of 200,000 weights whose logarithm has the largest
    variance that is allowed: standard error 0.0012. Tolerance 0.03, of which the third
    order takes 0.02 with skewed noise, so no false alarm; an uncorrected average is off
    by half of `MAX_VARIANCE`, 0.125.
    """
    log_w = found.log_likelihood - found.deviations @ multipliers
    log_w -= 0.5 * np.einsum("njk,j,k->n", found.covariance, multipliers, multipliers)
    assert abs(np.log(np.exp(log_w).mean()) - log_weight) < 0.03


def noisy_weights(kind):
    """T = x and log L = 2 x + y of noise x, y; multiplier 0.5, log weight 1.5 x + y."""
    size = np.sqrt(MAX_VARIANCE * MIN_REPEATS / (1.5**2 + 1.0))
    x, y = (size * NOISE[kind]((MIN_REPEATS, 200_000)) for _ in range(2))
    return averages(3.0 + 2.0 * x + y, x[..., None] + 1.0), np.array([0.5])


@pytest.mark.parametrize("kind", NOISE)
def test_weights_have_the_right_mean(kind):
    found, multipliers = noisy_weights(kind)
    check_weights(found, multipliers, 2.5)
    variance = log_weight_variance(found, multipliers).mean()
    np.testing.assert_allclose(variance, MAX_VARIANCE, rtol=0.01)


def test_check_of_weights_flags_averages_without_correction():
    found, multipliers = noisy_weights("gaussian")
    plain = found._replace(
        log_likelihood=found.log_likelihood + 0.5 * found.variance,
        deviations=found.deviations + found.cross,
        covariance=0.0 * found.covariance,
    )
    with pytest.raises(AssertionError):
        check_weights(plain, multipliers, 2.5)
