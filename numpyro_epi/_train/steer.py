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
from numpyro_epi._train.options import Options
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


class Steering(NamedTuple):
    """Guides on their way.

    Attributes:
        way: the path.
        before: the guides where they began.
        guide: the guides now.
        distance: from the wanted targets, from 1 to 0, shape (R,).
        is_far: which restarts have a way to go, shape (R,).
        num_moves: of the targets so far.
        num_waits: one after the other, until now.
    """

    way: Way
    before: GuideState
    guide: GuideState
    distance: np.ndarray
    is_far: np.ndarray
    num_moves: int = 0
    num_waits: int = 0

    @classmethod
    def start(cls, way: Way, guide: GuideState, is_far: np.ndarray) -> "Steering":
        """Before the first move."""
        return cls(way, guide, guide, np.where(is_far, 1.0, 0.0), is_far)

    def is_done(self, options: Options) -> bool:
        """Whether the guides have arrived, or will not."""
        most = options.num_epochs * options.num_steps // STEER_STEPS
        is_lost = self.num_moves >= most or self.num_waits >= MAX_WAITS
        return is_lost or not self.distance.any()

    def advance(self, engine: Engine, stat_gradient: str) -> "Steering":
        """A move of the targets, which the guides follow.

        Args:
            engine: compiled functions.
            stat_gradient: how to differentiate the statistics.
        """
        target = self.way.next(self.distance)
        guide = self.guide._replace(targets=Targets.of(*self.way.at(target)))
        guide, infos = engine.run_steps(guide, STEER_STEPS, stat_gradient)
        violation = np.asarray(infos.violation)[STEER_STEPS // 2 :].mean(axis=0)
        has_followed = np.abs(violation).max(axis=1) <= MAX_LAG
        change = DUAL_RATE * guide.penalty * np.nan_to_num(violation)
        return self._replace(
            guide=guide._replace(multipliers=guide.multipliers + change),
            distance=np.where(has_followed, target, self.distance),
            num_moves=self.num_moves + 1,
            num_waits=0 if has_followed.any() else self.num_waits + 1,
        )

    def end(self, engine: Engine) -> GuideState:
        """The guides where they are, with the wanted targets and a fresh optimiser."""
        guide, before = self.guide, self.before
        guide = guide._replace(
            targets=before.targets,
            average=guide.params,
            cover=guide.params,
            optim_state=engine.init_optim(guide.params),
            num_steps=before.num_steps,
        )
        kept = ("rng_key", "pool", "memory")
        return choose_restarts(self.is_far, guide, before, keep=kept)
