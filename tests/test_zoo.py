# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact solutions of the zoo are exact, and its models are the same in JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer.util import log_density

import numpyro_epi as epi
from quadrature import deviations, panels, tilt_of
from zoo import (
    BOUND,
    CONTRAST_MEAN,
    CONTRAST_VAR,
    COUNT_MEAN,
    COUNT_VAR,
    DATA,
    DATA_SD,
    GAUSSIAN_MEAN,
    GAUSSIAN_VAR,
    INTERVAL,
    INTERVAL_MEAN,
    LOADINGS,
    NOISE_SD,
    NUM_CELLS,
    RADIUS,
    RADIUS_VAR,
    ZOO,
)

PROBLEMS = [pytest.param(problem, id=name) for name, problem in ZOO.items()]
DETERMINISTIC = [param for param in PROBLEMS if not param.values[0].is_noisy]
MULTIMODAL = [param for param in PROBLEMS if param.values[0].modes]

every_problem = pytest.mark.parametrize("problem", PROBLEMS)


def largest(arrays):
    return max(np.abs(array).max() for array in arrays.values())


# -- laws of every problem -------------------------------------------------------------


@every_problem
def test_solution_meets_the_targets(problem):
    assert largest(problem.mean_deviations(problem.multipliers)) < 1e-8


@every_problem
def test_wrong_sign_of_multipliers_misses_the_targets(problem):
    flipped = {site: -value for site, value in problem.multipliers.items()}
    assert largest(problem.mean_deviations(flipped)) > 0.1


@every_problem
def test_quadrature_is_as_accurate_as_it_says(problem):
    """More nodes, and the mass of the prior where nothing is observed."""
    fine = problem.at_order(14)
    assert abs(fine.maximum - problem.maximum) < 0.1 * problem.error
    for name, (mean, variance) in problem.moments.items():
        other = fine.moments[name]
        np.testing.assert_allclose(other, (mean, variance), rtol=1e-6, atol=1e-6)
    if problem.name != "conditional":
        none = {site: np.zeros_like(x) for site, x in problem.multipliers.items()}
        assert abs(problem.log_normalizer(none)) < 0.1 * problem.error


@every_problem
def test_normalizer_is_smallest_at_the_solution(problem):
    """A bound on every feasible law, so no multipliers may give less than the maximum.

    Its slope is minus the mean of T: zero at the solution, and as large as the
    violation elsewhere (central differences).
    """
    rng = np.random.default_rng(0)
    for size in (0.01, 0.1, 0.3):
        shift = {
            site: size * np.abs(x) * rng.uniform(-1.0, 1.0, np.shape(x))
            for site, x in problem.multipliers.items()
        }
        there = {site: x + shift[site] for site, x in problem.multipliers.items()}
        gap = problem.log_normalizer(there) - problem.maximum
        assert gap > 0.0
        step = 1e-4
        ahead, behind = (
            problem.log_normalizer({s: x + h * shift[s] for s, x in there.items()})
            for h in (step, -step)
        )
        violation = problem.mean_deviations(there)
        slope = -sum((shift[s] * violation[s]).sum() for s in shift)
        np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-5)


@every_problem
def test_importance_sampling_agrees(problem):
    """Draws from the prior, weighted by the exact multipliers.

    n = 400,000 draws, at least 500 effective. The normalizer and the moments of all
    functions lie within 5 standard errors: about 5e-5 for all 90 comparisons. That sees
    an error of 0.2 nats, or of 0.2 standard deviations, where the weights are worst
    (the product), and of 0.03 in most problems.
    """
    rng = np.random.default_rng(0)
    latents = problem.draw_prior(rng, 400_000)
    log_weights = problem.log_likelihood(latents) + tilt_of(
        problem.expected_deviations(latents), problem.multipliers
    )
    weights = np.exp(log_weights - problem.maximum)
    assert weights.sum() ** 2 / (weights**2).sum() > 500
    error = weights.std() / np.sqrt(weights.size)
    assert abs(weights.mean() - 1.0) < 5 * error
    for name, function in problem.observables.items():
        mean, variance = problem.moments[name]
        for power, exact in ((1, 0.0), (2, variance)):
            values = weights * ((function(latents) - mean) ** power - exact)
            error = values.std() / np.sqrt(values.size)
            assert abs(values.mean()) < 5 * error + 1e-9


