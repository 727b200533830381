# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The primitive: what it records, what it leaves alone, and what it refuses."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    autoguide,
)
from numpyro.infer.inspect import get_model_relations
from numpyro.infer.util import log_density

from numpyro_epi import emergent_property
from numpyro_epi.handlers import collect

KEY = jax.random.key(0)


def plain():
    a = numpyro.sample("a", dist.Normal(1.0, 2.0))
    with numpyro.plate("cells", 3):
        b = numpyro.sample("b", dist.LogNormal(a, 1.0))
    numpyro.sample("obs", dist.Normal(a, 1.0), obs=0.5)
    return jnp.stack([a, b.sum()])


def model():
    stat = plain()
    emergent_property(stat, mean=[0.0, 2.0], var=[1.0, 0.1], name="pair")
    return emergent_property(stat[0], mean=0.5)


SITES = {"emergent_property", "pair"}


# What stays as it was


@pytest.mark.core
def test_model_is_unchanged_but_for_its_deterministic_sites():
    before = handlers.trace(handlers.seed(plain, KEY)).get_trace()
    after = handlers.trace(handlers.seed(model, KEY)).get_trace()
    assert after.keys() - before.keys() == SITES
    for name, site in before.items():
        np.testing.assert_array_equal(site["value"], after[name]["value"])
    latents = {name: after[name]["value"] for name in ("a", "b")}
    assert (
        log_density(plain, (), {}, latents)[0] == log_density(model, (), {}, latents)[0]
    )


def test_nuts_starts_the_same_with_the_primitive():
    states = [NUTS(fn).init(KEY, 1, None, (), {}) for fn in (plain, model)]
    jax.tree.map(np.testing.assert_array_equal, *[state.z for state in states])
    assert states[0].potential_energy == states[1].potential_energy


