# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The way to far targets: its ends, its pace, and that a guide arrives."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._train.steer import MAX_LOG_RATIO, MAX_SHIFT, Way

HAS_VAR = np.array([True, False])
MEAN, SCALE = np.array([1.5, 0.0]), np.array([0.25, 2.0])


def way():
    rng = np.random.default_rng(0)
    stats = np.stack([rng.normal(30.0, 10.0, (2, 500)), rng.normal(3.0, 1.0, (2, 500))])
    return Way.from_stats(np.moveaxis(stats, 0, -1), MEAN, SCALE, HAS_VAR)


def test_it_leads_from_the_moments_of_the_guide_to_the_targets():
    mean, scale = way().at(np.ones(2))
    np.testing.assert_allclose(mean, [[30.0, 3.0]] * 2, rtol=0.05)
    np.testing.assert_allclose(scale[:, 0], 10.0, rtol=0.1)
    np.testing.assert_allclose(scale[:, 1], 2.0)  # mean only: its scale stays
    mean, scale = way().at(np.zeros(2))
    np.testing.assert_allclose(mean, [MEAN] * 2)
    np.testing.assert_allclose(scale, [SCALE] * 2)


def test_no_move_is_larger_than_the_guide_can_follow():
    path, distance, num = way(), np.array([1.0, 0.5]), 0
    while distance.any():
        target = path.next(distance)
        (old, width), (new, narrower) = path.at(distance), path.at(target)
        assert (np.abs(new - old) <= MAX_SHIFT * width * (1 + 1e-9)).all()
        assert (np.abs(np.log(width / narrower)) <= MAX_LOG_RATIO * (1 + 1e-9)).all()
        assert ((target < distance) | (target == 0.0)).all()
        distance, num = target, num + 1
    assert 20 < num < 200


def test_failed_simulations_and_constants_do_not_spoil_it():
    stats = np.full((1, 10, 2), 5.0)
    stats[0, 0] = np.nan
    mean, scale = Way.from_stats(stats, MEAN, SCALE, HAS_VAR).at(np.ones(1))
    np.testing.assert_allclose(mean, [[5.0, 5.0]])
    assert (scale > 0).all()


@pytest.mark.long
def test_guide_without_a_warm_start_reaches_targets_six_sds_away():
    """Three Gaussians; their exact entropy is 3/2 log(2 pi e / 4)."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        epi.emergent_property(z, mean=6.0, var=0.25)

    options = {"warm_start": False, "progress_bar": False, "num_particles": 400}
    result = epi.EPI(model, **options).run(jax.random.key(0))
    assert result.converged
    exact = 1.5 * np.log(2 * np.pi * np.e * 0.25)
    assert result.entropy == pytest.approx(exact, abs=0.1)
