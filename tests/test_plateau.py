# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The one rule of training: best guides are kept, rates fall, runs end."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numpyro_epi as epi
from numpyro_epi._train import plateau as rule
from numpyro_epi._train.plateau import MAX_HALVINGS, PATIENCE, Plateau, merits
from numpyro_epi._train.records import Scores
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.training import Trainer


def state(mark, num_restarts=2):
    """A state all of whose numbers are `mark`, but the rate, which is 1."""
    fields = {name: jnp.full(num_restarts, float(mark)) for name in GuideState._fields}
    fields["multipliers"] = jnp.full((num_restarts, 2), float(mark))
    return GuideState(**{**fields, "rate": jnp.ones(num_restarts)})


def scores(violation=0.0, divergence=1.0):
    v = np.array([violation])
    return Scores(0.0, divergence, 0.0, v, np.zeros(1), 0.0, np.ones(1))


def begin(*merit):
    merit = np.array(merit)
    return Plateau.start(state(0, merit.size), [scores()] * merit.size, merit)


def test_merit_is_the_score_less_the_price_of_the_violation():
    found = merits([scores(0.2, 3.0)], np.array([[0.5]]), tolerance=0.1)
    np.testing.assert_allclose(found, [-3.0 - 0.5 * 0.2 - 4 * rule.VIOLATION_COST])


def test_the_best_of_each_restart_is_kept():
    found, _ = begin(-2.0, -2.0).after(state(1), [scores()] * 2, np.array([-1.0, -3.0]))
    np.testing.assert_array_equal(found.best.params, [1.0, 0.0])
    np.testing.assert_array_equal(found.merit, [-1.0, -2.0])


@pytest.mark.parametrize("lost", [-50.0, -np.inf, np.nan])
def test_a_ruined_guide_comes_back_at_half_the_rate(lost):
    found, now = begin(-1.0), state(0, 1)
    for mark in range(1, PATIENCE + 1):
        found, now = found.after(
            now._replace(params=jnp.full(1, float(mark))), [scores()], np.array([lost])
        )
    assert float(now.params[0]) == 0.0
    assert float(now.rate[0]) == 0.5
    assert found.num_halvings == 1


def test_gains_keep_the_rate():
    found, now = begin(-10.0), state(0, 1)
    for merit in np.linspace(-9.0, -1.0, 30):
        found, now = found.after(now, [scores()], np.array([merit]))
    assert float(now.rate[0]) == 1.0
    assert not found.is_over


def test_crumbs_are_no_gain():
    """The broken rule, any gain at all, would go on for ever."""
    found, now = begin(-1.0), state(0, 1)
    merit, num = -1.0, 0
    while not found.is_over:
        merit, num = merit + 0.1 * rule.MIN_GAIN, num + 1
        found, now = found.after(now, [scores()], np.array([merit]))
    assert num == PATIENCE * (MAX_HALVINGS + 1)
    assert found.merit[0] == pytest.approx(merit)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 0.0) | st.just(float("nan")), min_size=1, max_size=80))
def test_any_merits_keep_the_rule(values):
    """The best merit never falls, the rate never rises, and the best one is kept."""
    found, now = begin(-1e9), state(-1, 1)
    for mark, merit in enumerate(values):
        before, rate = found, float(now.rate[0])
        now = now._replace(params=jnp.full(1, float(mark)))
        found, now = found.after(now, [scores()], np.array([merit]))
        assert found.merit[0] >= before.merit[0]
        assert float(now.rate[0]) in (rate, 0.5 * rate)
        assert float(now.rate[0]) == 0.5 ** int(found.num_halvings[0])
    good = [v for v in values if np.isfinite(v)]
    if good:
        assert found.merit[0] == max(good)
        assert values[int(found.best.params[0])] == max(good)


# -- in a run -------------------------------------------------------------------------


