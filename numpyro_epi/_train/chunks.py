# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws, densities and simulations of any number, in chunks of one size.

Each function is compiled once, for a whole chunk; requests are filled up. Draws go in
and out as arrays of the host, so that memory on a device does not grow with their
number.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random, vmap

from numpyro_epi._model.problem import Problem, Simulation
from numpyro_epi._solver.devices import Devices
from numpyro_epi._train.guide import GuideFunctions, Params

# Simulations at once on a CPU: as many as keep the largest array within so many bytes.
CACHE_BYTES, MIN_BATCH = 2**20, 16


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


class Chunks:
    """Compiled functions; see the module. R is the number of restarts.

    Args:
        problem: the model with its arguments.
        guide: the guide.
        size: draws that one call of a compiled function makes, simulates or evaluates.
        num_particles: of a step: no more simulations run side by side.
        devices: that share the draws; None for one.
    """

    def __init__(
        self,
        problem: Problem,
        guide: GuideFunctions,
        size: int,
        num_particles: int,
        devices: Devices | None = None,
    ) -> None:
        self.devices = Devices() if devices is None else devices
        self.problem = problem
        self.guide = guide
        self.size = size
        self.num_particles = num_particles

    @cached_property
    def batch_size(self) -> int:
        """Simulations that run side by side where memory would allow for any number.

        On a CPU the arrays of a loop should stay in the cache from step to step: the
        colliculus runs 2.6 times as fast with 100 simulations a batch as with 1,000.
        """
        limit = self.num_particles
        if jax.default_backend() == "cpu":
            each = max(self.problem.cost.largest_array, 1)
            limit = min(limit, max(CACHE_BYTES // each, MIN_BATCH))
        # Rather a divisor: else a second program is compiled for what is left.
        divisor = max(n for n in range(1, limit + 1) if self.size % n == 0)
        return divisor if 2 * divisor >= limit else limit

    def _chunk_keys(self, keys: jax.Array, num: int) -> list[jax.Array]:
        """Keys of shape (R,) for each chunk of n draws."""
        return [
            vmap(lambda k: random.fold_in(k, i))(keys)  # noqa: B023
            for i in range(-(-num // self.size))
        ]

    def _split(self, u: np.ndarray, *, fills: bool = True) -> list[np.ndarray]:
        """Chunks of draws (R, n, D); the last is filled up with repeated draws."""
        num, size = u.shape[1], self.size
        rows = np.arange(-(-num // size) * size if fills else num) % num
        return [u[:, rows[i : i + size]] for i in range(0, rows.size, size)]

    @property
    def fills(self) -> bool:
        """Whether to simulate whole chunks.

        A program that leaves JAX is compiled fast, and slow to run: no repeated draws.
        """
        return not self.problem.cost.has_callback

    def num_simulated(self, num: int) -> int:
        """Simulations that run when `num` are asked for."""
        return -(-num // self.size) * self.size if self.fills else num

    @cached_property
    def _prior_chunk(self) -> Callable:
        def draw(key: jax.Array) -> jax.Array:
            keys = self.devices.spread(random.split(key, self.size))
            return vmap(self.problem.sample_prior)(keys)

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
            flat = self.devices.map(
                partial(one, batch_size=batch_size), u.reshape(-1, u.shape[-1]), keys
            )
            return jax.tree.map(
                lambda x: x.reshape((num_restarts, num) + x.shape[1:]), flat
            )

        return jax.jit(many, static_argnums=2)

    def simulate(
        self, u: np.ndarray, keys: jax.Array, batch_size: int | None = None
    ) -> Simulation:
        """Simulate draws u, shape (R, n, D), in batches of bounded size; keys (R,)."""
        num = u.shape[1]
        size = min(self.size, batch_size or self.batch_size)
        chunks = [
            self._simulate_chunk(part, k, size)
            for part, k in zip(
                self._split(u, fills=self.fills),
                self._chunk_keys(keys, num),
                strict=True,
            )
        ]
        return Simulation(
            *(
                _join([c[i] for c in chunks], num)
                for i in range(len(Simulation._fields))
            )
        )

    @cached_property
    def _log_q_chunk(self) -> Callable[[Params, jax.Array], jax.Array]:
        def one(params: Params, u: jax.Array) -> jax.Array:
            return self.guide.log_prob(params, self.devices.spread(u))

        return jax.jit(vmap(one))

    def log_q(self, params: Params, u: np.ndarray) -> np.ndarray:
        """Log density of the guide at u, shape (R, n, D)."""
        return _join(
            [self._log_q_chunk(params, jnp.asarray(p)) for p in self._split(u)],
            u.shape[1],
        )

    @cached_property
    def _draw_chunk(self) -> Callable:
        def one(params: Params, key: jax.Array):  # noqa: ANN202
            u, log_q = self.guide.sample(params, key, self.size)
            u = self.devices.spread(u)
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


def split_keys(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
    """Split keys of shape (R,) into `num` arrays of keys of shape (R,)."""
    split = vmap(lambda k: random.split(k, num))(keys)
    return tuple(split[:, i] for i in range(num))


def _join(chunks: list, num: int) -> np.ndarray:
    """Chunks (R, chunk, ...) on the host as one array (R, n, ...)."""
    return np.concatenate([np.asarray(c) for c in chunks], axis=1)[:, :num]
