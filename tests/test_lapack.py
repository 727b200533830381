# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A warning before batches of LAPACK calls wait for each other for ever."""

import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

from numpyro_epi import EPI, emergent_property
from numpyro_epi._train.lapack import calls_at_once, count_workers
from numpyro_epi.circuits import rnn

SIZE = 20


def solve(a):
    return jnp.linalg.solve(a, jnp.ones(len(a)))


def in_a_loop(a):
    return lax.scan(lambda x, _: (jnp.linalg.solve(a, x), None), a[0], length=3)[0]


PROGRAMS = {
    "no matrices": (lambda a: a.sum(), 0),
    "one solve": (solve, 1),
    "one after the other": (lambda a: solve(a + jnp.outer(solve(a), a[0])), 1),
    "two of one matrix": (lambda a: solve(a) + solve(a.T), 2),
    "three kinds": (
        lambda a: solve(a).sum() + jnp.linalg.cholesky(a).sum() + jnp.linalg.eigh(a)[0],
        3,
    ),
    "small ones": (lambda a: solve(a[:2, :2]) + solve(a[2:4, 2:4]), 0),
    "in loops": (lambda a: in_a_loop(a) + in_a_loop(a.T), 2),
    "under jit": (lambda a: jax.jit(solve)(a) + jax.jit(solve)(a.T), 2),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_calls_at_once_are_counted(name):
    fn, expected = PROGRAMS[name]
    jaxpr = jax.make_jaxpr(jax.vmap(fn))(jnp.ones((100, SIZE, SIZE))).jaxpr
    assert calls_at_once(jaxpr) == expected


@pytest.mark.parametrize("name", ["two of one matrix", "in loops"])
def test_calls_for_one_matrix_are_not_counted(name):
    jaxpr = jax.make_jaxpr(jax.vmap(PROGRAMS[name][0]))(jnp.ones((1, 99, 99))).jaxpr
    assert calls_at_once(jaxpr) == 0


def response_model(num_solves):
    z = numpyro.sample("z", dist.Uniform(-1.0, 1.0))
    a = 3.0 * jnp.eye(SIZE) + z * jnp.ones((SIZE, SIZE)) / SIZE
    rates = [solve(a + i * jnp.eye(SIZE)) for i in range(num_solves)]
    emergent_property(jnp.stack(rates).mean(), 0.3, 0.01**2)


def warnings_of(model, monkeypatch, num_workers, *args):
    monkeypatch.setenv("NPROC", str(num_workers))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        EPI(model)._engine(jax.random.key(0), args, {})  # simulates nothing
    return [str(w.message) for w in caught if "LAPACK" in str(w.message)]


def test_warns_of_as_many_calls_as_workers(monkeypatch):
    (message,) = warnings_of(response_model, monkeypatch, 2, 2)
    assert "2 batches of matrices" in message
    assert "2 workers" in message
    assert "NPROC=16" in message


@pytest.mark.parametrize(("num_solves", "num_workers"), [(1, 2), (2, 1), (2, 3)])
def test_is_silent_otherwise(num_solves, num_workers, monkeypatch):
    assert not warnings_of(response_model, monkeypatch, num_workers, num_solves)


def test_is_silent_about_a_circuit_with_eigenvalues(monkeypatch):
    assert not warnings_of(rnn.model, monkeypatch, 2)


def test_workers_are_cores_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    assert count_workers() >= 1
    monkeypatch.setenv("NPROC", "7")
    assert count_workers() == 7
