# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulated draws: the one container of the solver, and how they are made."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random, vmap

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._model.problem import Problem, Simulation
from numpyro_epi._solver.devices import Devices

# Simulations side by side: as many as keep their largest array within so many bytes.
BATCH_BYTES, MIN_BATCH = 2**20, 16
# Draws that tell the spread of a statistic under a law, and the factor by which a scale
# has to change on the way before units do.
NUM_SPREAD, MIN_CHANGE = 4000, 2.0
# Share of the variance of T, and variance of log L in square nats, that noise has where
# Markov chains may move under one draw of it.
QUIET = 0.05
# Takes note of latents, log likelihoods and statistics of simulations, (n, ...).
Note = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


class Draws(NamedTuple):
    """Draws with all that weights are made of; n draws, D latents, K constraints.

    Attributes:
        u: unconstrained latents, shape (n, D).
        log_prior: of u, shape (n,).
        log_start: log density from which the first draws of a search come, shape (n,).
        log_likelihoods: of observed sites, of each of m simulations, shape (m, n).
        repeats: T of each of these simulations, scaled units, shape (m, n, K).
        is_valid: whether all of these numbers are finite, shape (n,).
    """

    u: np.ndarray
    log_prior: np.ndarray
    log_start: np.ndarray
    log_likelihoods: np.ndarray
    repeats: np.ndarray
    is_valid: np.ndarray

    @property
    def num(self) -> int:
        """Number of draws n."""
        return self.u.shape[0]

    @property
    def log_likelihood(self) -> np.ndarray:
        """Log L averaged over simulations, shape (n,)."""
        return self.log_likelihoods.mean(axis=0)

    @property
    def deviations(self) -> np.ndarray:
        """T averaged over simulations, shape (n, K)."""
        return self.repeats.mean(axis=0)

    def _noise(self, temperature: float, multipliers: np.ndarray) -> np.ndarray:
        """Deviation of each simulation's log tilt from their mean, shape (m, n)."""
        tilts = temperature * self.log_likelihoods - self.repeats @ multipliers
        return tilts - tilts.mean(axis=0)

    @property
    def is_quiet(self) -> bool:
        """Whether noise is so small that one draw of it may serve all simulations."""
        if len(self.repeats) == 1:
            return True
        kept = self.repeats[:, self.is_valid]
        noise = kept.var(axis=0, ddof=1).mean(axis=0)
        fit = self.log_likelihoods[:, self.is_valid].var(axis=0, ddof=1).mean()
        return bool((noise <= QUIET * kept[0].var(axis=0)).all() and fit <= QUIET)

    def noise_shift(self, temperature: float, multipliers: np.ndarray) -> np.ndarray:
        """What the noise of averages adds to E[T] under weights by them, shape (n, K).

        Averages of T and log L have an error. E[exp(average)] is too large by half of
        its variance, in its logarithm and to second order (the cumulant expansion), and
        the derivative of that with respect to minus the multipliers is this.
        """
        num = len(self.repeats)
        if num == 1:
            return np.zeros(self.repeats.shape[1:])
        centred = self.repeats - self.deviations
        noise = self._noise(temperature, multipliers)
        return -np.einsum("mn,mnk->nk", noise, centred) / (num * (num - 1))

    def noise_variance(self, temperature: float, multipliers: np.ndarray) -> np.ndarray:
        """Of log weights by averages of several simulations, shape (n,)."""
        noise = self._noise(temperature, multipliers)
        return noise.var(axis=0, ddof=1) / len(noise)

    def noise_cost(self, multipliers: np.ndarray) -> float:
        """Nats that a law under one draw of the noise may be off: half its variance."""
        num = len(self.repeats)
        if num == 1:
            return 0.0
        return float(0.5 * num * self.noise_variance(1.0, multipliers).mean())

    def log_density(self, temperature: float, multipliers: np.ndarray) -> np.ndarray:
        """Log p0 L^temperature exp(-lambda . E[T | z]) but for log Z; -inf if invalid.

        With E[log L | z] and E[T | z] from several simulations, corrected for noise.
        """
        log_p = self.log_prior - self.deviations @ multipliers
        if temperature > 0:
            log_p = log_p + temperature * self.log_likelihood
        if len(self.repeats) > 1:
            log_p = log_p - 0.5 * self.noise_variance(temperature, multipliers)
        return np.where(self.is_valid, log_p, -np.inf)

    def take(self, rows: np.ndarray) -> "Draws":
        """Some of them, in this order."""
        return Draws(
            self.u[rows],
            self.log_prior[rows],
            self.log_start[rows],
            self.log_likelihoods[:, rows],
            self.repeats[:, rows],
            self.is_valid[rows],
        )

    def in_units(self, units: np.ndarray) -> "Draws":
        """The same with T times `units`, shape (K,)."""
        return self._replace(repeats=self.repeats * units)

    def with_repeats(self, other: "Draws") -> "Draws":
        """The same draws, simulated more often."""
        return self._replace(
            log_likelihoods=np.concatenate(
                [self.log_likelihoods, other.log_likelihoods]
            ),
            repeats=np.concatenate([self.repeats, other.repeats]),
            is_valid=self.is_valid & other.is_valid,
        )

    def halves(self) -> tuple["Draws", "Draws"]:
        """The same draws with one half of their simulations, and with the other."""
        num = len(self.repeats) // 2
        parts = (slice(0, num), slice(num, 2 * num))
        first, second = (
            self._replace(
                log_likelihoods=self.log_likelihoods[part], repeats=self.repeats[part]
            )
            for part in parts
        )
        return first, second

    def join(self, other: "Draws") -> "Draws":
        """These and others."""
        axes = (0, 0, 0, 1, 1, 0)
        return Draws(
            *(
                np.concatenate(pair, axis=axis)
                for *pair, axis in zip(self, other, axes, strict=True)
            )
        )


