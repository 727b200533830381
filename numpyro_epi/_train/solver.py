# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A run: one value that holds all there is of it, and what takes it a step further."""

import time
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from numpyro_epi._solver.law import Law
from numpyro_epi._solver.search import ROUND, Search
from numpyro_epi._train.agreement import NUM_DRAWS, Agreement, Findings
from numpyro_epi._train.approach import MOVES_AT_ONCE, Approach
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.laws import Laws
from numpyro_epi._train.pilot import GradientHealth
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.records import RunOutcome
from numpyro_epi._train.simulations import Ledger, Simulations
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi._train.steer import STEER_STEPS, Steering
from numpyro_epi._train.training import Trainer, Training
from numpyro_epi._train.verdict import final_verdict
from numpyro_epi._typing import existing

# Of a run that was stopped before its statistics were differentiated.
UNTRAINED = GradientHealth("none", "stopped before any", np.nan, np.nan)
# What stops a run before it is done, its status if nothing is good yet, and in words.
STOPS = {
    "budget": (
        EPIStatus.BUDGET,
        "Its budget is used up: a larger one goes on from a `checkpoint`.",
    ),
    "callback": (EPIStatus.INTERRUPTED, "Stopped by a callback."),
    "interrupt": (EPIStatus.INTERRUPTED, "Stopped from the keyboard."),
    "hand": (EPIStatus.INTERRUPTED, "Not advanced to its end."),
}


class EPIState(NamedTuple):
    """All there is of a run at one moment; `EPI.advance` takes it a step further.

    Attributes:
        stage: what comes next: "law", "first fit", "way" (to targets that are far, of
            guides without a law), "guide", "verdict", or "done".
        ledger: what simulations have shown so far.
        findings: on relations between statistics.
        pilot_u: draws of the prior, unconstrained, shape (R, n, D).
        guide: state of the guides before the first epoch.
        searches: for the laws of the restarts; empty before they begin.
        laws: of the restarts, once they are searched for.
        gradient: how statistics are differentiated, once that is known.
        steering: of guides on their way.
        training: of the guides, once it has begun.
        outcome: once it is done.
        seconds: so far.
        last_cost: simulations of the last step.
    """

    stage: str
    ledger: Ledger
    findings: Findings
    pilot_u: np.ndarray
    guide: GuideState
    searches: tuple[Search, ...]
    laws: tuple[Law | None, ...]
    gradient: GradientHealth | None
    steering: Steering | None
    training: Training | None
    outcome: RunOutcome | None
    seconds: float
    last_cost: int

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stage == "done"

    @property
    def num_simulations(self) -> int:
        """Simulations so far."""
        return self.ledger.num_simulations

    @property
    def num_epochs(self) -> int:
        """Epochs of training so far."""
        return 0 if self.training is None else len(self.training.records)


