# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A run is one value: `init`, `advance` and `result` in any order."""

from functools import cache, partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import numpyro_epi as epi
from numpyro_epi._train.plateau import MAX_HALVINGS, PATIENCE

KEY = jax.random.key(0)
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(8,))
SMALL = {
    "num_particles": 20,
    "num_epochs": 3,
    "num_steps": 5,
    "num_evaluation": 200,
    "warm_start_size": 400,
    "progress_bar": False,
}
STAGES = ["law", "first fit", "way", "guide", "verdict", "done"]


def gaussian():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[0.5, -0.5], var=[0.25, 0.5])


@cache
def inference(**options):
    return epi.EPI(gaussian, GUIDE, **{**SMALL, **options})


def digest(state):
    """Everything of a state that is a number, but for seconds."""

    def number(x):
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
            x.dtype, jax.dtypes.prng_key
        ):
            x = jax.random.key_data(x)
        return np.asarray(x).tobytes() if isinstance(x, np.ndarray | jax.Array) else x

    training = state.training
    parts = (state.stage, state.guide, state.num_simulations, state.ledger.keys)
    parts += (state.searches, state.laws)
    if training is not None:
        parts += (training.guide, training.dual_rate, training.replay)
    leaves = jax.tree.leaves(parts)
    return [number(x) for x in leaves if isinstance(x, np.ndarray | jax.Array | int)]


OPTIONS = {
    "restarts": {"num_restarts": 2},
    "no law": {"warm_start": False},
    "replay": {"stat_gradient": "replay"},
    "published": {"schedule": epi.PublishedSchedule()},
}
DEAR = [pytest.mark.ci, pytest.mark.long]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        *(pytest.param(x, id=name, marks=DEAR) for name, x in OPTIONS.items()),
    ],
)
def test_a_run_by_hand_is_the_run(options):
    """Bit for bit; and a state stays as it is when it is advanced."""
    made = inference(**options)
    states = [made.init(KEY)]
    before = [digest(states[0])]
    while not states[-1].is_done:
        states.append(made.advance(states[-1]))
        before.append(digest(states[-1]))
    for state, then in zip(states, before, strict=True):
        assert digest(state) == then
    by_hand, run = made.result(states[-1]), made.run(KEY)
    assert by_hand.num_simulations == run.num_simulations
    for a, b in zip(by_hand.restarts, run.restarts, strict=True):
        assert (a.status, a.message) == (b.status, b.message)
        assert a.entropy == b.entropy
        np.testing.assert_array_equal(a.violation, b.violation)
        for x, y in zip(
            jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True
        ):
            np.testing.assert_array_equal(x, y)
    assert made.advance(states[-1]) is states[-1]
    stages = [STAGES.index(state.stage) for state in states]
    assert stages == sorted(stages)
    assert {"law", "verdict", "done"} <= {state.stage for state in states}


class AnyOrder(RuleBasedStateMachine):
    """Advances, interrupts, and answers, in any order, are those of one run."""

    def __init__(self):
        super().__init__()
        self.states = [inference().init(KEY)]
        self.place = 0

    @rule()
    def advance(self):
        after = inference().advance(self.states[self.place])
        if self.place + 1 < len(self.states):
            # After an interrupt it goes on as it would have gone.
            assert digest(after) == digest(self.states[self.place + 1])
        else:
            self.states.append(after)
        self.place += 1

    @rule()
    def interrupt(self):
        """A step is lost."""
        self.place = max(self.place - 1, 0)

    @rule()
    def answer(self):
        state = self.states[self.place]
        result = inference().result(state)
        assert np.isfinite(result.entropy)
        assert result.num_simulations >= state.num_simulations
        assert len(result.history.entropy) == state.num_epochs
        assert (result.law is None) == (state.stage == "law")
        assert result.sample(KEY, 3)["z"].shape == (3, 2)
        if not state.is_done:
            assert result.status in (
                "converged",
                "corrected",
                "law only",
                "interrupted",
            )

    @invariant()
    def numbers_only_grow(self):
        states = self.states
        for name in ("num_simulations", "num_epochs", "seconds"):
            values = [getattr(state, name) for state in states]
            assert values == sorted(values)
        assert states[-1].num_epochs <= SMALL["num_epochs"]

    @invariant()
    def rates_are_those_of_the_plateau(self):
        training = self.states[self.place].training
        if training is None:
            return
        (halvings,) = training.rule.num_halvings
        assert float(training.guide.rate[0]) == 0.5**halvings
        assert PATIENCE * halvings <= len(training.records)
        assert training.is_over or halvings <= MAX_HALVINGS


AnyOrder.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None
)
test_any_order = AnyOrder.TestCase


def test_a_state_is_worth_a_budget():
    """A run that is stopped goes on from where it was."""
    made = inference()
    state = made.init(KEY)
    while state.num_simulations < 1500:
        state = made.advance(state)
    early = made.result(state)
    assert early.status is epi.EPIStatus.INTERRUPTED
    assert "Not advanced to its end" in early.message
    assert early.restarts[0].law_reason
    while not state.is_done:
        state = made.advance(state)
    assert made.result(state).num_simulations > early.num_simulations
