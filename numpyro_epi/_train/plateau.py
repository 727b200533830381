# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How training slows down and ends: one rule, the plateau of the merit.

The merit of a guide is minus its KL to the law (its score where there is no law) less a
price on what it violates. Where it gains nothing for some epochs, the best guide so far
goes on at half the rate; after some halvings it is the answer. A guide that an epoch
has ruined comes back by the same rule.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numpyro_epi._math.convergence import is_equivalent
from numpyro_epi._train.options import Options
from numpyro_epi._train.records import Scores
from numpyro_epi._train.state import GuideState, choose_restarts, choose_rows

# Nats that a violation of the tolerance costs, in its square.
VIOLATION_COST = 0.05
# Nats that count as a gain, epochs without one before the rate is halved, and halvings.
MIN_GAIN, PATIENCE, MAX_HALVINGS = 0.002, 2, 2
# Of a state, what goes on whatever guide it has.
KEPT = ("rng_key", "memory", "pool", "num_steps")


class Plateau(NamedTuple):
    """The best guides so far, and for how long there were no better ones.

    Attributes:
        best: state in which each restart had its best merit.
        scores: of these guides.
        merit: theirs, shape (R,), nats.
        num_stale: epochs without a gain, shape (R,).
        num_halvings: of the rate, shape (R,).
    """

    best: GuideState
    scores: tuple[Scores, ...]
    merit: np.ndarray
    num_stale: np.ndarray
    num_halvings: np.ndarray

    @classmethod
    def start(
        cls, state: GuideState, scores: Sequence[Scores], merit: np.ndarray
    ) -> "Plateau":
        """Before the first epoch."""
        none = np.zeros(len(scores), int)
        return cls(state, tuple(scores), merit, none, none)

    @property
    def is_over(self) -> bool:
        """Whether no restart has anything to gain."""
        return bool((self.num_halvings > MAX_HALVINGS).all())

    def with_scores(self, scores: Sequence[Scores], merit: np.ndarray) -> "Plateau":
        """The same guides, judged by draws that have not chosen them."""
        return self._replace(scores=tuple(scores), merit=merit)

    def after(
        self, state: GuideState, scores: Sequence[Scores], merit: np.ndarray
    ) -> tuple["Plateau", GuideState]:
        """Take note of an epoch; and the state to go on from.

        A score has noise: of guides that it cannot tell apart the last one is best.
        """
        merit = np.where(np.isfinite(merit), merit, -np.inf)
        noise = 2.0 * np.array(
            [s.score_error if np.isnan(s.gap) else s.gap_error for s in scores]
        )
        is_better = merit > self.merit - noise
        has_gained = merit > self.merit + MIN_GAIN + noise
        best = choose_restarts(is_better, state, self.best, keep=KEPT)
        num_stale = np.where(has_gained, 0, self.num_stale + 1)
        is_stale = num_stale >= PATIENCE
        found = Plateau(
            best,
            tuple(
                new if good else old
                for new, old, good in zip(scores, self.scores, is_better, strict=True)
            ),
            np.maximum(merit, self.merit),
            np.where(is_stale, 0, num_stale),
            self.num_halvings + is_stale,
        )
        back = choose_restarts(is_stale, best, state, keep=KEPT)
        # Without a law multipliers are still sought: what an epoch told of them stays.
        has_law = ~np.isnan([s.gap for s in scores])
        multipliers = choose_rows(has_law, back.multipliers, state.multipliers)
        rate = np.where(is_stale, 0.5, 1.0) * np.asarray(state.rate)
        return found, back._replace(
            rate=rate.astype(state.rate.dtype), multipliers=multipliers
        )


def merits(
    scores: Sequence[Scores], multipliers: np.ndarray, tolerance: float
) -> np.ndarray:
    """Of each restart's guide, shape (R,), nats: the larger the better.

    Minus its gap from the law, or its score where there is none, less the price of what
    it violates.

    Args:
        scores: of each restart's guide.
        multipliers: its own, scaled units, shape (R, K).
        tolerance: of violations, scaled units.
    """
    # Less what noise adds to the square of a violation.
    squares = [np.maximum(s.violation**2 - s.violation_error**2, 0.0) for s in scores]
    costs = [VIOLATION_COST * x.sum() / tolerance**2 for x in squares]
    values = [
        s.score(lam) if np.isnan(s.gap) else -s.gap
        for s, lam in zip(scores, multipliers, strict=True)
    ]
    return np.array(values) - costs


def is_met(scores: Scores, options: Options) -> np.ndarray:
    """Which constraints are shown to be met within the tolerance, shape (K,)."""
    return is_equivalent(
        scores.violation,
        scores.violation_error,
        tolerance=options.tolerance,
        z_score=options.z_score,
    )


def is_within(scores: Scores, options: Options) -> bool:
    """Whether all violations are within the tolerance, with too few draws or enough."""
    return float(np.abs(scores.violation).max()) <= options.tolerance
