# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a guide finds out about the latents of its model, and which it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from guides.tables import PRIORS, single
from numpyro_epi._sites import find_latents, sample_unconstrained, unconstrain
from numpyro_epi.guides import AutoRealNVP

pytestmark = pytest.mark.core


def discrete():
    numpyro.sample("count", dist.Poisson(3.0))


def dependent_interval():
    a = numpyro.sample("a", dist.Uniform(1.0, 2.0))
    numpyro.sample("b", dist.Uniform(0.0, a))


def dependent_bound():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.TruncatedNormal(0.0, 1.0, low=a).expand([2]).to_event(1))


def dependent_improper():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.ImproperUniform(constraints.greater_than(a), (), ()))


def noisy_support():
    noise = jax.random.uniform(numpyro.prng_key())
    numpyro.sample("b", dist.Uniform(0.0, 1.0 + noise))


def spherical():
    numpyro.sample("direction", dist.ProjectedNormal(jnp.ones(2)))


def subsampled():
    with numpyro.plate("cells", 10, subsample_size=4):
        numpyro.sample("local", dist.Normal())


class OnePoint(dist.Laplace):
    def sample(self, key, sample_shape=()):
        return 0 * super().sample(key, sample_shape)


def constant():
    numpyro.sample("z", OnePoint(0.0, 1.0))


REFUSED = [
    (discrete, "discrete one, `count`.*'noise': True"),
    (dependent_interval, "`b`.*depends on other latents.*Reparametrise.*Uniform"),
    (dependent_bound, "`b`.*depends on other latents"),
    (dependent_improper, "`b`.*depends on other latents"),
    (noisy_support, "`b`.*depends on other latents, or on noise"),
    (spherical, "`direction`.*numpyro.handlers.reparam"),
    (subsampled, "`local` in plate `cells`"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
def test_latents_that_a_flow_cannot_have_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        AutoRealNVP(model)._setup_prototype()


def test_a_latent_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="draws of `z` are equal"):
        AutoRealNVP(constant)._setup_prototype()


def test_a_model_without_latents_is_refused():
    def model():
        numpyro.sample("y", dist.Normal(), obs=1.0)
        numpyro.sample("noise", dist.Normal(), infer={"noise": True})

    assert find_latents(model) == {}
    with pytest.raises(ValueError, match="model with latents"):
        AutoRealNVP(model)._setup_prototype()


def test_latents_are_described_in_the_order_of_the_model():
    def model(size, *, high):
        b = numpyro.sample("b", dist.Uniform(0.0, high))
        numpyro.sample("noise", dist.Bernoulli(0.5), infer={"noise": True})
        with numpyro.plate("plate", size):
            numpyro.sample("a", dist.Dirichlet(jnp.ones(3)))
            numpyro.sample("child", dist.Normal(b, 1.0))
        numpyro.sample("flat", dist.ImproperUniform(constraints.positive, (), (2,)))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=1.0)

    found = find_latents(model, (4,), {"high": 3.0})
    rows = {
        name: (
            latent.shape,
            latent.unconstrained_shape,
            latent.event_dim,
            latent.has_density,
            latent.is_fixed,
        )
        for name, latent in found.items()
    }
    assert rows == {
        "b": ((), (), 0, True, True),
        "a": ((4, 3), (4, 2), 1, True, True),
        "child": ((4,), (4,), 0, True, False),
        "flat": ((2,), (2,), 1, False, True),
    }
    assert float(found["b"].prior.high) == 3
    assert list(found) == list(rows)


def test_a_prior_that_depends_on_noise_is_not_fixed():
    def model():
        noise = jax.random.normal(numpyro.prng_key())
        numpyro.sample("a", dist.Normal(noise, 1.0))

    assert not find_latents(model)["a"].is_fixed


def test_joint_draws_come_in_flat_unconstrained_coordinates():
    def model(loc):
        a = numpyro.sample("a", dist.Normal(loc, 1.0))
        numpyro.sample("b", dist.Normal(a, 0.01).expand([2]).to_event(1))
        numpyro.sample("c", dist.LogNormal(5.0, 0.1))

    found = find_latents(model, (7.0,))
    u = sample_unconstrained(model, found, 500, (7.0,), {})
    assert u.shape == (500, 4)
    np.testing.assert_allclose(u[:, 1:3], u[:, :1].repeat(2, axis=1), atol=0.1)
    np.testing.assert_allclose(u.mean(0), [7, 7, 7, 5], atol=0.25)


@pytest.mark.parametrize("kind", ["interval", "matrix", "simplex", "ordered"])
def test_flat_coordinates_of_a_value_lead_back_to_it(kind):
    latent = find_latents(single(PRIORS[kind], 2 * (not PRIORS[kind]().batch_shape)))
    latent = latent["z"]
    value = PRIORS[kind]().expand((2,)).sample(jax.random.key(0), (5,))
    u = unconstrain(latent.prior.support, value, value.ndim - 1)
    assert u.shape == (5, latent.num_coordinates)
    back = latent.transform(u.reshape(5, *latent.unconstrained_shape))
    np.testing.assert_allclose(back, value, rtol=1e-3, atol=1e-4)
