# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Steps through time and their noise, whatever the circuit."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random

from numpyro_epi.circuits._integrate import BLOCK, scan_steps, solve_ode
from numpyro_epi.circuits._noise import simulation_key


@functools.partial(jax.jit, static_argnames=("num_steps", "keeps"))
def walk(num_steps, rng_key=None, rate=0.9, *, keeps=True):
    """x <- rate x + index + noise: the last x, and all of them."""

    def step(x, index, noise):
        x = rate * x + index + (0.0 if noise is None else noise)
        return x, x if keeps else None

    return scan_steps(
        step, jnp.ones(3), num_steps, rng_key=rng_key, noise_shape=(3,), dtype=float
    )


LENGTHS = [1, BLOCK, 3 * BLOCK + 7]


@pytest.mark.core
@pytest.mark.parametrize("num_steps", LENGTHS)
def test_steps_are_those_of_a_loop(num_steps):
    x, exact = np.ones(3), []
    for index in range(num_steps):
        x = 0.9 * x + index
        exact.append(x)
    last, states = walk(num_steps)
    np.testing.assert_allclose(states, exact, rtol=1e-5)
    np.testing.assert_allclose(last, exact[-1], rtol=1e-5)


def test_noise_is_fresh_in_each_step_and_block():
    with_noise, without = walk(60, random.key(0))[1], walk(60)[1]
    change = with_noise - without
    noise = np.array(change).copy()
    noise[1:] -= 0.9 * change[:-1]
    # 180 standard normal numbers: none twice, and none far off.
    assert len(np.unique(np.round(noise, 3))) > 170
    assert abs(noise.std() - 1.0) < 5 / np.sqrt(2 * 180)


def test_noise_does_not_depend_on_what_comes_later():
    short, long = (walk(n, random.key(0))[1] for n in (2 * BLOCK, 3 * BLOCK + 4))
    np.testing.assert_allclose(short, long[: 2 * BLOCK], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2 * BLOCK + 7])
def test_both_modes_give_the_same_gradient(num_steps):
    def last(rate):
        return walk(num_steps, random.key(0), rate)[0].sum()

    with jax.enable_x64(new_val=True):
        exact = (last(0.9 + 1e-6) - last(0.9 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.jit(jax.grad(last))(0.9), exact, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(last))(0.9), exact, rtol=1e-6)


def test_outputs_may_be_left_out():
    last, states = walk(2 * BLOCK + 3, keeps=False)
    assert states is None
    np.testing.assert_allclose(last, walk(2 * BLOCK + 3)[0])


def test_solver_is_accurate_and_exposed():
    times, exact = np.array([0.0, 0.5, 2.0]), np.exp(-np.array([0.0, 0.5, 2.0]))

    def solve(**options):
        def run(start):
            return solve_ode(lambda y: -y, start, jnp.asarray(times), **options)

        return jax.jit(run)(1.0)

    np.testing.assert_allclose(solve(), exact, atol=1e-4)
    euler = solve(solver=diffrax.Euler(), dt0=0.25)
    np.testing.assert_allclose(euler, 0.75 ** (4 * times), rtol=1e-5)
    loose = diffrax.PIDController(rtol=1e-3, atol=1e-3)
    heun = solve(stepsize_controller=loose, solver=diffrax.Heun(), dt0=0.1)
    np.testing.assert_allclose(heun, exact, atol=1e-2)

    def last(scale):
        options = {"adjoint": diffrax.ForwardMode(), "dt0": 0.1}
        return solve_ode(lambda y: -scale * y, 1.0, jnp.asarray(times), **options)[-1]

    forward = jax.jit(jax.jacfwd(last))(1.0)
    np.testing.assert_allclose(forward, -2.0 * exact[-1], atol=1e-3)


# Keys


def key_of(seed, **options):
    with numpyro.handlers.seed(rng_seed=seed):
        return simulation_key(**options)


@pytest.mark.parametrize("seed", [random.key(0), random.PRNGKey(0), 0])
def test_key_may_change_its_generator(seed):
    assert random.key_impl(key_of(seed)) == random.key_impl(random.key(0))
    key = key_of(seed, rng_impl="unsafe_rbg")
    assert random.key_impl(key) == "unsafe_rbg"
    other = key_of(random.key(1), rng_impl="unsafe_rbg")
    assert (random.key_data(key) != random.key_data(other)).any()


@pytest.mark.parametrize("rng_impl", [None, "rbg", "unsafe_rbg"])
def test_particles_have_independent_noise(rng_impl):
    """Keys made from a batch of keys: what `unsafe_rbg` is careless about.

    Estimator: correlation of the noise of one half of the particles with that of the
    other half, and of each particle with the next; 15,000 pairs. False alarms: 5
    standard errors, 6e-7. Detects a correlation of 0.08 with near certainty, and so
    every shared draw.
    """

    def noise(seed):
        key = key_of(seed, rng_impl=rng_impl)
        _, states = scan_steps(
            lambda c, i, xi: (c, xi), 0, 60, rng_key=key, noise_shape=(5,), dtype=float
        )
        return states

    draws = np.array(jax.jit(jax.vmap(noise))(random.split(random.key(0), 100)))
    assert len(np.unique(draws)) > 0.99 * draws.size
    for first, second in ((draws[:50], draws[50:]), (draws[0::2], draws[1::2])):
        assert correlation(first, second) < 5 / np.sqrt(first.size)
    # And of steps with steps.
    assert correlation(draws[:, :30], draws[:, 30:]) < 5 / np.sqrt(draws.size / 2)


def test_shared_noise_would_be_seen():
    # The broken twin of the test above: one key for both halves.
    draws = np.random.default_rng(0).normal(size=(50, 60, 5))
    assert correlation(draws, draws) > 5 / np.sqrt(draws.size)


def correlation(first, second):
    return abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


def test_missing_key_is_explained():
    with (
        numpyro.handlers.trace(),
        pytest.raises(RuntimeError, match=r"numpyro\.handlers\.seed"),
    ):
        simulation_key()


@pytest.mark.parametrize("rng_impl", ["dice", 3])
def test_unknown_generator_is_named(rng_impl):
    with pytest.raises(ValueError, match="`rng_impl`, got"):
        key_of(0, rng_impl=rng_impl)
