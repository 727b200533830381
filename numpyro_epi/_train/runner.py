# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The host's side of a run: the epochs, and the decisions taken between them.

What is compiled lives in `engine`, what is simulated in `simulations`; `approach` comes
before the first epoch and `verdict` after the last one.
"""

import time
from functools import partial
from typing import Any

import jax
import numpy as np

from numpyro_epi._train.agreement import NUM_DRAWS, Agreement
from numpyro_epi._train.approach import Approach
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.published import train_published
from numpyro_epi._train.records import EpochRecord, RunOutcome, Scores
from numpyro_epi._train.replay import Replay
from numpyro_epi._train.schedule import (
    NUM_LAST_EPOCHS,
    end_after,
    has_diverged,
    is_met,
    is_near,
    law_multipliers,
    retreat,
    take_time,
    update_duals,
)
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import EPIState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi._train.verdict import final_verdict

# Share of the evaluation draws that judges an epoch whose draws are replayed.
REPLAY_SHARE = 0.5
# Epochs after which the distance to the maximum is judged, if it is not huge before.
FIRST_LOOK = 3
# Epochs that may be taken back.
MAX_RETREATS = 3


class Runner:
    """One run of an engine.

    Args:
        engine: compiled functions.
        rng_key: key of the run.
    """

    def __init__(self, engine: Engine, rng_key: jax.Array) -> None:
        self.engine = engine
        self.options = engine.options
        self.simulations = Simulations(engine, rng_key)
        self.approach = Approach(engine, self.simulations)
        self.num_restarts = self.options.num_restarts
        self.start = time.perf_counter()
        self.records: list[EpochRecord] = []
        self.state: Any = None
        self.judged: list[Scores] = []
        self.final: tuple[Evaluation, list[Scores]] | None = None
        num_replayed = int(self.options.num_evaluation * REPLAY_SHARE)
        self.replay = Replay(engine, max(num_replayed, self.options.num_particles))

    def train(self, stat_gradient: str, progress: Progress) -> list | None:
        """All epochs; may end early with status and message of each restart.

        `self.state` and `self.records` are whole after each epoch: an interrupt loses
        no more than the epoch that it interrupts.
        """
        num_epochs = self.options.num_epochs
        num_extensions, num_retreats, is_early, has_looked = 0, 0, False, False
        while len(self.records) < num_epochs:
            before = self.state
            record = self.run_epoch(stat_gradient, progress)
            is_lost = self._judge(record)
            self.state = update_duals(
                self.state, self.records, self.options, self.simulations.shares
            )
            if is_lost.any() and num_retreats < MAX_RETREATS:
                self.state = retreat(is_lost, before, self.state)
                num_retreats += 1
                num_epochs += 1
                continue
            problem = self.simulations.seen.unreachable(self.simulations.table)
            if problem is not None and len(self.records) >= 3:
                return [(EPIStatus.UNREACHABLE, problem)] * self.num_restarts
            is_first = len(self.records) < FIRST_LOOK
            if len(self.records) < num_epochs and not has_looked:
                self.state, factor = take_time(
                    self.state, self.approach.bounds, record, is_first=is_first
                )
                has_looked = factor > 1 or not is_first
                num_epochs = max(num_epochs, factor * self.options.num_epochs)
            early = len(self.records) + NUM_LAST_EPOCHS
            if not is_early and early < num_epochs:
                is_early = is_near(self.approach.bounds, record, self.options)
                if is_early:
                    num_epochs = early
                    self.state = end_after(self.state, early, self.options)
            # A run that was cut short and is not good gets its epochs back first.
            if len(self.records) < num_epochs or num_extensions == 1 + is_early:
                continue
            if not self._is_good(record):
                num_extensions += 1
                num_epochs += max(self.options.num_epochs // 2, 1)
                self.state = self.state._replace(horizon=1.5 * self.state.horizon)
        return None

    def _judge(self, record: EpochRecord) -> np.ndarray:
        """Which restarts the epoch has ruined; its draws are then not used again."""
        if not self.judged:
            self.judged = list(record.scores)
            return np.zeros(self.num_restarts, bool)
        is_lost = has_diverged(self.state, self.judged, record)
        if is_lost.any() and self.replay.epochs:
            self.replay.epochs.pop()
        self.judged = [
            old if lost else new
            for old, new, lost in zip(self.judged, record.scores, is_lost, strict=True)
        ]
        return is_lost

    def _is_good(self, record: EpochRecord) -> bool:
        """Whether a restart has converged, by the last epoch and by the final draws."""
        if not any(is_met(s, self.options).all() for s in record.scores):
            return False
        final = self.simulations.evaluate_finally(self.state.average, is_decided=False)
        if not any(is_met(s, self.options).all() for s in final[1]):
            return False
        self.final = final
        return True

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
        is_last = len(self.records) + 1 >= options.num_epochs
        num = options.num_evaluation if is_last else options.num_evaluation // 4
        num = self.replay.num_draws if replays else max(num, options.num_particles)
        ev, scores = self.simulations.evaluate(state.average, num)
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
            if not agreement.must_start_over(self.approach.law_draws(NUM_DRAWS)):
                return state

    def _guide_draws(self, agreement: Agreement) -> np.ndarray | None:
        """Draws of the guides, if there were none of the law."""
        if agreement.is_settled:
            return None
        keys = self.simulations.keys
        return self.engine.chunks.draws(self.state.params, keys, NUM_DRAWS)[0]

    def run(self) -> RunOutcome:
        """The whole run."""
        simulations = self.simulations
        pilot_u = simulations.pilot()
        agreement = Agreement(self.engine, simulations)
        state = self._start(agreement, pilot_u)
        gradient = self.approach.choose_gradient(state, pilot_u)
        self.state = state
        ended = None
        with Progress(self.options) as progress:
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
        if self.records and self.options.schedule is None:
            self.state = law_multipliers(self.state, self.records[-1])
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
                partial(self.approach.correct, ev, r),
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
            laws=self.approach.laws,
            law_reason=self.approach.reason,
            gradient=gradient,
            status=[v[0] for v in verdicts],
            messages=[v[1] for v in verdicts],
            is_noisy=simulations.is_noisy,
            has_noisy_likelihood=simulations.has_noisy_likelihood,
            num_simulations=simulations.num_simulations,
            num_invalid=simulations.failures.num,
            seconds=time.perf_counter() - self.start,
        )