@pytest.mark.parametrize("problem", DETERMINISTIC)
@pytest.mark.parametrize("sign", [1, -1])
def test_tilted_model_is_the_exact_law(problem, sign):
    """Log density of the tilted model in JAX against NumPy; a flipped sign differs."""
    latents = some_latents(problem)
    multipliers = {site: sign * x for site, x in problem.multipliers.items()}
    tilted = epi.handlers.tilt(problem.model, multipliers)

    def at(one):
        return log_density(tilted, (), {}, one)[0]

    found = jax.vmap(at)({site: jnp.asarray(x) for site, x in latents.items()})
    devs = problem.expected_deviations(latents)
    exact = problem.log_joint(latents) + tilt_of(devs, problem.multipliers)
    is_close = np.isclose(found, exact, rtol=2e-5, atol=2e-4)
    assert is_close.all() == (sign == 1)


def test_noise_is_averaged_as_the_model_draws_it():
    """20,000 simulations at each of 5 latents; within 5 standard errors.

    That is 2e-5 over the 10 comparisons, and sees a noise of the wrong standard
    deviation by 4%. Without the noise in the second moment it fails.
    """
    problem = ZOO["noisy"]
    latents = {"z": np.array([-1.0, 0.0, 1.0, 1.5, 2.0])}

    def simulate(key, one):
        fixed = numpyro.handlers.substitute(problem.model, data=one)
        with epi.handlers.collect() as collected:
            numpyro.handlers.seed(fixed, key)()
        stat, mean, var = collected.properties["rate"]
        return jnp.stack([stat - mean, (stat - mean) ** 2 - var])

    keys = jax.random.split(jax.random.key(0), (20_000, 5))
    draws = jax.jit(jax.vmap(jax.vmap(simulate), (0, None)))(keys, latents)
    draws = np.asarray(draws, np.float64)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    exact = problem.expected_deviations(latents)["rate"]
    assert (np.abs(draws.mean(axis=0) - exact) < 5 * error).all()
    without = exact - np.array([0.0, NOISE_SD**2])
    assert (np.abs(draws.mean(axis=0) - without)[:, 1] > 5 * error[:, 1]).all()


@pytest.mark.parametrize("problem", MULTIMODAL)
def test_modes_are_separate(problem):
    """At least 6 standard deviations of the wider mode apart, with the stated masses.

    100,000 prior draws, at least 500 effective: 0.1 is 4.5 standard errors at worst.
    """
    latents, weights = exact_draws(problem)
    points = next(iter(latents.values())).reshape(len(weights), -1)
    labels = problem.modes(latents)
    assert set(np.unique(labels)) == {0, 1}
    masses = [weights[labels == k].sum() for k in (0, 1)]
    np.testing.assert_allclose(masses, problem.mode_masses, atol=0.1)
    # Two hyperbolas, or nine bumps: not two bumps.
    if problem.name in ("linear", "nine_modes"):
        return
    centres = [
        np.average(points[labels == k], axis=0, weights=weights[labels == k])
        for k in (0, 1)
    ]
    direction = centres[1] - centres[0]
    distance = np.linalg.norm(direction)
    for k in (0, 1):
        line = (points[labels == k] - centres[k]) @ direction / distance
        sd = np.sqrt(np.average(line**2, weights=weights[labels == k]))
        assert distance > 6 * sd


