# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The host's side of a run: the epochs, and the decisions taken between them.

What is compiled lives in `engine`, what is simulated in `simulations`; `approach` comes
before the first epoch and `verdict` after the last one.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._train.agreement import NUM_DRAWS, Agreement
from numpyro_epi._train.approach import Approach
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.plateau import KEPT, Plateau, is_met, merits
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.published import train_published
from numpyro_epi._train.records import EpochRecord, RunOutcome, Scores
from numpyro_epi._train.replay import Replay
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import EPIState, choose_restarts
from numpyro_epi._train.status import EPIStatus
from numpyro_epi._train.verdict import final_verdict

# Share of the evaluation draws that judges an epoch whose draws are replayed.
REPLAY_SHARE = 0.5
# Share of the tolerance beyond which a violation is worth another epoch.
NEAR = 0.4
# Epochs after which simulations have shown the range of a statistic.
FIRST_LOOK = 3


class Runner:
    """One run of an engine.

    Args:
        engine: compiled functions.
        rng_key: key of the run.
    """

    def __init__(self, engine: Engine, rng_key: jax.Array) -> None:
        self.engine = engine
        self.options = engine.options
        self.progress = Progress(engine.options)
        self.simulations = Simulations(engine, rng_key, self.progress.count)
        self.approach = Approach(engine, self.simulations)
        self.num_restarts = self.options.num_restarts
        self.start = time.perf_counter()
        self.records: list[EpochRecord] = []
        shape = (self.num_restarts, self.engine.problem.table.num_constraints)
        self.dual_rate, self.last_violation = np.ones(shape), np.zeros(shape)
        self.state: Any = None
        self.final: tuple[Evaluation, list[Scores]] | None = None
        num_replayed = int(self.options.num_evaluation * REPLAY_SHARE)
        self.replay = Replay(engine, max(num_replayed, self.options.num_particles))

    def train(self, stat_gradient: str, progress: Progress) -> list | None:
        """All epochs; may end early with status and message of each restart.

        `self.state` and `self.records` are whole after each epoch: an interrupt loses
        no more than the epoch that it interrupts.
        """
        plateau = Plateau.start(self.state, *self._look(self.approach.scores))
        try:
            while len(self.records) < self.options.num_epochs:
                record = self.run_epoch(stat_gradient, progress)
                self.state = self._add_violation(record)
                merit = self._look(record.scores)[1]
                # Two guides are compared at the same multipliers, the last ones.
                plateau = plateau.with_scores(*self._look(plateau.scores))
                problem = self.simulations.seen.unreachable(self.simulations.table)
                if problem is not None and len(self.records) >= FIRST_LOOK:
                    return [(EPIStatus.UNREACHABLE, problem)] * self.num_restarts
                before = plateau
                plateau, self.state = before.after(self.state, record.scores, merit)
                is_new = (plateau.merit > before.merit).any()
                if is_new and self._is_near(plateau):
                    self.final = self._evaluate_finally(plateau)
                    _, scores = self.final
                    plateau = plateau.with_scores(*self._look(scores))
                    if all(is_met(s, self.options).all() for s in scores):
                        break
                    self.final = None
                if plateau.is_over:
                    break
        finally:
            everyone = np.ones(self.num_restarts, bool)
            self.state = choose_restarts(everyone, plateau.best, self.state, keep=KEPT)
        return None

    def _look(self, scores: Sequence[Scores]) -> tuple[Sequence[Scores], np.ndarray]:
        """Scores, and the merits of the guides that have them."""
        multipliers = np.asarray(self.state.multipliers)
        return scores, merits(scores, multipliers, self.options.tolerance)

    def _add_violation(self, record: EpochRecord) -> EPIState:
        """To each guide's own multipliers, penalty times what it violates is added.

        Twice as much as in the epoch before where that was not enough, and half where
        it was too much: the sign of a violation tells (Rprop: Riedmiller & Braun, A
        direct adaptive method for faster backpropagation learning, 1993). If a law is
        trusted its multipliers are known, and what stays violated is of the guide.
        """
        violation = np.nan_to_num([s.violation for s in record.scores])
        same = np.sign(violation * self.last_violation)
        is_large = np.abs(violation) > NEAR * self.options.tolerance
        is_large &= ~self.approach.laws.are_trusted[:, None]
        self.dual_rate *= np.where(is_large, 2.0**same, 1.0)
        self.last_violation = violation
        change = self.dual_rate * np.asarray(self.state.penalty)
        change *= np.clip(violation, -1.0, 1.0)
        multipliers = np.asarray(self.state.multipliers) + change
        return self.state._replace(multipliers=jnp.asarray(multipliers, float))

    def _is_near(self, plateau: Plateau) -> bool:
        """Whether the best guides may be within the tolerances of their maximum."""
        if self.options.gap_tolerance == 0.0:
            return False
        if not all(s.gap < self.options.gap_tolerance for s in plateau.scores):
            return False
        violation = np.nan_to_num(self.records[-1].violation, nan=np.inf)
        return bool(np.abs(violation).max() <= NEAR * self.options.tolerance)

    def _evaluate_finally(self, plateau: Plateau) -> tuple[Evaluation, list[Scores]]:
        average = plateau.best.average
        ev, scores = self.simulations.evaluate_finally(average, is_decided=False)
        return ev, self.approach.laws.with_gaps(ev, scores)

    def run_epoch(self, stat_gradient: str, progress: Progress) -> EpochRecord:
        """Steps, then a look at the averaged guide with many more particles."""
        options = self.options
        began, before = time.perf_counter(), self.simulations.num_simulations
        replays = stat_gradient == "replay"
        if replays:
            if not self.replay.epochs:
                params = self.state.params
                ev, _ = self.simulations.evaluate(params, self.replay.num_draws)
                self.replay.epochs.append((params, ev))
            self.state = self.state._replace(memory=self.replay.memory())
        else:
            self.simulations.num_simulations += (
                options.num_steps * options.num_particles * self.num_restarts
            )
        state, infos = progress.run_epoch(self.engine, self.state, stat_gradient)
        num = max(options.num_evaluation, options.num_particles)
        num = self.replay.num_draws if replays else num
        ev, scores = self.simulations.evaluate(state.average, num)
        scores = self.approach.laws.with_gaps(ev, scores)
        if replays:
            self.replay.epochs.append((state.average, ev))
        violation = np.asarray(infos.violation)[options.num_steps // 2 :].mean(axis=0)
        if replays:
            # The guide was trained on the replayed draws: only new ones tell the truth.
            violation = np.stack([s.violation for s in scores])
        record = EpochRecord(
            scores,
            violation,
            np.asarray(state.multipliers),
            np.asarray(state.penalty),
            np.asarray(infos.is_skipped).mean(axis=0),
            np.asarray(infos.loss),
            time.perf_counter() - began,
            self.simulations.num_simulations - before,
        )
        self.state = state
        self.records.append(record)
        progress.show(record)
        return record

    def _start(self, agreement: Agreement, pilot_u: np.ndarray) -> EPIState:
        """The state after the search for the law, with targets that agree."""
        while True:
            self.approach = Approach(self.engine, self.simulations)
            keys = self.simulations.next_keys()
            fresh = self.simulations.init_state(keys)
            state = self.approach.begin(fresh, pilot_u)
            if not agreement.must_start_over(self.approach.laws.draws(NUM_DRAWS)):
                return state

    def _guide_draws(self, agreement: Agreement) -> np.ndarray | None:
        """Draws of the guides, if there were none of the law."""
        if agreement.is_settled:
            return None
        keys = self.simulations.keys
        return self.engine.chunks.draws(self.state.params, keys, NUM_DRAWS)[0]

    def run(self) -> RunOutcome:
        """The whole run."""
        simulations, progress = self.simulations, self.progress
        ended = None
        with progress:
            progress.stage("pilot")
            pilot_u = simulations.pilot()
            agreement = Agreement(self.engine, simulations)
            progress.stage("law, first fit")
            state = self._start(agreement, pilot_u)
            gradient = self.approach.choose_gradient(state, pilot_u)
            self.state, progress.can_stop = state, True
            progress.stage("guide")
            self.state = self.approach.steer(state, gradient.choice)
            while agreement.must_start_over(self._guide_draws(agreement)):
                state = self._start(agreement, pilot_u)
                self.state = self.approach.steer(state, gradient.choice)
            self.state = self.state._replace(penalty=simulations.penalty)
            agreement.warn()
            if self.options.schedule is not None:
                ended = train_published(self, gradient.choice, progress)
            else:
                ended = self.train(gradient.choice, progress)
        if progress.interrupted:
            stopped = (EPIStatus.INTERRUPTED, "Stopped from the keyboard.")
            ended = [stopped] * self.num_restarts
        state = self.state._replace(memory=self.engine.empty_memory)
        if self.final is None:
            is_decided = ended is not None
            self.final = simulations.evaluate_finally(
                state.average, is_decided=is_decided
            )
        simulations.failures.tell()
        ev, scores = self.final
        verdicts = [
            final_verdict(
                simulations,
                s,
                None if ended is None else ended[r],
                np.asarray(state.multipliers[r]),
                partial(self.approach.laws.correct, ev, r),
                self.approach.laws.own_scores(r, s),
            )
            for r, s in enumerate(scores)
        ]
        problem = agreement.look_back(ev.stats)
        if problem is not None and not progress.interrupted:
            verdicts = [(EPIStatus.UNREACHABLE, problem)] * self.num_restarts
        return RunOutcome(
            state=state,
            records=self.records,
            evaluation=ev,
            scores=scores,
            table=simulations.table,
            laws=self.approach.laws.found,
            law_reason=self.approach.laws.reason,
            gradient=gradient,
            status=[v[0] for v in verdicts],
            messages=[v[1] for v in verdicts],
            is_noisy=simulations.is_noisy,
            has_noisy_likelihood=simulations.has_noisy_likelihood,
            num_simulations=simulations.num_simulations,
            num_invalid=simulations.failures.num,
            seconds=time.perf_counter() - self.start,
        )
