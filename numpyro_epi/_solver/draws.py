# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulated draws: the one container of the solver, and how they are made."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random, vmap

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._train.problem import Problem, Simulation

# Simulations that run side by side: as many as keep their largest array within so many
# bytes, the cache of a CPU.
BATCH_BYTES, MIN_BATCH, MAX_BATCH = 2**20, 16, 1000


class Draws(NamedTuple):
    """Draws with all that weights are made of; n draws, D latents, K constraints.

    Attributes:
        u: unconstrained latents, shape (n, D).
        log_prior: of u, shape (n,).
        log_likelihood: of observed sites, shape (n,), averaged over simulations.
        repeats: T of each of m simulations, scaled units, shape (m, n, K).
        is_valid: whether all of these numbers are finite, shape (n,).
    """

    u: np.ndarray
    log_prior: np.ndarray
    log_likelihood: np.ndarray
    repeats: np.ndarray
    is_valid: np.ndarray

    @property
    def num(self) -> int:
        """Number of draws n."""
        return self.u.shape[0]

    @property
    def deviations(self) -> np.ndarray:
        """T averaged over simulations, shape (n, K)."""
        return self.repeats.mean(axis=0)

    def noise_shift(self, multipliers: np.ndarray) -> np.ndarray:
        """C lambda of each draw, C the covariance of its average T, shape (n, K).

        E[exp(-lambda . average)] is too large by lambda . C lambda / 2 in its
        logarithm, to second order, and its derivative by C lambda.
        """
        num = len(self.repeats)
        if num == 1:
            return np.zeros(self.repeats.shape[1:])
        centred = self.repeats - self.deviations
        along = centred @ multipliers
        return np.einsum("mn,mnk->nk", along, centred) / (num * (num - 1))

    def log_density(self, temperature: float, multipliers: np.ndarray) -> np.ndarray:
        """Log p0 L^temperature exp(-lambda . E[T | z]) but for log Z; -inf if invalid.

        With E[T | z] from several simulations, corrected for their noise.
        """
        log_p = self.log_prior + temperature * self.log_likelihood
        shift = self.noise_shift(multipliers)
        log_p = log_p - (self.deviations + 0.5 * shift) @ multipliers
        return np.where(self.is_valid, log_p, -np.inf)

    def take(self, rows: np.ndarray) -> "Draws":
        """Some of them, in this order."""
        return Draws(
            self.u[rows],
            self.log_prior[rows],
            self.log_likelihood[rows],
            self.repeats[:, rows],
            self.is_valid[rows],
        )

    def join(self, other: "Draws") -> "Draws":
        """These and others."""
        return Draws(
            np.concatenate([self.u, other.u]),
            np.concatenate([self.log_prior, other.log_prior]),
            np.concatenate([self.log_likelihood, other.log_likelihood]),
            np.concatenate([self.repeats, other.repeats], axis=1),
            np.concatenate([self.is_valid, other.is_valid]),
        )


class Simulator:
    """Simulates draws of one model; compiled once for each number of draws.

    Args:
        problem: the model.
        table: targets, with the scales of all statistics.
        num_repeats: simulations of each draw: one if statistics are deterministic.

    Attributes:
        num_simulations: simulations so far.
    """

    def __init__(
        self, problem: Problem, table: ConstraintTable, num_repeats: int = 1
    ) -> None:
        self.problem = problem
        self.table = table
        self.num_repeats = num_repeats
        self.num_simulations = 0
        each = max(problem.cost.largest_array, 1)
        self._batch = int(np.clip(BATCH_BYTES // each, MIN_BATCH, MAX_BATCH))

        @jax.jit
        def simulate(u: jax.Array, rng_key: jax.Array) -> Simulation:
            keys = random.split(rng_key, u.shape[0])
            return lax.map(
                lambda x: problem.simulate(*x), (u, keys), batch_size=self._batch
            )

        @partial(jax.jit, static_argnums=1)
        def prior(rng_key: jax.Array, num: int) -> jax.Array:
            return vmap(problem.sample_prior)(random.split(rng_key, num))

        self._simulate, self._prior = simulate, prior

    def prior_draws(self, rng_key: jax.Array, num: int) -> np.ndarray:
        """Draws u of the prior, shape (num, D)."""
        return np.asarray(self._prior(rng_key, num))

    def __call__(self, u: Any, rng_key: jax.Array) -> Draws:
        """Simulate draws u, shape (n, D); what is not finite becomes 0, and invalid."""
        u = jnp.asarray(u, float)
        keys = random.split(rng_key, self.num_repeats)
        sims = [self._simulate(u, key) for key in keys]
        self.num_simulations += len(u) * self.num_repeats
        stats = np.stack([np.asarray(sim.stats, np.float64) for sim in sims])
        log_lik = np.stack([np.asarray(s.log_likelihood, np.float64) for s in sims])
        log_lik = log_lik.mean(axis=0)
        log_prior = np.asarray(sims[0].log_prior, np.float64)
        is_valid = np.isfinite(stats).all(axis=(0, 2))
        is_valid &= np.isfinite(log_lik) & np.isfinite(log_prior)
        devs = self.table.deviations(np.where(is_valid[:, None], stats, 0.0))
        return Draws(
            np.asarray(u, np.float64),
            np.where(is_valid, log_prior, 0.0),
            np.where(is_valid, log_lik, 0.0),
            np.where(is_valid[:, None], devs, 0.0),
            is_valid,
        )
