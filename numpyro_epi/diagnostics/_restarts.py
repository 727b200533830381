# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Restarts compared: do they agree, and which one lacks a mode that another has?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi.result import EPIResult

# A draw of one restart is outside another if its log density there is lower than that
# of all but this share of the other's own draws.
OUTSIDE = 0.001
# Share of draws outside that counts as a missing mode.
MISSING = 0.02


class Restarts(NamedTuple):
    """Result of `restart_diagnostic`.

    Attributes:
        entropy: of each restart, nats, shape (R,).
        score: violation-corrected objective of each, nats, shape (R,).
        divergence: KL(q_i || q_j) in nats, from draws of i, shape (R, R).
        outside: share of the draws of restart i that lie outside restart j, (R, R).
        missing: pairs (i, j): restart j lacks a part that restart i has.
        r_hat: by latent, `{site: shape}`: the variance of all draws over that within
            restarts, as a square root; 1 where restarts agree.
    """

    entropy: np.ndarray
    score: np.ndarray
    divergence: np.ndarray
    outside: np.ndarray
    missing: tuple[tuple[int, int], ...]
    r_hat: dict[str, np.ndarray]


def restart_diagnostic(result: EPIResult) -> Restarts:
    """Compare restarts by the density of each at the draws of the others.

    Restarts that agree in their moments may still lack a mode. The cross log densities
    show it: draws of a restart that has the mode are outside one that has not. It needs
    at least one restart that has it: compare `duality_gap_diagnostic`.

    Args:
        result: of a run with `num_restarts` of at least two.

    Returns:
        A `Restarts`.

    Raises:
        ValueError: if the result has one restart only.
        NotImplementedError: if the guide has no density at given points.
    """
    restarts, engine = result.restarts, result._engine
    if len(restarts) < 2:
        raise ValueError(
            "`restart_diagnostic` compares restarts, but this result has one. Run "
            "`EPI(model, num_restarts=4)`."
        )
    num = min(len(restart.draws.log_density) for restart in restarts)
    if num < 2:
        raise ValueError(
            "A restart has no draws that can be simulated, so there is nothing to "
            "compare."
        )
    log_q = np.empty((len(restarts), len(restarts), num))
    for i, restart in enumerate(restarts):
        latents = {k: jnp.asarray(v[:num]) for k, v in restart.draws.latents.items()}
        u = engine.problem.unconstrain(latents)
        every = jnp.broadcast_to(u, (len(restarts), *u.shape))
        values = engine.chunks.log_q(result.state.average, np.asarray(every))
        log_det = engine.problem.constrain(u)[1]
        log_q[i] = np.asarray(values, np.float64) - np.asarray(log_det)
    own = log_q[np.arange(len(restarts)), np.arange(len(restarts))]
    threshold = np.quantile(own, OUTSIDE, axis=1)
    outside = (log_q < threshold[None, :, None]).mean(axis=2)
    is_missing = (outside > MISSING) & ~np.eye(len(restarts), dtype=bool)
    return Restarts(
        np.array([restart.entropy for restart in restarts]),
        np.array([restart.score for restart in restarts]),
        own.mean(axis=1)[:, None] - log_q.mean(axis=2),
        outside,
        tuple((int(i), int(j)) for i, j in np.argwhere(is_missing)),
        _r_hat([restart.draws.latents for restart in restarts], num),
    )


def _r_hat(latents: list[dict[str, np.ndarray]], num: int) -> dict[str, np.ndarray]:
    """Square root of total over within-restart variance, by site."""

    def one(*values: np.ndarray) -> np.ndarray:
        every = np.stack([np.asarray(v[:num], np.float64) for v in values])
        within = every.var(axis=1, ddof=1).mean(axis=0)
        between = every.mean(axis=1).var(axis=0, ddof=1)
        with np.errstate(invalid="ignore"):  # masked elements do not vary: no number
            return np.sqrt((within + between) / within)

    return jax.tree.map(one, *latents)
