# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A law in pieces: the warm start gives the base of the guide a component on each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi import sensitivity

KEY = jax.random.key(0)
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(10,))
OPTIONS = {
    "num_particles": 200,
    "num_epochs": 2,
    "num_steps": 50,
    "num_evaluation": 2000,
    "warm_start_size": 1000,
    "progress_bar": False,
}


def corners():
    """The squares of both latents are 4: four modes of equal mass."""
    z = numpyro.sample("z", dist.Normal(0, 2).expand([2]).to_event(1))
    epi.emergent_property(z**2, mean=4.0, var=0.5**2)


def line():
    """One piece."""
    z = numpyro.sample("z", dist.Normal(0, 2).expand([2]).to_event(1))
    epi.emergent_property(z[0] - z[1], mean=0.0, var=0.5**2)


@pytest.fixture(scope="module")
def result():
    return epi.EPI(corners, GUIDE, **OPTIONS, num_restarts=2).run(KEY)


def components_of(result):
    return result.params["auto_flow$params"].get("components")


def test_a_component_on_each_piece(result):
    found = components_of(result)
    assert found.num == 4
    shares = np.exp(np.asarray(found.log_weights))
    np.testing.assert_allclose(shares, [0, 0.25, 0.25, 0.25, 0.25], atol=0.05)
    # 2,000 draws: five standard errors of a share are 0.05.
    z = result.draws.latents["z"]
    found = np.bincount(2 * (z[:, 0] > 0) + (z[:, 1] > 0), minlength=4) / len(z)
    np.testing.assert_allclose(found, 0.25, atol=0.1)


def test_one_piece_has_no_components():
    result = epi.EPI(line, GUIDE, **OPTIONS).run(KEY)
    assert components_of(result) is None


def test_the_density_is_that_of_the_draws(result):
    draws, stored = result.draws.latents, result.draws.log_density
    np.testing.assert_allclose(result.log_prob(draws), stored, rtol=1e-3, atol=1e-3)


def test_training_leaves_components_where_they_are(result):
    """The guide as the warm start left it, and as training did."""
    components = result._engine.guide.components
    old, new = components.get(result.state.cover), components.get(result.state.params)
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_a_saved_result_keeps_its_components(result, tmp_path):
    path = tmp_path / "result.npz"
    result.save(path)
    loaded = epi.EPIResult.load(path, corners, GUIDE)
    draws = result.sample(KEY, 20)
    np.testing.assert_array_equal(loaded.log_prob(draws), result.log_prob(draws))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, result.params)


def test_hessians_see_the_components(result):
    found = sensitivity.hessian(result, {"z": [[2.0, 2.0], [-2.0, 2.0]]})
    assert np.isfinite(found.matrix).all()
    assert (np.linalg.eigvalsh(found.matrix) < 0).all()


def test_modes_are_found_on_every_piece(result):
    modes = sensitivity.find_modes(result, KEY)
    signs = {tuple(np.sign(z).astype(int)) for z in np.asarray(modes.latents["z"])}
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_guides_with_and_without_components_go_together(result):
    """A state without gets components of no weight: the same density."""
    engine = result._engine
    wide = result.state
    keys = jax.random.split(KEY, 2)
    without = engine.init_state(keys, result.table.targets)
    first, second = engine.align(without, wide)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    u = jnp.asarray(np.random.default_rng(0).normal(size=(2, 10, 2)))
    np.testing.assert_allclose(
        engine.chunks.log_q(first.params, u),
        engine.chunks.log_q(without.params, u),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(
        second.params["auto_flow$params"]["components"].locs,
        wide.params["auto_flow$params"]["components"].locs,
    )
