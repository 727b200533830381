# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""`param` and `mutable` sites: constants of the model, or refused with advice."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.module import (
    eqx_module,
    flax_module,
    nnx_module,
    random_eqx_module,
    random_flax_module,
    random_nnx_module,
)
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.reparam import LocScaleReparam
from numpyro.primitives import mutable

import numpyro_epi as epi
from numpyro_epi._model.params import used_inputs
from numpyro_epi._model.problem import Problem
from small_results import GUIDE, OPTIONS

KEY = jax.random.key(0)
NET = eqx.nn.MLP(1, 1, 3, 1, key=KEY)
WEIGHTS = eqx.filter(NET, eqx.is_inexact_array)


def latent():
    return numpyro.sample("z", dist.Normal(0.0, 1.0))


def scaled():
    w = numpyro.param("w", 2.0)
    epi.emergent_property(w * latent(), mean=1.0)


def in_the_prior():
    w = numpyro.param("w", lambda key: jax.random.normal(key))
    z = numpyro.sample("z", dist.Normal(w, 1.0))
    epi.emergent_property(z, mean=1.0)


def in_the_likelihood():
    z, w = latent(), numpyro.param("w", 2.0, constraint=dist.constraints.positive)
    numpyro.sample("y", dist.Normal(z, w), obs=0.0)
    epi.emergent_property(z, mean=1.0)


def in_a_loop():
    w = numpyro.param("w", 2.0)
    z, _ = jax.lax.scan(lambda z, _: (z + 0.1 * w, None), latent(), None, length=3)
    epi.emergent_property(z, mean=1.0)


def in_a_state():
    state = mutable("s", {"v": 1.0})
    state["v"] += 1.0
    epi.emergent_property(state["v"] * latent(), mean=1.0)


def in_a_number():
    epi.emergent_property(mutable("s", 1) * latent(), mean=1.0)


def group():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
    epi.emergent_property(theta, mean=1.0)


centred = handlers.reparam(group, {"theta": LocScaleReparam(None)})


def network():
    net = eqx_module("net", NET)
    epi.emergent_property(net(latent()[None])[0], mean=0.1)


def partly_random():
    net = random_eqx_module("net", NET, {"layers[0].bias": dist.Normal(0, 1)})
    epi.emergent_property(net(jnp.ones(1))[0], mean=0.1)


# Sites that matter, and the values that its message asks for, by their words there.
TRAINED = {
    "statistic": (scaled, {"value": 1.5}),
    "prior": (in_the_prior, {"value": 1.5}),
    "likelihood": (in_the_likelihood, {"value": 1.5}),
    "loop": (in_a_loop, {"value": 1.5}),
    "state": (in_a_state, {"value": {"v": 2.0}}),
    "number": (in_a_number, {"value": 1}),
    "centring": (centred, {"value": 0.3}),
    "network": (network, {"params": WEIGHTS}),
    "part of a network": (partly_random, {"params": WEIGHTS}),
}


def advice(model):
    """The call that the message about a model advises."""
    with pytest.raises(ValueError, match="whose value no handler supplies") as err:
        Problem(model, (), {}, KEY)
    return re.search(r"`(numpyro\.handlers\.substitute\(.*?\}\))`", str(err.value))[1]


@pytest.mark.parametrize("name", TRAINED)
def test_what_the_message_advises_works(name):
    model, values = TRAINED[name]
    fixed = eval(advice(model), {"numpyro": numpyro, "model": model, **values})  # noqa: S307
    problem = Problem(fixed, (), {}, KEY)
    sim = problem.simulate(jnp.zeros(problem.num_latents), KEY)
    assert np.isfinite(sim.stats).all()


def test_the_value_that_is_supplied_counts():
    fixed = handlers.substitute(scaled, {"w": 5.0})
    sim = Problem(fixed, (), {}, KEY).simulate(jnp.ones(1), KEY)
    assert sim.stats[0] == 5.0
    state = handlers.substitute(in_a_state, {"s": {"v": 2.0}})
    problem = Problem(state, (), {}, KEY)
    for _ in range(2):  # a run does not see what another has stored
        assert problem.simulate(jnp.ones(1), KEY).stats[0] == 3.0


def unused_number():
    numpyro.param("w", 2.0)
    mutable("calls", {"n": 0})["n"] += 1
    epi.emergent_property(latent(), mean=1.0)


def unused_in_jit():
    w = numpyro.param("w", 2.0)
    z = jax.jit(lambda w, z: 2.0 * z + 0.0 * jax.lax.stop_gradient(z))(w, latent())
    epi.emergent_property(z, mean=1.0)


def random_network():
    net = random_eqx_module("net", NET, dist.Normal(0.0, 1.0))
    epi.emergent_property(net(jnp.ones(1))[0], mean=0.1)


