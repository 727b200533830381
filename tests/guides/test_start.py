# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Where flows start: at the prior, exactly, wherever it has a density."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.initialization import init_to_value
from scipy import stats

from guides.tables import (
    IMPROPER,
    PRIORS,
    latents,
    met,
    prior_log_density,
    quick_jit,
    quick_sample,
    single,
)

# Checks of whole samples by Kolmogorov and Smirnov: n = 2,000 draws from each side. At
# p > 1e-5 and about 40 coordinates, a false alarm in 1 of 2,500 sets of keys; shifts of
# 0.2 standard deviations are found in nearly every run.
NUM_DRAWS = 2_000
SMALLEST_P = 1e-5


def draw_latents(model, key):
    """One draw of each site of a model, from its prior."""
    trace = handlers.trace(handlers.seed(model, key)).get_trace()
    return {k: site["value"] for k, site in trace.items() if site["type"] == "sample"}


def assert_same_distribution(x, y):
    x, y = (np.asarray(array).reshape(len(array), -1) for array in (x, y))
    for a, b in zip(x.T, y.T, strict=True):
        if np.ptp(b) > 1e-6:  # not one of the fixed zeros of a Cholesky factor
            assert stats.ks_2samp(a, b).pvalue > SMALLEST_P


def all_priors():
    for kind, prior in PRIORS.items():
        numpyro.sample(kind, prior())
    numpyro.sample("exponential", dist.Exponential(4.0).expand([2]).to_event(1))
    with numpyro.plate("plate", 2):
        numpyro.sample("interval in a plate", PRIORS["interval"]())


@pytest.mark.ci
@pytest.mark.long
def test_an_untrained_flow_is_the_prior():
    guide, params = met(all_priors)
    assert guide.base_kind == "prior"

    @quick_jit
    def draw(key):
        posterior = guide.get_posterior(params)
        u = posterior.sample(key, (NUM_DRAWS,))
        return (
            guide._unpack_latent(u),
            guide._unpack_and_constrain(u, params),
            posterior.log_prob(u),
            prior_log_density(guide, u),
            jax.vmap(lambda key: draw_latents(all_priors, key))(
                jax.random.split(key, NUM_DRAWS)
            ),
        )

    u, z, log_q, log_p, expected = draw(jax.random.key(1))
    assert all(np.isfinite(piece).all() for piece in u.values())
    assert np.isfinite(log_q).all()
    # Where NumPyro's sigmoid is not clipped, nor rounds away digits.
    flat = [u[kind].reshape(NUM_DRAWS, -1) for kind in u if kind != "real"]
    inside = np.abs(np.concatenate(flat, axis=1)).max(1) < 9
    assert inside.mean() > 0.3
    np.testing.assert_allclose(log_q[inside], log_p[inside], rtol=1e-4, atol=1e-2)
    assert set(z) == set(expected)
    for kind in z:
        assert_same_distribution(z[kind], expected[kind])


def test_a_wrong_start_fails_the_test_of_the_prior():
    guide, params = met(single(PRIORS["interval"]), base="normal")
    draws = quick_sample(guide, params, NUM_DRAWS)
    expected = PRIORS["interval"]().sample(jax.random.key(1), (NUM_DRAWS,))
    with pytest.raises(AssertionError):
        assert_same_distribution(draws["z"], expected)


@pytest.mark.parametrize("kind", ["interval", "unit interval"])
def test_draws_on_the_edge_of_a_support_stay_finite(kind):
    guide, params = met(single(PRIORS[kind]))

    @quick_jit
    def draw(key):
        u = guide.get_posterior(params).sample(key, (100_000,))
        log_q = guide.get_base_dist().log_prob(u)
        return u, log_q, guide._unpack_and_constrain(u, params)["z"]

    u, log_q, z = draw(jax.random.key(0))
    assert np.isfinite(u).all()
    assert np.isfinite(log_q).all()
    assert PRIORS[kind]().support(z).all()


class OnTheEdge(dist.Uniform):
    """Half of its draws are exactly at the lower end of its support."""

    def sample(self, key, sample_shape=()):
        draws = super().sample(key, sample_shape)
        return jnp.where(draws > 0.5, draws, 0.0)


def test_draws_of_any_prior_on_its_edge_are_moved_inside():
    guide, params = met(single(lambda: OnTheEdge(0.0, 1.0)))
    base = guide.get_base_dist()
    u = base.sample(jax.random.key(0), (100,)) * guide._base.scale + guide._base.loc
    assert (u < -10).any()
    assert np.isfinite(u).all()
    assert np.isfinite(quick_jit(base.log_prob)(u)).all()


