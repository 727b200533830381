# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The epochs of a run, and the decisions taken between them.

What is compiled lives in `engine`, what is simulated in `simulations`.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.laws import Laws
from numpyro_epi._train.plateau import KEPT, Plateau, is_met, merits
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.published import Published
from numpyro_epi._train.records import EpochRecord, Scores
from numpyro_epi._train.replay import Replay
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import GuideState, choose_restarts
from numpyro_epi._train.status import EPIStatus

# Share of the evaluation draws that judges an epoch whose draws are replayed.
REPLAY_SHARE = 0.5
# Share of the tolerance beyond which a violation is worth another epoch.
NEAR = 0.4
# Epochs after which simulations have shown the range of a statistic.
FIRST_LOOK = 3


class Training(NamedTuple):
    """How far the training of R guides is.

    Attributes:
        guide: their state after the last epoch.
        rule: that slows it down and ends it.
        dual_rate: of the multipliers, shape (R, K).
        last_violation: of the last epoch, scaled units, shape (R, K).
        records: of the epochs so far.
        replay: draws of the last epochs, for the gradient "replay".
        final: draws that show that the best guides need no more epochs, and scores.
        ended: status and message of each restart, where an end is known before.
        is_over: whether there are no more epochs.
    """

    guide: GuideState
    rule: Plateau | Published
    dual_rate: np.ndarray
    last_violation: np.ndarray
    records: tuple[EpochRecord, ...] = ()
    replay: Replay = Replay()
    final: tuple[Evaluation, list[Scores]] | None = None
    ended: tuple[tuple[EPIStatus, str], ...] | None = None
    is_over: bool = False

    @property
    def best(self) -> GuideState:
        """The guides to take, whatever epoch they are of."""
        if isinstance(self.rule, Published):
            return self.guide
        everyone = np.ones(len(self.dual_rate), bool)
        return choose_restarts(everyone, self.rule.best, self.guide, keep=KEPT)