class Solver:
    """Takes runs of an engine from one state to the next; it has none of its own.

    Args:
        engine: compiled functions.
        progress: shows what happens; None for silence.
    """

    def __init__(self, engine: Engine, progress: Progress | None = None) -> None:
        self.engine = engine
        self.options = engine.options
        self.progress = Progress(engine.options) if progress is None else progress

    def init(self, rng_key: jax.Array) -> EPIState:
        """After draws of the prior."""
        began = time.perf_counter()
        self.progress.stage("pilot")
        ledger = Ledger.start(self.engine, rng_key)
        simulations = Simulations(self.engine, ledger, self.progress.count)
        pilot_u = simulations.pilot()
        agreement = Agreement(self.engine, simulations)
        laws = Laws(self.engine, simulations)
        state = EPIState(
            stage="law",
            ledger=simulations.ledger,
            findings=agreement.findings,
            pilot_u=pilot_u,
            guide=simulations.init_state(simulations.ledger.keys),
            searches=(),
            laws=laws.found,
            gradient=None,
            steering=None,
            training=None,
            outcome=None,
            seconds=0.0,
            last_cost=0,
        )
        return state._replace(seconds=time.perf_counter() - began)

    def advance(self, state: EPIState) -> EPIState:
        """One round of the search, or the first fit, or an epoch, or the verdict."""
        if state.is_done:
            return state
        began = time.perf_counter()
        self.progress.stage(state.stage)
        step = {
            "law": self._advance_law,
            "first fit": self._fit_first,
            "way": self._advance_way,
            "guide": self._train,
            "verdict": self._judge,
        }[state.stage]
        simulations = Simulations(self.engine, state.ledger, self.progress.count)
        before = state.num_simulations
        state = step(state, simulations)
        return state._replace(
            ledger=simulations.ledger,
            seconds=state.seconds + time.perf_counter() - began,
            last_cost=simulations.ledger.num_simulations - before,
        )

    def _advance_law(self, state: EPIState, simulations: Simulations) -> EPIState:
        """A round of a search for a law."""
        laws = Laws(self.engine, simulations)
        if not state.searches:
            guide = simulations.init_state(simulations.next_keys())
            state = state._replace(guide=guide, laws=laws.found)
            if laws.reason:
                return state._replace(stage="first fit")
            state = state._replace(searches=laws.start())
        searches = list(state.searches)
        r = next(r for r, search in enumerate(searches) if not search.is_done)
        searches[r] = laws.advance(searches[r], state.pilot_u[0])
        state = state._replace(searches=tuple(searches))
        if not all(search.is_done for search in searches):
            return state
        laws.settle(searches)
        state = state._replace(laws=laws.found, searches=())
        agreement = Agreement(self.engine, simulations, state.findings)
        starts_over = agreement.must_start_over(laws.draws(NUM_DRAWS))
        state = state._replace(findings=agreement.findings, stage="first fit")
        return self._start_over(state) if starts_over else state

    def _approach(self, state: EPIState, simulations: Simulations) -> Approach:
        laws = Laws(self.engine, simulations, state.laws)
        return Approach(self.engine, simulations, laws)

    def _fit_first(self, state: EPIState, simulations: Simulations) -> EPIState:
        """Guides at their laws."""
        approach = self._approach(state, simulations)
        guide, gradient = approach.begin(state.guide), state.gradient
        if gradient is None:
            gradient = approach.choose_gradient(guide, state.pilot_u)
        guide, is_far = approach.look(guide)
        state = state._replace(guide=guide, gradient=gradient)
        if not is_far.any():
            return self._start_training(state, simulations, approach)
        return state._replace(steering=approach.lead(guide, is_far), stage="way")

    def _advance_way(self, state: EPIState, simulations: Simulations) -> EPIState:
        """Guides without a law are led to their targets."""
        approach = self._approach(state, simulations)
        choice = existing(state.gradient).choice
        steering = approach.advance(existing(state.steering), choice)
        if not steering.is_done(self.options):
            return state._replace(steering=steering)
        guide = approach.arrive(steering, state.guide.multipliers)
        state = state._replace(guide=guide, steering=None)
        return self._start_training(state, simulations, approach)

    def _start_training(
        self, state: EPIState, simulations: Simulations, approach: Approach
    ) -> EPIState:
        """From guides at their targets, if these agree with each other there."""
        guide = approach.with_anchors(state.guide)
        agreement = Agreement(self.engine, simulations, state.findings)
        u = None
        if not agreement.findings.is_settled:
            keys = simulations.ledger.keys
            u = self.engine.chunks.draws(guide.params, keys, NUM_DRAWS)[0]
        starts_over = agreement.must_start_over(u)
        state = state._replace(guide=guide, findings=agreement.findings)
        if starts_over:
            return self._start_over(state)
        agreement.warn()
        guide = guide._replace(penalty=simulations.penalty)
        training = self._trainer(state, simulations).start(guide, approach.scores)
        return state._replace(stage="guide", training=training)

    def _start_over(self, state: EPIState) -> EPIState:
        """With other targets: laws of the old ones are none."""
        none = (None,) * self.options.num_restarts
        return state._replace(stage="law", laws=none, searches=())

    def _trainer(self, state: EPIState, simulations: Simulations) -> Trainer:
        laws = Laws(self.engine, simulations, state.laws)
        choice = existing(state.gradient).choice
        return Trainer(self.engine, simulations, laws, choice, self.progress)

    def _train(self, state: EPIState, simulations: Simulations) -> EPIState:
        """An epoch."""
        trainer = self._trainer(state, simulations)
        training = trainer.advance(existing(state.training))
        stage = "verdict" if training.is_over else "guide"
        return state._replace(training=training, stage=stage)

    def _judge(self, state: EPIState, simulations: Simulations) -> EPIState:
        """The verdict on laws and guides."""
        return state._replace(
            outcome=self._outcome(state, simulations, "done"), stage="done"
        )

    def outcome(
        self, state: EPIState, stopped_by: str, num_draws: int | None = None
    ) -> RunOutcome:
        """What there is to say of a run at any moment.

        Args:
            state: of the run.
            stopped_by: why it has not gone on: a key of `STOPS`.
            num_draws: of each guide that judge it, at most; None for as many as usual.
        """
        if state.outcome is not None:
            return state.outcome
        simulations = Simulations(self.engine, state.ledger, self.progress.count)
        return self._outcome(state, simulations, stopped_by, num_draws)

    def cost_of_next(self, state: EPIState) -> int:
        """Simulations that the next step takes, roughly."""
        options = self.options
        judged = options.num_evaluation * options.num_restarts
        each = options.num_particles * options.num_restarts
        if state.stage == "law":
            # A round, or as many as the last one took.
            size = int(ROUND * options.warm_start_size) * state.ledger.num_repeats
            return max(size, state.last_cost if state.searches else 0)
        if state.stage == "way":
            return MOVES_AT_ONCE * STEER_STEPS * each
        if state.stage == "guide" and existing(state.gradient).choice != "replay":
            return options.num_steps * each + judged
        if state.stage == "verdict" and existing(state.training).final is not None:
            return 0
        return judged

    def _outcome(
        self,
        state: EPIState,
        simulations: Simulations,
        stopped_by: str,
        num_draws: int | None = None,
    ) -> RunOutcome:
        began = time.perf_counter()
        training, ended = state.training, None
        guide, final = state.guide, None
        if training is not None:
            guide, final, ended = training.best, training.final, training.ended
        guide = guide._replace(memory=self.engine.empty_memory)
        if final is None:
            is_decided = stopped_by != "done" or ended is not None
            final = simulations.evaluate_finally(
                guide.average, is_decided=is_decided, num_draws=num_draws
            )
        simulations.tell()
        ev, scores = final
        laws = Laws(self.engine, simulations, state.laws)
        is_whole = stopped_by == "done"
        verdicts = [
            final_verdict(
                simulations,
                s,
                None if ended is None else ended[r],
                np.asarray(guide.multipliers[r]),
                partial(laws.correct, ev, r),
                laws.own_scores(r, s),
                is_whole=is_whole,
            )
            for r, s in enumerate(scores)
        ]
        agreement = Agreement(self.engine, simulations, state.findings)
        problem = agreement.look_back(ev.stats) if is_whole else None
        if problem is not None:
            verdicts = [(EPIStatus.UNREACHABLE, problem)] * len(verdicts)
        if stopped_by != "done":
            verdicts = [_stopped(*v, stopped_by) for v in verdicts]
        ledger = simulations.ledger
        return RunOutcome(
            state=guide,
            records=[] if training is None else list(training.records),
            evaluation=ev,
            scores=scores,
            table=ledger.table,
            laws=list(laws.found),
            law_reason=laws.reason or "the run was stopped before there was one",
            gradient=state.gradient or UNTRAINED,
            status=[v[0] for v in verdicts],
            messages=[v[1] for v in verdicts],
            is_noisy=ledger.is_noisy,
            has_noisy_likelihood=simulations.has_noisy_likelihood,
            num_simulations=ledger.num_simulations,
            num_invalid=ledger.failures.num,
            seconds=state.seconds + time.perf_counter() - began,
            stopped_by=stopped_by,
        )


def _stopped(status: EPIStatus, message: str, by: str) -> tuple[EPIStatus, str]:
    """Of a run that has not gone on: what is good is good all the same."""
    if status in (EPIStatus.CONVERGED, EPIStatus.CORRECTED, EPIStatus.LAW_ONLY):
        return status, message
    status, why = STOPS[by]
    return status, f"{why} {message}"
