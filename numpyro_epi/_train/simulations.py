# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The simulations of one run: their keys, their number, which failed, and averages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._math.constraints import ConstraintTable, Targets
from numpyro_epi._math.convergence import violation_with_error
from numpyro_epi._math.noisy import MAX_VARIANCE, MIN_REPEATS
from numpyro_epi._train.chunks import Evaluation, split_keys
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.failures import Failures
from numpyro_epi._train.plateau import is_met, is_within
from numpyro_epi._train.precision import check_latents, check_statistics
from numpyro_epi._train.records import Scores
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.status import SeenRange

# Prior draws at which a run looks first.
NUM_PILOT = 2000
# Simulations of each draw of a law where statistics are noisy.
NUM_REPEATS = 2
# At most, where the log likelihood is noisy: more is dearer than training. Of dear
# simulations the least number that will do. And how many times as many may be missing,
# at draws of the prior, before noise is known to be too large for weights.
MAX_REPEATS, HOPELESS = 256, 16
# Of the evaluation draws, where a heavy tail calls for more.
MAX_EVALUATION_FACTOR = 4


class Ledger(NamedTuple):
    """What the simulations of a run have shown so far.

    Attributes:
        keys: of the restarts, from which the next ones come, shape (R,).
        table: constraints, with scales from the pilot where no variance gives one.
        seen: range of the statistics.
        failures: those that failed.
        num_simulations: how many there were.
        is_noisy: whether statistics differ from one simulation to the next.
        is_likelihood_noisy: whether log likelihoods do; not those of minibatches of
            which simulations take all elements.
        log_likelihood_dtype: in which log likelihoods are computed.
        largest_seen: largest |T| of each constraint over the draws of the pilot, (K,).
        num_repeats: simulations of each draw of a law.
        has_weights: whether so many average over the noise of the log likelihood well
            enough for importance weights.
        shares: of each constraint in a penalty that it has with its copies, shape (K,).
        pilot_stats: statistics of the pilot that are finite, shape (n, S).
    """

    keys: jax.Array
    table: ConstraintTable
    seen: SeenRange
    failures: Failures
    num_simulations: int
    is_noisy: bool
    is_likelihood_noisy: bool
    log_likelihood_dtype: np.dtype
    largest_seen: np.ndarray
    num_repeats: int
    has_weights: bool
    shares: np.ndarray
    pilot_stats: np.ndarray

    @classmethod
    def start(cls, engine: Engine, rng_key: jax.Array) -> "Ledger":
        """Before the first simulation."""
        table = engine.problem.table
        return cls(
            keys=random.split(rng_key, engine.options.num_restarts),
            table=table,
            seen=SeenRange.empty(table.num_statistics),
            failures=Failures(engine.options.on_invalid),
            num_simulations=engine.problem.num_pilot_simulations,
            is_noisy=False,
            is_likelihood_noisy=False,
            log_likelihood_dtype=np.dtype(np.float32),
            largest_seen=np.full(table.num_constraints, np.inf),
            num_repeats=1,
            has_weights=True,
            shares=np.ones(table.num_constraints),
            pilot_stats=np.zeros((0, table.num_statistics)),
        )