def test_svi_fits_the_same_with_the_primitive():
    losses = []
    for program in (plain, model):
        guide = autoguide.AutoNormal(program)
        svi = SVI(program, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        state, _ = svi.update(svi.init(KEY))
        losses.append(svi.evaluate(state))
    assert losses[0] == losses[1]


# What it records


@pytest.mark.core
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_returns_the_statistic(parallel):
    draws = Predictive(model, num_samples=4, parallel=parallel)(KEY)
    assert draws["pair"].shape == (4, 2)
    np.testing.assert_array_equal(draws["pair"][:, 0], draws["a"])
    given = Predictive(model, {"a": jnp.arange(4.0), "b": jnp.ones((4, 3))})(KEY)
    np.testing.assert_array_equal(given["emergent_property"], jnp.arange(4.0))


def test_nuts_returns_the_statistic():
    mcmc = MCMC(NUTS(model), num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(KEY)
    draws = mcmc.get_samples()
    assert draws["pair"].shape == (3, 2)
    np.testing.assert_array_equal(draws["pair"][:, 0], draws["a"])


def test_guide_returns_the_statistic():
    guide = autoguide.AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    draws = guide.sample_posterior(
        KEY, svi.get_params(svi.init(KEY)), sample_shape=(5,)
    )
    np.testing.assert_array_equal(draws["emergent_property"], draws["a"])


@pytest.mark.core
def test_relations_show_the_statistic():
    relations = get_model_relations(model)
    assert relations["sample_dist"]["pair"] == "Deterministic"
    assert relations["sample_sample"]["pair"] == ["a", "b"]
    assert relations["observed"] == ["obs"]


HANDLED = {
    "condition": (lambda fn: handlers.condition(fn, {"a": 3.0}), SITES),
    "substitute": (lambda fn: handlers.substitute(fn, {"a": 3.0}), SITES),
    "do": (lambda fn: handlers.do(fn, {"a": 3.0}), SITES),
    "scope": (lambda fn: handlers.scope(fn, "x"), {f"x/{name}" for name in SITES}),
    "block": (lambda fn: handlers.block(fn, hide=["pair"]), SITES - {"pair"}),
    "block all": (handlers.block, set()),
    "mask": (lambda fn: handlers.mask(fn, mask=False), SITES),
    "scale": (lambda fn: handlers.scale(fn, scale=2.0), SITES),
}


@pytest.mark.parametrize("handler", HANDLED)
def test_numpyro_handlers_treat_it_as_a_deterministic_site(handler):
    apply, expected = HANDLED[handler]
    sites = handlers.trace(handlers.seed(apply(model), KEY)).get_trace()
    found = {name: s for name, s in sites.items() if s["type"] == "deterministic"}
    assert found.keys() == expected
    assert all("emergent_property" in site["infer"] for site in found.values())
    if handler in ("condition", "substitute", "do"):
        assert found["emergent_property"]["value"] == 3.0


def test_site_knows_the_plates_around_it():
    def plated():
        with numpyro.plate("cells", 3):
            rate = numpyro.sample("rate", dist.Normal())
            emergent_property(rate, mean=0.0)

    site = handlers.trace(handlers.seed(plated, KEY)).get_trace()["emergent_property"]
    assert [frame.name for frame in site["cond_indep_stack"]] == ["cells"]
    assert site["value"].shape == (3,)
    assert get_model_relations(plated)["plate_sample"]["cells"] == [
        "rate",
        "emergent_property",
    ]


def test_jit_and_vmap_without_leaks():
    def run(key):
        return handlers.trace(handlers.seed(model, key)).get_trace()["pair"]["value"]

    keys = jax.random.split(KEY, 4)
    with jax.checking_leaks():
        jitted, mapped = jax.jit(run)(KEY), jax.vmap(run)(keys)
    np.testing.assert_allclose(jitted, run(KEY), rtol=1e-6)
    np.testing.assert_allclose(mapped, jnp.stack([run(key) for key in keys]), rtol=1e-6)


TARGETS = [
    (0.0, None, ()),
    (5e7 + 0.125, 1e-20, ()),
    (0.1, 1 / 3, (2,)),
    ([0.1, np.pi], 1e-300, (2,)),
    (np.float32(0.5), np.int64(2), (2, 3)),
    (np.arange(3), [[0.1], [1e30]], (2, 3)),
    (jnp.array([1.0, 2.0]), None, (2,)),
    (np.asarray(1.5, ml_dtypes.bfloat16), None, (1,)),
]


@pytest.mark.core
@pytest.mark.parametrize(("mean", "var", "shape"), TARGETS)
def test_targets_keep_double_precision_and_hash(mean, var, shape):
    with handlers.trace() as sites:
        emergent_property(jnp.zeros(shape), mean, var)
    targets = sites["emergent_property"]["infer"]["emergent_property"]
    hash(targets)
    for got, given in zip(targets.broadcast(shape, site="x"), (mean, var), strict=True):
        if given is None:
            assert got is None
        else:
            assert got.dtype == np.float64
            expected = np.broadcast_to(np.asarray(given, np.float64), shape)
            np.testing.assert_array_equal(got, expected)


STATISTICS = [
    (0.5, ()),
    (3, ()),
    (True, ()),
    ([1, 2], (2,)),
    (np.ones((2, 3)), (2, 3)),
    (np.arange(4, dtype=np.uint8), (4,)),
    (jnp.ones((2, 2, 2), bool), (2, 2, 2)),
    (jnp.ones(2, jnp.bfloat16), (2,)),
]


@pytest.mark.core
@pytest.mark.parametrize(("stat", "shape"), STATISTICS)
def test_returns_the_statistic_as_a_floating_point_array(stat, shape):
    outside = emergent_property(stat, mean=0.0)
    with handlers.trace() as sites:
        inside = emergent_property(stat, mean=0.0)
    for got in (outside, inside, sites["emergent_property"]["value"]):
        assert isinstance(got, jax.Array)
        assert got.shape == shape
        assert jnp.issubdtype(got.dtype, jnp.floating)
        np.testing.assert_array_equal(got, jnp.asarray(stat).astype(got.dtype))


def test_gradient_passes_through():
    def loss(x):
        with handlers.trace():
            return emergent_property(x**2, mean=0.0)

    assert jax.grad(loss)(3.0) == 6.0


# Control flow


def scanned(x0=0.0):
    def step(x, _):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        emergent_property(jnp.stack([x, x**2]), mean=[0.1, 1 / 3], var=1e-20)
        return x, None

    return scan(step, x0, None, length=4)[0]


def test_scan_stacks_the_statistic_and_keeps_the_targets():
    with handlers.seed(rng_seed=0), collect() as found:
        scanned()
    stat, mean, var = found.properties["emergent_property"]
    assert stat.shape == mean.shape == var.shape == (4, 2)
    assert mean[3, 1] == 1 / 3
    assert (var == 1e-20).all()


def test_scan_runs_under_inference():
    kernel = NUTS(scanned)
    state = kernel.init(KEY, 1, None, (), {})
    draw = kernel.postprocess_fn((), {})(state.z)
    assert draw["emergent_property"].shape == (4, 2)
    guide = autoguide.AutoNormal(scanned)
    svi = SVI(scanned, guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=2))
    assert np.isfinite(svi.evaluate(svi.init(KEY)))
    with jax.checking_leaks():
        jax.jit(lambda key: handlers.seed(scanned, key)())(KEY)


def test_cond_runs_the_primitive_of_either_branch():
    def branch(sign):
        return lambda x: emergent_property(sign * x, mean=1.0, var=0.5)

    def branched(x):
        return cond(x > 0, branch(1.0), branch(-1.0), x)

    for x in (2.0, -2.0):
        with handlers.seed(rng_seed=0), collect() as found:
            branched(x)
        assert found.properties["emergent_property"] == (2.0, 1.0, 0.5)


# What it refuses


def ragged():
    return [jnp.zeros(2), jnp.zeros(3)]


REFUSED = {
    "zero var": (0.0, 0.0, 0.0, ValueError, "positive.*`var`.*`hub`.*0.0.*Leave"),
    "negative var": ([0.0] * 2, 0.0, [1, -0.5], ValueError, "`var`.*`hub`.*-0.5"),
    "nan var": (0.0, 0.0, np.nan, ValueError, "finite.*`var`.*`hub`.*nan"),
    "infinite var": (0.0, 0.0, np.inf, ValueError, "finite.*`var`.*`hub`.*inf"),
    "nan mean": (0.0, np.nan, None, ValueError, "finite.*`mean`.*`hub`.*nan"),
    "infinite mean": (0.0, [-np.inf], None, ValueError, "finite.*`mean`.*`hub`"),
    "long mean": (np.ones(2), np.ones(3), None, ValueError, r"\(2,\).*`mean`.*\(3,\)"),
    "enlarging mean": (0.0, [0.0, 1.0], None, ValueError, r"\(\).*`mean`.*`hub`"),
    "one-element mean": (0.0, [0.0], None, ValueError, r"\(\).*`mean`.*\(1,\)"),
    "enlarging var": (np.ones(2), 0.0, np.ones((2, 2)), ValueError, "`var`.*`hub`"),
    "no mean": (0.0, None, None, TypeError, "real.*`mean`.*`hub`.*None"),
    "text mean": (0.0, "1.0", None, TypeError, "real.*`mean`.*`hub`.*'1.0'"),
    "complex mean": (0.0, 1j, None, TypeError, "real.*`mean`.*`hub`.*1j"),
    "boolean var": (0.0, 0.0, True, TypeError, "real.*`var`.*`hub`.*True"),
    "ragged mean": (np.ones(2), [[1.0], [1.0, 2.0]], None, TypeError, "`mean`.*`hub`"),
    "text": ("fast", 0.0, None, TypeError, "array.*`stat`.*`hub`.*'fast'"),
    "none": (None, 0.0, None, TypeError, "`stat`.*`hub`.*None"),
    "dictionary": ({"a": 1.0}, 0.0, None, TypeError, "array.*`stat`.*`hub`.*dict"),
    "ragged": (ragged(), 0.0, None, TypeError, "array.*`stat`.*`hub`.*list"),
    "huge": (10**400, 0.0, None, TypeError, "`stat`.*`hub`"),
    "complex": (1j, 0.0, None, TypeError, "real.*`stat`.*`hub`.*1j.*`jnp.imag`"),
    "key": (KEY, 0.0, None, TypeError, "real.*`stat`.*`hub`.*key"),
    "empty": (np.ones((2, 0)), 0.0, None, ValueError, "one number.*`stat`.*`hub`"),
}


@pytest.mark.core
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("handler", [handlers.block, handlers.trace])
def test_refuses_and_names_the_site(case, handler):
    stat, mean, var, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        emergent_property(stat, mean, var, name="hub")
    with handler(), pytest.raises(error, match=message):
        emergent_property(stat, mean, var, name="hub")


@pytest.mark.parametrize(
    ("name", "error"), [("", ValueError), (None, TypeError), (3, TypeError)]
)
def test_refuses_a_name_that_is_no_name(name, error):
    with pytest.raises(error, match="`name` of an emergent property"):
        emergent_property(0.0, 0.0, name=name)


def in_scan(fn):
    return lambda x: jax.lax.scan(lambda c, y: (c, fn(y)), 0.0, x)


@pytest.mark.core
@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, in_scan, jax.grad])
@pytest.mark.parametrize("argument", ["mean", "var"])
def test_refuses_traced_targets(transform, argument):
    def run(x):
        return emergent_property(0.0, **({"mean": 0.0} | {argument: x}), name="hub")

    x = 1.0 if transform is jax.grad else jnp.ones(2)
    message = f"concrete.*`{argument}`.*`hub`.*traced.*numpy.*retarget"
    with pytest.raises(TypeError, match=message):
        transform(run)(x)


def test_refuses_targets_that_contain_a_tracer():
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(lambda x: emergent_property(jnp.ones(2), [0.0, x]))(1.0)


@pytest.mark.core
def test_numpyro_refuses_a_second_site_of_one_name():
    def twice():
        emergent_property(0.0, 0.0, name="hub")
        emergent_property(1.0, 0.0, name="hub")

    with pytest.raises(AssertionError, match="unique names.*`hub`"):
        handlers.trace(twice).get_trace()
