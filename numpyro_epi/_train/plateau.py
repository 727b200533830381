# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How training slows down and ends: one rule, the plateau of the merit.

The merit of a guide is its score (the objective, corrected for its violation to first
order) less a price on what it violates. With the multipliers of the law the score
is log Z - KL(q || law), whatever the guide's own multipliers are. Where it gains
nothing for some epochs, the best guide so far goes on at half the rate; after some
halvings it is the answer. A guide that an epoch has ruined comes back by the same rule.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numpyro_epi._math.convergence import is_equivalent
from numpyro_epi._train.options import Options
from numpyro_epi._train.records import Scores
from numpyro_epi._train.state import EPIState, choose_restarts

# Nats that a violation of the tolerance costs, in its square.
VIOLATION_COST = 0.02
# Nats that count as a gain, epochs without one before the rate is halved, and halvings.
MIN_GAIN, PATIENCE, MAX_HALVINGS = 0.005, 2, 5
# Of a state, what goes on whatever guide it has.
KEPT = ("rng_key", "memory", "pool", "num_steps")
# Nats from the maximum beyond which a guide is far from it, and the rate of such ones.
LARGE_GAP, FAR_RATE = 0.5, 3.0


class Plateau(NamedTuple):
    """The best guides so far, and for how long there were no better ones.

    Attributes:
        best: state in which each restart had its best merit.
        scores: of these guides.
        merit: theirs, shape (R,), nats.
        num_stale: epochs without a gain, shape (R,).
        num_halvings: of the rate, shape (R,).
    """

    best: EPIState
    scores: tuple[Scores, ...]
    merit: np.ndarray
    num_stale: np.ndarray
    num_halvings: np.ndarray

    @classmethod
    def start(
        cls, state: EPIState, scores: Sequence[Scores], merit: np.ndarray
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
        self, state: EPIState, scores: Sequence[Scores], merit: np.ndarray
    ) -> tuple["Plateau", EPIState]:
        """Take note of an epoch; and the state to go on from."""
        merit = np.where(np.isfinite(merit), merit, -np.inf)
        is_better = merit > self.merit
        has_gained = merit > self.merit + MIN_GAIN
        best = choose_restarts(is_better, state, self.best, keep=KEPT)
        num_stale = np.where(has_gained, 0, self.num_stale + 1)
        is_stale = num_stale >= PATIENCE
        found = Plateau(
            best,
            tuple(
                new if good else old
                for new, old, good in zip(scores, self.scores, is_better, strict=True)
            ),
            np.where(is_better, merit, self.merit),
            np.where(is_stale, 0, num_stale),
            self.num_halvings + is_stale,
        )
        back = choose_restarts(is_stale, best, state, keep=KEPT)
        rate = np.where(is_stale, 0.5, 1.0) * np.asarray(state.rate)
        return found, back._replace(rate=rate.astype(state.rate.dtype))


def merits(
    scores: Sequence[Scores], multipliers: np.ndarray, tolerance: float
) -> np.ndarray:
    """Score less the price of the violation of each restart, shape (R,), nats.

    Args:
        scores: of each restart's guide.
        multipliers: of the law, or the guide's own without one, shape (R, K).
        tolerance: of violations, scaled units.
    """
    costs = [
        lam @ s.violation + VIOLATION_COST * ((s.violation / tolerance) ** 2).sum()
        for s, lam in zip(scores, multipliers, strict=True)
    ]
    return np.array([s.log_likelihood - s.divergence for s in scores]) - costs


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
