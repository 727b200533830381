# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Where single steps swing about the targets, the penalty comes down."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi._train.options import Options
from numpyro_epi._train.records import EpochRecord, Scores
from numpyro_epi._train.schedule import swings, update_duals


def record(steps, average, error=0.01):
    """Of one restart and a mean and a variance, of which only the variance counts."""
    violation, errors = np.array([0.0, average]), np.full(2, error)
    scores = Scores(0.0, 0.0, 0.0, violation, errors, 0.0, np.ones(2))
    unused = np.zeros((1, 2))
    steps = np.array([[0.0, steps]])
    return EpochRecord([scores], steps, unused, unused, unused, unused, 0.0, 0)


@pytest.mark.parametrize(
    ("steps", "average", "error", "expected"),
    [
        (0.0, -0.25, 0.01, True),
        (-0.1, -0.25, 0.01, True),
        (0.0, 0.0, 0.01, False),
        # Both are low: the guide is on its way.
        (-0.25, -0.25, 0.01, False),
        # It comes from above, and the average of an epoch's steps lags behind.
        (0.5, 0.3, 0.01, False),
        # The difference may be noise.
        (0.0, -0.25, 0.2, False),
        (np.nan, -0.25, 0.01, False),
        (0.0, np.inf, np.inf, False),
    ],
)
def test_a_swing_leaves_the_averaged_guide_below_its_targets(
    steps, average, error, expected
):
    assert swings([record(steps, average, error)], Options()).tolist() == [expected]


def update(average, penalty):
    """Penalty after an epoch that was no better than the one before it."""

    class State(SimpleNamespace):
        def _replace(self, **changes):
            return State(**(vars(self) | changes))

    state = State(
        multipliers=jnp.zeros((1, 2)),
        penalty=jnp.full((1, 2), penalty),
        rate=jnp.array([3.0]),
    )
    records = [record(-0.1, average), record(-0.1, average)]
    state = update_duals(state, records, Options())
    assert state.rate == 3.0
    return float(state.penalty[0, 0])


@pytest.mark.parametrize(
    ("penalty", "lower"),
    # It does not fall below what a run starts with, nor rise to it.
    [(8.0, 4.0), (2.0, 1.0), (1.0, 1.0), (0.5, 0.5)],
)
def test_what_swings_is_pulled_less(penalty, lower):
    assert update(-0.3, penalty) == lower


def test_the_penalty_of_what_does_not_swing_grows():
    assert update(-0.1, 1.0) == 2.0
