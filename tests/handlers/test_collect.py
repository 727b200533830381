# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import block, do, scope, seed, trace

from numpyro_epi import emergent_property
from numpyro_epi.handlers import collect, retarget, tilt

KEY = jax.random.key(0)


def model(shift=0.0):
    a = numpyro.sample("a", dist.Normal())
    emergent_property(a + shift, mean=0.1, name="scalar")
    matrix = a * jnp.ones((2, 3))
    emergent_property(matrix, mean=[0.0, 1.0, 2.0], var=[[0.1], [0.2]], name="matrix")
    return a


@pytest.mark.core
def test_collects_statistics_and_targets():
    found = collect(model)
    with trace() as sites:
        a = seed(found, KEY)(shift=1.0)
    assert list(found.properties) == ["scalar", "matrix"]
    stat, mean, var = found.properties["scalar"]
    assert stat == a + 1.0
    assert (mean, var) == (0.1, None)
    stat, mean, var = found.properties["matrix"]
    np.testing.assert_array_equal(stat, sites["matrix"]["value"])
    np.testing.assert_array_equal(mean, [[0.0, 1.0, 2.0]] * 2)
    np.testing.assert_array_equal(var, [[0.1] * 3, [0.2] * 3])
    assert mean.dtype == var.dtype == np.float64


@pytest.mark.core
def test_leaves_the_run_alone():
    without = trace(seed(model, KEY)).get_trace()
    within = trace(seed(collect(model), KEY)).get_trace()
    assert list(without) == list(within)
    assert without["a"]["value"] == within["a"]["value"]


def test_forgets_the_run_before():
    found = collect(lambda name: emergent_property(0.0, 0.0, name=name))
    found("one")
    found("two")
    assert list(found.properties) == ["two"]


def test_is_empty_without_properties():
    found = collect(lambda: numpyro.sample("a", dist.Normal()))
    assert found.properties == {}
    seed(found, KEY)()
    assert found.properties == {}


PLACES = {
    "no scope": (lambda: collect(model), ["scalar", "matrix"]),
    "scope inside": (lambda: collect(scope(model, "x")), ["x/scalar", "x/matrix"]),
    "block inside": (lambda: collect(block(model, hide=["scalar"])), ["matrix"]),
    "do inside": (lambda: collect(do(model, {"a": 1.0})), ["scalar", "matrix"]),
}


@pytest.mark.parametrize("place", PLACES)
def test_names_are_those_at_the_place_of_the_handler(place):
    build, expected = PLACES[place]
    found = build()
    seed(found, KEY)()
    assert list(found.properties) == expected


@pytest.mark.parametrize(
    "around", [lambda fn: scope(fn, "x"), block, lambda fn: do(fn, {"a": 1.0})]
)
def test_handlers_around_it_do_not_rename(around):
    found = collect(model)
    seed(around(found), KEY)()
    assert list(found.properties) == ["scalar", "matrix"]


def test_targets_are_those_of_the_run_also_if_set_further_out():
    found = collect(model)
    seed(retarget(found, {"scalar": (7.0, 2.0)}), KEY)()
    assert found.properties["scalar"][1:] == (7.0, 2.0)


def test_substituted_statistics_are_those_of_the_run():
    found = collect(model)
    seed(numpyro.handlers.substitute(found, {"scalar": 7.0}), KEY)()
    assert found.properties["scalar"].stat == 7.0


@pytest.mark.core
def test_jit_and_vmap_without_leaks():
    def run(key):
        with seed(rng_seed=key), collect() as found:
            model()
        return found.properties

    with jax.checking_leaks():
        jitted = jax.jit(run)(KEY)
        mapped = jax.vmap(lambda key: run(key)["matrix"].stat)(jax.random.split(KEY, 3))
    np.testing.assert_allclose(jitted["matrix"].stat, run(KEY)["matrix"].stat)
    assert mapped.shape == (3, 2, 3)


def test_collects_within_plates():
    with seed(rng_seed=0), collect() as found, numpyro.plate("cells", 3):
        emergent_property(numpyro.sample("a", dist.Normal()), 0.0)
    assert found.properties["emergent_property"].mean.shape == (3,)


def property_twice():
    emergent_property(0.0, 0.0, name="hub")
    emergent_property(1.0, 0.0, name="hub")


def property_then_latent():
    emergent_property(0.0, 0.0, name="hub")
    numpyro.sample("hub", dist.Normal())


def latent_then_property():
    numpyro.sample("hub", dist.Normal())
    emergent_property(0.0, 0.0, name="hub")


HANDLERS = {
    "collect": lambda fn: collect(fn),
    "tilt": lambda fn: tilt(fn, {"hub": np.zeros(1)}),
    "retarget": lambda fn: retarget(fn, {"hub": (0.0, 1.0)}),
}


@pytest.mark.core
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize(
    "twice", [property_twice, property_then_latent, latent_then_property]
)
@pytest.mark.parametrize("around", [seed, lambda fn, key: trace(seed(fn, key))])
def test_every_handler_refuses_a_second_site_of_one_name(handler, twice, around):
    with pytest.raises(ValueError, match="a second site called `hub`.*`name=`.*scope"):
        around(HANDLERS[handler](twice), KEY)()
    # The stack is clean after an error.
    assert not numpyro.primitives._PYRO_STACK


def test_scopes_tell_sites_of_one_name_apart():
    def in_scopes():
        model()
        with scope(prefix="x"):
            model()

    found = collect(in_scopes)
    seed(found, KEY)()
    assert list(found.properties) == ["scalar", "matrix", "x/scalar", "x/matrix"]
