# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How a run comes near its targets before the first epoch.

The exact law first, if it can be found; guides are then fitted to its draws. Else by
targets that move (`steer`).
"""

from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._solver.draws import Simulator
from numpyro_epi._solver.law import Law, Standard
from numpyro_epi._solver.search import find_law
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.correction import Correction, gap_of_draws, weigh_to_law
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.first_fit import WeightedDraws, fit_first
from numpyro_epi._train.pilot import (
    GradientHealth,
    check_gradient,
    choose_gradient,
    why_distrusted,
)
from numpyro_epi._train.plateau import FAR_RATE, LARGE_GAP
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import EPIState, PoolDraws, choose_restarts
from numpyro_epi._train.steer import Way, steer

# Nats from the maximum beyond which a fitted guide is left for an untrained one.
MAX_MISFIT = 20.0


class Approach:
    """The laws of a run, guides that begin at them, and the way from afar.

    Args:
        engine: compiled functions.
        simulations: of the run.

    Attributes:
        laws: of each restart; None if there is none to be had, as `reason` says.
        reason: why there are no laws, in words; empty if there are.
        scores: of the guides before the first epoch.
    """

    def __init__(self, engine: Engine, simulations: Simulations) -> None:
        self.engine = engine
        self.options = engine.options
        self.problem = engine.problem
        self.simulations = simulations
        self.num_restarts = self.options.num_restarts
        self.laws: list[Law | None] = [None] * self.num_restarts
        self.scores: list[Scores] = []
        self.reason = self._why_no_law()
        if self.options.warm_start is True and self.reason:
            raise ValueError(
                f"`warm_start=True` needs a law to start from, but {self.reason}. Pass "
                "`warm_start='auto'`."
            )

    def _why_no_law(self) -> str:
        if self.options.schedule is not None:
            return "the published algorithm has none"
        if self.options.warm_start is False:
            return "`warm_start` is False"
        if not self.problem.can_start:
            return "the priors of some latents are masked or scaled: they have no draws"
        if not self.simulations.has_weights:
            return "the noise of the log likelihood is too large for weights"
        return ""

    @property
    def has_laws(self) -> np.ndarray:
        """Which restarts have a law that a guide can start from, shape (R,)."""
        return np.array([_is_law(law) for law in self.laws])

    def begin(self, state: EPIState, pilot_u: np.ndarray) -> EPIState:
        """Find the laws, and fit guides to them; others stay untrained.

        Args:
            state: of untrained guides.
            pilot_u: draws of the prior, shape (R, n, D).
        """
        if self.reason:
            return state
        tables = []
        for r, key in enumerate(self.simulations.next_keys()):
            self.laws[r] = find_law(
                self.simulator,
                key,
                self.standard,
                lambda: self._kind_of_moves(pilot_u[0]),
                size=self.options.warm_start_size,
            )
            tables.append(self.simulator.table)
        self.simulations.num_simulations += self.simulator.num_moves
        # All are measured in the units of the first law that there is.
        table = tables[int(np.argmax(self.has_laws))]
        if not self.has_laws.any():
            table = self._narrowest(tables)
        self.laws = [
            None if law is None else law.in_units(own.units_in(table))
            for law, own in zip(self.laws, tables, strict=True)
        ]
        self.simulator.table = table
        self.simulations.measure_in(table)
        return self._begin_at_laws(state._replace(targets=self.simulations.targets))

    def _narrowest(self, tables: list[ConstraintTable]) -> ConstraintTable:
        """The smallest units of draws of the prior, and of laws that are not trusted.

        Units that are too wide would take any guide for one that meets its targets.
        """
        table = self.simulations.table
        for law, own in zip(self.laws, tables, strict=True):
            if law is not None and law.is_at_the_targets:
                table = replace(table, scale=np.minimum(table.scale, own.scale))
        return table

    def own_scores(self, r: int, scores: Scores) -> Scores:
        """Fit and divergence of a law that is trusted, else those of the guide."""
        law = self.laws[r]
        if law is None or not law.converged:
            return scores
        fit = float(law.weights @ law.draws.log_likelihood)
        tilt = float(law.multipliers @ law.violation)
        return scores._replace(
            log_likelihood=fit,
            divergence=fit - tilt - law.log_normalizer,
            divergence_error=law.log_normalizer_error,
        )

    @cached_property
    def simulator(self) -> Simulator:
        """Simulates draws of laws; all are noted."""
        simulations = self.simulations
        return Simulator(
            self.engine.programs,
            simulations.table,
            simulations.num_repeats,
            lambda *arrays: simulations.note(*(x[None] for x in arrays)),
        )

    @property
    def standard(self) -> Standard:
        """Of the verdict on laws."""
        options, labels = self.options, self.simulations.table.labels
        return Standard(options.tolerance, options.z_score, labels)

    def correct(self, ev: Evaluation, r: int) -> Correction | None:
        """Final draws of a guide, weighted to its law, if that can be trusted."""
        law = self.laws[r]
        if law is None or not law.converged:
            return None
        key = self.simulations.next_keys()[r]
        return weigh_to_law(law, self.standard, self.simulator, ev, r, key)

    def with_gaps(self, ev: Evaluation, scores: list[Scores]) -> list[Scores]:
        """The same with their gaps to the laws, where there are any.

        What log Z of the law tells beyond its noise, or what draws tell by their own
        weights: they miss what the guide has lost, but have no noise. Of noisy
        simulations, one for each draw does not tell.
        """
        found = []
        for r, (s, law) in enumerate(zip(scores, self.laws, strict=True)):
            if law is None or not law.is_usable:
                found.append(s)
                continue
            noise = 2.0 * law.log_normalizer_error
            gap = law.log_normalizer - noise - s.score(law.multipliers)
            if self.simulations.num_repeats == 1:
                gap = np.fmax(gap, gap_of_draws(law, self.simulator, ev, r))
            found.append(s._replace(gap=float(gap)))
        return found

    def _kind_of_moves(self, u: np.ndarray) -> str:
        """Whether Markov chains have a use for gradients."""
        if not self.problem.derivatives.has_any:
            return "walk"
        look = check_gradient(
            self.problem,
            self.engine.pilot,
            u,
            self.simulations.table.targets,
            self.simulations.next_keys()[0],
        )
        return "walk" if why_distrusted(look) else "hmc"

    def law_draws(self, num: int) -> np.ndarray | None:
        """Draws of the laws (R', n, D) of those restarts that have one, or None."""
        laws = [law for law in self.laws if law is not None and _is_law(law)]
        if not laws:
            return None
        draws = [WeightedDraws(law.pool.u, law.pool_weights) for law in laws]
        return np.stack([part.take(num, 0.5) for part in draws])

    def _begin_at_laws(self, state: EPIState) -> EPIState:
        """State of guides that are fitted to the laws, with their multipliers."""
        is_found = self.has_laws
        if not is_found.any():
            return state
        found = [law for law in self.laws if law is not None and _is_law(law)]
        # Those without one take any other's place, for the shape of arrays.
        laws = [
            law if law is not None and _is_law(law) else found[0] for law in self.laws
        ]
        multipliers = np.where(
            is_found[:, None], np.stack([law.multipliers for law in laws]), 0.0
        )
        begun = state._replace(multipliers=jnp.asarray(multipliers, float))
        if not self.engine.guide.has_fast_density:
            return begun
        draws = [WeightedDraws(law.pool.u, law.pool_weights) for law in laws]
        params = fit_first(self.engine, state.params, draws, self.simulations.next_keys)
        begun = begun._replace(
            params=params,
            average=params,
            cover=params,
            optim_state=self.engine.init_optim(params),
            pool=self._anchors(laws),
            anchor=jnp.asarray(np.where(is_found, self.options.anchor, 0.0), float),
        )
        state, begun = self.engine.align(state, begun)
        return choose_restarts(
            is_found, begun, state, keep=("rng_key", "pool")
        )._replace(pool=begun.pool)

    def _anchors(self, laws: list[Law]) -> PoolDraws:
        """Draws that a guide has to cover, with their density where that is known."""
        num = self.options.warm_start_size if self.options.anchor > 0 else 0
        parts = []
        for law in laws:
            rows = systematic_resample(law.pool_weights, max(num, 1), 0.5)[:num]
            draws = law.pool.take(rows)
            log_model = draws.log_prior + draws.log_likelihood
            parts.append((draws.u, log_model, draws.deviations))
        arrays = (jnp.asarray(np.stack(x), float) for x in zip(*parts, strict=True))
        pool = PoolDraws(*arrays)
        return pool.without_density if self.simulations.num_repeats > 1 else pool

    def steer(self, state: EPIState, stat_gradient: str) -> EPIState:
        """Where the guides are; those without a law are led to their targets."""
        state = self._look(state)
        if self.options.schedule is not None:
            return state
        is_misfit = self.gaps > MAX_MISFIT
        if is_misfit.any():
            # In tens of dimensions weighted draws tell the multipliers, but not a flow.
            state = self._look(self._start_over(state, is_misfit))
        is_far = ~self.has_laws | is_misfit | (not self.engine.guide.has_fast_density)
        is_far &= np.stack([np.abs(s.violation) >= 1.0 for s in self.scores]).any(
            axis=1
        )
        if is_far.any():
            found = state.multipliers
            state = self._look(
                self._lead(state, self._evaluation, is_far, stat_gradient)
            )
            is_found = self.has_laws[:, None]
            state = state._replace(
                multipliers=jnp.where(is_found, found, state.multipliers)
            )
        is_slow = self.gaps > LARGE_GAP
        return state._replace(
            rate=_where(is_slow, FAR_RATE, state.rate),
            anchor=_where(is_slow, 0.0, state.anchor),
            pool=state.pool.empty if is_slow.all() else state.pool,
        )

    def _look(self, state: EPIState) -> EPIState:
        """Draws of the guides as they are: `scores`, and what these violate."""
        num = self.options.num_evaluation // 4
        self._evaluation, scores = self.simulations.evaluate(state.params, num)
        self.scores = self.with_gaps(self._evaluation, scores)
        violation = np.stack([s.violation for s in self.scores])
        return state._replace(running=jnp.asarray(np.nan_to_num(violation), float))

    @property
    def gaps(self) -> np.ndarray:
        """Nats that each guide has to gain, shape (R,); NaN where that is not known."""
        return np.array([s.gap for s in self.scores])

    def law_multipliers(self, others: np.ndarray) -> np.ndarray:
        """Those of each law, or others where there is none, shape (R, K)."""
        shape = (self.num_restarts, self.simulations.table.num_constraints)
        found = np.broadcast_to(np.asarray(others, np.float64), shape).copy()
        for r, law in enumerate(self.laws):
            if law is not None and _is_law(law):
                found[r] = law.multipliers
        return found

    def _lead(
        self, state: EPIState, ev: Evaluation, is_far: np.ndarray, stat_gradient: str
    ) -> EPIState:
        """Move the targets of some restarts from where draws of the guide are."""
        if is_far.all():  # draws of weight zero: no step shall pay for them
            state = state._replace(pool=state.pool.empty)
        table = self.simulations.table
        way = Way.from_stats(ev.stats, table.mean, table.scale, table.has_var)
        state = state._replace(
            running=jnp.where(is_far[:, None], 0.0, state.running),
            multipliers=jnp.where(is_far[:, None], 0.0, state.multipliers),
        )
        # There are no simulated draws to replay yet.
        gradient = "score" if stat_gradient == "replay" else stat_gradient
        state, num_steps = steer(self.engine, state, way, is_far, gradient)
        self.simulations.num_simulations += (
            num_steps * self.options.num_particles * self.num_restarts
        )
        return state

    def _start_over(self, state: EPIState, is_misfit: np.ndarray) -> EPIState:
        """Untrained guides instead of some; what importance sampling found stays."""
        fresh = self.simulations.init_state(state.rng_key)
        fresh, state = self.engine.align(fresh, state)
        kept = ("rng_key", "pool", "multipliers")
        return choose_restarts(is_misfit, fresh, state, keep=kept)

    def choose_gradient(self, state: EPIState, pilot_u: np.ndarray) -> GradientHealth:
        """Look at the statistics where the guide is now."""
        if not self.reason:
            keys = self.simulations.next_keys()
            u = self.engine.chunks.draws(state.params, keys, 2000)[0][0]
        else:
            u = pilot_u[0]
        return choose_gradient(
            self.problem,
            self.engine.pilot,
            u,
            self.simulations.table.targets,
            self.simulations.next_keys()[0],
            requested=self.options.stat_gradient,
            can_score=self.engine.guide.has_fast_density,
            # Draws used again and again would be chosen by the luck of their noise.
            can_replay=not self.simulations.is_likelihood_noisy
            and bool(self.has_laws.all()),
            masks_invalid=self.options.on_invalid == "mask",
            leaves_out=self.options.leaves_out,
        )


def _where(rows: np.ndarray, new: float, old: jax.Array) -> jax.Array:
    """A number in some rows, on the host, where nothing is compiled."""
    return jnp.asarray(np.where(rows, new, np.asarray(old)), old.dtype)


def _is_law(law: Law | None) -> bool:
    return law is not None and law.is_usable
