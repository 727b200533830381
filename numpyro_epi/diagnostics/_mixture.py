# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws from a defensive mixture, and their weights under any tilt.

A third each comes from the prior, from the guide as it was after its first fit, and
from the trained guide. Every draw is weighted against the whole mixture, so a mode that
the trained guide has lost still counts wherever one of the others has mass (Hesterberg,
Weighted average importance sampling and defensive mixture distributions, 1995).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._checks import as_key, describe
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.importance import mixture_log_density, normalize_log_weights
from numpyro_epi._math.noisy import (
    MAX_VARIANCE,
    Averager,
    Averages,
    log_weight_variance,
)
from numpyro_epi.result import EPIResult

# Simulations of each draw where they are noisy, and at most, where log L is.
NUM_REPEATS, MAX_REPEATS = 32, 256
# More of them than the noise, which is an estimate itself, calls for.
MARGIN = 1.2


class MixtureDraws(NamedTuple):
    """Independent draws of the mixture, simulated.

    Attributes:
        u: unconstrained draws, shape (n, D).
        log_mixture: log density of the mixture at u, shape (n,).
        log_prior: of u, shape (n,).
        log_likelihoods: shape (m, n), from m simulations of each draw.
        statistics: shape (m, n, S), of the same.
        is_valid: draws all of whose simulations are finite, shape (n,).
        num_components: proposals in the mixture.
    """

    u: np.ndarray
    log_mixture: np.ndarray
    log_prior: np.ndarray
    log_likelihoods: np.ndarray
    statistics: np.ndarray
    is_valid: np.ndarray
    num_components: int

    def averages(self, table: ConstraintTable) -> Averages:
        """Log L and T, in scaled units, averaged; see `noisy`.

        Zero for failed simulations, errors zero of one simulation.
        """
        averager = Averager()
        for stats, log_lik in zip(self.statistics, self.log_likelihoods, strict=True):
            devs = table.deviations(np.where(self.is_valid[:, None], stats, 0.0))
            averager.add(
                np.where(self.is_valid, log_lik, 0.0),
                np.where(self.is_valid[:, None], devs, 0.0),
            )
        return averager.averages()

    def log_weights(self, averages: Averages) -> np.ndarray:
        """Log weights against prior times likelihood; -inf for failed simulations."""
        log_w = self.log_prior + averages.log_likelihood - self.log_mixture
        return np.where(self.is_valid & np.isfinite(log_w), log_w, -np.inf)

    def tilted_log_weights(
        self, averages: Averages, multipliers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log weights of the tilted law, and the variances of their exponents, (n,).

        Half of the variance is taken off: so much too large is the mean of a weight.
        """
        shift = np.einsum("njk,j,k->n", averages.covariance, multipliers, multipliers)
        log_w = self.log_weights(averages) - averages.deviations @ multipliers
        return log_w - 0.5 * shift, log_weight_variance(averages, multipliers)


def draw_mixture(
    result: EPIResult,
    rng_key: Any,
    num_samples: int,
    multipliers: np.ndarray | None = None,
) -> MixtureDraws:
    """Draw and simulate; about `num_samples` draws, in equal parts from each proposal.

    Args:
        result: of a run.
        rng_key: random key.
        num_samples: number of draws.
        multipliers: scaled, of the law at which a noisy log likelihood is averaged well
            enough; those of the result by default.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if `num_samples` is below 100, or the log likelihood is too noisy.
        NotImplementedError: if the guide has no density at given points.
    """
    rng_key = as_key(rng_key)
    is_int = isinstance(num_samples, (int, np.integer))
    if not is_int or isinstance(num_samples, bool) or num_samples < 100:
        raise ValueError(
            "`num_samples` must be an integer of at least 100, because a tail is "
            f"fitted to the weights, but got {describe(num_samples)}."
        )
    engine, best = result._engine, result.best

    def one(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[best : best + 1], tree)

    keys = random.split(rng_key, 4)
    proposals = [one(result.state.average)]
    cover = one(result.state.cover)
    differs = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), cover, proposals[0])
    if any(jax.tree.leaves(differs)):
        proposals.append(cover)
    has_prior = engine.problem.can_sample_prior
    num = -(-int(num_samples) // (len(proposals) + has_prior))
    parts = [
        engine.chunks.draws(params, key[None], num)[0][0]
        for params, key in zip(proposals, keys, strict=False)
    ]
    if has_prior:
        parts.append(engine.chunks.prior_draws(keys[2][None], num)[0])
    u = np.concatenate(parts)
    log_q = [engine.chunks.log_q(params, u[None])[0] for params in proposals]
    num_repeats = NUM_REPEATS if result._needs_averages else 1
    draws = _simulate(result, u, log_q, len(log_q) + has_prior, keys[3], num_repeats)
    if result._is_likelihood_noisy:
        if multipliers is None:
            multipliers = result.table.scaled_multipliers(result.multipliers)
        draws = _average_noise(result, draws, log_q, keys[3], multipliers)
    return draws


def _average_noise(
    result: EPIResult,
    draws: MixtureDraws,
    log_q: list,
    rng_key: jax.Array,
    multipliers: np.ndarray,
) -> MixtureDraws:
    """As many simulations as the noise of the log likelihood calls for, or an error."""
    variance, num = _noise(result, draws, multipliers), NUM_REPEATS
    if MAX_VARIANCE < variance <= MAX_VARIANCE * MAX_REPEATS / num:
        wanted = np.ceil(MARGIN * num * variance / MAX_VARIANCE)
        num = int(min(wanted, MAX_REPEATS))
        draws = _simulate(result, draws.u, log_q, draws.num_components, rng_key, num)
        variance = _noise(result, draws, multipliers)
    if not variance <= MAX_VARIANCE:
        raise ValueError(_too_noisy(result, variance, num))
    return draws


def _too_noisy(result: EPIResult, variance: float, num_repeats: int) -> str:
    """Why weights cannot be had, and what to do."""
    noise = result._engine.problem.likelihood_noise
    advice = "Average the log likelihood over more random numbers inside of the model"
    if noise.plates:
        plates = ", ".join(f"`{name}`" for name in noise.plates)
        advice = f"Drop `subsample_size` of {plates}"
    return (
        f"The log likelihood is too noisy to weight draws ({noise.sources}): averaged "
        f"over {num_repeats} simulations, log weights have a standard deviation of "
        f"{np.sqrt(variance):.2g} nats, of which {np.sqrt(MAX_VARIANCE):g} can be "
        "corrected. So neither certificate nor prices can be had. "
        f"{advice}."
    )


def _noise(result: EPIResult, draws: MixtureDraws, multipliers: np.ndarray) -> float:
    """Variance of the averaged log weights, over the law of these multipliers."""
    averages = draws.averages(result.table)
    log_w, variance = draws.tilted_log_weights(averages, multipliers)
    if not np.isfinite(log_w).any():
        return 0.0
    return float(normalize_log_weights(log_w) @ variance)


def _simulate(
    result: EPIResult,
    u: np.ndarray,
    log_q: list,
    num_components: int,
    rng_key: jax.Array,
    num_repeats: int,
) -> MixtureDraws:
    """Simulate draws, as many of each proposal; the prior is the last, if it is one."""
    sims = [
        result._engine.chunks.simulate(u[None], key[None])
        for key in random.split(rng_key, num_repeats)
    ]
    log_prior = np.asarray(sims[0].log_prior[0], np.float64)
    rows = log_q + [log_prior] * (num_components - len(log_q))
    stats = np.stack([np.asarray(sim.stats[0], np.float64) for sim in sims])
    log_lik = np.stack([np.asarray(sim.log_likelihood[0], np.float64) for sim in sims])
    finite = np.isfinite(stats).all(axis=(0, 2)) & np.isfinite(log_lik).all(axis=0)
    return MixtureDraws(
        u,
        mixture_log_density(np.stack(rows), np.ones(num_components)),
        log_prior,
        log_lik,
        stats,
        np.asarray(finite),
        num_components,
    )
