# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Multipliers against closed forms, tempering, weights."""

import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_epi._math.dual import solve_dual, solve_noisy_dual
from numpyro_epi._math.importance import (
    GaussianProposal,
    effective_sample_size,
    mixture_log_density,
    normalize_log_weights,
    systematic_resample,
)

pytestmark = pytest.mark.core


def gauss_hermite_deviations(mean, var):
    """A quadrature rule for z ~ N(0, 1), and T = (z - mean, (z - mean)^2 - var)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    devs = np.stack([nodes - mean, (nodes - mean) ** 2 - var], axis=1)
    return np.log(weights / weights.sum()), devs


@pytest.mark.parametrize(("mean", "var"), [(0.5, 0.6), (-0.3, 1.2), (0.0, 1.0)])
def test_gaussian_multipliers_are_exact(mean, var):
    """N(0, 1) tilted to N(m, v): lambda_2 = (1/v - 1)/2, lambda_1 = -m."""
    log_w, devs = gauss_hermite_deviations(mean, var)
    found = solve_dual(log_w, devs, ridge=0.0)
    exact = [-mean, 0.5 * (1.0 / var - 1.0)]
    np.testing.assert_allclose(found.multipliers, exact, atol=1e-6)
    assert found.residual < 1e-5


def test_log_normalizer_is_minus_the_divergence():
    mean, var = 0.5, 0.6
    log_w, devs = gauss_hermite_deviations(mean, var)
    # Equal weights stand for draws: undo the mean over draws that the estimate takes.
    found = solve_dual(log_w + np.log(log_w.size), devs, ridge=0.0)
    divergence = 0.5 * (var + mean**2 - 1.0 - np.log(var))
    assert found.log_normalizer == pytest.approx(-divergence, abs=1e-6)


def test_infeasible_draws_stay_finite():
    devs = np.linspace(1.0, 2.0, 50)[:, None]  # the mean of T cannot be zero
    found = solve_dual(np.zeros(50), devs)
    assert np.isfinite(found.multipliers).all()
    assert found.residual > 0.5


def noisy_averages():
    """T = z - 1 + noise that grows with z ~ N(0, 1); 16 simulations of each draw."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=200_000)
    noise = (0.6 + 0.4 * z[:, None]) * rng.normal(size=(z.size, 16))
    values = z[:, None] - 1.0 + noise
    return values.mean(1)[:, None], values.var(1, ddof=1)[:, None, None] / 16


def test_noise_of_averages_is_taken_off_the_dual():
    """Exact: lambda = -1, as for z itself; standard error of lambda 0.004."""
    devs, covariance = noisy_averages()
    weights = np.zeros(len(devs))
    found = solve_noisy_dual(weights, devs, covariance, np.zeros(1))
    assert abs(found.multipliers[0] + 1.0) < 0.02
    # Its twin that takes averages for expectations.
    assert abs(solve_dual(weights, devs).multipliers[0] + 1.0) > 0.05


def test_gaussian_proposal_has_the_moments_and_its_own_density():
    """Against NumPyro's density; 20,000 draws: standard errors below 0.02."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20_000, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]]) + 3.0
    weights = np.full(20_000, 1 / 20_000)
    found = GaussianProposal.from_draws(draws, weights, widening=1.0)
    cov = np.array([[1.0, 0.5], [0.5, 4.25]])
    np.testing.assert_allclose(found.mean, 3.0, atol=0.08)
    np.testing.assert_allclose(found.factor @ found.factor.T, cov, atol=0.2)
    exact = dist.MultivariateNormal(found.mean, scale_tril=found.factor)
    at = found.move(rng.normal(size=(5, 2)))
    np.testing.assert_allclose(found.log_prob(at), exact.log_prob(at), rtol=1e-5)


def test_dropped_draws_have_no_weight():
    log_w = np.array([0.0, -np.inf, 0.0])
    found = solve_dual(log_w, np.array([[1.0], [np.nan], [-1.0]]))
    np.testing.assert_allclose(found.weights, [0.5, 0.0, 0.5], atol=1e-6)


def test_mixture_density_of_two_proposals():
    log_p = np.log(np.array([[0.2, 0.4], [0.6, 0.8]]))
    mixed = np.exp(mixture_log_density(log_p, np.array([30, 10])))
    np.testing.assert_allclose(mixed, [0.3, 0.5])


def test_effective_sample_size():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7.0)
    assert effective_sample_size(np.array([1.0, 0.0])) == pytest.approx(1.0)


def test_systematic_resampling_is_within_one_of_expectation():
    weights = normalize_log_weights(np.random.default_rng(1).normal(size=100))
    counts = np.bincount(systematic_resample(weights, 1000, 0.3), minlength=100)
    assert (np.abs(counts - 1000 * weights) < 1.0 + 1e-9).all()


def test_draws_of_a_diverged_guide_are_no_solution():
    """Its Hessian is singular: two constraints are one, and outweigh the ridge."""
    values = 1e30 * (1.0 + np.random.default_rng(0).random(100))
    solution = solve_dual(np.zeros(100), np.stack([values, values], axis=1))
    assert solution.residual > 1.0
