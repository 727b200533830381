# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws that a run takes from the prior are those of the model's prior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import ks_2samp

import numpyro_epi as epi
from numpyro_epi._model.problem import MAX_COORDINATE, Problem

pytestmark = pytest.mark.core

PRIORS = {
    "near zero": dist.Normal(0.0, 1.0),
    "around 1,000": dist.Normal(1000.0, 50.0),
    "1,000 wide": dist.Normal(0.0, 1000.0),
    "heavy tail": dist.Cauchy(0.0, 10.0),
    "bounded, large": dist.Uniform(-500.0, 900.0),
    "positive, large": dist.LogNormal(10.0, 2.0),
    "on the edge": dist.Beta(0.05, 0.05),
}
NUM = 2000


def draws(prior):
    def model():
        z = numpyro.sample("z", prior)
        epi.emergent_property(z, mean=0.0)

    problem = Problem(model, (), {}, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), NUM)
    u = jax.jit(jax.vmap(problem.sample_prior))(keys)
    return problem, u


def p_value(problem, u, prior):
    z = np.asarray(problem.constrain(u)[0]["z"])
    return ks_2samp(z, np.asarray(prior.sample(jax.random.key(2), (20_000,)))).pvalue


@pytest.mark.parametrize("name", PRIORS)
def test_draws_are_those_of_the_prior(name):
    """Kolmogorov-Smirnov: a false alarm in one of 10,000; sees shifts of 0.05 sds."""
    problem, u = draws(PRIORS[name])
    assert np.isfinite(u).all()
    assert p_value(problem, u, PRIORS[name]) > 1e-4


@pytest.mark.parametrize("name", ["around 1,000", "1,000 wide"])
def test_clipped_draws_are_not(name):
    """The broken twin: coordinates cut off at what a bound can bear."""
    problem, u = draws(PRIORS[name])
    clipped = jnp.clip(u, -MAX_COORDINATE, MAX_COORDINATE)
    assert p_value(problem, clipped, PRIORS[name]) < 1e-4
