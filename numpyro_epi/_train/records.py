# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a run writes down: moments of each epoch, and everything a result is made of."""

from typing import NamedTuple

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._solver.law import Law
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.pilot import GradientHealth
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.status import EPIStatus


class Scores(NamedTuple):
    """Moments of one restart's draws; see `EPIHistory` for the meaning of each.

    `variance` is that of T, scaled units, shape (K,), `divergence_error` and
    `score_error` the standard errors of the divergence and of the score without its
    correction, `gap` nats from the law, NaN where there is none, and `gap_error` its
    standard error, 0 where that is of the order of the gap.
    """

    entropy: float
    divergence: float
    log_likelihood: float
    violation: np.ndarray
    violation_error: np.ndarray
    invalid: float
    variance: np.ndarray
    divergence_error: float = np.inf
    score_error: float = 0.0
    gap: float = np.nan
    gap_error: float = 0.0

    def score(self, multipliers: np.ndarray) -> float:
        """The objective, corrected for its violation to first order, nats."""
        return (
            self.log_likelihood - self.divergence - float(multipliers @ self.violation)
        )

    @classmethod
    def failed(cls, num_constraints: int) -> "Scores":
        """Of a restart none of whose draws could be simulated."""
        unknown = np.full(num_constraints, np.inf)
        return cls(-np.inf, np.inf, -np.inf, unknown, unknown, 1.0, unknown, np.inf)


class EpochRecord(NamedTuple):
    """One epoch of all restarts.

    `scores` judge the averaged guide on independent draws. `violation`, the mean over
    the particles of the second half of the steps, shape (R, K), has seen many more.
    """

    scores: list[Scores]
    violation: np.ndarray
    multipliers: np.ndarray
    penalty: np.ndarray
    skipped: np.ndarray
    losses: np.ndarray
    seconds: float
    num_simulations: int


class RunOutcome(NamedTuple):
    """Everything a result is made of."""

    state: GuideState
    records: list[EpochRecord]
    evaluation: Evaluation
    scores: list[Scores]
    table: ConstraintTable
    laws: list[Law | None]
    law_reason: str
    gradient: GradientHealth
    status: list[EPIStatus]
    messages: list[str]
    is_noisy: bool
    has_noisy_likelihood: bool
    num_simulations: int
    num_invalid: int
    seconds: float
    stopped_by: str
