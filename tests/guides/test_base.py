# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How flows behave as guides of NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.reparam import NeuTraReparam

from guides.tables import (
    GUIDES,
    SMALL,
    at_random,
    latents,
    met,
    quick_jit,
    quick_sample,
    untrained,
)
from numpyro_epi.guides import AutoRealNVP


@pytest.mark.core
def test_the_simulator_is_traced_once_and_never_runs():
    calls = []

    def model():
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        calls.append(isinstance(z, jax.core.Tracer))
        numpyro.deterministic("stat", z**2)

    guide, params = met(model)
    quick_sample(guide, params, 3)
    assert calls == [True]


def test_draws_hold_latents_only():
    def model(y):
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.deterministic("stat", z**2)
        numpyro.sample("noise", dist.Poisson(3.0), infer={"noise": True})
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = AutoRealNVP(model, **SMALL)
    params = untrained(guide, 1.0)
    assert set(quick_sample(guide, params, 2)) == {"z"}


def test_one_call_agrees_with_the_density_of_its_draw():
    def model():
        numpyro.sample("a", dist.Uniform(-3.0, 5.0).expand([2]).to_event(1))
        numpyro.sample("b", dist.Dirichlet(jnp.ones(3)))

    guide = GUIDES["real_nvp"](model)
    params = at_random(guide, untrained(guide))

    @quick_jit
    def densities(key):
        seeded = handlers.substitute(handlers.seed(guide, key), params)
        trace = handlers.trace(seeded).get_trace()
        sites = [site for site in trace.values() if site["type"] == "sample"]
        total = sum(site["fn"].log_prob(site["value"]) for site in sites)
        u = trace["_auto_latent"]["value"]
        expected = guide.get_posterior(params).log_prob(u)
        for site, piece in guide._unpack_latent(u).items():
            transform = biject_to(guide.prototype_trace[site]["fn"].support)
            terms = transform.log_abs_det_jacobian(piece, trace[site]["value"])
            expected -= terms.sum()
        return total, expected

    total, expected = densities(jax.random.key(3))
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_a_guide_may_be_called_first_in_traced_code():
    guide = AutoRealNVP(latents(2), **SMALL)
    svi = SVI(guide.model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    states = jax.jit(jax.vmap(svi.init))(jax.random.split(jax.random.key(0), 3))
    leaf = jax.tree.leaves(jax.vmap(svi.get_params)(states))[0]
    assert leaf.shape[0] == 3
    assert np.isfinite(handlers.seed(guide, 0)()["z"]).all()


def test_traced_model_arguments_are_refused_at_first():
    def model(high):
        numpyro.sample("z", dist.Uniform(0.0, high))

    guide = AutoRealNVP(model, **SMALL)

    def call(high):
        return handlers.seed(guide, 0)(high)["z"]

    with pytest.raises(RuntimeError, match="concrete model arguments"):
        jax.jit(call)(2.0)
    assert call(2.0) < 2
    assert jax.jit(call)(2.0) < 2


def test_parameters_depend_on_the_key_alone():
    guide = AutoRealNVP(latents(2), **SMALL)
    first, again = untrained(guide), untrained(guide)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = untrained(guide, seed=1)
    kernels = [jax.tree.leaves(params) for params in (first, other)]
    assert any((a != b).any() for a, b in zip(*kernels, strict=True))


def test_prefixes_keep_guides_apart():
    guide = AutoRealNVP(latents(2), prefix="mine", **SMALL)
    assert list(untrained(guide)) == ["mine_flow$params"]


def test_a_trained_guide_reparametrises_a_model():
    model = latents(2)
    guide, params = met(model)
    neutra = NeuTraReparam(guide, at_random(guide, params))
    trace = handlers.trace(handlers.seed(neutra.reparam(model), 0)).get_trace()
    assert trace["auto_shared_latent"]["value"].shape == (2,)
    assert trace["z"]["value"].shape == (2,)