class Trainer:
    """Trains the guides of a run, one epoch at a time.

    Args:
        engine: compiled functions.
        simulations: of the run.
        laws: of all restarts.
        stat_gradient: how statistics are differentiated.
        progress: shows the steps.
    """

    def __init__(
        self,
        engine: Engine,
        simulations: Simulations,
        laws: Laws,
        stat_gradient: str,
        progress: Progress,
    ) -> None:
        self.engine = engine
        self.options = engine.options
        self.simulations = simulations
        self.laws = laws
        self.stat_gradient = stat_gradient
        self.progress = progress

    def start(self, guide: GuideState, scores: Sequence[Scores]) -> Training:
        """Before the first epoch.

        Args:
            guide: the guides.
            scores: theirs.
        """
        rule: Plateau | Published
        if self.options.schedule is not None:
            num_restarts = self.options.num_restarts
            rule = Published.start(self.options.schedule, num_restarts)
        else:
            rule = Plateau.start(guide, scores, self._merits(scores, guide))
        shape = guide.multipliers.shape
        return Training(guide, rule, np.ones(shape), np.zeros(shape))

    def advance(self, training: Training) -> Training:
        """One epoch."""
        rule = training.rule
        if isinstance(rule, Published):
            guide = rule.before(training.guide, self.engine, self.simulations)
            training = self._run_epoch(training._replace(guide=guide))
            rule, guide = rule.after(training.guide, self.simulations)
            training = training._replace(
                guide=guide, rule=rule, ended=rule.verdicts, is_over=rule.is_over
            )
        else:
            training = self._judge(self._run_epoch(training), rule)
        is_last = len(training.records) >= self.options.num_epochs
        return training._replace(is_over=training.is_over or is_last)

    def _judge(self, training: Training, before: Plateau) -> Training:
        """What the plateau of the merit says after an epoch."""
        record = training.records[-1]
        training = self._add_violation(training, record)
        guide = training.guide
        merit = self._merits(record.scores, guide)
        # Two guides are compared at the same multipliers, the last ones.
        before = before.with_scores(before.scores, self._merits(before.scores, guide))
        ledger = self.simulations.ledger
        problem = ledger.seen.unreachable(ledger.table)
        if problem is not None and len(training.records) >= FIRST_LOOK:
            ended = ((EPIStatus.UNREACHABLE, problem),) * len(record.scores)
            return training._replace(rule=before, ended=ended, is_over=True)
        plateau, guide = before.after(guide, record.scores, merit)
        final = None
        if (plateau.merit > before.merit).any() and self._is_near(plateau, record):
            final = self._evaluate_finally(plateau)
            scores = final[1]
            plateau = plateau.with_scores(scores, self._merits(scores, guide))
            if not all(is_met(s, self.options).all() for s in scores):
                final = None
        return training._replace(
            guide=guide,
            rule=plateau,
            final=final,
            is_over=final is not None or plateau.is_over,
        )

    def _merits(self, scores: Sequence[Scores], guide: GuideState) -> np.ndarray:
        """Of guides at the multipliers of a state, shape (R,)."""
        multipliers = np.asarray(guide.multipliers)
        return merits(scores, multipliers, self.options.tolerance)

    def _add_violation(self, training: Training, record: EpochRecord) -> Training:
        """To each guide's own multipliers, penalty times what it violates is added.

        Twice as much as in the epoch before where that was not enough, and half where
        it was too much: the sign of a violation tells (Rprop: Riedmiller & Braun, A
        direct adaptive method for faster backpropagation learning, 1993). If a law is
        trusted its multipliers are known, and what stays violated is of the guide.
        """
        guide = training.guide
        violation = np.nan_to_num([s.violation for s in record.scores])
        same = np.sign(violation * training.last_violation)
        is_large = np.abs(violation) > NEAR * self.options.tolerance
        is_large &= ~self.laws.are_trusted[:, None]
        rate = training.dual_rate * np.where(is_large, 2.0**same, 1.0)
        change = rate * np.asarray(guide.penalty) * np.clip(violation, -1.0, 1.0)
        multipliers = jnp.asarray(np.asarray(guide.multipliers) + change, float)
        return training._replace(
            guide=guide._replace(multipliers=multipliers),
            dual_rate=rate,
            last_violation=violation,
        )

    def _is_near(self, plateau: Plateau, record: EpochRecord) -> bool:
        """Whether the best guides may be within the tolerances of their maximum."""
        if self.options.gap_tolerance == 0.0:
            return False
        if not all(s.gap < self.options.gap_tolerance for s in plateau.scores):
            return False
        violation = np.nan_to_num(record.violation, nan=np.inf)
        return bool(np.abs(violation).max() <= NEAR * self.options.tolerance)

    def _evaluate_finally(self, plateau: Plateau) -> tuple[Evaluation, list[Scores]]:
        average = plateau.best.average
        ev, scores = self.simulations.evaluate_finally(average, is_decided=False)
        return ev, self.laws.with_gaps(ev, scores)

    def _run_epoch(self, training: Training) -> Training:
        """Steps, then a look at the averaged guide with many more particles."""
        options, simulations = self.options, self.simulations
        began, before = time.perf_counter(), simulations.ledger.num_simulations
        guide, replay = training.guide, training.replay
        num = max(options.num_evaluation, options.num_particles)
        replays = self.stat_gradient == "replay"
        if replays:
            num = max(int(options.num_evaluation * REPLAY_SHARE), options.num_particles)
            if not replay.epochs:
                ev, _ = simulations.evaluate(guide.params, num)
                replay = replay.after(guide.params, ev)
            guide = guide._replace(memory=replay.memory(self.engine))
        else:
            num_restarts = len(training.dual_rate)
            simulations.count(options.num_steps * options.num_particles * num_restarts)
        guide, infos = self.progress.run_epoch(self.engine, guide, self.stat_gradient)
        ev, scores = simulations.evaluate(guide.average, num)
        scores = self.laws.with_gaps(ev, scores)
        violation = np.asarray(infos.violation)[options.num_steps // 2 :].mean(axis=0)
        if replays:
            replay = replay.after(guide.average, ev)
            # The guide was trained on the replayed draws: only new ones tell the truth.
            violation = np.stack([s.violation for s in scores])
        record = EpochRecord(
            scores,
            violation,
            np.asarray(guide.multipliers),
            np.asarray(guide.penalty),
            np.asarray(infos.is_skipped).mean(axis=0),
            np.asarray(infos.loss),
            time.perf_counter() - began,
            simulations.ledger.num_simulations - before,
        )
        self.progress.show(record)
        return training._replace(
            guide=guide, replay=replay, records=(*training.records, record)
        )
