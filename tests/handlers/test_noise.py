# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import (
    block,
    condition,
    scope,
    seed,
    substitute,
    trace,
    uncondition,
)
from numpyro.infer import NUTS, SVI, Predictive, Trace_ELBO, autoguide

from numpyro_epi import emergent_property
from numpyro_epi.handlers import noise

KEY = jax.random.key(0)


def model():
    a = numpyro.sample("a", dist.Normal())
    with numpyro.plate("trials", 3):
        eps = numpyro.sample("eps", dist.Normal(), infer={"noise": True})
        count = numpyro.sample("count", dist.Bernoulli(0.3), infer={"noise": True})
    b = numpyro.sample("b", dist.Normal(), infer={"noise": False})
    numpyro.sample("obs", dist.Normal(a, 1.0), obs=0.5, infer={"noise": True})
    emergent_property(jnp.stack([a + eps, count]), mean=0.0)
    return a, b, eps, count


@pytest.mark.core
def test_hides_noise_and_nothing_else():
    before = trace(seed(model, KEY)).get_trace()
    after = trace(seed(noise(model), KEY)).get_trace()
    assert before.keys() - after.keys() == {"eps", "count"}
    for name, site in after.items():
        np.testing.assert_array_equal(site["value"], before[name]["value"])
        assert site.get("is_observed") == before[name].get("is_observed")


@pytest.mark.core
def test_draws_what_the_model_alone_would_draw():
    for alone, hidden in zip(
        seed(model, KEY)(), seed(noise(model), KEY)(), strict=True
    ):
        np.testing.assert_array_equal(alone, hidden)


@pytest.mark.core
def test_jitted_particles_have_their_own_noise_and_nothing_leaks():
    program = noise(model)
    keys = jax.random.split(KEY, 500)

    def run(key):
        return seed(program, key)()

    with jax.checking_leaks():
        jax.jit(run)(KEY)
        _, _, eps, count = jax.vmap(run)(keys)
    assert eps.shape == count.shape == (500, 3)
    assert np.unique(eps).size > 1490
    # Mean of 1,500 draws against its 5 standard errors: false alarm 6e-7 each.
    assert abs(eps.mean()) < 5 / np.sqrt(1500)
    assert abs(count.mean() - 0.3) < 5 * np.sqrt(0.21 / 1500)


def bare():
    numpyro.sample("a", dist.Normal())


def with_key():
    jax.random.normal(numpyro.prng_key())


def with_site():
    numpyro.sample("eps", dist.Normal(), infer={"noise": True})


def with_observed_site():
    numpyro.sample("eps", dist.Normal(), obs=0.0, infer={"noise": True})


def with_param():
    numpyro.param("p", jax.random.normal)


def in_scan(body):
    def scanned():
        def step(carry, _):
            numpyro.sample("z", dist.Normal())
            body()
            return carry, None

        scan(step, 0.0, None, length=3)

    return scanned


def in_cond(body):
    def branch(_):
        body()
        return 0.0

    def branched():
        cond(1.0 > 0.0, branch, branch, 0.0)

    return branched


IS_NOISY = {
    "nothing": (noise(bare), False),
    "key": (noise(with_key), True),
    "site": (noise(with_site), True),
    "observed site": (noise(with_observed_site), False),
    "conditioned inside": (noise(condition(with_site, {"eps": 0.0})), False),
    "substituted inside": (noise(substitute(with_site, {"eps": 0.0})), False),
    "fixed key": (noise(seed(with_key, 0)), False),
    "fixed site": (noise(seed(with_site, 0)), False),
    "latent hidden inside": (noise(block(bare)), True),
    "latent in scan": (noise(in_scan(lambda: None)), False),
    "key in scan": (noise(in_scan(with_key)), True),
    "site in scan": (noise(in_scan(with_site)), True),
    "latent in cond": (noise(in_cond(bare)), False),
    "key in cond": (noise(in_cond(with_key)), True),
    "site in cond": (noise(in_cond(with_site)), True),
    "initial value": (noise(with_param), False),
    "subsample": (noise(lambda: numpyro.plate("p", 9, 3)), True),
}


@pytest.mark.core
@pytest.mark.parametrize("case", IS_NOISY)
def test_knows_whether_the_run_was_noisy(case):
    program, expected = IS_NOISY[case]
    seed(program, KEY)()
    assert program.is_noisy is expected


@pytest.mark.parametrize("around", [block, uncondition, lambda fn: scope(fn, "x")])
def test_keys_for_handlers_around_it_do_not_count(around):
    def observed():
        numpyro.sample("a", dist.Normal())
        numpyro.sample("obs", dist.Normal(), obs=0.0)

    program = noise(observed)
    seed(around(program), KEY)()
    assert not program.is_noisy


def test_is_noisy_tells_of_the_last_run():
    program = noise(lambda noisy: with_key() if noisy else bare())
    for noisy in (True, False, True):
        seed(program, KEY)(noisy)
        assert program.is_noisy is noisy


@pytest.mark.parametrize("body", [with_site, with_key])
@pytest.mark.parametrize("nest", [in_scan, in_cond])
def test_control_flow_runs_as_without_the_handler(body, nest):
    before = trace(seed(nest(body), KEY)).get_trace()
    after = trace(seed(noise(nest(body)), KEY)).get_trace()
    assert before.keys() - after.keys() == ({"eps"} if body is with_site else set())
    for name, site in after.items():
        np.testing.assert_array_equal(site["value"], before[name]["value"])


def test_plates_around_the_handler_give_each_element_its_noise():
    def within():
        a = numpyro.sample("a", dist.Normal())
        eps = numpyro.sample("eps", dist.Normal(), infer={"noise": True})
        return a, eps

    def plated(fn):
        with numpyro.plate("rows", 4, dim=-2), numpyro.plate("columns", 3):
            return fn()

    a, eps = seed(plated, KEY)(noise(within))
    assert a.shape == eps.shape == (4, 3)
    assert np.unique(eps).size == 12
    # As for the latents, a block between the two hides the site from the plates.
    a, eps = seed(plated, KEY)(block(noise(within)))
    assert a.shape == eps.shape == ()


@pytest.mark.parametrize("build", [autoguide.AutoNormal, autoguide.AutoDelta])
def test_guides_never_see_noise(build):
    program = noise(model)
    guide = build(program)
    svi = SVI(program, guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=3))
    assert np.isfinite(svi.evaluate(svi.init(KEY)))
    assert guide.prototype_trace.keys() - {"trials"} == {
        "a",
        "b",
        "obs",
        "emergent_property",
    }


def test_guides_can_be_built_on_noise_in_scan():
    guide = autoguide.AutoNormal(noise(in_scan(with_site)))
    seed(guide, KEY)()
    assert guide.prototype_trace.keys() == {"z"}


def test_predictive_draws_noise():
    draws = Predictive(noise(model), num_samples=4)(KEY)
    assert draws.keys() == {"a", "b", "obs", "emergent_property"}
    given = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    stat = Predictive(noise(model), given)(KEY)["emergent_property"]
    assert np.unique(stat[:, 0]).size == 12


def test_discrete_noise_is_not_enumerated():
    state = NUTS(noise(model)).init(KEY, 1, None, (), {})
    assert state.z.keys() == {"a", "b"}


@pytest.mark.core
@pytest.mark.parametrize("around", [lambda fn: fn, trace])
def test_needs_a_key(around):
    with pytest.raises(RuntimeError, match="key for the noise site `eps`.*`numpyro.ha"):
        around(noise(with_site))()