def test_sites_share_one_vector_of_coordinates():
    def model():
        numpyro.sample("a", dist.Normal(5.0, 2.0))
        with numpyro.plate("plate", 2):
            numpyro.sample("b", dist.Uniform(-1.0, 1.0))
        numpyro.sample("c", dist.Uniform(0.0, 1.0))
        numpyro.sample("d", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("e", dist.HalfNormal(2.0))

    guide, params = met(model)
    assert guide.base_kind == "prior"
    assert guide.latent_dim == 1 + 2 + 1 + 2 + 1
    draws = quick_sample(guide, params, 3, 4)
    assert {name: value.shape for name, value in draws.items()} == {
        "a": (3, 4),
        "b": (3, 4, 2),
        "c": (3, 4),
        "d": (3, 4, 3),
        "e": (3, 4),
    }


def test_a_hierarchy_starts_at_the_location_and_spread_of_its_prior():
    def model():
        scale = numpyro.sample("scale", dist.LogNormal(3.0, 0.1))
        numpyro.sample("x", dist.Normal(100.0, scale))

    guide, params = met(model)
    assert guide.base_kind == "moments"
    draws = quick_sample(guide, params, 4000)
    # Standard errors: 20 / sqrt(4000) = 0.3 and, of 2,000 prior draws, 0.6.
    assert draws["x"].mean() == pytest.approx(100, abs=3)
    assert draws["x"].std() == pytest.approx(20, rel=0.1)
    assert jnp.log(draws["scale"]).mean() == pytest.approx(3.0, abs=0.01)


def hierarchy(prior):
    def model():
        scale = numpyro.sample("scale", prior)
        numpyro.sample("x", dist.Normal(0.0, scale))

    return model


@pytest.mark.parametrize("prior", [dist.HalfNormal(2.0), dist.Uniform(0.0, 5.0)])
def test_a_hierarchy_starts_at_a_finite_divergence_from_its_prior(prior):
    # The mean of 1 / scale^2 is finite if the density of u, about log scale far to the
    # left, falls faster than exp(2 u) there. That of the prior falls as exp(u).
    guide, params = met(hierarchy(prior))
    assert guide.base_kind == "moments"
    u = jnp.array([[-20.0, 0.0], [-10.0, 0.0]])
    log_q = quick_jit(guide.get_posterior(params).log_prob)(u)
    assert log_q[1] - log_q[0] > 2 * 10
    alone, params = met(single(lambda: prior))
    log_p = quick_jit(alone.get_posterior(params).log_prob)(u[:, :1])
    assert log_p[1] - log_p[0] == pytest.approx(10, abs=0.1)


def test_a_prior_whose_density_is_scaled_counts_as_moments():
    guide, _ = met(handlers.scale(single(PRIORS["real"]), 2.0))
    assert guide.base_kind == "moments"


def test_an_improper_prior_starts_at_the_gaussian_of_the_options():
    def model():
        for kind, support in IMPROPER.items():
            numpyro.sample(kind, dist.ImproperUniform(support, (), event_shape=(3,)))
        numpyro.sample("a", dist.Uniform(0.0, 1.0))

    guide, params = met(model, base_loc=2.0, base_scale=0.1)
    assert guide.base_kind == "normal"

    @quick_jit
    def draw(key):
        u = guide.get_posterior(params).sample(key, (4000,))
        return u, guide._unpack_and_constrain(u, params)

    u, z = draw(jax.random.key(0))
    assert u[:, :-1].mean() == pytest.approx(2.0, abs=0.01)
    assert u[:, :-1].std() == pytest.approx(0.1, abs=0.01)
    assert u[:, -1].std() == pytest.approx(np.pi / 3**0.5, abs=0.2)
    for kind, support in IMPROPER.items():
        assert support(z[kind]).all()


def test_a_gaussian_base_on_request():
    loc, scale = jnp.array([1.0, -2.0]), 0.5
    guide, params = met(latents(2), base="normal", base_loc=loc, base_scale=scale)
    assert guide.base_kind == "normal"
    u = jax.random.normal(jax.random.key(0), (10, 2))
    log_q = quick_jit(guide.get_posterior(params).log_prob)(u)
    expected = dist.Normal(loc, scale).to_event(1).log_prob(u)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)


def test_a_gaussian_base_at_initial_values():
    guide, _ = met(
        latents(2),
        base="normal",
        base_loc=None,
        init_loc_fn=init_to_value(values={"z": jnp.array([5.0, -5.0])}),
    )
    expected = jax.scipy.special.logit(jnp.array([0.75, 0.25]))
    np.testing.assert_allclose(guide._base.loc, expected, rtol=1e-5)
