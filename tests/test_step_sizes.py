# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""EPI steps in the weights of a flow, whatever the units of its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_epi as epi
from numpyro_epi._train.optim import in_weights

SIZES = {"a": jnp.array([0.1, 2.0]), "b": jnp.array(0.5)}
WEIGHTS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}


def loss(weights):
    return (weights["a"] ** 4).sum() + weights["a"][0] * weights["b"] ** 2


def trained(optim, to_weights, params):
    state = optim.init(params)
    for _ in range(5):
        grads = jax.grad(lambda p: loss(to_weights(p)))(params)
        change, state = optim.update(grads, state, params)
        params = optax.apply_updates(params, change)
    return to_weights(params)


@pytest.mark.parametrize(
    "optim",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        optax.adamw(0.1, weight_decay=0.3),
        optax.sgd(1e-3, momentum=0.9),
    ],
    ids=["clipped adam", "adamw", "sgd"],
)
def test_steps_in_weights_do_not_depend_on_the_units_of_parameters(optim):
    def to_weights(params):
        return jax.tree.map(jnp.multiply, params, SIZES)

    params = jax.tree.map(jnp.divide, WEIGHTS, SIZES)
    expected = trained(optim, lambda weights: weights, WEIGHTS)
    found = trained(in_weights(optim, lambda _: SIZES), to_weights, params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)
    # The twin steps in the parameters.
    wrong = trained(optim, to_weights, params)
    assert not np.allclose(wrong["a"], expected["a"], rtol=1e-2)


class FullSteps(epi.guides.AutoRealNVP):
    """Its parameters are its weights."""

    def _steps(self, flow):
        return jax.tree.map(lambda _: 1.0, flow)


def model():
    z = numpyro.sample("z", dist.Uniform(-3.0, 3.0).expand([2]).to_event(1))
    epi.emergent_property(z.sum(), mean=0.5, var=0.25, name="sum")


@pytest.mark.long
def test_a_run_does_not_depend_on_the_units_of_parameters():
    # Few steps, as differences by rounding grow with each.
    options = {
        "num_particles": 100,
        "num_epochs": 1,
        "num_steps": 30,
        "num_evaluation": 500,
        "warm_start": False,
        "progress_bar": False,
    }
    z = jnp.array([[0.1, 0.3], [1.0, -0.7], [-1.0, 2.0]])
    found = []
    for kind in (epi.guides.AutoRealNVP, FullSteps):
        guide = partial(kind, num_flows=2, hidden_dims=(8,))
        result = epi.EPI(model, guide, **options).run(jax.random.key(0))
        found.append(result.log_prob({"z": z}))
    np.testing.assert_allclose(*found, atol=2e-3)
    untrained = -2 * np.log(6.0)
    assert np.abs(found[0] - untrained).max() > 0.02
