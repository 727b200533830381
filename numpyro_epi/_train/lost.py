# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Recognise a run whose numbers cannot be those of any law, and say what is lost.

More training does not bring such a run back, so its message does not ask for that.
"""

import numpy as np

from numpyro_epi._train.precision import log_likelihood_loss
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations

# A divergence from a proper prior is never negative: nats and standard errors below
# zero that are beyond rounding and chance.
MIN_NATS, MIN_Z_SCORE = 0.05, 3.0
# Scaled units up to which a violation is an ordinary one, whatever the prior shows.
ORDINARY = 10.0


def why_lost(
    simulations: Simulations, scores: Scores, multipliers: np.ndarray
) -> str | None:
    """Why a restart is lost, as a message with a way out; None if it is not.

    Args:
        simulations: of the run, after its pilot.
        scores: of the last draws of the restart.
        multipliers: its multipliers, scaled units, shape (K,).
    """
    found = why_model_lost(simulations, scores)
    return found or _why_guide_lost(simulations, scores, multipliers)


def why_model_lost(simulations: Simulations, scores: Scores) -> str | None:
    """Why nothing that is said of the model holds, its law included."""
    if simulations.problem.has_likelihood:
        dtype = np.dtype(simulations.ledger.log_likelihood_dtype)
        loss = log_likelihood_loss(scores.log_likelihood, dtype)
        if loss is not None:
            return loss
    below = -scores.divergence
    noise = MIN_Z_SCORE * scores.divergence_error
    is_proper = simulations.problem.can_sample_prior
    if is_proper and np.isfinite(below) and below > max(MIN_NATS, noise):
        return (
            f"The KL divergence from the prior comes out as {scores.divergence:.3g} +- "
            f"{scores.divergence_error:.2g} nats, and no distribution has a negative "
            "one: entropy and multipliers are lost. The `log_prob` of a prior that does"
            " not integrate to one does that: use distributions of NumPyro at the "
            f"sites {[site.name for site in simulations.problem.sites]}, and "
            "`numpyro.factor` for what is no distribution."
        )
    return None


def _why_guide_lost(
    simulations: Simulations, scores: Scores, multipliers: np.ndarray
) -> str | None:
    labels = simulations.table.labels
    bad = np.flatnonzero(~np.isfinite(multipliers))
    if bad.size:
        return (
            f"The multiplier of the {labels[bad[0]]} is not finite: training has run "
            f"away. {_ADVICE}"
        )
    size, largest = np.abs(scores.violation), simulations.ledger.largest_seen
    limits = np.maximum(largest, ORDINARY)
    beyond = np.where(np.isfinite(size), size / limits, np.inf)
    worst = int(np.argmax(beyond))
    if beyond[worst] > 1.0:
        return (
            f"The {labels[worst]} is off by {scores.violation[worst]:.3g} scaled units,"
            f" more than in any draw of the prior (at most {largest[worst]:.3g}): "
            f"training has run away. {_ADVICE}"
        )
    return None


_ADVICE = (
    "Its draws, entropy and multipliers mean nothing. Narrow the priors to where the "
    "data and the property can be met, so that draws of the prior come near them "
    "(`EPI.check` shows what they give)."
)
