# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of every noisy simulator: a row of `SIMULATORS` is all that a new one needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_epi.circuits import colliculus, v1


class Simulator(NamedTuple):
    """A simulator with few trials, so that tests are fast.

    Attributes:
        run: (latents, key, **options) to statistics.
        from_paths: The same from traces that are kept.
        latents: One setting.
        short, long: Constants with few and with many steps.
    """

    run: Callable[..., jax.Array]
    from_paths: Callable[..., jax.Array]
    latents: tuple[float, ...]
    short: Any
    long: Any


def v1_from_paths(sigma, key, **options):
    rates = v1.paths(sigma, key, **options).rates
    first = options.get("constants", v1.PAPER).first_step
    return v1.temporal_std(rates[..., first:, :], axis=-2).mean(axis=-2)


def colliculus_from_paths(z, key, **options):
    end = colliculus.paths(z, key, **options).activity[..., -1, :]
    margin = end[..., 0] - end[..., 2]
    signs = jnp.array([[1.0], [-1.0]], margin.dtype)
    return colliculus.soft_accuracy(signs * margin).mean(axis=-1)


SIMULATORS = {
    "v1": Simulator(
        v1.fluctuations,
        v1_from_paths,
        (0.02, 0.03, 0.04, 0.01),
        v1.PAPER._replace(num_trials=3),
        v1.PAPER._replace(num_trials=3, num_steps=2000, first_step=1500),
    ),
    "colliculus": Simulator(
        colliculus.accuracies,
        colliculus_from_paths,
        (0.25, -3.2, -1.3, -1.2),
        colliculus.PAPER._replace(num_trials=3),
        colliculus.PAPER._replace(num_trials=3, num_steps=740),
    ),
}

pytestmark = pytest.mark.parametrize("name", SIMULATORS)


@functools.cache
def compiled(function, constants, **options):
    """A simulator as a compiled function of latents and a key."""
    options["constants"] = constants
    return jax.jit(lambda latents, key: function(latents, key, **options))


@pytest.mark.core
@pytest.mark.parametrize("x64", [False, True])
def test_precision_is_that_of_the_latents(name, x64):
    sim = SIMULATORS[name]
    for dtype in (jnp.float32, jnp.float64)[: 1 + x64]:
        with jax.enable_x64(x64):
            args = jnp.asarray(sim.latents, dtype), random.key(0)
            for function in sim.run, sim.from_paths:
                stats = jax.eval_shape(compiled(function, sim.short), *args)
                assert stats.dtype == dtype


def test_running_sums_are_the_statistics_of_the_traces(name):
    sim = SIMULATORS[name]
    latents = jnp.asarray(sim.latents)
    found = compiled(sim.run, sim.short)(latents, random.key(1))
    traced = compiled(sim.from_paths, sim.short)
    np.testing.assert_allclose(found, traced(latents, random.key(1)), rtol=1e-4)
    # Broken twin: traces of another key.
    assert np.abs(found - traced(latents, random.key(2))).max() > 1e-2


@pytest.mark.core
def test_each_particle_has_noise_of_its_own(name):
    sim = SIMULATORS[name]
    latents, keys = jnp.asarray(sim.latents), random.split(random.key(0), 4)
    run = compiled(sim.run, sim.short)
    mapped = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    together = mapped(latents, keys)
    assert len(np.unique(np.asarray(together)[:, 0])) == 4
    alone = [run(latents, key) for key in keys]
    np.testing.assert_allclose(together, alone, rtol=5e-4)
    # What a particle sees depends on its own key, and not on those of the others.
    np.testing.assert_array_equal(mapped(latents, keys[::-1])[::-1], together)


def test_mapped_rbg_keys_break_that_law(name):
    # Broken twin. JAX uses the first of them for all, which is why it is no default.
    sim = SIMULATORS[name]
    latents = jnp.asarray(sim.latents)
    keys = random.split(random.key(0, impl="unsafe_rbg"), 4)
    mapped = jax.jit(jax.vmap(compiled(sim.run, sim.short), in_axes=(None, 0)))
    together, reverse = mapped(latents, keys), mapped(latents, keys[::-1])[::-1]
    assert np.abs(together[1:] - reverse[1:]).max() > 1e-2


def test_rows_of_one_array_have_noise_of_their_own_even_with_rbg(name):
    sim = SIMULATORS[name]
    latents = jnp.tile(jnp.asarray(sim.latents), (3, 2, 1))
    stats = compiled(sim.run, sim.short)(latents, random.key(0, impl="unsafe_rbg"))
    assert stats.shape[:2] == (3, 2)
    assert len(np.unique(np.asarray(stats)[..., 0])) == 6


@pytest.mark.core
def test_gradients_are_central_differences(name):
    sim, step = SIMULATORS[name], 1e-6

    def stat(latents, key):  # one number that depends on all statistics
        stats = sim.run(latents, key, constants=sim.short)
        return stats @ jnp.arange(1.0, 1.0 + stats.size)

    with jax.enable_x64(new_val=True):
        value = jax.jit(stat)
        latents, key = jnp.asarray(sim.latents), random.key(3)
        shifts = step * np.eye(4)
        sides = [value(latents + s, key) - value(latents - s, key) for s in shifts]
        exact = np.array(sides) / (2 * step)
        forward = np.asarray(jax.jit(jax.jacfwd(stat))(latents, key))
        reverse = np.asarray(jax.jit(jax.grad(stat))(latents, key))
        fresh = float(value(latents, random.key(4)) - value(latents, key))
    scale = np.abs(exact).max()
    assert scale > 1e-3
    np.testing.assert_allclose(forward, exact, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(reverse, forward, rtol=1e-8, atol=1e-10 * scale)
    # Broken twin: with noise that differs between both sides there is no derivative.
    assert abs(fresh / step) > 1e3 * scale


def largest_array(jaxpr):
    """Most entries of any array that a traced function makes."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [out.aval.size for out in equation.outvars]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                sizes.append(largest_array(inner))
    return max(sizes)


@pytest.mark.core
def test_memory_does_not_grow_with_simulated_time(name):
    # Enough trials to outweigh inputs that change in time, which are the same for all.
    sim, key = SIMULATORS[name], random.key(0)
    latents = jnp.asarray(sim.latents)

    def growth(function):
        sizes = []
        for constants in sim.short, sim.long:
            run = compiled(function, constants, num_trials=2000)
            derivative = jax.make_jaxpr(jax.jacfwd(run))(latents, key)
            sizes.append(largest_array(derivative.jaxpr))
        return sizes[1] / sizes[0]

    # The long one has ten times the steps.
    assert growth(sim.run) == 1.0
    assert growth(sim.from_paths) > 9.0  # the broken twin keeps its traces


def test_number_of_trials_is_checked(name):
    run, latents = SIMULATORS[name].run, SIMULATORS[name].latents
    with pytest.raises(ValueError, match="at least 1 as `num_trials`, got 0"):
        run(latents, random.key(0), num_trials=0)
    with pytest.raises(TypeError, match="whole number as `num_trials`, got 2.5"):
        run(latents, random.key(0), num_trials=2.5)
    with pytest.raises(TypeError, match="random key .* as `rng_key`, got 0"):
        run(latents, 0)
