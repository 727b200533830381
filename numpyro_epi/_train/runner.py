# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The host's side of a run: pilot, warm start, epochs, verdict.

What is compiled lives in `engine`; here are the decisions taken between epochs.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._math.constraints import deviations
from numpyro_epi._math.convergence import violation_with_error
from numpyro_epi._math.dual import DualSolution, solve_dual
from numpyro_epi._train.adaptive import AdaptiveSampler
from numpyro_epi._train.engine import Engine, Evaluation, split_keys, to_numpy
from numpyro_epi._train.pilot import GradientHealth, choose_gradient
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.published import train_published
from numpyro_epi._train.records import EpochRecord, RunOutcome, Scores
from numpyro_epi._train.replay import Replay
from numpyro_epi._train.schedule import (
    NUM_LAST_EPOCHS,
    end_after,
    is_met,
    is_near,
    take_time,
    update_duals,
)
from numpyro_epi._train.state import EPIState, choose_restarts
from numpyro_epi._train.status import (
    EPIStatus,
    InvalidStatisticError,
    SeenRange,
    first_invalid_label,
)
from numpyro_epi._train.steer import Way, steer
from numpyro_epi._train.warm_start import Pool, WarmStart

# Factor of the learning rate after a complete warm start. Not with one latent, whose
# flow has no networks: lone parameters move slowly as it is.
WARM_RATE = 0.5
# Effective sample size below which multipliers from a pool are not trusted.
MIN_DUAL_ESS = 1000.0
# Simulations of each anchor draw where statistics are noisy.
NUM_REPEATS = 16
# Of the evaluation draws, where a heavy tail calls for more.
MAX_EVALUATION_FACTOR = 4
# Share of them that judges an epoch whose draws are replayed.
REPLAY_SHARE = 0.5
# Epochs after which the distance to the maximum is first judged.
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
        self.problem = engine.problem
        self.table = engine.problem.table
        self.has_var = self.table.has_var
        self.num_restarts = self.options.num_restarts
        self.keys = random.split(rng_key, self.num_restarts)
        self.seen = SeenRange(self.table.num_statistics)
        self.num_simulations = 0
        self.is_noisy = False
        self.start = time.perf_counter()
        self.records: list[EpochRecord] = []
        self.state: Any = None
        self.sampler = AdaptiveSampler(engine, self._simulate_pool, self.next_keys)
        self.starts: list[Any] = []
        self.bounds = np.full(self.num_restarts, np.nan)
        self.last_evaluation: Any = None
        self.final: tuple[Evaluation, list[Scores]] | None = None
        num_replayed = int(self.options.num_evaluation * REPLAY_SHARE)
        self.replay = Replay(engine, max(num_replayed, self.options.num_particles))

    # -- bookkeeping ------------------------------------------------------------------

    def next_keys(self) -> jax.Array:
        """Fresh keys, one for each restart."""
        self.keys, keys = split_keys(self.keys, 2)
        return keys

    def deviations(self, stats: np.ndarray) -> np.ndarray:
        """T of statistics (..., S) on the host, zero where they are not finite."""
        good = np.isfinite(stats).all(axis=-1, keepdims=True)
        devs = deviations(
            jnp.asarray(np.where(good, stats, 0.0)), self.table.targets, self.has_var
        )
        return np.where(good, np.asarray(devs), 0.0)

    def note(self, u: np.ndarray, log_lik: np.ndarray, stats: np.ndarray) -> np.ndarray:
        """Count simulations of shape (R, n, ...); raise or return their validity."""
        is_valid = np.isfinite(stats).all(axis=-1) & np.isfinite(log_lik)
        self.num_simulations += is_valid.size
        self.seen.add(stats.reshape(-1, stats.shape[-1]))
        if is_valid.all():
            return is_valid
        if self.options.on_invalid == "raise" or not is_valid.any():
            where = tuple(np.argwhere(~is_valid)[0])
            latents = to_numpy(self.problem.constrain(jnp.asarray(u[where]))[0])
            label = first_invalid_label(self.table, stats[where])
            raise InvalidStatisticError(label, float(1.0 - is_valid.mean()), latents)
        return is_valid

    # -- pilot and warm start ---------------------------------------------------------

    def _simulate_pool(self, u: np.ndarray) -> Pool:
        """Simulate draws of all restarts; the result has a leading axis R.

        Noisy statistics are averaged over two simulations of each draw.
        """
        return self._simulate_repeatedly(u, 2 if self.is_noisy else 1)[0]

    def _simulate_many(self, u: np.ndarray) -> tuple[Pool, np.ndarray]:
        """The same with many simulations, and the covariance of their averages."""
        pool, devs = self._simulate_repeatedly(u, NUM_REPEATS)
        centred = devs - pool.deviations
        scale = NUM_REPEATS * (NUM_REPEATS - 1)
        return pool, np.einsum("srnj,srnk->rnjk", centred, centred) / scale

    def _simulate_repeatedly(
        self, u: np.ndarray, num_repeats: int
    ) -> tuple[Pool, np.ndarray]:
        """Averages over simulations, and T of each, shape (num_repeats, R, n, K)."""
        sims, is_valid = [], np.ones(u.shape[:-1], bool)
        for _ in range(num_repeats):
            sim = self.engine.simulate(u, self.next_keys())
            sims.append(sim)
            is_valid &= self.note(u, sim.log_likelihood, sim.stats)
        devs = np.stack([self.deviations(sim.stats) for sim in sims])
        log_lik = np.mean([sim.log_likelihood for sim in sims], axis=0)
        return Pool(u, sims[0].log_prior, log_lik, devs.mean(0), is_valid), devs

    def pilot(self) -> np.ndarray:
        """Prior draws: are they valid, noisy, and what is the scale of the statistics?

        Returns:
            Draws u, shape (R, n, D).
        """
        num = min(2000, self.options.warm_start_size)
        u = self.engine.prior_draws(self.next_keys(), num)
        sim = self.engine.simulate(u, self.next_keys())
        is_valid = self.note(u, sim.log_likelihood, sim.stats)
        self.table = self.table.with_scale(sim.stats[is_valid])
        if self.problem.uses_random_keys:
            again = self.engine.simulate(u, self.next_keys())
            self.num_simulations += is_valid.size
            both = np.isfinite(again.stats) & np.isfinite(sim.stats)
            differs = again.stats != sim.stats
            self.is_noisy = bool((differs & both).any())
        return u

    @property
    def wants_warm_start(self) -> bool:
        """Whether to try one."""
        if self.options.warm_start is False or self.options.schedule is not None:
            return False
        is_possible = (
            self.engine.guide.has_fast_density and self.problem.can_sample_prior
        )
        if self.options.warm_start is True and not is_possible:
            raise ValueError(
                "`warm_start=True` needs a guide with a fast density and latents with "
                f"proper priors, which {self.engine.guide.name} on this model has not. "
                "Use `numpyro_epi.guides.AutoRealNVP`, or `warm_start='auto'`."
            )
        return is_possible

    def warm_start(self, state: EPIState) -> tuple[EPIState, list]:
        """Adaptive importance sampling; restarts that fail keep an untrained guide."""
        if not self.wants_warm_start:
            return state, [None] * self.num_restarts
        found = self.sampler.start()
        params, found, num_rounds = self.sampler.rounds(state.params, found)
        starts = [
            WarmStart(solution, distance, num_rounds, self.seen.num_simulations)
            for solution, distance in found
        ]
        return self._start_state(state, params, starts), starts

    def _late_warm_start(self, ev: Evaluation) -> bool:
        """Catch up on a warm start that could not reach the targets from the prior.

        Once training has brought the guide near enough for its draws to be reweighted
        to the targets, the rounds go on from there, and training starts afresh.

        Returns:
            Whether that happened, for any restart.
        """
        late = [
            r
            for r, start in enumerate(self.starts)
            if start is not None and not start.is_complete and self._can_reweight(ev, r)
        ]
        if not late:
            return False
        state = self.state
        found = [(start.solution, start.distance) for start in self.starts]
        found = self.sampler.round(state.average, found)
        late = [r for r in late if found[r][1] == 0.0]
        if not late:
            return False
        params, found, num_rounds = self.sampler.rounds(state.average, found)
        for r in late:
            self.starts[r] = WarmStart(*found[r], num_rounds, self.seen.num_simulations)
        fresh = self.engine.init_state(state.rng_key, self.table.targets)
        fresh = self._start_state(fresh, params, self.starts)
        is_new = np.isin(np.arange(self.num_restarts), late)
        state = choose_restarts(is_new, fresh, state, keep=("rng_key", "pool"))
        self.state = state._replace(pool=fresh.pool)
        return True

    def _can_reweight(self, ev: Evaluation, r: int) -> bool:
        """Whether draws of one restart have weights that meet all targets."""
        is_valid = np.isfinite(ev.stats[r]).all(axis=-1)
        log_w = ev.log_prior[r] + ev.log_likelihood[r] - ev.log_q[r]
        log_w = np.where(is_valid & np.isfinite(log_w), log_w, -np.inf)
        if not np.isfinite(log_w).any():
            return False
        solution = solve_dual(log_w, self.deviations(ev.stats[r]))
        return solution.residual < 0.05 and solution.ess >= self.sampler.min_ess

    def _start_state(
        self, state: EPIState, params: Any, starts: list[WarmStart]
    ) -> EPIState:
        """State at the end of the warm start."""
        complete = np.array([s.is_complete for s in starts])
        anchor = np.where(complete, self.options.anchor, 0.0)
        rate = WARM_RATE if self.problem.num_latents > 1 else 1.0
        multipliers, pool, bounds = self.sampler.anchor(
            [(s.solution, s.distance) for s in starts],
            self._simulate_many if self.is_noisy else None,
        )
        if self.options.anchor == 0.0:
            pool = pool[:, :0]  # no step shall pay for it
        self.bounds = np.where(complete, bounds, np.nan)
        return state._replace(
            params=params,
            average=params,
            cover=params,
            optim_state=self.engine.init_optim(params),
            multipliers=jnp.asarray(multipliers, float),
            pool=pool,
            anchor=jnp.asarray(anchor, float),
            rate=jnp.asarray(np.where(complete, rate, 1.0), float),
        )

    # -- epochs -----------------------------------------------------------------------

    def evaluate(self, params: Any, num: int) -> tuple[Evaluation, list[Scores]]:
        """Draws of the guide, simulated, and their moments for each restart."""
        ev = self.engine.evaluate(params, self.next_keys(), num)
        self.note(ev.u, ev.log_likelihood, ev.stats)
        return ev, self._scores(ev)

    def _scores(self, ev: Evaluation) -> list[Scores]:
        """Moments of each restart's draws; over those that could be simulated."""
        is_valid = np.isfinite(ev.stats).all(axis=-1) & np.isfinite(ev.log_likelihood)
        devs = self.deviations(ev.stats)
        scores = []
        for r in range(self.num_restarts):
            rows = is_valid[r]
            share = float(rows.mean())
            if not rows.any():
                scores.append(Scores.failed(self.table.num_constraints))
                continue
            violation, error = violation_with_error(devs[r][rows])
            log_q = ev.log_q[r][rows] - np.log(share)
            scores.append(
                Scores(
                    entropy=float(np.mean(ev.log_det[r][rows] - log_q)),
                    divergence=float(np.mean(log_q - ev.log_prior[r][rows])),
                    log_likelihood=float(np.mean(ev.log_likelihood[r][rows])),
                    violation=violation,
                    violation_error=error,
                    invalid=1.0 - share,
                )
            )
        return scores

    def train(self, stat_gradient: str, progress: Progress) -> list | None:
        """All epochs; may end early with status and message of each restart.

        `self.state` and `self.records` are whole after each epoch: an interrupt loses
        no more than the epoch that it interrupts.
        """
        num_epochs = self.options.num_epochs
        num_extensions, is_early = 0, False
        has_caught_up = False
        start = 0
        while len(self.records) < num_epochs:
            record = self.run_epoch(stat_gradient, progress)
            self.state = update_duals(self.state, self.records, self.options)
            if not has_caught_up and self._late_warm_start(self.last_evaluation):
                has_caught_up = True
                self.replay.epochs.clear()
                start = len(self.records)
                num_epochs = start + self.options.num_epochs
            problem = self.seen.unreachable(self.table)
            if problem is not None and len(self.records) >= 3:
                return [(EPIStatus.UNREACHABLE, problem)] * self.num_restarts
            if len(self.records) == start + FIRST_LOOK < num_epochs:
                self.state, factor = take_time(self.state, self.bounds, record)
                num_epochs = start + factor * self.options.num_epochs
            early = len(self.records) + NUM_LAST_EPOCHS
            if not is_early and early < num_epochs:
                is_early = is_near(self.bounds, record, self.options)
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

    def _is_good(self, record: EpochRecord) -> bool:
        """Whether a restart has converged, by the last epoch and by the final draws."""
        if not any(is_met(s, self.options).all() for s in record.scores):
            return False
        final = self.evaluate_finally(self.state.average, is_decided=False)
        if not any(is_met(s, self.options).all() for s in final[1]):
            return False
        self.final = final
        return True

    def run_epoch(self, stat_gradient: str, progress: Progress) -> EpochRecord:
        """Steps, then a look at the averaged guide with many more particles."""
        options = self.options
        began, before = time.perf_counter(), self.num_simulations
        replays = stat_gradient == "replay"
        if replays:
            if not self.replay.epochs:
                params = self.state.params
                ev, _ = self.evaluate(params, self.replay.num_draws)
                self.replay.epochs.append((params, ev))
            self.state = self.state._replace(memory=self.replay.memory())
        else:
            self.num_simulations += (
                options.num_steps * options.num_particles * self.num_restarts
            )
        state, infos = progress.run_epoch(self.engine, self.state, stat_gradient)
        is_last = len(self.records) + 1 >= options.num_epochs
        num = options.num_evaluation if is_last else options.num_evaluation // 4
        num = self.replay.num_draws if replays else max(num, options.num_particles)
        ev, scores = self.evaluate(state.average, num)
        self.last_evaluation = ev
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
            self.num_simulations - before,
        )
        self.state = state
        self.records.append(record)
        progress.show(record)
        return record

    # -- verdict ----------------------------------------------------------------------

    def final_duals(self, state: EPIState, ev: Evaluation) -> list[DualSolution | None]:
        """Exact multipliers from pool and evaluation draws, where that can be trusted.

        With noisy statistics E[T | z] is not known draw by draw, and a tilt by single
        simulations is another law: None.
        """
        none: list[DualSolution | None] = [None] * self.num_restarts
        if self.is_noisy or not self.sampler.pools:
            return none
        new = Pool(
            np.asarray(ev.u),
            ev.log_prior,
            ev.log_likelihood,
            self.deviations(ev.stats),
            np.isfinite(ev.stats).all(axis=-1),
        )
        start = [(np.asarray(m, np.float64), 0.0) for m in state.multipliers]
        self.sampler.add(
            new,
            [lambda u: self.engine.log_q(state.average, u)],
            [ev.u.shape[1]],
        )
        return [
            solution if distance == 0.0 else None
            for solution, distance in self.sampler.solve(start, MIN_DUAL_ESS)
        ]

    def verdict(self, scores: Scores) -> tuple[EPIStatus, str]:
        """Status of one restart from its final draws."""
        options = self.options
        good = is_met(scores, options)
        if good.all():
            return EPIStatus.CONVERGED, (
                f"All {good.size} constraints are met within {options.tolerance:g} "
                "scaled units."
            )
        problem = self.seen.unreachable(self.table)
        if problem is not None:
            return EPIStatus.UNREACHABLE, problem
        if scores.invalid == 1.0:
            return EPIStatus.NOT_CONVERGED, (
                "None of the draws can be simulated. Use more restarts, or restrict "
                "the prior to latents whose simulation is finite."
            )
        bound = np.abs(scores.violation) + options.z_score * scores.violation_error
        worst = int(np.argmax(bound))
        return EPIStatus.NOT_CONVERGED, (
            f"The {self.table.labels[worst]} is off by {scores.violation[worst]:+.3g} "
            f"+- {scores.violation_error[worst]:.2g} scaled units (tolerance "
            f"{options.tolerance:g}). Train longer (`num_epochs`, `num_steps`, "
            "`num_particles`), use a more flexible guide, or ask whether the model can "
            "have this mean and variance at once."
        )

    def run(self) -> RunOutcome:
        """The whole run."""
        pilot_u = self.pilot()
        state = self.engine.init_state(self.next_keys(), self.table.targets)
        state, self.starts = self.warm_start(state)
        gradient = self._choose_gradient(state, pilot_u)
        self.state = state
        ended = None
        with Progress(self.options) as progress:
            self.state = self._steer_from_afar(state, gradient.choice)
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
            self.final = self.evaluate_finally(state.average, is_decided=is_decided)
        ev, scores = self.final
        duals = self.final_duals(state, ev)
        verdicts = [
            self.verdict(s) if ended is None else ended[r] for r, s in enumerate(scores)
        ]
        return RunOutcome(
            state=state,
            records=self.records,
            evaluation=ev,
            scores=scores,
            table=self.table,
            duals=duals,
            warm_starts=self.starts,
            gradient=gradient,
            status=[v[0] for v in verdicts],
            messages=[v[1] for v in verdicts],
            is_noisy=self.is_noisy,
            num_simulations=self.num_simulations,
            seconds=time.perf_counter() - self.start,
        )

    def evaluate_finally(
        self, params: Any, *, is_decided: bool
    ) -> tuple[Evaluation, list[Scores]]:
        """Evaluation draws, doubled while only their number stands against a verdict.

        A violation within the tolerance whose standard error is too large to show it
        (heavy tails) deserves more draws, up to `MAX_EVALUATION_FACTOR` times as many.
        """
        ev, scores = self.evaluate(params, self.options.num_evaluation)
        limit = MAX_EVALUATION_FACTOR * self.options.num_evaluation
        while not is_decided and ev.u.shape[1] < limit:
            best = min(scores, key=lambda s: float(np.abs(s.violation).max()))
            is_small = np.abs(best.violation).max() <= self.options.tolerance
            if is_met(best, self.options).all() or not is_small:
                break
            more = self.engine.evaluate(params, self.next_keys(), ev.u.shape[1])
            self.note(more.u, more.log_likelihood, more.stats)
            ev = Evaluation(
                *(np.concatenate(pair, axis=1) for pair in zip(ev, more, strict=True))
            )
            scores = self._scores(ev)
        return ev, scores

    def _steer_from_afar(self, state: EPIState, stat_gradient: str) -> EPIState:
        """Without a complete warm start, lead the guide to its targets gradually."""
        if self.options.schedule is not None:
            return state
        ev, scores = self.evaluate(state.params, self.options.num_evaluation // 4)
        violation = np.stack([s.violation for s in scores])
        complete = np.array([s is not None and s.is_complete for s in self.starts])
        is_far = ~complete & (np.abs(violation) >= 1.0).any(axis=1)
        state = state._replace(running=jnp.asarray(violation, float))
        if not is_far.any():
            return state
        if is_far.all():  # draws of weight zero: no step shall pay for them
            state = state._replace(pool=state.pool[:, :0])
        way = Way.from_stats(ev.stats, self.table.mean, self.table.scale, self.has_var)
        state = state._replace(
            running=jnp.where(is_far[:, None], 0.0, state.running),
            multipliers=jnp.where(is_far[:, None], 0.0, state.multipliers),
        )
        # There are no simulated draws to replay yet.
        gradient = "score" if stat_gradient == "replay" else stat_gradient
        state, num_steps = steer(self.engine, state, way, is_far, gradient)
        self.num_simulations += (
            num_steps * self.options.num_particles * self.num_restarts
        )
        if self.wants_warm_start:
            # Not even importance sampling led there: unless it still does, take time.
            self.bounds = np.where(is_far, np.inf, self.bounds)
        return state

    def _choose_gradient(self, state: EPIState, pilot_u: np.ndarray) -> GradientHealth:
        """Look at the statistics where the guide is now."""
        if self.wants_warm_start:
            u = self.engine.draws(state.params, self.next_keys(), 2000)[0][0]
        else:
            u = pilot_u[0]
        return choose_gradient(
            self.problem,
            self.engine.pilot,
            u,
            self.table.targets,
            self.next_keys()[0],
            requested=self.options.stat_gradient,
            has_loop=self.engine.has_loop,
            num_operations=self.engine.num_operations,
            can_score=self.engine.guide.has_fast_density,
            can_replay=all(s is not None and s.is_complete for s in self.starts),
            masks_invalid=self.options.on_invalid == "mask",
        )
