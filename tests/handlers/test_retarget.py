# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import scope, seed, trace
from numpyro.infer.util import log_density

from numpyro_epi import emergent_property
from numpyro_epi.handlers import collect, retarget, tilt

KEY = jax.random.key(0)


def model():
    a = numpyro.sample("a", dist.Normal())
    emergent_property(a, mean=0.1, name="rate")
    emergent_property(a * jnp.ones(2), mean=0.2, var=[1.0, 2.0], name="pair")


def targets(fn):
    with seed(rng_seed=0), collect() as found:
        fn()
    return {name: site[1:] for name, site in found.properties.items()}


NEW = {
    "mean only stays": ("rate", (5e7 + 0.125,), 5e7 + 0.125, None),
    "mean only, none": ("rate", (3.0, None), 3.0, None),
    "mean only gets var": ("rate", (3.0, 1e-20), 3.0, 1e-20),
    "var goes": ("pair", (3.0,), [3.0, 3.0], None),
    "both": ("pair", ([3.0, 4.0], 0.5), [3.0, 4.0], [0.5, 0.5]),
}


@pytest.mark.core
@pytest.mark.parametrize("case", NEW)
def test_replaces_the_targets_of_the_named_site_only(case):
    name, pair, mean, var = NEW[case]
    before, after = targets(model), targets(retarget(model, {name: pair}))
    np.testing.assert_array_equal(after[name][0], mean)
    if var is None:
        assert after[name][1] is None
    else:
        np.testing.assert_array_equal(after[name][1], var)
    (other,) = before.keys() - {name}
    np.testing.assert_equal(after[other], before[other])


@pytest.mark.core
@pytest.mark.parametrize("new", [{}, {"rate": (3.0,)}])
def test_leaves_the_run_alone(new):
    without = trace(seed(model, KEY)).get_trace()
    within = trace(seed(retarget(model, new), KEY)).get_trace()
    assert list(without) == list(within)
    for name, site in without.items():
        np.testing.assert_array_equal(site["value"], within[name]["value"])


def test_names_are_those_at_the_place_of_the_handler():
    inside = scope(retarget(model, {"rate": (7.0,)}), "x")
    outside = retarget(scope(model, "x"), {"x/rate": (7.0,)})
    assert targets(inside)["x/rate"] == targets(outside)["x/rate"] == (7.0, None)


def test_the_outer_of_two_wins():
    nested = retarget(retarget(model, {"rate": (7.0,)}), {"rate": (8.0,)})
    assert targets(nested)["rate"] == (8.0, None)


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_tilt_follows_the_new_targets(place):
    new = {"rate": (2.0, 0.25), "pair": (0.0,)}
    multipliers = {"rate": np.array([0.5, 1.5]), "pair": np.zeros((1, 2))}
    if place == "inside":
        tilted = tilt(retarget(model, new), multipliers)
    else:
        tilted = retarget(tilt(model, multipliers), new)
    expected = dist.Normal().log_prob(3.0) - 0.5 * (3 - 2) - 1.5 * ((3 - 2) ** 2 - 0.25)
    got, _ = log_density(tilted, (), {}, {"a": 3.0})
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_retargets_within_scan():
    def scanned():
        def step(x, _):
            emergent_property(x, mean=0.0, name="rate")
            return x + 1.0, None

        scan(step, 0.0, None, length=3)

    (mean, var) = targets(retarget(scanned, {"rate": (7.0, 2.0)}))["rate"]
    assert mean.tolist() == [7.0] * 3
    assert var.tolist() == [2.0] * 3


@pytest.mark.core
def test_one_instance_serves_many_jitted_runs_without_leaks():
    program = retarget(model, {"rate": (7.0,)})

    def run(key):
        return trace(seed(program, key)).get_trace()["rate"]["value"]

    with jax.checking_leaks():
        jax.jit(run)(KEY)
        jax.vmap(run)(jax.random.split(KEY, 2))


REFUSED_AT_ONCE = {
    "no mapping": (None, TypeError, "mapping.*`targets` of `retarget`.*None"),
    "list": ([("rate", 1.0)], TypeError, "mapping.*list"),
    "bare number": ({"rate": 1.0}, TypeError, "tuple.*`rate`.*1.0"),
    "list as pair": ({"rate": [0.0, 1.0]}, TypeError, "tuple.*`rate`.*list"),
    "three": ({"rate": (0.0, 1.0, 2.0)}, TypeError, "tuple.*`rate`"),
    "negative var": ({"rate": (0.0, -1.0)}, ValueError, "positive.*`var`.*`rate`"),
    "nan mean": ({"rate": (np.nan,)}, ValueError, "finite.*`mean`.*`rate`"),
    "text": ({"rate": ("a",)}, TypeError, "real.*`mean`.*`rate`"),
}


@pytest.mark.core
@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_refuses_wrong_targets_when_built(case):
    new, error, message = REFUSED_AT_ONCE[case]
    with pytest.raises(error, match=message):
        retarget(model, new)


def test_refuses_traced_targets():
    with pytest.raises(TypeError, match="concrete.*`mean`.*`rate`.*traced"):
        jax.jit(lambda x: retarget(model, {"rate": (x,)}))(1.0)


REFUSED_IN_A_RUN = {
    "unknown": ({"rat": (0.0,)}, r"\(`rate`, `pair`\) in `targets` of `ret.*got `rat`"),
    "a latent": ({"a": (0.0,)}, "`rate`, `pair`.*got `a`"),
    "long mean": ({"pair": (np.ones(3),)}, r"\(2,\).*`mean`.*`pair`.*\(3,\)"),
    "enlarging": ({"rate": (0.0, [1.0])}, r"\(\).*`var`.*`rate`.*\(1,\)"),
}


@pytest.mark.core
@pytest.mark.parametrize("case", REFUSED_IN_A_RUN)
def test_refuses_what_does_not_fit_the_model(case):
    new, message = REFUSED_IN_A_RUN[case]
    with pytest.raises(ValueError, match=message):
        seed(retarget(model, new), KEY)()


def test_says_when_the_model_has_no_property():
    with pytest.raises(ValueError, match=r"\(none\).*got `rate`"):
        retarget(lambda: None, {"rate": (0.0,)})()


def test_an_error_in_the_model_comes_first():
    def broken():
        raise RuntimeError("simulator")

    with pytest.raises(RuntimeError, match="simulator"):
        retarget(broken, {"unknown": (0.0,)})()
