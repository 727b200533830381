# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How a run comes near its targets before the first epoch.

By importance sampling from the prior on, if that leads there (`adaptive`); else by
targets that move (`steer`), and importance sampling as soon as the guide is near.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.dual import solve_dual
from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._train.adaptive import MAX_MISFIT, AdaptiveSampler, Found
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.pilot import GradientHealth, choose_gradient
from numpyro_epi._train.records import Scores
from numpyro_epi._train.schedule import gaps
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import EPIState, choose_restarts
from numpyro_epi._train.steer import Way, steer
from numpyro_epi._train.warm_start import WarmStart

# Factor of the learning rate after a complete warm start. Not with one latent, whose
# flow has no networks: lone parameters move slowly as it is.
WARM_RATE = 0.5


class Approach:
    """Warm start, catching up on it later, and the way from afar.

    Args:
        engine: compiled functions.
        simulations: of the run.

    Attributes:
        sampler: pools of simulated draws.
        starts: how the warm start of each restart ended; empty before, None without.
        bounds: estimated maximum of each restart's score, shape (R,): NaN if unknown,
            infinite if the targets are far.
    """

    def __init__(self, engine: Engine, simulations: Simulations) -> None:
        self.engine = engine
        self.options = engine.options
        self.problem = engine.problem
        self.simulations = simulations
        self.num_restarts = self.options.num_restarts
        self.sampler = AdaptiveSampler(
            engine, simulations.simulate_pool, simulations.next_keys
        )
        self.starts: list[Any] = []
        # Dual solutions on the pools as they are now; `starts` has those of the report.
        self.found: Found = []
        self.bounds = np.full(self.num_restarts, np.nan)

    @property
    def wants_warm_start(self) -> bool:
        """Whether to try one."""
        if self.options.warm_start is False or self.options.schedule is not None:
            return False
        is_possible = (
            self.engine.guide.has_fast_density
            and self.problem.can_start
            and self.simulations.has_weights
        )
        if self.options.warm_start is True and not is_possible:
            raise ValueError(
                "`warm_start=True` needs a guide with a fast density, latents whose "
                "priors are not masked or scaled and a log likelihood without large "
                "noise, which "
                f"{self.engine.guide.name} on this model has not. "
                "Use `numpyro_epi.guides.AutoRealNVP`, or `warm_start='auto'`."
            )
        return is_possible

    def warm_start(self, state: EPIState) -> EPIState:
        """Adaptive importance sampling; restarts that fail keep an untrained guide."""
        if not self.wants_warm_start:
            self.starts = [None] * self.num_restarts
            return state
        found = self.sampler.start()
        params, found, num_rounds = self.sampler.rounds(state.params, found)
        self.found = found
        num = self.simulations.seen.num_simulations
        self.starts = [
            WarmStart(solution, distance, num_rounds, num)
            for solution, distance in found
        ]
        return self._start_state(state, params, self.starts)

    def law_draws(self, num: int) -> np.ndarray | None:
        """Draws of the law (R, n, D) from the pools, if a warm start has arrived."""
        if not any(start is not None and start.is_complete for start in self.starts):
            return None
        rows = [systematic_resample(s.weights, num, 0.5) for s, _ in self.found]
        return np.stack([p.u[r] for p, r in zip(self.sampler.pools, rows, strict=True)])

    def catch_up(self, state: EPIState, ev: Evaluation) -> EPIState | None:
        """A warm start from the guide, where there was none from the prior.

        Once training has brought the guide near enough for its draws to be reweighted
        to the targets, the rounds go on from there, and training starts afresh; with
        the guide as it was, if the one that the rounds have fitted is far off.

        Args:
            state: after an epoch.
            ev: draws of the averaged guide.

        Returns:
            The state to go on from, or None if no restart can catch up.
        """
        late = [
            r
            for r, start in enumerate(self.starts)
            if start is not None and not start.is_complete and self._can_reweight(ev, r)
        ]
        if not late:
            return None
        self.found = self.sampler.round(state.average, self.found)
        late = [r for r in late if self.found[r][1] == 0.0]
        if not late:
            return None
        params, found, num_rounds = self.sampler.rounds(state.average, self.found)
        self.found = found
        for r in late:
            self.starts[r] = WarmStart(
                *found[r], num_rounds, self.simulations.seen.num_simulations
            )
        fresh = self.simulations.init_state(state.rng_key)
        fresh = self._start_state(fresh, params, self.starts)
        _, scores = self.simulations.evaluate(
            fresh.params, self.options.num_evaluation // 4
        )
        is_late = np.isin(np.arange(self.num_restarts), late)
        is_new = is_late & ~self._is_misfit(fresh, scores)
        fresh, state = self.engine.align(fresh, state)
        state = choose_restarts(is_new, fresh, state, keep=("rng_key", "pool"))
        return state._replace(
            pool=fresh.pool,
            multipliers=jnp.where(
                is_late[:, None], fresh.multipliers, state.multipliers
            ),
        )

    def _can_reweight(self, ev: Evaluation, r: int) -> bool:
        """Whether draws of one restart have weights that meet all targets."""
        is_valid = np.isfinite(ev.stats[r]).all(axis=-1)
        log_w = ev.log_prior[r] + ev.log_likelihood[r] - ev.log_q[r]
        log_w = np.where(is_valid & np.isfinite(log_w), log_w, -np.inf)
        if not np.isfinite(log_w).any():
            return False
        solution = solve_dual(log_w, self.simulations.deviations(ev.stats[r]))
        return solution.residual < 0.05 and solution.ess >= self.sampler.min_ess

    def _start_state(
        self, state: EPIState, params: Any, starts: list[WarmStart]
    ) -> EPIState:
        """State at the end of the warm start."""
        complete = np.array([s.is_complete for s in starts])
        anchor = np.where(complete, self.options.anchor, 0.0)
        rate = WARM_RATE if self.problem.num_latents > 1 else 1.0
        is_noisy = self.simulations.is_noisy or self.simulations.is_likelihood_noisy
        multipliers, pool, bounds = self.sampler.anchor(
            [(s.solution, s.distance) for s in starts],
            self.simulations.simulate_many if is_noisy else None,
        )
        if self.options.anchor == 0.0:
            pool = pool.empty  # no step shall pay for it
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

    def steer(self, state: EPIState, stat_gradient: str) -> EPIState:
        """Without a good warm start, lead the guide to its targets gradually."""
        if self.options.schedule is not None:
            return state
        num = self.options.num_evaluation // 4
        ev, scores = self.simulations.evaluate(state.params, num)
        complete = np.array([s is not None and s.is_complete for s in self.starts])
        is_misfit = complete & self._is_misfit(state, scores)
        found = state.multipliers
        if is_misfit.any():
            # In tens of dimensions weighted draws tell the multipliers, but not a flow.
            state = self._start_over(state, is_misfit)
            complete &= ~is_misfit
            ev, scores = self.simulations.evaluate(state.params, num)
        violation = np.stack([s.violation for s in scores])
        state = state._replace(running=jnp.asarray(violation, float))
        is_far = ~complete & (np.abs(violation) >= 1.0).any(axis=1)
        if is_far.any():
            state = self._lead(state, ev, is_far, stat_gradient)
        if self.wants_warm_start and (is_far & ~is_misfit).any():
            # Not even importance sampling led there: unless it still does, take time.
            self.bounds = np.where(is_far & ~is_misfit, np.inf, self.bounds)
        return state._replace(
            multipliers=jnp.where(is_misfit[:, None], found, state.multipliers)
        )

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

    def _is_misfit(self, state: EPIState, scores: list[Scores]) -> np.ndarray:
        """Which guides are far from the law that they were fitted to, shape (R,)."""
        return gaps(self.bounds, scores, np.asarray(state.multipliers)) > MAX_MISFIT

    def _start_over(self, state: EPIState, is_misfit: np.ndarray) -> EPIState:
        """Untrained guides instead of some; what importance sampling found stays."""
        fresh = self.simulations.init_state(state.rng_key)
        fresh, state = self.engine.align(fresh, state)
        kept = ("rng_key", "pool")
        return choose_restarts(is_misfit, fresh, state, keep=kept)

    def choose_gradient(self, state: EPIState, pilot_u: np.ndarray) -> GradientHealth:
        """Look at the statistics where the guide is now."""
        if self.wants_warm_start:
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
            and all(s is not None and s.is_complete for s in self.starts),
            masks_invalid=self.options.on_invalid == "mask",
            leaves_out=self.options.leaves_out,
        )
