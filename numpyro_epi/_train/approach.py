# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How guides come near their targets before the first epoch.

By a fit to draws of their laws, where there are any (`laws`), else by targets that move
(`steer`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._solver.law import Law
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.first_fit import WeightedDraws, fit_first
from numpyro_epi._train.laws import Laws
from numpyro_epi._train.pilot import (
    GradientHealth,
    choose_gradient,
)
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import GuideState, PoolDraws, choose_restarts
from numpyro_epi._train.steer import STEER_STEPS, Steering, Way

# Nats from the maximum beyond which a fitted guide is left for an untrained one.
MAX_MISFIT = 20.0
# Nats from the maximum beyond which draws of the law would hold a guide back.
LARGE_GAP = 0.5

# Moves of the targets in one step of a run.
MOVES_AT_ONCE = 10


class Approach:
    """Guides that begin at the laws of a run, and the way from afar.

    Args:
        engine: compiled functions.
        simulations: of the run.
        laws: of all restarts.

    Attributes:
        scores: of the guides before the first epoch.
    """

    def __init__(self, engine: Engine, simulations: Simulations, laws: Laws) -> None:
        self.engine = engine
        self.options = engine.options
        self.problem = engine.problem
        self.simulations = simulations
        self.num_restarts = self.options.num_restarts
        self.laws = laws
        self.scores: list[Scores] = []

    def begin(self, state: GuideState) -> GuideState:
        """Guides fitted to the laws, with their multipliers; others stay untrained."""
        if self.laws.reason:
            return state
        state = state._replace(targets=self.simulations.targets)
        is_found = self.laws.exist
        if not is_found.any():
            return state
        # Those without one take any other's place, for the shape of arrays.
        laws = self.laws.filled()
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
        return pool.without_density if self.simulations.ledger.num_repeats > 1 else pool

    def look(self, state: GuideState) -> tuple[GuideState, np.ndarray]:
        """Where the guides are, and which ones have a way to go, shape (R,)."""
        state = self._look(state)
        if self.options.schedule is not None:
            return state, np.zeros(self.num_restarts, bool)
        is_misfit = self.gaps > MAX_MISFIT
        if is_misfit.any():
            # In tens of dimensions weighted draws tell the multipliers, but not a flow.
            state = self._look(self._start_over(state, is_misfit))
        is_far = ~self.laws.exist | is_misfit | (not self.engine.guide.has_fast_density)
        sizes = np.abs(np.stack([s.violation for s in self.scores]))
        return state, is_far & (sizes >= 1.0).any(axis=1)

    def lead(self, state: GuideState, is_far: np.ndarray) -> Steering:
        """Guides without a law are led to their targets, from where they are."""
        if is_far.all():  # draws of weight zero: no step shall pay for them
            state = state._replace(pool=state.pool.empty)
        table, stats = self.simulations.table, self._evaluation.stats
        way = Way.from_stats(stats, table.mean, table.scale, table.has_var)
        begun = state._replace(
            running=jnp.where(is_far[:, None], 0.0, state.running),
            multipliers=jnp.where(is_far[:, None], 0.0, state.multipliers),
        )
        return Steering.start(way, begun, is_far)

    def advance(self, steering: Steering, stat_gradient: str) -> Steering:
        """Some moves along the way."""
        # There are no simulated draws to replay yet.
        gradient = "score" if stat_gradient == "replay" else stat_gradient
        before = steering.num_moves
        for _ in range(MOVES_AT_ONCE):
            if steering.is_done(self.options):
                break
            steering = steering.advance(self.engine, gradient)
        num_steps = (steering.num_moves - before) * STEER_STEPS
        num = num_steps * self.options.num_particles * self.num_restarts
        self.simulations.count(num)
        return steering

    def arrive(self, steering: Steering, found: jax.Array) -> GuideState:
        """The guides at the end of the way.

        Args:
            steering: at its end.
            found: multipliers of the laws, shape (R, K), which stay.
        """
        state = self._look(steering.end(self.engine))
        is_found = self.laws.exist[:, None]
        multipliers = jnp.where(is_found, found, state.multipliers)
        return state._replace(multipliers=multipliers)

    def with_anchors(self, state: GuideState) -> GuideState:
        """Without draws of the law where these would hold a guide back."""
        if self.options.schedule is not None:
            return state
        is_slow = self.gaps > LARGE_GAP
        return state._replace(
            anchor=_where(is_slow, 0.0, state.anchor),
            pool=state.pool.empty if is_slow.all() else state.pool,
        )

    def _look(self, state: GuideState) -> GuideState:
        """Draws of the guides as they are: `scores`, and what these violate."""
        num = self.options.num_evaluation // 4
        self._evaluation, scores = self.simulations.evaluate(state.params, num)
        self.scores = self.laws.with_gaps(self._evaluation, scores)
        violation = np.stack([s.violation for s in self.scores])
        return state._replace(running=jnp.asarray(np.nan_to_num(violation), float))

    @property
    def gaps(self) -> np.ndarray:
        """Nats that each guide has to gain, shape (R,); NaN where that is not known."""
        return np.array([s.gap for s in self.scores])

    def _start_over(self, state: GuideState, is_misfit: np.ndarray) -> GuideState:
        """Untrained guides instead of some; what importance sampling found stays."""
        fresh = self.simulations.init_state(state.rng_key)
        fresh, state = self.engine.align(fresh, state)
        kept = ("rng_key", "pool", "multipliers")
        return choose_restarts(is_misfit, fresh, state, keep=kept)

    def choose_gradient(self, state: GuideState, pilot_u: np.ndarray) -> GradientHealth:
        """Look at the statistics where the guide is now."""
        if not self.laws.reason:
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
            can_replay=not self.simulations.ledger.is_likelihood_noisy
            and bool(self.laws.exist.all()),
            masks_invalid=self.options.on_invalid == "mask",
            leaves_out=self.options.leaves_out,
        )


def _where(rows: np.ndarray, new: float, old: jax.Array) -> jax.Array:
    """A number in some rows, on the host, where nothing is compiled."""
    return jnp.asarray(np.where(rows, new, np.asarray(old)), old.dtype)
