# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Programs without a kind of derivative, or without any, are inferred all the same."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._model.derivatives import Derivatives
from numpyro_epi.sensitivity import hessian

KEY = jax.random.key(0)
# A run that is short, and a flow that compiles fast.
SMALL = dict(
    num_particles=100,
    num_epochs=1,
    num_steps=20,
    num_evaluation=1000,
    warm_start_size=300,
    progress_bar=False,
)


def solve(rate, adjoint):
    """Decay from 1 at a rate, for one unit of time."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -args * y),
        diffrax.Tsit5(),
        0.0,
        1.0,
        0.1,
        1.0,
        args=rate,
        stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6),
        adjoint=adjoint,
        max_steps=64,
        throw=False,
    )


def plain(rate):
    return jnp.exp(-rate)


def reverse_alone(rate):
    return solve(rate, diffrax.RecursiveCheckpointAdjoint()).ys[0]


def reverse_alone_in_batches(rate):
    """For one rate, JAX takes forward mode to leave out what only the news needs."""
    solution = solve(rate, diffrax.RecursiveCheckpointAdjoint())
    is_solved = solution.result == diffrax.RESULTS.successful
    return jnp.where(is_solved, jnp.exp(-rate), jnp.nan)


def forward_alone(rate):
    return solve(rate, diffrax.ForwardMode()).ys[0]


def while_loop(rate):
    def body(carry):
        x, i = carry
        return x * (1.0 - 0.02 * rate), i + 1

    # As many steps as the data say: no reverse mode.
    return jax.lax.while_loop(lambda c: c[1] < 50 + 0 * c[0], body, (1.0, 0))[0]


@jax.custom_vjp
def _rule(rate):
    return jnp.exp(-rate)


_rule.defvjp(lambda r: (_rule(r), r), lambda r, g: (-jnp.exp(-r) * g,))


def reverse_rule(rate):
    return _rule(rate)


def outside(rate):
    shape = jax.ShapeDtypeStruct(jnp.shape(rate), rate.dtype)
    return jax.pure_callback(
        lambda r: np.exp(-np.asarray(r)), shape, rate, vmap_method="expand_dims"
    )


# What it does, whether JAX has forward and reverse mode, and what EPI then takes.
PROGRAMS = [
    (plain, True, True, "reverse"),
    (reverse_alone, False, True, "reverse"),
    (reverse_alone_in_batches, False, True, "reverse"),
    (forward_alone, True, False, "forward"),
    (while_loop, True, False, "forward"),
    (reverse_rule, False, True, "reverse"),
    (outside, False, False, "score"),
]


def model_of(program):
    def model():
        rate = numpyro.sample("rate", dist.Uniform(0.0, 3.0).expand([2]).to_event(1))
        epi.emergent_property(program(rate[0] * rate[1]), mean=0.4, var=0.1**2)

    return model


@pytest.mark.parametrize(("program", "forward", "reverse", "choice"), PROGRAMS)
def test_jax_says_which_derivatives_exist(program, forward, reverse, choice):
    found = Derivatives.of(program, jnp.asarray(0.5))
    assert (found.forward is None, found.reverse is None) == (forward, reverse)


def test_errors_of_the_program_are_not_read_as_missing_derivatives():
    def no_batch(rate):
        shape = jax.ShapeDtypeStruct((), rate.dtype)
        return jax.pure_callback(lambda r: np.exp(-r), shape, rate)

    def wrong_type(rate):
        return jnp.exp("rate")

    def wrong_value(rate):
        return jnp.reshape(rate, (2,))

    for program in (no_batch, wrong_type, wrong_value):
        with pytest.raises((TypeError, ValueError, NotImplementedError)):
            Derivatives.of(program, jnp.asarray(0.5))


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda p: p[0].__name__)
def program_and_result(request):
    guide = epi.guides.AutoRealNVP(
        model_of(request.param[0]), num_flows=2, hidden_dims=(8,)
    )
    # With a dear simulator, "auto" would take "replay", which needs none.
    inference = epi.EPI(guide.model, guide, stat_gradient=request.param[3], **SMALL)
    return request.param, inference, inference.run(KEY)


@pytest.mark.long
def test_it_is_inferred(program_and_result):
    (_, _, _, choice), _, result = program_and_result
    assert result.gradient.choice == choice
    assert np.isfinite(result.score)


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize(("program", "forward", "reverse", "choice"), PROGRAMS)
def test_the_pilot_chooses_one_that_exists(program, forward, reverse, choice):
    inference = epi.EPI(model_of(program), warm_start=False, progress_bar=False)
    assert inference.check(KEY).gradient.choice == choice


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize(("program", "forward", "reverse", "choice"), PROGRAMS)
def test_single_steps_take_one_that_exists(program, forward, reverse, choice):
    guide = epi.guides.AutoRealNVP(model_of(program), num_flows=2, hidden_dims=(8,))
    inference = epi.EPI(guide.model, guide, **SMALL)
    engine = inference._engine(KEY, (), {})
    state, _ = engine.run_steps(inference.init(KEY).guide, 1, choice)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.long
def test_curvature_of_the_exact_law_does_without(program_and_result):
    """Autodiff or differences: the same function, log p0 - lambda . T."""
    _, _, result = program_and_result
    found = hessian(result, {"rate": [1.0, 0.9]}, num_simulations=1)
    assert np.isfinite(found.tilted).all()


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize(("program", "forward", "reverse", "choice"), PROGRAMS)
def test_a_mode_that_is_asked_for_and_missing_is_refused(
    program, forward, reverse, choice
):
    for mode, exists in (("forward", forward), ("reverse", reverse)):
        if exists:
            continue
        inference = epi.EPI(model_of(program), stat_gradient=mode, **SMALL)
        with pytest.raises(ValueError, match=f"`stat_gradient='{mode}'`"):
            inference.check(KEY)