lifted = handlers.lift(centred, {"theta_centered": dist.Uniform(0.0, 1.0)})
UNUSED = {
    "number": (unused_number, ["z"]),
    "jit": (unused_in_jit, ["z"]),
    "lifted": (lifted, ["mu", "theta_centered", "theta_decentered"]),
    "random network": (
        random_network,
        [f"net/layers[{i}].{part}" for i in range(2) for part in ("weight", "bias")],
    ),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_nothing_depends_on_is_accepted(name):
    model, sites = UNUSED[name]
    assert [site.name for site in Problem(model, (), {}, KEY).sites] == sites


def test_dependence_is_read_off_the_program():
    """Broken twin: a perturbation sees nothing of a unit that is switched off."""

    def switched(w, v, z):
        return jax.nn.relu(z - w * 1e3) + 0.0 * z, jax.jit(lambda a, b: b)(v, z)

    jaxpr = jax.make_jaxpr(switched)(1.0, 1.0, 1.0).jaxpr
    assert used_inputs(jaxpr, [True, True]) == [True, False, True]
    assert used_inputs(jaxpr, [False, True]) == [False, False, True]
    assert switched(1.0, 1.0, 1.0)[0] == switched(1.01, 1.0, 1.0)[0]


@pytest.mark.long
@pytest.mark.parametrize(
    "guide", [GUIDE, AutoMultivariateNormal], ids=["flow", "normal"]
)
def test_everything_runs_on_a_network_with_random_weights(guide, tmp_path):
    result = epi.EPI(random_network, guide, **OPTIONS).run(KEY)
    names = UNUSED["random network"][1]
    assert set(result.sample(KEY, 3)) == set(names)
    assert set(result.predict(KEY, 3)) == {*names, "emergent_property"}
    result.save(tmp_path / "net.npz")
    again = epi.EPIResult.load(tmp_path / "net.npz", random_network, guide)
    draws = result.sample(KEY, 3)
    np.testing.assert_array_equal(result.log_prob(draws), again.log_prob(draws))


@pytest.mark.long
def test_a_fixed_centring_gives_the_exact_law():
    """theta ~ Normal(0, 5) tilted to mean 1: tolerance 0.1 sds, 10% of the sd."""
    fixed = handlers.substitute(centred, {"theta_centered": 0.3})
    result = epi.EPI(fixed, num_epochs=4, progress_bar=False).run(KEY)
    theta = result.predict(KEY, 20_000)["emergent_property"]
    assert result.converged
    assert theta.mean() == pytest.approx(1.0, abs=0.1)
    assert theta.std() == pytest.approx(5**0.5, rel=0.1)
    # KL from the prior: of a mean that is moved by 1, in sds of theta.
    assert result.divergence == pytest.approx(0.1, abs=0.05)
    hessian = epi.sensitivity.hessian(result, result.sample(KEY, 2))
    assert np.isfinite(hessian.matrix).all()


# -- networks of flax -----------------------------------------------------------------


def dense():
    return pytest.importorskip("flax.linen").Dense(1)


def test_a_flax_network_is_fixed_as_the_message_says():
    module = dense()

    def model():
        net = flax_module("net", module, input_shape=(1,))
        epi.emergent_property(net(latent()[None])[0], mean=0.1)

    params = module.init(KEY, jnp.ones(1))["params"]
    names = {"numpyro": numpyro, "model": model, "params": params}
    problem = Problem(eval(advice(model), names), (), {}, KEY)  # noqa: S307
    assert problem.sites[0].name == "z"


@pytest.mark.parametrize("prior", [dist.Normal(0, 1), {"kernel": dist.Normal(0, 1)}])
def test_random_weights_of_flax(prior):
    module = dense()

    def model():
        net = random_flax_module("net", module, prior, input_shape=(1,))
        epi.emergent_property(net(jnp.ones(1))[0], mean=0.1)

    if not isinstance(prior, dict):
        names = [site.name for site in Problem(model, (), {}, KEY).sites]
        assert sorted(names) == ["net/bias", "net/kernel"]
        return
    params = module.init(KEY, jnp.ones(1))["params"]
    names = {"numpyro": numpyro, "model": model, "params": params}
    problem = Problem(eval(advice(model), names), (), {}, KEY)  # noqa: S307
    assert problem.sites[0].name == "net/kernel"


def test_a_flax_network_with_a_state():
    nn = pytest.importorskip("flax.linen")

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(1)(x))

    module, x = Normed(), jnp.arange(3.0)[:, None]
    values = module.init(KEY, x)

    def model(declare=flax_module):
        net = declare("net", module, input_shape=(3, 1), mutable=["batch_stats"])
        epi.emergent_property(net(latent() * x).sum(), mean=0.1)

    given = {
        "params": values["params"],
        "state": {"batch_stats": values["batch_stats"]},
    }
    names = {"numpyro": numpyro, "model": model, **given}
    fixed = eval(advice(model), names)  # noqa: S307
    assert Problem(fixed, (), {}, KEY).sites[0].name == "z"
    half = handlers.substitute(model, {"net$params": given["params"]})
    with pytest.raises(ValueError, match="both `net.params` and `net.state`, which"):
        Problem(half, (), {}, KEY)
    random = partial(random_flax_module, prior=dist.Normal(0.0, 1.0))
    assert len(Problem(partial(model, random), (), {}, KEY).sites) == 5


def test_networks_of_nnx():
    nnx = pytest.importorskip("flax.nnx")
    module = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def model():
        net = nnx_module("net", module)
        epi.emergent_property(net(latent()[None])[0], mean=0.1)

    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    names = {"numpyro": numpyro, "model": model, "params": params}
    assert Problem(eval(advice(model), names), (), {}, KEY).num_latents == 1  # noqa: S307

    def weights():
        net = random_nnx_module("net", module, dist.Normal(0.0, 1.0))
        epi.emergent_property(net(jnp.ones(1))[0], mean=0.1)

    assert Problem(weights, (), {}, KEY).num_latents == 2