def some_latents(problem):
    """A few draws from the prior, and a few that the exact law makes likely."""
    latents, weights = exact_draws(problem)
    rng = np.random.default_rng(1)
    rows = np.concatenate([np.arange(20), rng.choice(len(weights), 80, p=weights)])
    # Through single precision, so that both sides see the same numbers.
    return {site: np.float64(np.float32(x[rows])) for site, x in latents.items()}


def exact_draws(problem):
    """Draws from the prior and their weights under the exact law."""
    latents = problem.draw_prior(np.random.default_rng(0), 100_000)
    log_weights = problem.log_likelihood(latents) + tilt_of(
        problem.expected_deviations(latents), problem.multipliers
    )
    weights = np.exp(log_weights - log_weights.max())
    return latents, weights / weights.sum()


# -- closed forms ----------------------------------------------------------------------


class ClosedForm(NamedTuple):
    maximum: float
    multipliers: dict
    moments: dict


def gaussian():
    mean, var = np.array(GAUSSIAN_MEAN), np.array(GAUSSIAN_VAR)
    divergence = 0.5 * (var + mean**2 - 1.0 - np.log(var)).sum()
    moments = zip(("first", "second"), zip(mean, var, strict=True), strict=True)
    multipliers = np.stack([-mean, 0.5 * (1.0 / var - 1.0)])
    return ClosedForm(-divergence, {"level": multipliers}, dict(moments))


def exponential():
    """p = c exp(-rate z) on an interval; the mean fixes the rate, by bisection."""
    low, high = 1e-3, 10.0
    for _ in range(100):
        rate = (low + high) / 2
        mean = 1.0 / rate - INTERVAL / np.expm1(rate * INTERVAL)
        low, high = (rate, high) if mean > INTERVAL_MEAN else (low, rate)
    log_mean = np.log(-np.expm1(-rate * INTERVAL) / (rate * INTERVAL))
    second = 2.0 / rate**2 - (INTERVAL**2 + 2 * INTERVAL / rate) / np.expm1(
        rate * INTERVAL
    )
    return ClosedForm(
        log_mean + rate * INTERVAL_MEAN,
        {"level": np.array([rate])},
        {"z": (INTERVAL_MEAN, second - INTERVAL_MEAN**2)},
    )


def gamma():
    """From Gamma(2, 1) to Gamma(5, 2): both are tilts by z and log z."""
    digamma = 25 / 12 - np.euler_gamma
    trigamma = np.pi**2 / 6 - sum(1.0 / k**2 for k in range(1, 5))
    divergence = 3 * digamma - np.log(24.0) + 2 * np.log(2.0) - 5 / 2
    return ClosedForm(
        -divergence,
        {"level": np.array([1.0]), "log_level": np.array([-3.0])},
        {"z": (2.5, 1.25), "log": (digamma - np.log(2.0), trigamma)},
    )


def conditional():
    """The posterior is Gaussian, and the property replaces one margin of it.

    The largest objective is log p(y) minus the divergence of the wanted margin from
    that of the posterior.
    """
    noise = DATA_SD**2 * np.eye(len(DATA))
    marginal = LOADINGS @ LOADINGS.T + noise
    evidence = -0.5 * (
        DATA @ np.linalg.solve(marginal, DATA)
        + np.linalg.slogdet(2 * np.pi * marginal)[1]
    )
    cov = np.linalg.inv(np.eye(2) + LOADINGS.T @ LOADINGS / DATA_SD**2)
    mean = cov @ LOADINGS.T @ DATA / DATA_SD**2
    contrast = np.array([1.0, -1.0])
    before, var = contrast @ mean, contrast @ cov @ contrast
    shift, ratio = CONTRAST_MEAN - before, CONTRAST_VAR / var
    divergence = 0.5 * (ratio + shift**2 / var - 1.0 - np.log(ratio))
    gain = cov @ contrast / var
    new_mean = mean + gain * shift
    new_var = np.diag(cov) + gain**2 * (CONTRAST_VAR - var)
    moments = zip(("first", "second"), zip(new_mean, new_var, strict=True), strict=True)
    multipliers = np.array([-shift / var, 0.5 * (1.0 / CONTRAST_VAR - 1.0 / var)])
    return ClosedForm(evidence - divergence, {"contrast": multipliers}, dict(moments))


