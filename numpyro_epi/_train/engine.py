# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Compiled functions of one model, one guide and one set of options.

Every array has a leading axis of R restarts: one `vmap` trains them together. Each
function is compiled once per engine, and the engine serves every run with the same
arguments.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax, vmap

from numpyro_epi._math.constraints import Targets
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.devices import Devices
from numpyro_epi._solver.draws import Programs
from numpyro_epi._solver.search import PARTICLES
from numpyro_epi._train.chunks import Chunks
from numpyro_epi._train.fit import Fit, make_fit
from numpyro_epi._train.guide import GuideFunctions, Params
from numpyro_epi._train.lapack import warn_of_deadlock
from numpyro_epi._train.optim import in_weights
from numpyro_epi._train.options import Options
from numpyro_epi._train.slopes import make_pilot
from numpyro_epi._train.state import GuideState, Memory, PoolDraws, StepInfo
from numpyro_epi._train.step import (
    VIOLATION_RATE,
    Objective,
    make_update,
)

# Draws that one call of a compiled function makes, simulates or evaluates.
MIN_CHUNK, MAX_CHUNK = 100, 5000
# Of the moving average of the parameters: a memory of about 200 steps.
AVERAGE_DECAY = 0.995


class Engine:
    """Compiled functions; see the module.

    Args:
        problem: the model with its arguments.
        guide: the guide.
        options: of the run.
        optim: the user's optimiser, or None.
    """

    def __init__(
        self,
        problem: Problem,
        guide: GuideFunctions,
        options: Options,
        optim: optax.GradientTransformation | None,
    ) -> None:
        self.problem = problem
        self.guide = guide
        self.options = options
        self.optim = default_optim(options) if optim is None else optim
        self._steps = in_weights(self.optim, guide.step_sizes)
        self.decays = optim is None and options.schedule is None
        # Requests are filled up to whole chunks: small ones for a run that asks little.
        least = min(options.num_evaluation // 4, options.warm_start_size)
        self.devices = Devices(options.mesh)
        size = self.devices.multiple(max(min(least, MAX_CHUNK), MIN_CHUNK))
        num = options.num_particles
        self.chunks = Chunks(problem, guide, size, num, self.devices)
        warn_of_deadlock(problem, options.num_restarts * options.num_particles)
        self._updates: dict[str, Callable] = {}
        self._scans: dict[tuple[str, int], Callable] = {}

    def update_fn(self, stat_gradient: str) -> Callable:
        """`GuideState -> (GuideState, StepInfo)` of all restarts, not compiled."""
        if stat_gradient not in self._updates:
            options = self.options
            objective = Objective(
                self.problem,
                self.guide,
                num_particles=options.num_particles,
                stat_gradient=stat_gradient,
                masks_invalid=options.on_invalid == "mask",
                rate=VIOLATION_RATE if options.schedule is None else 1.0,
                devices=self.devices,
            )
            update = make_update(
                objective,
                self._steps,
                average_decay=0.0 if options.schedule is not None else AVERAGE_DECAY,
                decays=self.decays,
            )
            self._updates[stat_gradient] = vmap(update)
        return self._updates[stat_gradient]

    def run_steps(
        self, state: GuideState, num_steps: int, stat_gradient: str
    ) -> tuple[GuideState, StepInfo]:
        """Scan the step; infos have a leading axis of steps."""
        key = (stat_gradient, num_steps)
        if key not in self._scans:
            update = self.update_fn(stat_gradient)

            def scan(state: GuideState) -> tuple[GuideState, StepInfo]:
                state, infos = lax.scan(
                    lambda s, _: update(s), state, None, length=num_steps
                )
                return state, infos

            self._scans[key] = jax.jit(scan)
        return self._scans[key](state)

    def init_state(self, keys: jax.Array, targets: Targets) -> GuideState:
        """State of an untrained guide with zero multipliers; keys of shape (R,)."""
        params = self.init_params(keys)
        num_restarts = keys.shape[0]
        dim = self.problem.num_latents
        return GuideState(
            params=params,
            average=params,
            optim_state=self.init_optim(params),
            multipliers=jnp.zeros((num_restarts, self.problem.table.num_constraints)),
            penalty=jnp.full(
                (num_restarts, self.problem.table.num_constraints),
                self.options.penalty,
                dtype=float,
            ),
            targets=jax.tree.map(
                lambda x: jnp.broadcast_to(x, (num_restarts, *x.shape)), targets
            ),
            running=jnp.zeros((num_restarts, self.problem.table.num_constraints)),
            pool=PoolDraws(
                jnp.zeros((num_restarts, 0, dim)),
                jnp.zeros((num_restarts, 0)),
                jnp.zeros((num_restarts, 0, self.problem.table.num_constraints)),
            ),
            anchor=jnp.zeros((num_restarts,)),
            memory=self.empty_memory,
            rate=jnp.ones((num_restarts,)),
            cover=params,
            rng_key=keys,
            num_steps=jnp.zeros((num_restarts,), jnp.int32),
        )

    @property
    def empty_memory(self) -> Memory:
        """No simulated draws."""
        num_restarts, dim = self.options.num_restarts, self.problem.num_latents
        none = jnp.zeros((num_restarts, 0))
        stats = jnp.zeros((num_restarts, 0, self.problem.table.num_statistics))
        return Memory(jnp.zeros((num_restarts, 0, dim)), none, none, none, stats)

    @cached_property
    def init_params(self) -> Callable[[jax.Array], Params]:
        """Fresh parameters for keys of shape (R,)."""
        return jax.jit(vmap(self.guide.init))

    @cached_property
    def programs(self) -> Programs:
        """Of searches for the law."""
        size = self.options.warm_start_size
        chunk = max(int(PARTICLES * size), MIN_CHUNK)
        return Programs(self.problem, chunk, self.devices)

    @cached_property
    def init_optim(self) -> Callable[[Params], Any]:
        """Fresh optimiser state."""
        return jax.jit(vmap(self._steps.init))

    @cached_property
    def pilot(self) -> Callable:
        """Differences and derivatives of the statistics."""
        return make_pilot(self.problem, self.problem.table.has_var, self.devices)

    @cached_property
    def reweigh(self) -> Callable[[Params, jax.Array], Params]:
        """Weights of the components of the base from draws, shape (R, n, D)."""
        return jax.jit(vmap(self.guide.components.reweigh))

    def align(self, *states: GuideState) -> list[GuideState]:
        """The same guides on bases of as many components: added ones have no weight."""
        nums = [self.num_components(state.params) for state in states]
        if len(set(nums)) == 1:
            return list(states)
        return [self._with_components(state, max(nums)) for state in states]

    def num_components(self, params: Params) -> int:
        """Components of the base of guides."""
        if self.guide.components is None:
            return 0
        found = self.guide.components.get(params)
        return 0 if found is None else found.num

    def widened(self, params: Params, num: int) -> Params:
        """Parameters with components without weight in the base, up to a number."""
        components = self.guide.components

        def widen(params: Params) -> Params:
            found = components.get(params)
            if found is None:
                return components.set(params, components.none(num))
            return components.set(params, found.padded(num))

        return vmap(widen)(params)

    def _with_components(self, state: GuideState, num: int) -> GuideState:
        """The same guides with more components."""
        if self.num_components(state.params) == num:
            return state
        params = self.widened(state.params, num)
        return state._replace(
            params=params,
            average=self.widened(state.average, num),
            cover=self.widened(state.cover, num),
            optim_state=self.init_optim(params),
        )

    @cached_property
    def fit(self) -> Fit:
        """Maximum-likelihood fit of the guide to draws; see `make_fit`."""
        return make_fit(self.guide, self.devices)


def default_optim(options: Options) -> optax.GradientTransformation:
    """Adam on clipped gradients, or the published Adam; on one vector."""
    if options.schedule is not None:
        return optax.flatten(optax.adam(options.schedule.learning_rate))
    return optax.flatten(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate))
    )
