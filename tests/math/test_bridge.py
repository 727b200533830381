# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The ratio of two normalisers, against Gaussians."""

import numpy as np
import pytest

from numpyro_epi._math.bridge import log_ratio

CONSTANT = 3.0


def weights(x, sd):
    """Log of an unnormalised N(1/2, sd^2) over an unnormalised N(0, 1)."""
    return CONSTANT - 0.5 * ((x - 0.5) / sd) ** 2 + 0.5 * x**2


def draws(sd, rng, num):
    a, b = rng.normal(size=num[0]), 0.5 + sd * rng.normal(size=num[1])
    return weights(a, sd), -weights(b, sd)


@pytest.mark.parametrize("sd", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("num", [(1000, 1000), (4000, 500)])
def test_a_ratio_is_found_from_both_sides(sd, num):
    """100 times: four standard errors. One side alone misses where tails are heavy."""
    rng = np.random.default_rng(0)
    found = [log_ratio(*draws(sd, rng, num)) for _ in range(100)]
    error = np.std(found) / 10
    assert error < 0.01
    assert abs(np.mean(found) - CONSTANT - np.log(sd)) < 4 * error


def test_one_side_alone_misses():
    """The twin: weights of a narrow density against a wide one."""
    rng = np.random.default_rng(0)
    found = [
        -np.log(np.mean(np.exp(draws(0.2, rng, (1000, 1000))[1]))) for _ in range(100)
    ]
    error = np.std(found) / 10
    assert np.mean(found) - CONSTANT - np.log(0.2) > 10 * error


def test_draws_that_are_not_finite_do_not_count():
    rng = np.random.default_rng(0)
    forward, backward = draws(1.0, rng, (1000, 1000))
    more = np.append(forward, [-np.inf, np.nan])
    assert log_ratio(more, backward) == log_ratio(forward, backward)


def test_equal_weights_are_the_ratio():
    assert log_ratio(np.full(10, 2.0), np.full(30, -2.0)) == pytest.approx(2.0)
