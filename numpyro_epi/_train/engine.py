# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Compiled functions of one model, one guide and one set of options.

Every array has a leading axis of R restarts: one `vmap` trains them together. Each
function is compiled once per engine, and the engine serves every run with the same
arguments.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random, vmap

from numpyro_epi._math.constraints import Targets
from numpyro_epi._train.cost import contains_loop, count_operations, largest_array
from numpyro_epi._train.fit import make_fit
from numpyro_epi._train.guide import GuideFunctions, Params
from numpyro_epi._train.options import Options
from numpyro_epi._train.pilot import make_pilot
from numpyro_epi._train.problem import Problem, Simulation
from numpyro_epi._train.state import EPIState, Memory, PoolDraws, StepInfo
from numpyro_epi._train.step import (
    VIOLATION_RATE,
    Objective,
    make_update,
)

# Draws that one call of a compiled function makes, simulates or evaluates.
MIN_CHUNK, MAX_CHUNK = 100, 5000
# Of them at once on a CPU: as many as keep the largest array within so many bytes.
CACHE_BYTES, MIN_BATCH = 2**20, 16
# Of the moving average of the parameters: a memory of about 200 steps.
AVERAGE_DECAY = 0.995


class Evaluation(NamedTuple):
    """Draws of the guide with everything that is reported about them.

    Attributes:
        u: unconstrained draws, shape (R, n, D).
        log_q: log density of the guide at u, shape (R, n).
        log_det: log |dz/du|, shape (R, n).
        log_prior: of u, shape (R, n).
        log_likelihood: shape (R, n).
        stats: raw statistics, shape (R, n, S).
    """

    u: Any
    log_q: Any
    log_det: Any
    log_prior: Any
    log_likelihood: Any
    stats: Any


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
        self.decays = optim is None and options.schedule is None
        # Requests are filled up to whole chunks: small ones for a run that asks little.
        least = min(options.num_evaluation // 4, options.warm_start_size)
        self.chunk = max(min(least, MAX_CHUNK), MIN_CHUNK)
        self._updates: dict[str, Callable] = {}
        self._compiled_updates: dict[str, Callable] = {}
        self._chunks: dict[tuple[str, int], Callable] = {}

    # -- training ---------------------------------------------------------------------

    def update_fn(self, stat_gradient: str) -> Callable:
        """`EPIState -> (EPIState, StepInfo)` of all restarts, not compiled."""
        if stat_gradient not in self._updates:
            options = self.options
            objective = Objective(
                self.problem,
                self.guide,
                num_particles=options.num_particles,
                stat_gradient=stat_gradient,
                masks_invalid=options.on_invalid == "mask",
                rate=VIOLATION_RATE if options.schedule is None else 1.0,
                mesh=options.mesh,
            )
            update = make_update(
                objective,
                self.optim,
                average_decay=0.0 if options.schedule is not None else AVERAGE_DECAY,
                decays=self.decays,
            )
            self._updates[stat_gradient] = vmap(update)
        return self._updates[stat_gradient]

    def update(self, state: EPIState, stat_gradient: str) -> tuple[EPIState, StepInfo]:
        """One compiled step of all restarts."""
        if stat_gradient not in self._compiled_updates:
            self._compiled_updates[stat_gradient] = jax.jit(
                self.update_fn(stat_gradient)
            )
        return self._compiled_updates[stat_gradient](state)

    def run_steps(
        self, state: EPIState, num_steps: int, stat_gradient: str
    ) -> tuple[EPIState, StepInfo]:
        """Scan the step; infos have a leading axis of steps."""
        key = (stat_gradient, num_steps)
        if key not in self._chunks:
            update = self.update_fn(stat_gradient)

            def chunk(state: EPIState) -> tuple[EPIState, StepInfo]:
                state, infos = lax.scan(
                    lambda s, _: update(s), state, None, length=num_steps
                )
                return state, infos

            self._chunks[key] = jax.jit(chunk)
        return self._chunks[key](state)

    def init_state(self, keys: jax.Array, targets: Targets) -> EPIState:
        """State of an untrained guide with zero multipliers; keys of shape (R,)."""
        params = self.init_params(keys)
        num_restarts = keys.shape[0]
        dim = self.problem.num_latents
        return EPIState(
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
            horizon=jnp.full(
                (num_restarts,),
                self.options.num_epochs * self.options.num_steps,
                dtype=float,
            ),
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
    def init_optim(self) -> Callable[[Params], Any]:
        """Fresh optimiser state."""
        return jax.jit(vmap(self.optim.init))

    # -- simulation and density -------------------------------------------------------
    #
    # Everything runs in chunks of one size, so that each function compiles once.

    def _chunk_keys(self, keys: jax.Array, num: int) -> list[jax.Array]:
        """Keys of shape (R,) for each chunk of n draws."""
        return [
            vmap(lambda k: random.fold_in(k, i))(keys)  # noqa: B023
            for i in range(-(-num // self.chunk))
        ]

    def _split(self, u: np.ndarray) -> list[np.ndarray]:
        """Chunks of draws (R, n, D); the last is filled up with repeated draws."""
        num, size = u.shape[1], self.chunk
        rows = np.arange(-(-num // size) * size) % num
        return [u[:, rows[i : i + size]] for i in range(0, rows.size, size)]

    @cached_property
    def _prior_chunk(self) -> Callable:
        def draw(key: jax.Array) -> jax.Array:
            return vmap(self.problem.sample_prior)(random.split(key, self.chunk))

        return jax.jit(vmap(draw))

    def prior_draws(self, keys: jax.Array, num: int) -> np.ndarray:
        """Draws u, shape (R, n, D), from the prior, for keys (R,)."""
        chunks = [self._prior_chunk(k) for k in self._chunk_keys(keys, num)]
        return _join(chunks, num)

    @cached_property
    def _simulate_chunk(self) -> Callable[..., Simulation]:
        def one(u: jax.Array, keys: jax.Array, batch_size: int) -> Simulation:
            return lax.map(
                lambda x: self.problem.simulate(*x), (u, keys), batch_size=batch_size
            )

        def many(u: jax.Array, keys: jax.Array, batch_size: int) -> Simulation:
            num_restarts, num = u.shape[:2]
            keys = vmap(lambda k: random.split(k, num))(keys).reshape(-1)
            flat = one(u.reshape(-1, u.shape[-1]), keys, batch_size)
            return jax.tree.map(
                lambda x: x.reshape((num_restarts, num) + x.shape[1:]), flat
            )

        return jax.jit(many, static_argnums=2)

    def simulate(
        self, u: np.ndarray, keys: jax.Array, batch_size: int | None = None
    ) -> Simulation:
        """Simulate draws u, shape (R, n, D), in batches of bounded size; keys (R,)."""
        num = u.shape[1]
        size = min(self.chunk, batch_size or self.batch_size)
        chunks = [
            self._simulate_chunk(part, k, size)
            for part, k in zip(self._split(u), self._chunk_keys(keys, num), strict=True)
        ]
        return Simulation(
            *(
                _join([c[i] for c in chunks], num)
                for i in range(len(Simulation._fields))
            )
        )

    @cached_property
    def _log_q_chunk(self) -> Callable[[Params, jax.Array], jax.Array]:
        return jax.jit(vmap(self.guide.log_prob))

    def log_q(self, params: Params, u: np.ndarray) -> np.ndarray:
        """Log density of the guide at u, shape (R, n, D)."""
        return _join(
            [self._log_q_chunk(params, jnp.asarray(p)) for p in self._split(u)],
            u.shape[1],
        )

    @cached_property
    def _draw_chunk(self) -> Callable:
        def one(params: Params, key: jax.Array):  # noqa: ANN202
            u, log_q = self.guide.sample(params, key, self.chunk)
            return u, log_q, self.problem.constrain(u)[1]

        return jax.jit(vmap(one))

    def draws(
        self, params: Params, keys: jax.Array, num: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws u (R, n, D) of the guide, log q (R, n) and log |dz/du| (R, n)."""
        chunks = [self._draw_chunk(params, k) for k in self._chunk_keys(keys, num)]
        u, log_q, log_det = (_join([c[i] for c in chunks], num) for i in range(3))
        return u, log_q, log_det

    def evaluate(
        self, params: Params, keys: jax.Array, num: int, batch_size: int | None = None
    ) -> Evaluation:
        """Draw from the guide and simulate each draw once."""
        draw_keys, sim_keys = split_keys(keys, 2)
        u, log_q, log_det = self.draws(params, draw_keys, num)
        return Evaluation(u, log_q, log_det, *self.simulate(u, sim_keys, batch_size))

    @cached_property
    def pilot(self) -> Callable:
        """Differences and derivatives of the statistics."""
        return make_pilot(self.problem, self.problem.table.has_var)

    @cached_property
    def has_loop(self) -> bool:
        """Whether a simulation runs a scan or a while loop."""
        u = jnp.zeros(self.problem.num_latents)
        return contains_loop(self.problem.simulate, u, random.key(0))

    @cached_property
    def batch_size(self) -> int:
        """Simulations that run side by side where memory would allow for any number.

        On a CPU the arrays of a loop should stay in the cache from step to step: the
        colliculus runs 2.6 times as fast with 100 simulations a batch as with 1,000.
        """
        limit = self.options.num_particles
        if jax.default_backend() == "cpu":
            u = jnp.zeros(self.problem.num_latents)
            each = largest_array(self.problem.simulate, u, random.key(0))
            limit = min(limit, max(CACHE_BYTES // max(each, 1), MIN_BATCH))
        # Rather a divisor: else a second program is compiled for what is left.
        divisor = max(n for n in range(1, limit + 1) if self.chunk % n == 0)
        return divisor if 2 * divisor >= limit else limit

    @cached_property
    def num_operations(self) -> float:
        """Scalar operations of one simulation."""
        u = jnp.zeros(self.problem.num_latents)
        return count_operations(self.problem.simulate, u, random.key(0))

    @cached_property
    def fit(self) -> Callable[..., tuple[Params, jax.Array]]:
        """Maximum-likelihood fit of the guide to draws; see `make_fit`."""
        return make_fit(self.guide)


def default_optim(options: Options) -> optax.GradientTransformation:
    """Adam on clipped gradients, or the published Adam; on one vector."""
    if options.schedule is not None:
        return optax.flatten(optax.adam(options.schedule.learning_rate))
    return optax.flatten(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(options.learning_rate))
    )


def split_keys(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """Split keys of shape (R,) into `num` arrays of keys of shape (R,)."""
    split = vmap(lambda k: random.split(k, num))(keys)
    return tuple(split[:, i] for i in range(num))


def _join(chunks: list, num: int) -> np.ndarray:
    """Chunks (R, chunk, ...) on the host as one array (R, n, ...)."""
    return np.concatenate([np.asarray(c) for c in chunks], axis=1)[:, :num]


def to_numpy(tree: Any) -> Any:
    """Copy arrays to the host."""
    return jax.tree.map(np.asarray, tree)
