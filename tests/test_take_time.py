# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Guides that are far from their maximum get more epochs, and larger steps."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi._train.records import EpochRecord, Scores
from numpyro_epi._train.schedule import take_time


class State(SimpleNamespace):
    def _replace(self, **changes):
        return State(**(vars(self) | changes))


def after(gap, *, is_first):
    """Epochs, rate and anchor of a guide at a score of -`gap` whose bound is zero."""
    scores = Scores(0.0, gap, 0.0, np.zeros(2), np.ones(2), 0.0, np.ones(2))
    unused = np.zeros((1, 2))
    record = EpochRecord([scores], unused, unused, unused, unused, unused, 0.0, 0)
    state = State(
        horizon=jnp.array([100.0]),
        anchor=jnp.array([1.0]),
        rate=jnp.array([0.5]),
        pool=SimpleNamespace(empty=None),
    )
    state, factor = take_time(state, np.array([0.0]), record, is_first=is_first)
    assert state.horizon == 100.0 * factor
    return factor, float(state.rate[0]), float(state.anchor[0])


@pytest.mark.parametrize(
    ("gap", "is_first", "is_slow"),
    [
        (0.1, False, False),
        (0.9, False, True),
        (9.0, False, True),
        (np.inf, False, True),
        (np.nan, False, False),
        # After its first epochs a guide may still come near by itself.
        (0.1, True, False),
        (0.9, True, False),
        (9.0, True, True),
        # The warm start has not arrived: how far it is is not known.
        (np.inf, True, False),
        (np.nan, True, False),
    ],
)
def test_a_far_guide_takes_its_time(gap, is_first, is_slow):
    expected = (3, 3.0, 0.0) if is_slow else (1, 0.5, 1.0)
    assert after(gap, is_first=is_first) == expected