class Simulations:
    """Everything that simulates, from one moment of a run on.

    Args:
        engine: compiled functions.
        ledger: what is known at that moment.
        watch: is told how many simulations there were, as they come.

    Attributes:
        ledger: what is known since.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        watch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.engine = engine
        self.ledger = ledger
        self.watch = watch
        self.options = engine.options
        self.problem = engine.problem
        self.num_restarts = self.options.num_restarts

    @classmethod
    def start(cls, engine: Engine, rng_key: jax.Array) -> "Simulations":
        """Before the first simulation."""
        return cls(engine, Ledger.start(engine, rng_key))

    def know(self, **changes: Any) -> None:
        """Replace fields of the ledger."""
        self.ledger = self.ledger._replace(**changes)

    def count(self, num: int) -> None:
        """Count simulations of which nothing else is known."""
        self.know(num_simulations=self.ledger.num_simulations + num)

    @property
    def table(self) -> ConstraintTable:
        """Constraints in the units of the run."""
        return self.ledger.table

    @property
    def has_noisy_likelihood(self) -> bool:
        """Whether the log likelihood of the model, as it is written, is noisy."""
        return self.ledger.is_likelihood_noisy or self.problem.minibatches.are_noisy

    def init_state(self, keys: jax.Array) -> GuideState:
        """Untrained guides at the targets of the run, with shared penalties."""
        state = self.engine.init_state(keys, self.table.targets)
        return state._replace(penalty=self.penalty)

    def measure_in(self, table: ConstraintTable) -> None:
        """Take the units of a table with the same targets."""
        largest = self.ledger.largest_seen * self.table.units_in(table)
        self.know(largest_seen=largest, table=table)

    @property
    def targets(self) -> Targets:
        """Those of all restarts."""
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (self.num_restarts, *x.shape)),
            self.table.targets,
        )

    @property
    def penalty(self) -> jax.Array:
        """First penalty coefficients, shape (R, K)."""
        shares = self.ledger.shares
        penalty = jnp.asarray(self.options.penalty * shares, float)
        return jnp.broadcast_to(penalty, (self.num_restarts, shares.size))

    def next_keys(self) -> jax.Array:
        """Fresh keys, one for each restart."""
        left, keys = split_keys(self.ledger.keys, 2)
        self.know(keys=left)
        return keys

    def deviations(self, stats: np.ndarray) -> np.ndarray:
        """T of statistics (..., S) on the host, zero where they are not finite."""
        good = np.isfinite(stats).all(axis=-1, keepdims=True)
        return np.where(good, self.table.deviations(np.where(good, stats, 0.0)), 0.0)

    def note(self, u: np.ndarray, log_lik: np.ndarray, stats: np.ndarray) -> np.ndarray:
        """Count simulations of shape (R, n, ...); raise or return their validity."""
        is_valid = np.isfinite(stats).all(axis=-1) & np.isfinite(log_lik)
        before = self.ledger
        failures = before.failures.note(self.problem, before.table, u, stats, is_valid)
        self.count(is_valid.size)
        seen = before.seen.add(stats.reshape(-1, stats.shape[-1]))
        self.know(seen=seen, failures=failures)
        self.watch(self.ledger.num_simulations)
        return is_valid

    def tell(self) -> None:
        """Warn of failures, unless that is done."""
        self.know(failures=self.ledger.failures.tell())

    # -- draws of the prior -----------------------------------------------------------

    def pilot(self) -> np.ndarray:
        """Prior draws: are they valid, noisy, and what is the scale of the statistics?

        Returns:
            Draws u, shape (R, n, D).
        """
        num = min(NUM_PILOT, self.options.warm_start_size)
        u = self.engine.chunks.prior_draws(self.next_keys(), num)
        sim = self.engine.chunks.simulate(u, self.next_keys())
        is_valid = self.note(u, sim.log_likelihood, sim.stats)
        stats = sim.stats[is_valid]
        self.know(table=self.table.with_scale(stats), pilot_stats=stats)
        self.check_precision(u)
        devs = np.abs(self.deviations(sim.stats))[is_valid]
        self.know(
            log_likelihood_dtype=sim.log_likelihood.dtype,
            largest_seen=devs.max(axis=0),
        )
        if self.problem.uses_random_keys:
            again = self.engine.chunks.simulate(u, self.next_keys())
            self.count(is_valid.size)
            change = np.asarray(again.log_likelihood, float) - sim.log_likelihood
            self.know(
                is_noisy=differs(sim.stats, again.stats),
                is_likelihood_noisy=differs(sim.log_likelihood, again.log_likelihood),
            )
            self._plan_repeats(0.5 * change[np.isfinite(change)] ** 2)
        return u

    def check_precision(self, u: np.ndarray) -> None:
        """Refuse statistics and priors that the computing type cannot resolve."""
        check_statistics(self.table, self.problem.stat_dtypes)
        check_latents(self.problem.constrain_draws(u[0])[0])

    def _plan_repeats(self, variance: np.ndarray) -> None:
        """Simulations of each draw of a law, from variances of log L at prior draws.

        A typical one counts: they can be huge far from the data.
        """
        num, has_weights = NUM_REPEATS if self.ledger.is_noisy else 1, True
        if self.ledger.is_likelihood_noisy:
            # Of one degree of freedom, with a median of 0.455.
            wanted = np.median(variance) / 0.455 / MAX_VARIANCE
            limit = MIN_REPEATS if self.problem.cost.is_dear else MAX_REPEATS
            has_weights = bool(wanted <= HOPELESS * limit)
            num = int(np.clip(np.ceil(wanted), MIN_REPEATS, limit))
        self.know(num_repeats=num, has_weights=has_weights)

    # -- draws of the guide -----------------------------------------------------------

    def evaluate(self, params: Any, num: int) -> tuple[Evaluation, list[Scores]]:
        """Draws of the guide, simulated, and their moments for each restart."""
        ev = self.engine.chunks.evaluate(params, self.next_keys(), num)
        self.note(ev.u, ev.log_likelihood, ev.stats)
        return ev, self.scores(ev)

    def scores(self, ev: Evaluation) -> list[Scores]:
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
            ratios = np.asarray(log_q - ev.log_prior[r][rows], np.float64)
            log_lik = np.asarray(ev.log_likelihood[r][rows], np.float64)
            scores.append(
                Scores(
                    entropy=float(np.mean(ev.log_det[r][rows] - log_q)),
                    divergence=float(np.mean(ratios)),
                    log_likelihood=float(np.mean(log_lik)),
                    violation=violation,
                    violation_error=error,
                    invalid=1.0 - share,
                    variance=error**2 * rows.sum(),
                    divergence_error=float(ratios.std() / np.sqrt(rows.sum())),
                    score_error=float((log_lik - ratios).std() / np.sqrt(rows.sum())),
                )
            )
        return scores

    def evaluate_finally(
        self, params: Any, *, is_decided: bool, num_draws: int | None = None
    ) -> tuple[Evaluation, list[Scores]]:
        """Evaluation draws, doubled while only their number stands against a verdict.

        A violation within the tolerance whose standard error is too large to show it
        (heavy tails) deserves more draws, up to `MAX_EVALUATION_FACTOR` times as many.
        """
        num = self.options.num_evaluation
        num = num if num_draws is None else min(num, num_draws)
        ev, scores = self.evaluate(params, num)
        limit = MAX_EVALUATION_FACTOR * self.options.num_evaluation
        while not is_decided and ev.u.shape[1] < limit:
            best = min(scores, key=lambda s: float(np.abs(s.violation).max()))
            if is_met(best, self.options).all() or not is_within(best, self.options):
                break
            more = self.engine.chunks.evaluate(params, self.next_keys(), ev.u.shape[1])
            self.note(more.u, more.log_likelihood, more.stats)
            ev = Evaluation(
                *(np.concatenate(pair, axis=1) for pair in zip(ev, more, strict=True))
            )
            scores = self.scores(ev)
        return ev, scores


def differs(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two simulations of the same draws differ where both are finite."""
    both = np.isfinite(first) & np.isfinite(second)
    return bool(((first != second) & both).any())
