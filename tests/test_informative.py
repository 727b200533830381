# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Data that tell a lot beside a property: what NUTS finds on the tilted model."""

from functools import cache

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_epi as epi
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.draws import Programs, Simulator
from numpyro_epi._solver.law import Standard
from numpyro_epi._solver.search import find_law

# Of means in standard deviations, and of standard deviations as a share.
SHIFT, STRETCH = 0.15, 0.15


def narrow():
    """20 data of a mean whose prior is 1,000 wide; its square is asked for by mean."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1000.0))
    numpyro.sample("y", dist.Normal(mu, 0.5), obs=np.linspace(2.0, 4.0, 20))
    epi.emergent_property(mu, mean=3.02, name="mu_mean")


def find(model):
    problem = Problem(model, (), {}, jax.random.key(0))
    simulator = Simulator(Programs(problem), problem.table.with_scale(prior(problem)))
    standard = Standard(0.05, 2.0, problem.table.labels)
    return find_law(simulator, jax.random.key(0), standard, lambda: "hmc"), simulator


def prior(problem):
    u = jax.vmap(problem.sample_prior)(jax.random.split(jax.random.key(1), 1000))
    keys = jax.random.split(jax.random.key(2), 1000)
    return np.asarray(jax.vmap(problem.simulate)(u, keys).stats)


def test_a_mean_is_measured_in_the_spread_of_its_law():
    """A Normal law: sd 0.5 / sqrt(20), whatever its mean; 4,000 draws, 2% noise."""
    law, simulator = find(narrow)
    sd = 0.5 / np.sqrt(20)
    assert law.converged, law.reason
    assert simulator.table.scale == pytest.approx(sd, rel=0.1)
    # exp(-lambda (mu - 3.02)) moves the mean by -lambda sd^2, from 3 to 3.02.
    assert law.multipliers[0] * sd == pytest.approx(-0.02, abs=0.004)
    u = law.draws.u[:, 0]
    mean = law.weights @ u
    assert mean == pytest.approx(3.02, abs=0.1 * sd)
    assert np.sqrt(law.weights @ (u - mean) ** 2) == pytest.approx(sd, rel=0.1)


def test_other_units_change_nothing_but_units():
    law, simulator = find(narrow)
    units = np.array([4.0])
    other = law.in_units(units)
    np.testing.assert_allclose(other.violation, 4 * law.violation)
    for temperature in (0.5, 1.0):
        np.testing.assert_allclose(
            other.draws.log_density(temperature, other.multipliers),
            law.draws.log_density(temperature, law.multipliers),
            rtol=1e-12,
        )


# -- whole runs -----------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.7 * RNG.normal(size=400)


def regression():
    w = numpyro.sample("w", dist.Normal(0, 1000).expand([3]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(1000))
    numpyro.sample("y", dist.Normal(X @ w, sd), obs=Y)
    epi.emergent_property(w[0] + w[1], mean=-0.95, var=0.04**2, name="sum")


@cache
def run():
    return epi.EPI(regression, progress_bar=False).run(jax.random.key(0))


@pytest.mark.ci
@pytest.mark.long
def test_a_regression_under_wide_priors_is_that_of_nuts():
    """4,000 draws of NUTS: means within 0.02 sd, sds within 2%."""
    result = run()
    assert result.converged, result.message
    assert result.law.converged, result.law.reason
    tilted = epi.handlers.tilt(regression, result.law.multipliers)
    mcmc = MCMC(NUTS(tilted), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(1))
    exact = mcmc.get_samples()
    law = result.law.sample(jax.random.key(2), 4000)
    guide = result.sample(jax.random.key(3), 20_000)
    for name in ("w", "sd"):
        value = exact[name]
        mean, sd = np.asarray(value).mean(axis=0), np.asarray(value).std(axis=0)
        for draws in (law[name], np.asarray(guide[name])):
            assert (np.abs(draws.mean(axis=0) - mean) < SHIFT * sd).all(), name
            assert (np.abs(draws.std(axis=0) / sd - 1) < STRETCH).all(), name