class Programs:
    """Compiled functions of one model, which serve all searches for its laws.

    Args:
        problem: the model.
        chunk: draws that one call makes or simulates.
        devices: that share them.
    """

    def __init__(
        self, problem: Problem, chunk: int = 1000, devices: Devices | None = None
    ) -> None:
        self.problem = problem
        self.devices = devices = Devices() if devices is None else devices
        self.chunk = chunk = devices.multiple(chunk)
        # Those of Markov chains, by their kind; see `moves`.
        self.moves: dict[str, Any] = {}
        each = max(problem.cost.largest_array, 1)
        batch = int(np.clip(BATCH_BYTES // each, MIN_BATCH, chunk))

        @jax.jit
        def simulate(u: jax.Array, rng_key: jax.Array) -> Simulation:
            keys = random.split(rng_key, u.shape[0])

            def share(u: jax.Array, keys: jax.Array) -> Simulation:
                return lax.map(
                    lambda x: problem.simulate(*x), (u, keys), batch_size=batch
                )

            return devices.map(share, u, keys)

        @jax.jit
        def prior(rng_key: jax.Array) -> jax.Array:
            keys = devices.spread(random.split(rng_key, chunk))
            return vmap(problem.sample_prior)(keys)

        self.simulate, self.prior = simulate, prior


class Simulator:
    """Simulates draws of one model.

    Args:
        programs: of the model.
        table: targets, with the scales of all statistics.
        num_repeats: simulations of each draw: one if nothing is random.
        note: takes note of all simulations, and may stop a run.
        num_simulations: simulations so far.
        num_moves: those of them that moves of Markov chains have made, unnoted.
    """

    def __init__(
        self,
        programs: Programs,
        table: ConstraintTable,
        num_repeats: int = 1,
        note: Note = lambda *_: None,
        num_simulations: int = 0,
        num_moves: int = 0,
    ) -> None:
        self.programs = programs
        self.problem = programs.problem
        self.table = table
        self.num_repeats = num_repeats
        self.num_simulations = num_simulations
        self.num_moves = num_moves
        self._note = note
        self._chunk = programs.chunk
        # A program that leaves JAX is slow to run: no draw is simulated to fill up.
        self._fills = not self.problem.cost.has_callback

    def prior_draws(self, rng_key: jax.Array, num: int) -> np.ndarray:
        """Draws u of the prior, shape (num, D)."""
        keys = random.split(rng_key, -(-num // self._chunk))
        return np.concatenate([np.asarray(self.programs.prior(key)) for key in keys])[
            :num
        ]

    def settle_units(
        self, draws: Draws, weights: np.ndarray, change: float = MIN_CHANGE
    ) -> np.ndarray | None:
        """Measure statistics without a target variance in their spread under a law.

        Args:
            draws: simulated draws.
            weights: that make them draws of the law, sum to one.
            change: of a scale, as a factor, that is worth it.

        Returns:
            What T is to be multiplied by from now on, shape (K,); None if nothing
            changes.
        """
        table = self.table
        if table.has_var.all():
            return None
        rows = systematic_resample(weights, NUM_SPREAD, 0.5)
        first = draws.repeats[0][rows, : table.num_statistics]
        new = table.with_scale(table.mean + table.scale * first)
        scale = np.where(first.std(axis=0) > 0, new.scale, table.scale)
        if np.abs(np.log(scale / table.scale)).max() <= np.log(change):
            return None
        self.table = replace(table, scale=scale)
        return table.units_in(self.table)

    def __call__(self, u: Any, rng_key: jax.Array) -> Draws:
        """Simulate draws u, shape (n, D); what is not finite becomes 0, and invalid."""
        u = np.asarray(u, jnp.result_type(float))
        runs = [self._run(u, key) for key in random.split(rng_key, self.num_repeats)]
        stats = np.stack([np.asarray(run.stats, np.float64) for run in runs])
        log_lik = np.stack([np.asarray(r.log_likelihood, np.float64) for r in runs])
        log_prior = np.asarray(runs[0].log_prior, np.float64)
        is_valid = np.isfinite(stats).all(axis=(0, 2)) & np.isfinite(log_lik).all(0)
        is_valid &= np.isfinite(log_prior)
        log_prior = np.where(is_valid, log_prior, 0.0)
        devs = self.table.deviations(np.where(is_valid[:, None], stats, 0.0))
        return Draws(
            np.asarray(u, np.float64),
            log_prior,
            np.asarray(self.problem.log_start(u, log_prior), np.float64),
            np.where(is_valid, log_lik, 0.0),
            np.where(is_valid[:, None], devs, 0.0),
            is_valid,
        )

    def _run(self, u: np.ndarray, rng_key: jax.Array) -> Simulation:
        """One simulation of each draw, in chunks of one size."""
        num = len(u)
        parts = []
        for i, start in enumerate(range(0, num, self._chunk)):
            rows = np.arange(start, start + self._chunk)
            rows = rows % num if self._fills else rows[rows < num]
            parts.append(self.programs.simulate(u[rows], random.fold_in(rng_key, i)))
        run = Simulation(
            *(
                np.concatenate([np.asarray(x) for x in xs])[:num]
                for xs in zip(*parts, strict=True)
            )
        )
        self.num_simulations += num
        self._note(u, run.log_likelihood, run.stats)
        return run
