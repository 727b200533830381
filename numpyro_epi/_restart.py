# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What is kept of each restart of a run: its history, its draws and how it ended."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from numpyro_epi._draws import EPIDraws
from numpyro_epi._train.guide import Params
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.law import EPILaw


class EPIHistory(NamedTuple):
    """One row per epoch, of one restart.

    Attributes:
        entropy: differential entropy of the guide in the constrained space, nats, (E,).
        divergence: KL(q || p0) in nats, (E,).
        log_likelihood: E_q[log L] of observed sites, nats, (E,).
        violation: E[T] in scaled units, (E, K).
        violation_error: standard errors of `violation`, (E, K).
        p_values: two-sided p-values of a violation of zero, (E, K).
        multipliers: of the epoch's objective, scaled units, (E, K).
        penalty: penalty coefficients, (E, K).
        invalid: share of evaluation draws that could not be simulated, (E,).
        skipped: share of steps that were skipped for a non-finite gradient, (E,).
        seconds: wall-clock time of the epoch, (E,).
        simulations: simulations of the epoch, all restarts together, (E,).
    """

    entropy: np.ndarray
    divergence: np.ndarray
    log_likelihood: np.ndarray
    violation: np.ndarray
    violation_error: np.ndarray
    p_values: np.ndarray
    multipliers: np.ndarray
    penalty: np.ndarray
    invalid: np.ndarray
    skipped: np.ndarray
    seconds: np.ndarray
    simulations: np.ndarray


@dataclass(frozen=True, eq=False)
class EPIRestart:
    """What is kept of each restart.

    Attributes:
        params: of the guide, as `SVI.get_params` returns them.
        status: how it ended.
        message: the same in words.
        entropy: in the constrained space, nats.
        divergence: KL(q || p0), nats; see `EPIResult.divergence` on improper priors.
        log_likelihood: E_q[log L], nats.
        score: violation-corrected objective `-KL + E log L - lambda . violation`.
        violation: E[T] of the evaluation draws, scaled units, (K,).
        violation_error: standard errors of `violation`, (K,).
        p_values: two-sided p-values of a violation of zero, (K,).
        multipliers: `{site: (2, *shape)}` or `(1, *shape)`, raw units.
        multipliers_source: "dual" if solved on weighted draws, otherwise "guide".
        dual_ess: effective sample size behind the dual, NaN without one.
        log_normalizer: estimate of log Z on the dual's draws, NaN without one.
        invalid: share of evaluation draws that could not be simulated.
        losses: loss of each step, (steps,).
        history: one row per epoch.
        draws: evaluation draws.
        law: the exact law, or None if none was found.
        law_reason: why not, or why it is not trusted; empty if it is.
    """

    params: Params
    status: EPIStatus
    message: str
    entropy: float
    divergence: float
    log_likelihood: float
    score: float
    violation: np.ndarray
    violation_error: np.ndarray
    p_values: np.ndarray
    multipliers: dict[str, np.ndarray]
    multipliers_source: str
    dual_ess: float
    log_normalizer: float
    invalid: float
    losses: np.ndarray
    history: EPIHistory
    draws: EPIDraws
    law: EPILaw | None = None
    law_reason: str = ""
