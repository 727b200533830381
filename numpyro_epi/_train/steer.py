# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""The way of a guide that is far from its targets, when it has no law to start from.

The targets move instead of the guide: from the moments (m_0, s_0) that the statistics
have under the guide to the wanted ones (m, s), along

.. math:: m_d = m + d (m_0 - m), \qquad s_d = s (s_0 / s)^d, \qquad d: 1 \to 0.

Constraints are measured in units of the *moving* targets, so that violations,
multipliers and penalty stay of order one on the whole way, and the guide follows the
path of least commitment instead of being squeezed towards the end of it (a homotopy:
Allgower & Georg, Introduction to numerical continuation methods, 2003, chapter 2).
"""

from typing import NamedTuple

import numpy as np

from numpyro_epi._math.constraints import Targets
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.state import GuideState, choose_restarts

# Gradient steps between two moves of the targets.
STEER_STEPS = 20
# A move changes a mean by at most so many of its standard deviations, and a standard
# deviation by at most this factor (its logarithm).
MAX_SHIFT, MAX_LOG_RATIO = 0.5, 0.15
# The targets wait while a violation, in scaled units of the moving targets, is larger.
MAX_LAG = 0.5
# Of the step that moves the multipliers by the violation.
DUAL_RATE = 0.3
# The way ends, wherever it is, after so many waits one after the other, or after as
# many steps as the run that follows may have.
MAX_WAITS = 60


class Way(NamedTuple):
    """The two ends of the path of each restart.

    Attributes:
        start_mean: of the statistics under the guide, shape (R, S).
        start_scale: their standard deviations, shape (R, S).
        mean: target means, shape (S,).
        scale: scales of the targets, shape (S,).
        has_var: which statistics have a target variance, shape (S,).
    """

    start_mean: np.ndarray
    start_scale: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    has_var: np.ndarray

    @classmethod
    def from_stats(
        cls,
        stats: np.ndarray,
        mean: np.ndarray,
        scale: np.ndarray,
        has_var: np.ndarray,
    ) -> "Way":
        """From statistics under the guide, shape (R, n, S); not finite ones count not.

        A statistic that hardly varies starts with a thousandth of its target's scale.
        """
        stats = np.where(np.isfinite(stats), stats, np.nan).astype(np.float64)
        start_mean = np.nanmean(stats, axis=1)
        spread = np.maximum(np.nanstd(stats, axis=1), 1e-3 * scale)
        return cls(start_mean, np.where(has_var, spread, scale), mean, scale, has_var)

    def at(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales, shape (R, S), at distances of shape (R,)."""
        d = np.asarray(distance)[:, None]
        mean = self.mean + d * (self.start_mean - self.mean)
        return mean, self.scale * (self.start_scale / self.scale) ** d

    def next(self, distance: np.ndarray) -> np.ndarray:
        """Distances after the largest move that is allowed, shape (R,)."""
        _, scale = self.at(distance)
        shift = np.abs(self.start_mean - self.mean) / scale
        stretch = np.abs(np.log(self.start_scale / self.scale))
        pace = np.maximum(shift / MAX_SHIFT, stretch / MAX_LOG_RATIO).max(axis=1)
        return np.maximum(distance - 1.0 / np.maximum(pace, 1e-9), 0.0)


def steer(
    engine: Engine,
    state: GuideState,
    way: Way,
    is_far: np.ndarray,
    stat_gradient: str,
) -> tuple[GuideState, int]:
    """Move the targets of the restarts that are far, and let their guides follow.

    Args:
        engine: compiled functions.
        state: before the first epoch.
        way: the path.
        is_far: which restarts have a way to go, shape (R,).
        stat_gradient: how to differentiate the statistics.

    Returns:
        The state with the guides where they arrived, the wanted targets, and a fresh
        optimiser; and the number of gradient steps.
    """
    distance = np.where(is_far, 1.0, 0.0)
    options = engine.options
    max_moves = options.num_epochs * options.num_steps // STEER_STEPS
    num_moves = num_waits = 0
    before = state
    while distance.any() and num_moves < max_moves and num_waits < MAX_WAITS:
        target = way.next(distance)
        mean, scale = way.at(target)
        state = state._replace(targets=Targets.of(mean, scale))
        state, infos = engine.run_steps(state, STEER_STEPS, stat_gradient)
        violation = np.asarray(infos.violation)[STEER_STEPS // 2 :].mean(axis=0)
        has_followed = np.abs(violation).max(axis=1) <= MAX_LAG
        distance = np.where(has_followed, target, distance)
        num_waits = 0 if has_followed.any() else num_waits + 1
        num_moves += 1
        change = DUAL_RATE * state.penalty * np.nan_to_num(violation)
        state = state._replace(multipliers=state.multipliers + change)
    state = state._replace(
        targets=before.targets,
        average=state.params,
        cover=state.params,
        optim_state=engine.init_optim(state.params),
        num_steps=before.num_steps,
    )
    state = choose_restarts(is_far, state, before, keep=("rng_key", "pool", "memory"))
    return state, num_moves * STEER_STEPS
