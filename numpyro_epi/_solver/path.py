# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""The path from the prior to the law, and how far along it weighted draws reach.

    p(z) = p0(z) L(z)^b exp(-lambda . E[T | z]) / Z

First b goes from 0 to 1: that is where informative data are met. Then the multipliers
go from 0 to those of the targets. On the way they maximise the dual less
r |lambda|^2 / 2, with r from infinity to 0, so that E[T] = r lambda (Dudik, Phillips &
Schapire, Maximum entropy density estimation with generalized regularization, JMLR
2007). There is such a law for each r, whatever moments the model can have. A step is as
long as enough draws stay effective (adaptive tempering: Jasra et al., Inference for
Levy-driven stochastic volatility models via adaptive sequential Monte Carlo, 2011).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numpyro_epi._math.dual import RIDGE, solve_dual
from numpyro_epi._math.importance import (
    effective_sample_size,
    normalize_log_weights,
)
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.draws import Draws

# Largest violation, in scaled units, of multipliers that a step may take.
MAX_RESIDUAL = 0.02
# Rounds that leave more than this share of the way before it is given up.
MAX_STALLED, PROGRESS = 4, 0.9
# A step is halved until it is possible, then bisected.
MAX_HALVINGS, NUM_BISECTIONS = 50, 4
# Iterations of the dual in which the noise of T is taken at the last multipliers.
NUM_NOISY = 3


class Position(NamedTuple):
    """Where on the path a law is.

    Attributes:
        temperature: b, power of the likelihood.
        distance: from the targets, from 1 to 0.
        multipliers: lambda, scaled units, shape (K,).
    """

    temperature: float
    distance: float
    multipliers: np.ndarray

    @classmethod
    def start_of(cls, draws: Draws, problem: Problem) -> "Position":
        """The prior, of which these are draws."""
        lam = np.zeros(draws.repeats.shape[-1])
        return cls(0.0 if problem.has_likelihood else 1.0, 1.0, lam)

    def in_units(self, units: np.ndarray) -> "Position":
        """The same where T is measured in others: it is times `units`, shape (K,)."""
        return self._replace(multipliers=self.multipliers / units)

    @property
    def is_at_the_law(self) -> bool:
        """Whether data and targets are those of the model."""
        return self.temperature == 1.0 and self.distance == 0.0


def move_on(
    position: Position,
    draws: Draws,
    log_q: np.ndarray,
    wanted_ess: float,
) -> Position:
    """The farthest position that draws reach with enough effective ones.

    Args:
        position: of the law so far.
        draws: simulated draws.
        log_q: log density from which they are drawn, up to a constant, shape (n,).
        wanted_ess: effective draws there.
    """
    if position.temperature < 1.0:
        return _temper(position, draws, log_q, wanted_ess)
    return _move_multipliers(position, draws, log_q, wanted_ess)


def has_moved(before: Position, after: Position) -> bool:
    """Whether a round has brought the law a tenth of the way: that left, or behind."""
    gain = after.temperature - before.temperature
    return (
        after.is_at_the_law
        or after.distance < PROGRESS * before.distance
        or 1.0 - after.distance > (1.0 - before.distance) / PROGRESS
        or gain > (1.0 - PROGRESS) * (1.0 - before.temperature)
        or after.temperature > before.temperature / PROGRESS
    )


def _temper(
    position: Position, draws: Draws, log_q: np.ndarray, wanted_ess: float
) -> Position:
    left = 1.0 - position.temperature

    def is_good(step: float) -> bool:
        temperature = 1.0 - left + step
        log_w = draws.log_density(temperature, position.multipliers) - log_q
        if not np.isfinite(log_w).any():
            return False
        return effective_sample_size(normalize_log_weights(log_w)) >= wanted_ess

    step = largest_step(is_good, left)
    return position._replace(temperature=1.0 if step == left else 1.0 - left + step)


def ridge_at(distance: float) -> float:
    """The r of a distance: from infinity at 1 to almost none at 0.

    Its square reaches farther than floating-point numbers near 1.
    """
    if distance == 1.0:
        return np.inf
    return max((distance / (1.0 - distance)) ** 2, RIDGE)


def _move_multipliers(
    position: Position, draws: Draws, log_q: np.ndarray, wanted_ess: float
) -> Position:
    none = np.zeros_like(position.multipliers)
    base = draws.log_density(1.0, none) - log_q
    first_shift = draws.noise_shift(1.0, none)
    found: dict[float, np.ndarray] = {}

    def is_good(step: float) -> bool:
        lam, left = position.multipliers, position.distance - step
        for _ in range(NUM_NOISY if len(draws.repeats) > 1 else 1):
            shift = draws.noise_shift(1.0, lam)
            dual = solve_dual(
                base + 0.5 * (shift - first_shift) @ lam,
                draws.deviations + shift,
                initial=lam,
                max_steps=40,
                ridge=ridge_at(left),
                least_ess=0.1 * wanted_ess,
            )
            lam = dual.multipliers
        found[step] = lam
        residual = dual.residual if left == 0.0 else dual.slope
        return residual < MAX_RESIDUAL and dual.ess >= wanted_ess

    step = largest_step(is_good, position.distance)
    if step == 0.0 and position.distance > 0.0:
        return position
    distance = 0.0 if step == position.distance else position.distance - step
    return position._replace(distance=distance, multipliers=found[step])


def largest_step(is_good: Callable[[float], bool], limit: float) -> float:
    """Largest good step up to a limit: halved until one is good, then bisected."""
    if is_good(limit) or limit == 0.0:
        return limit
    low, high = 0.5 * limit, limit
    for _ in range(MAX_HALVINGS):
        if is_good(low):
            break
        low, high = 0.5 * low, low
    else:
        return 0.0
    for _ in range(NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_good(middle) else (low, middle)
    return low
