# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Advice of the circuits, followed. Simulations are traced only."""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from advice_table import case, refused
from numpyro_epi.circuits import colliculus, linear, rnn, spectrum, stg, v1

KEY = jax.random.key(0)
TIMES = np.array([0.0, 1.0])


def traced(function, *args):
    return jax.eval_shape(function, *args)


@case("circuits/_arguments.py", "Use `jax.vmap` for several.")
def one_conductance():
    several = jnp.array([4.0, 5.0])
    with refused():
        stg.simulate(several, 1.0)
    states = traced(jax.vmap(lambda g: stg.simulate(g, 1.0)), several)
    assert states.v.shape[0] == 2


@case("circuits/_ranges.py", "Use `jax.vmap` for several.")
def one_contrast():
    several, start = jnp.array([0.2, 0.5]), jnp.full(4, 17.5)

    def rates(contrast):
        return v1.noise_free(TIMES, start, contrast=contrast)

    with refused():
        rates(several)
    assert traced(jax.vmap(rates), several).shape == (2, 2, 4)


@case("circuits/_arguments.py", "Start from the default: `PAPER._replace(...)`.")
def constants_of_another_kind():
    with refused(TypeError):
        stg.simulate(4.0, 1.0, constants={"num_steps": 3})
    constants = stg.PAPER._replace(num_steps=3)
    assert traced(lambda: stg.simulate(4.0, 1.0, constants=constants)).v.shape[0] == 4


@case("circuits/_ranges.py", "Change single constants with `PAPER._replace(...)`.")
def constants_of_another_circuit():
    start = jnp.full(4, 17.5)
    with refused(TypeError):
        v1.noise_free(TIMES, start, constants=colliculus.PAPER)
    constants = v1.PAPER._replace(dt=0.5)
    assert traced(lambda: v1.noise_free(TIMES, start, constants=constants)).shape


@case(
    "circuits/_arguments.py",
    "Set it with `PAPER._replace({}=...)`.",
    "Expected {} as {}, got shape {}. Set it with `PAPER._replace({}=...)`.",
)
def constant_of_another_shape_or_sign():
    for value in (-1.0, np.ones(3)):
        with refused():
            stg.simulate(4.0, 1.0, constants=stg.PAPER._replace(capacitance=value))
    constants = stg.PAPER._replace(capacitance=1.0)
    traced(lambda: stg.simulate(4.0, 1.0, constants=constants))


@case("circuits/_arguments.py", " Keep it out of the arguments of `jit`.")
def traced_count():
    def run(num_steps, g_el):
        constants = stg.PAPER._replace(num_steps=num_steps)
        return stg.simulate(g_el, 1.0, constants=constants)

    with refused(TypeError):
        traced(jax.jit(run), 3, 4.0)
    traced(jax.jit(lambda g_el: run(3, g_el)), 4.0)


@case("circuits/_stg_neurons.py", "Keep them out of the arguments of `jit`.")
def traced_step():
    def run(dt, g_el):
        constants = stg.PAPER._replace(dt=dt)
        return stg.simulate(g_el, 1.0, constants=constants)

    with refused(TypeError):
        traced(jax.jit(run), 25.0, 4.0)
    traced(jax.jit(lambda g_el: run(25.0, g_el)), 4.0)


@case("circuits/_noise.py", "model under `numpyro.handlers.seed`, or without noise")
def noise_without_key():
    given = {"g_el": 4.0, "g_synA": 1.0}
    model = handlers.substitute(stg.model, given)
    with refused(RuntimeError):
        traced(model)
    traced(handlers.seed(model, KEY))
    traced(lambda: model(is_noisy=False))


@case("circuits/_ranges.py", "Replace a constant with one of the same shape.")
def constant_table():
    start = jnp.full(4, 17.5)

    def rates(weights):
        constants = v1.PAPER._replace(weights=weights)
        return v1.noise_free(TIMES, start, constants=constants)

    with refused():
        rates(np.ones((3, 3)))
    assert traced(lambda: rates(np.ones((4, 4)))).shape == (2, 4)


@case("circuits/linear.py", "Reshape four entries a11, a12, a21, a22 with")
def flat_matrix():
    a = jnp.array([0.5, -2.0, 2.0, 0.5])
    with refused():
        linear.leading_eigenvalue(a)
    assert linear.leading_eigenvalue(a.reshape(2, 2))[1] == 2.0


@case("circuits/rnn.py", "Use `jax.vmap` for several networks.")
def several_networks():
    U, start = jnp.ones((3, 4, 2)), jnp.ones(4)
    with refused():
        rnn.trajectory(U, U, TIMES, start)
    several = jax.vmap(lambda u: rnn.trajectory(u, u, TIMES, start))
    assert traced(several, U).shape == (3, 2, 4)


@case("circuits/spectrum.py", "Take a longer signal.")
def short_signal():
    with refused():
        spectrum.fourier_table(10, 25.0, [0.5], discard=5, window=10)
    spectrum.fourier_table(20, 25.0, [0.5], discard=5, window=10)
