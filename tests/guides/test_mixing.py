# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Inverse of a linear map, without the calls that can hang on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import solve_triangular

from guides.tables import GUIDES, latents, untrained
from numpyro_epi.guides import _stack
from numpyro_epi.guides._mixing import inverse_matrix, lower_inverse, mixing_matrix

# What jaxlib 0.10 runs on a CPU as tasks of the workers that wait for them. Three
# independent batches, 64 matrices of size 40, hang for good on two cores.
LAPACK = {"triangular_solve", "lu", "cholesky", "eigh", "qr", "svd", "eig", "schur"}


def at_random(dim, num=3):
    key = jax.random.key(dim)
    return {
        "matrix": jax.random.normal(key, (num, dim, dim)) / dim**0.5,
        "shift": jnp.zeros((num, dim)),
    }


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 33])
def test_inverse_is_that_of_numpy(dim):
    params = at_random(dim)
    matrix, inverse = (
        np.asarray(jax.vmap(fn)(params), float)
        for fn in (mixing_matrix, inverse_matrix)
    )
    expected = np.linalg.inv(matrix)
    np.testing.assert_allclose(inverse, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivative_is_that_of_a_triangular_solve(mode):
    lower = jnp.tril(at_random(5, 1)["matrix"][0]) + jnp.eye(5)

    def solved(matrix):
        return solve_triangular(jnp.tril(matrix), jnp.eye(5), lower=True)

    found, expected = (
        mode(lambda a: lower_inverse(jnp.tril(a)))(lower),
        mode(solved)(lower),
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def primitives(jaxpr):
    """Names of all primitives of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def calls(name):
    """LAPACK calls of three restarts of a guide: draws, their density and gradient."""
    guide = GUIDES[name](latents(3), mixing=True)
    params = untrained(guide)
    restarts = jax.tree.map(lambda a: jnp.stack([a] * 3), params)

    def loss(params, u):
        posterior = guide.get_posterior(params)
        draws, parts = posterior.sample_with_intermediates(jax.random.key(0), (4,))
        return (posterior.log_prob(draws, parts) + posterior.log_prob(u)).sum()

    fn = jax.vmap(jax.value_and_grad(loss), (0, None))
    return LAPACK & set(
        primitives(jax.make_jaxpr(fn)(restarts, jnp.ones((4, 3))).jaxpr)
    )


@pytest.mark.parametrize("name", GUIDES)
def test_guides_do_not_call_lapack(name):
    assert not calls(name)


@pytest.mark.parametrize("name", GUIDES)
def test_twin_with_a_solve_calls_lapack(name, monkeypatch):
    def solve(params):
        eye = jnp.eye(len(params["matrix"]))
        return solve_triangular(mixing_matrix(params), eye, lower=True)

    monkeypatch.setattr(_stack, "inverse_matrix", solve)
    assert calls(name) == {"triangular_solve"}
