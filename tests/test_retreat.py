# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""An epoch that ruins the guide is taken back, and the run goes on more slowly."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._train import runner

MAX_ERROR = 0.1
EXACT_ENTROPY = np.log(2 * np.pi * np.e) + 0.5 * np.log(0.25 * 0.5)


def gaussian():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[0.5, -0.5], var=[0.25, 0.5])


def run_with_a_wild_rate(monkeypatch, rate):
    """The learning rate is multiplied after the third epoch."""

    def take_time(state, bounds, record, *, is_first):
        if is_first:
            return state, 1
        return state._replace(rate=jnp.full_like(state.rate, rate)), 1

    monkeypatch.setattr(runner, "take_time", take_time)
    estimator = epi.EPI(
        gaussian, num_epochs=6, num_steps=50, gap_tolerance=0.0, progress_bar=False
    )
    return estimator.run(jax.random.key(0))


def error(result):
    return abs(result.entropy - EXACT_ENTROPY)


@pytest.mark.slow
def test_a_ruined_epoch_is_taken_back(monkeypatch):
    result = run_with_a_wild_rate(monkeypatch, 1000.0)
    assert error(result) < MAX_ERROR
    # The history keeps the epochs that were taken back.
    assert np.abs(result.history.violation).max() > 1.0


@pytest.mark.slow
def test_without_retreat_the_guide_is_lost(monkeypatch):
    monkeypatch.setattr(runner, "MAX_RETREATS", 0)
    assert not error(run_with_a_wild_rate(monkeypatch, 1000.0)) < MAX_ERROR
