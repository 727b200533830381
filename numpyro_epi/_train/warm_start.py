# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Warm start: multipliers and guide by adaptive multiple importance sampling.

Simulate draws from the prior; solve the dual on the weighted pool; where the effective
sample size is too small, stop part of the way to the targets; fit the guide to the
resampled pool by maximum likelihood, which covers every mode that the pool has seen;
simulate draws from the guide, add them, repeat (Cornuet, Marin, Mira & Robert, Adaptive
multiple importance sampling, Scand. J. Stat. 2012). No gradient of the simulator is
used, so it also serves counts and thresholds.
"""

from dataclasses import dataclass, field

import numpy as np

from numpyro_epi._math.constraints import moment_paths
from numpyro_epi._math.dual import DualSolution, solve_dual_tempered
from numpyro_epi._math.importance import (
    mixture_log_density,
    normalize_log_weights,
    systematic_resample,
)
from numpyro_epi._math.noisy import MAX_VARIANCE


@dataclass
class Pool:
    """Simulated draws of one restart, with their density under every proposal.

    Attributes:
        u: draws, shape (n, D).
        log_prior: shape (n,).
        log_likelihood: shape (n,).
        deviations: T, shape (n, K); averaged over simulations if there are several.
        is_valid: shape (n,).
        noise: variance of the averages `log_likelihood`, (n,); None of exact values.
        log_proposals: one row of shape (n,) for each proposal.
        counts: draws taken from each proposal.
    """

    u: np.ndarray
    log_prior: np.ndarray
    log_likelihood: np.ndarray
    deviations: np.ndarray
    is_valid: np.ndarray
    noise: np.ndarray | None = None
    log_proposals: list[np.ndarray] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def extend(self, other: "Pool") -> None:
        """Append draws; their proposal rows are the caller's to append."""
        names = ["u", "log_prior", "log_likelihood", "deviations", "is_valid"]
        for name in names + ["noise"] * (self.noise is not None):
            both = np.concatenate([getattr(self, name), getattr(other, name)])
            setattr(self, name, both)

    @property
    def log_weights(self) -> np.ndarray:
        """Log weights against prior times likelihood; -inf for failed simulations."""
        proposal = mixture_log_density(
            np.stack(self.log_proposals), np.asarray(self.counts)
        )
        log_w = self.log_prior + self.log_likelihood - proposal
        return np.where(self.is_valid & np.isfinite(log_w), log_w, -np.inf)


@dataclass(frozen=True)
class WarmStart:
    """Outcome for one restart.

    Attributes:
        solution: the dual on the final pool.
        distance: 0.0 if the targets were reached, else the fraction that is left.
        num_rounds: rounds of the guide as a proposal.
        num_simulations: simulations spent.
    """

    solution: DualSolution
    distance: float
    num_rounds: int
    num_simulations: int

    @property
    def is_complete(self) -> bool:
        """Whether the multipliers are those of the targets themselves."""
        return self.distance == 0.0


def solve_pool(
    pool: Pool,
    min_ess: float,
    previous: tuple[np.ndarray, float] | None,
    has_var: np.ndarray,
) -> tuple[DualSolution, float]:
    """Dual solution on a pool, tempered where its effective sample size demands it.

    Where the likelihood is too noisy for weights, nothing is gained: distance 1.
    """
    log_w = pool.log_weights
    start = normalize_log_weights(log_w) @ np.where(
        np.isfinite(log_w)[:, None], pool.deviations, 0.0
    )
    solution, distance = solve_dual_tempered(
        log_w,
        pool.deviations,
        min_ess=min_ess,
        previous=previous,
        paths=moment_paths(start, has_var),
    )
    if pool.noise is not None and solution.weights @ pool.noise > MAX_VARIANCE:
        distance = 1.0
    return solution, distance


def split_indices(
    weights: np.ndarray, num_train: int, num_held_out: int, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Resampled rows for fitting and for holding out; no draw is in both.

    Args:
        weights: of the pool, sum to one, shape (n,).
        num_train: rows for the fit.
        num_held_out: rows to judge the fit by.
        offset: uniform random number in [0, 1).
    """
    rows = np.arange(weights.size)
    result = []
    for chosen, num in ((rows % 5 != 0, num_train), (rows % 5 == 0, num_held_out)):
        part = weights * chosen
        total = part.sum()
        part = part / total if total > 0 else chosen / chosen.sum()
        result.append(systematic_resample(part, num, offset))
    return result[0], result[1]
