# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulators behind a callback are dear, whatever JAX counts of their operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.experimental import io_callback

import numpyro_epi as epi
from numpyro_epi._model.cost import Cost
from numpyro_epi._model.problem import Problem
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.options import Options
from numpyro_epi._train.pilot import is_dear
from numpyro_epi._train.plan import count_simulations

KEY = jax.random.key(0)
SMALL = {
    "num_particles": 100,
    "num_epochs": 2,
    "num_steps": 20,
    "num_evaluation": 2000,
    "warm_start_size": 1000,
    "progress_bar": False,
}
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(10,))


class Outside:
    """A simulator in NumPy that counts its calls, for one draw or for many."""

    def __init__(self, *, fails=False):
        self.num_calls = 0
        self.fails = fails

    def __call__(self, z):
        z = np.asarray(z)
        self.num_calls += z.size
        if self.fails and (z > 1.0).any():
            raise ArithmeticError("the solver gave up")
        return np.tanh(z)


def outside_model(simulate, method="sequential", mean=0.3, var=0.1):
    def model():
        z = numpyro.sample("z", dist.Normal())
        shape = jax.ShapeDtypeStruct((), z.dtype)
        x = jax.pure_callback(simulate, shape, z, vmap_method=method)
        epi.emergent_property(x, mean=mean, var=var)

    return model


def inside():
    z = numpyro.sample("z", dist.Normal())
    epi.emergent_property(jnp.tanh(z), mean=0.3, var=0.1)


def test_callbacks_are_seen_wherever_they_are():
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def pure(x):
        return jax.pure_callback(np.sin, shape, x)

    def ordered(x):
        return io_callback(np.sin, shape, x)

    def deep(x):
        return jax.lax.scan(lambda c, _: (jax.jit(pure)(c), None), x, None, 3)[0]

    def shown(x):
        jax.debug.callback(lambda y: None, x)
        return x

    x = jnp.ones((), jnp.float32)
    assert [Cost.of(f, x).has_callback for f in (pure, ordered, deep, shown)] == [
        True
    ] * 4
    assert not Cost.of(jnp.sin, x).has_callback


@pytest.mark.parametrize(
    "method", ["sequential", "sequential_unrolled", "expand_dims", "broadcast_all"]
)
def test_callbacks_are_called_in_all_ways_of_jax(method):
    simulate = Outside()
    inference = epi.EPI(outside_model(simulate, method), GUIDE, **SMALL)
    engine = inference._engine(KEY, (), {})
    u = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(1, 20, 1)
    found = engine.chunks.simulate(u, KEY[None], batch_size=20).stats
    np.testing.assert_allclose(found, np.tanh(u), rtol=1e-5)
    # None is made to fill up a chunk.
    assert simulate.num_calls <= 21


def test_a_callback_is_kept_and_replayed():
    report = epi.EPI(outside_model(Outside()), GUIDE, **SMALL).check(KEY)
    assert report.gradient.choice == "replay"
    assert "callback" in report.gradient.reason


def test_check_counts_what_a_run_makes():
    simulate = Outside()
    options = {**SMALL, "num_epochs": 1, "warm_start": False}
    # The prior has this mean and variance: the run has no cause to make more epochs.
    model = outside_model(simulate, mean=0.0, var=0.394)
    inference = epi.EPI(model, GUIDE, stat_gradient="replay", **options)
    report = inference.check(KEY)
    assert simulate.num_calls == 2 * report.num_draws
    assert "a run: about" in str(report)
    simulate.num_calls = 0
    result = inference.run(KEY)
    assert simulate.num_calls == result.num_simulations
    assert 0.5 < report.plan.num_simulations / result.num_simulations < 2.0


class Remembering(Outside):
    """It keeps what it was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __call__(self, z):
        self.asked.append(np.array(z).ravel())
        return super().__call__(z)


def test_no_draw_is_simulated_twice():
    """In all stages of a run with a law; float32 has a few equal draws by chance."""
    simulate = Remembering()
    result = epi.EPI(outside_model(simulate), GUIDE, **SMALL).run(KEY)
    assert result.law is not None
    asked = np.concatenate(simulate.asked)
    assert asked.size == result.num_simulations
    assert np.unique(asked).size > 0.999 * asked.size


def default_count(model, gradient):
    problem = Problem(model, (), {}, KEY)
    engine = Engine(problem, GuideFunctions(GUIDE, problem, KEY), Options(), None)
    return sum(count_simulations(engine, gradient, is_noisy=False))


def test_replay_needs_a_twelfth_of_the_calls():
    model = outside_model(Outside())
    assert default_count(model, "replay") < 180_000
    assert default_count(model, "score") > 2_000_000


def test_calls_are_replayed_in_many_latents_too():
    def model():
        z = numpyro.sample("z", dist.Normal().expand([20]).to_event(1))
        shape = jax.ShapeDtypeStruct((), z.dtype)
        x = jax.pure_callback(np.sum, shape, z, vmap_method="sequential")
        epi.emergent_property(x, mean=1.0)

    problem = Problem(model, (), {}, KEY)
    assert is_dear(problem)
    # The twin: the same in JAX is neither dear nor of few latents.
    assert not is_dear(problem_inside(20))


def problem_inside(num):
    def model():
        z = numpyro.sample("z", dist.Normal().expand([num]).to_event(1))
        epi.emergent_property(z.sum(), mean=1.0)

    return Problem(model, (), {}, KEY)


def test_without_a_callback_the_same_model_is_cheap():
    report = epi.EPI(inside, GUIDE, **SMALL).check(KEY)
    assert report.gradient.choice == "reverse"


def test_a_callback_that_cannot_be_batched_is_named():
    inference = epi.EPI(outside_model(Outside(), None), GUIDE, **SMALL)
    for call in (inference.check, inference.init, inference.run):
        with pytest.raises(ValueError, match='`vmap_method`.*"sequential"'):
            call(KEY)


def test_an_error_in_a_callback_is_told_in_one_sentence():
    inference = epi.EPI(outside_model(Outside(fails=True)), GUIDE, **SMALL)
    with pytest.raises(
        RuntimeError, match="'ArithmeticError: the solver gave up'"
    ) as e:
        inference.check(KEY)
    assert "Traceback" not in str(e.value)


def test_the_way_out_for_an_error_in_a_callback():
    """NaN where it fails: a sixth of the draws, so they are masked."""

    def simulate(z):
        return np.where(np.asarray(z) > 1.0, np.nan, np.tanh(z)).astype(z.dtype)

    inference = epi.EPI(
        outside_model(simulate), GUIDE, on_invalid="mask", **SMALL
    ).check(KEY)
    assert 0.1 < inference.invalid < 0.22


@pytest.mark.long
def test_a_callback_is_inferred_as_well_as_the_same_in_jax():
    options = {"num_epochs": 5, "num_steps": 100, "progress_bar": False}
    found = [
        epi.EPI(model, **options).run(KEY)
        for model in (outside_model(Outside()), inside)
    ]
    assert [r.gradient.choice for r in found] == ["replay", "reverse"]
    assert all(r.converged for r in found)
    assert found[0].num_simulations < 180_000 < found[1].num_simulations
    assert abs(found[0].entropy - found[1].entropy) < 0.05