@pytest.mark.parametrize("has_law", [True, False])
def test_multipliers_of_a_guide_that_comes_back(has_law):
    """Those that are still sought stay: else each way back would lose them again."""
    gap = 0.1 if has_law else np.nan
    found, now = begin(-1.0), state(0, 1)
    for mark in range(1, PATIENCE + 1):
        now = now._replace(
            params=jnp.full(1, float(mark)), multipliers=jnp.full((1, 2), float(mark))
        )
        found, now = found.after(now, [scores()._replace(gap=gap)], np.array([-9.0]))
    assert float(now.params[0]) == 0.0
    expected = 0.0 if has_law else float(PATIENCE)
    np.testing.assert_array_equal(now.multipliers, expected)


def with_scores(training, scores):
    """The same, with other scores of the last epoch."""
    last = training.records[-1]._replace(scores=scores)
    return training._replace(records=(*training.records[:-1], last))


def gaussian():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[0.5, -0.5], var=[0.25, 0.5])


EXACT_ENTROPY = np.log(2 * np.pi * np.e) + 0.5 * np.log(0.25 * 0.5)


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("keeps", [True, False])
def test_an_epoch_that_ruins_the_guide_does_no_harm(keeps, monkeypatch):
    """Its twin, which takes the last guide instead of the best, is lost."""
    calls = []

    def wild(self, before):
        calls.append(None)
        found = run_epoch(self, before)
        if len(calls) == 2:
            noise = jax.tree.map(lambda x: x + 3.0, found.guide.params)
            guide = found.guide._replace(params=noise, average=noise)
            _, scores = self.simulations.evaluate(noise, 1000)
            found = found._replace(guide=guide)
            found = with_scores(found, scores)
        return found

    run_epoch = Trainer._run_epoch
    monkeypatch.setattr(Trainer, "_run_epoch", wild)
    monkeypatch.setattr(Trainer, "_is_near", lambda *_: False)
    if not keeps:
        after = Plateau.after
        monkeypatch.setattr(
            Plateau,
            "after",
            lambda self, now, *args: (
                after(self, now, *args)[0]._replace(best=now),
                now,
            ),
        )
    options = {"num_epochs": 2, "num_steps": 50, "progress_bar": False}
    result = epi.EPI(gaussian, **options).run(jax.random.key(0))
    is_right = abs(result.entropy - EXACT_ENTROPY) < 0.1
    assert is_right == keeps


@pytest.mark.ci
@pytest.mark.long
def test_an_interrupt_leaves_the_best_guide(monkeypatch):
    """Epochs after the best one are not what an interrupted run returns."""
    guides = []

    def stop(self, before):
        if len(guides) == 2:
            raise KeyboardInterrupt
        found = run_epoch(self, before)
        guides.append(found.guide.average)
        value = -100.0 + 200.0 * len(guides)
        scores = [s._replace(divergence=value) for s in found.records[-1].scores]
        return with_scores(found, scores)

    run_epoch = Trainer._run_epoch
    monkeypatch.setattr(Trainer, "_run_epoch", stop)
    monkeypatch.setattr(Trainer, "_is_near", lambda *_: False)
    options = {"num_epochs": 5, "num_steps": 5, "num_particles": 20}
    options |= {"num_evaluation": 200, "warm_start": False, "progress_bar": False}
    monkeypatch.setattr(
        "numpyro_epi._train.approach.Approach._look", _with_poor_scores()
    )
    result = epi.EPI(gaussian, **options).run(jax.random.key(0))
    assert result.status is epi.EPIStatus.INTERRUPTED
    first = jax.tree.leaves(guides[0])
    for found, expected in zip(
        jax.tree.leaves(result.state.average), first, strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def _with_poor_scores():
    from numpyro_epi._train.approach import Approach

    look = Approach._look

    def poor(self, now):
        now = look(self, now)
        self.scores = [s._replace(divergence=1e6) for s in self.scores]
        return now

    return poor
