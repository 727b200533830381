# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The pilot takes derivatives in batches that fit, and only where one may be used."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._model.cost import Cost
from numpyro_epi._model.problem import Problem
from numpyro_epi._train import slopes
from numpyro_epi._train.pilot import (
    check_gradient,
    choose_gradient,
)
from numpyro_epi._train.slopes import make_pilot

KEY = jax.random.key(0)
NUM_UNITS, NUM_DRAWS = 16, 2000


@jax.custom_vjp
def reverse_alone(x):
    return x


reverse_alone.defvjp(lambda x: (x, None), lambda _, g: (g,))


def network(num_steps, rule):
    """Units that are followed for a long time, as long simulations are."""
    z = numpyro.sample("z", dist.Uniform(0.1, 1.5).expand([2]).to_event(1))

    def step(x, _):
        x = x + 0.1 * (jnp.tanh(z[0] * jnp.roll(x, 1) + z[1]) - x)
        return x, x

    _, path = jax.lax.scan(step, 0.1 * jnp.ones(NUM_UNITS), None, length=num_steps)
    x = path[num_steps // 2 :].mean()
    epi.emergent_property(rule(x), mean=0.2, var=0.01)


def problem_of(num_steps, rule=lambda x: x):
    return Problem(network, (num_steps, rule), {}, KEY)


def pilot_bytes(problem):
    """Memory of the compiled pilot, which is not run."""
    pilot = make_pilot(problem, problem.table.has_var)
    args = (
        jnp.zeros((NUM_DRAWS, 2)),
        jnp.ones(2),
        jnp.zeros(NUM_DRAWS, int),
        jax.random.split(KEY, NUM_DRAWS),
        jnp.zeros(NUM_DRAWS),
        problem.table.targets,
    )
    compiled = pilot.lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("num_steps", [1000, 4000])
@pytest.mark.parametrize("rule", [lambda x: x, reverse_alone], ids=["both", "reverse"])
def test_the_pilot_fits_into_memory(num_steps, rule, monkeypatch):
    problem = problem_of(num_steps, rule)
    assert pilot_bytes(problem) < 1.5 * slopes.PILOT_BYTES
    if num_steps == 4000:
        return
    # The twin, one batch.
    monkeypatch.setattr(slopes, "PILOT_BYTES", 2**60)
    assert pilot_bytes(problem) > 3 * 2**27


def test_batches_give_what_one_batch_gives(monkeypatch):
    problem = problem_of(50)
    u = np.random.default_rng(0).normal(0.0, 1.0, (200, 2)).astype(np.float32)
    found = []
    for size in (2**60, 2**16):
        monkeypatch.setattr(slopes, "PILOT_BYTES", size)
        pilot = make_pilot(problem, problem.table.has_var)
        found.append(check_gradient(problem, pilot, u, problem.table.targets, KEY))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-6)
    assert found[0].missed == 0.0


def test_bytes_are_counted_in_loops():
    def loop(x):
        return jax.lax.scan(lambda c, _: (c + 1.0, c), x, None, length=50)

    cost = Cost.of(loop, jnp.ones(3))
    size = 3 * jnp.ones(3).dtype.itemsize
    # One pass, the last value, and the path; reverse mode: all passes.
    assert cost.live_bytes == size + size + 50 * size
    assert cost.saved_bytes == 50 * size + size + 50 * size


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        (dict(requested="score"), "score"),
        (dict(requested="replay"), "replay"),
        (dict(requested="auto", masks_invalid=True), "score"),
        (dict(requested="auto", can_replay=True), "replay"),
    ],
)
def test_no_derivative_is_taken_where_none_is_used(options, choice):
    problem = problem_of(5000)

    def never(*args):
        raise AssertionError("The pilot has been run.")

    found = choose_gradient(
        problem,
        never,
        np.zeros((10, 2)),
        problem.table.targets,
        KEY,
        can_score=True,
        **options,
    )
    assert found.choice == choice
    assert not found.is_known
    assert not found.is_trusted
