# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Where a guide cannot be fitted to draws of the law, it has its multipliers."""

from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._train import approach

GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(10,))
EXACT_ENTROPY = np.log(2 * np.pi * np.e) + np.log(0.25)


def gaussian():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[1.0, -1.0], var=[0.25, 0.25])


def run():
    options = {"num_epochs": 6, "num_steps": 50, "num_particles": 500}
    options |= {"gap_tolerance": 0.0, "progress_bar": False}
    estimator = epi.EPI(gaussian, GUIDE, **options)
    return estimator.run(jax.random.key(0))


@pytest.mark.long
def test_training_starts_from_an_untrained_guide_where_the_fit_is_poor(monkeypatch):
    fitted = run()
    monkeypatch.setattr(approach, "MAX_MISFIT", -np.inf)
    moved = run()
    assert moved.num_simulations > fitted.num_simulations
    assert not np.allclose(moved.history.violation[0], fitted.history.violation[0])
    # Draws that do not determine the guide have determined its multipliers.
    first = (result.history.multipliers[0] for result in (fitted, moved))
    np.testing.assert_array_equal(*first)
    for result in (fitted, moved):
        assert abs(result.entropy - EXACT_ENTROPY) < 0.1
        assert np.abs(result.history.violation[-1]).max() < 0.1
