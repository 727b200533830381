# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Flows under NumPyro's `SVI`: as forgiving as the flows of NumPyro.

One draw a step and a constant rate, so that means are those of the last step, which
wanders: tolerances are those of NumPyro's own tests, which `AutoIAFNormal` meets here
with the same keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import optim
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal

from guides.svi_cases import CASES
from guides.tables import latents, quick_jit, untrained
from numpyro_epi.guides import AutoNeuralSpline, AutoRealNVP

FLOWS = {"real_nvp": AutoRealNVP, "neural_spline": AutoNeuralSpline}
KEYS = (0, 1, 2)


class FullSteps(AutoRealNVP):
    """Broken twin: parameters are the weights themselves, as they used to be."""

    def _steps(self, flow):
        return jax.tree.map(lambda _: 1.0, flow)


def misses(kind, case, keys):
    """For each key, the largest error of a posterior mean, one at the tolerance."""
    guide = case.guide(kind)
    svi = SVI(case.model, guide, optim.Adam(case.rate), Trace_ELBO())

    @jax.jit
    def run(state):
        update = lambda state, _: svi.update(state)  # noqa: E731
        state, _ = jax.lax.scan(update, state, length=case.num_steps)
        params = svi.get_params(state)
        shape = {"sample_shape": (2_000,)}
        draws = guide.sample_posterior(jax.random.key(1), params, **shape)
        return {site: draws[site].mean(0) for site in case.truth}

    found = []
    for key in keys:
        means = run(svi.init(jax.random.key(key)))
        errors = [
            np.abs(means[site] - truth) / (case.atol + case.rtol * np.abs(truth))
            for site, truth in case.truth.items()
        ]
        found.append(max(np.max(error) for error in errors))
    return np.array(found)


@functools.cache
def case_named(name):
    return CASES[name]()


def test_svi_finds_two_shares_of_tosses():
    guide = functools.partial(AutoRealNVP, num_flows=4, hidden_dims=(16,))
    assert misses(guide, case_named("beta_bernoulli"), KEYS[:1]) < 1


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", FLOWS)
def test_svi_finds_posterior_means(kind, case):
    found = misses(FLOWS[kind], case_named(case), KEYS)
    assert (found < 1).all(), found


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_flow_of_numpyro_meets_the_same_tolerances(case):
    found = misses(AutoIAFNormal, case_named(case), KEYS)
    assert (found < 1).all(), found


@pytest.mark.long
def test_twin_with_full_steps_is_lost():
    found = misses(FullSteps, case_named("list_of_guides"), KEYS)
    assert not (found < 1).any()


# What a step does, without training.

SIZES = [
    (kind, num, num_flows, width)
    for kind in FLOWS
    for num, num_flows, width in [(1, 8, 8), (2, 8, 100)]
]


def move(guide, step):
    """How far draws move if all parameters but the hidden layers rise by `step`."""
    start = untrained(guide)
    changed = jax.tree.map(lambda x: jnp.where(jnp.abs(x).max() > 0, x, step), start)
    x = jax.random.normal(jax.random.key(0), (200, guide.latent_dim))

    @quick_jit
    def distance(params):
        y = guide.get_transform(params)(x)
        return jnp.sqrt(((y - guide.get_transform(start)(x)) ** 2).mean())

    return float(distance(changed))


@pytest.mark.parametrize(("kind", "num", "num_flows", "width"), SIZES)
def test_a_step_moves_draws_by_about_as_much(kind, num, num_flows, width):
    guide = FLOWS[kind](latents(num), num_flows=num_flows, hidden_dims=(width, width))
    # With one coordinate, steps of layers and of bends add up to the root of them.
    most = 6.0 if num == 1 else 4.0
    assert 0.1 < move(guide, 0.01) / 0.01 < most


def test_twin_with_full_steps_moves_draws_much_more():
    guide = FullSteps(latents(2), num_flows=8, hidden_dims=(100, 100))
    assert move(guide, 0.01) / 0.01 > 20