def product():
    """Independent problems add up."""
    factors = [ZOO[name] for name in ("gaussian", "banana", "lognormal", "exponential")]
    return ClosedForm(
        sum(factor.maximum for factor in factors),
        {f"{p.name}/{k}": x for p in factors for k, x in p.multipliers.items()},
        {f"{p.name}/{k}": x for p in factors for k, x in p.moments.items()},
    )


CLOSED_FORMS = (gaussian, exponential, gamma, conditional, product)


@pytest.mark.parametrize("closed_form", CLOSED_FORMS)
def test_closed_form_agrees(closed_form):
    problem, exact = ZOO[closed_form.__name__], closed_form()
    assert abs(problem.maximum - exact.maximum) < 1e-9
    assert problem.multipliers.keys() == exact.multipliers.keys()
    for site, value in exact.multipliers.items():
        np.testing.assert_allclose(problem.multipliers[site], value, atol=1e-7)
    assert problem.moments.keys() == exact.moments.keys()
    for name, value in exact.moments.items():
        np.testing.assert_allclose(problem.moments[name], value, atol=1e-8)


def test_count_is_a_law_on_the_cells():
    """Sums over the counts; within a cell the law is uniform, as the prior is."""
    problem, cells = ZOO["count"], np.arange(NUM_CELLS)
    first, second = problem.multipliers["count"]
    weights = np.exp(-first * cells - second * (cells - COUNT_MEAN) ** 2)
    weights /= weights.sum()
    assert abs(weights @ cells - COUNT_MEAN) < 1e-8
    assert abs(weights @ (cells - COUNT_MEAN) ** 2 - COUNT_VAR) < 1e-8
    entropy = -(weights * np.log(weights)).sum()
    assert abs(entropy - np.log(NUM_CELLS) - problem.maximum) < 1e-8
    exact = COUNT_MEAN + 0.5, COUNT_VAR + 1 / 12
    np.testing.assert_allclose(problem.moments["z"], exact, atol=1e-8)


def test_ring_in_the_plane():
    """Cartesian quadrature, without the density of the radius."""
    problem = ZOO["ring"]
    x, weights = panels(np.linspace(-4.0, 4.0, 81), 6)
    radius = np.hypot(x[:, None], x)
    log_p = -(radius**2) / 2 - np.log(2 * np.pi)
    tilt = tilt_of(
        {"radius": deviations(radius.ravel(), RADIUS, RADIUS_VAR)}, problem.multipliers
    ).reshape(radius.shape)
    total = weights @ np.exp(log_p + tilt) @ weights
    assert abs(np.log(total) - problem.maximum) < 1e-7


def test_unequal_masses():
    """1:4, by a tuned prior to four digits and by the widths exactly."""
    np.testing.assert_allclose(ZOO["unequal_modes"].mode_masses, (0.2, 0.8), atol=5e-5)
    np.testing.assert_allclose(ZOO["unequal_widths"].mode_masses, (0.2, 0.8), rtol=1e-9)
    np.testing.assert_allclose(ZOO["equal_modes"].mode_masses, (0.5, 0.5), rtol=1e-9)


def test_linear_system_has_the_known_entropy():
    """7.0416 nats from 3e7 weighted draws, to 0.005, with multipliers to 0.005."""
    problem = ZOO["linear"]
    entropy = problem.maximum + 4 * np.log(2 * BOUND)
    assert abs(entropy - epi.circuits.linear.PAPER.max_entropy) < 0.005
    np.testing.assert_allclose(
        [problem.multipliers["growth"], problem.multipliers["frequency"]],
        [[-0.001, 7.998], [-0.261, 1.195]],
        atol=0.005,
    )
