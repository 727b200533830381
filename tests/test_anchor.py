# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The anchor: no pull where the guide is exact, a bounded one where it lost a mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_epi._train.step import Objective
from sensitivity_results import gaussian

NUM_KEYS = 20


@pytest.fixture(scope="module")
def pull():
    """Gradients of the anchor at a fitted Gaussian guide, as a function of the pool."""
    result = gaussian()
    engine = result._engine
    objective = Objective(
        engine.problem,
        engine.guide,
        num_particles=200,
        stat_gradient="reverse",
        masks_invalid=False,
    )
    one = jax.tree.map(lambda x: x[0], result.state)
    one = one._replace(anchor=jnp.ones(()))

    def gradients(change):
        pool = change(one.pool)

        def gradient(key):
            grad = jax.grad(objective._anchor_loss)(
                one.average, one._replace(pool=pool), key
            )
            return ravel_pytree(grad)[0]

        keys = jax.random.split(jax.random.key(0), NUM_KEYS)
        return np.asarray(jax.vmap(gradient)(keys))

    return gradients


def by_likelihood(pool):
    """The pool of noisy simulations, whose densities are unknown."""
    return pool.without_density


def exactly(pool):
    """A model that is the guide: its density is what the guide's is."""
    result = gaussian()
    one = jax.tree.map(lambda x: x[0], result.state)
    log_q = result._engine.guide.log_prob(one.average, pool.u)
    return pool._replace(log_model=log_q + pool.deviations @ one.multipliers)


def test_exact_guide_is_left_alone(pull):
    exact = norm(pull(exactly))
    # The broken twins: a likelihood pulls towards the draws of each batch, and a model
    # of another width is not the guide's.
    assert np.median(exact) < 0.1 * np.median(norm(pull(by_likelihood)))
    wider = norm(pull(lambda p: exactly(p)._replace(log_model=0.5 * p.log_model)))
    assert np.median(exact) < 0.1 * np.median(wider)


def test_lost_draws_pull_as_in_a_fit_by_likelihood(pull):
    """Half the draws, on one side, have more mass than the guide gives them."""

    def is_lost(pool):
        return pool.u[:, 0] > jnp.median(pool.u[:, 0])

    def lost(pool, nats):
        return pool._replace(log_model=pool.log_model + nats * is_lost(pool))

    def only_lost(pool):
        return by_likelihood(pool)._replace(u=pool.u[is_lost(pool)])

    little, far, further = (
        pull(lambda pool, n=n: lost(pool, n)) for n in (0.0, 10.0, 1e6)
    )
    np.testing.assert_allclose(far, further, rtol=1e-3)
    wanted = pull(only_lost).mean(axis=0)
    assert (cosine(far, wanted) > 0.8).all()
    assert (norm(far) < 2.0 * norm(wanted)).all()
    # The broken twin: nothing is lost, and what pull is left is small.
    assert not (cosine(little, wanted) > 0.8).any()
    assert np.median(norm(little)) < 0.2 * np.median(norm(far))


def norm(vectors):
    return np.linalg.norm(vectors, axis=-1)


def cosine(vectors, direction):
    return vectors @ direction / (norm(vectors) * norm(direction))
