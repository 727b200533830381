# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a run says of its last draws: status and message."""

from collections.abc import Callable

import numpy as np

from numpyro_epi._train.correction import Correction
from numpyro_epi._train.lost import why_lost, why_model_lost
from numpyro_epi._train.plateau import is_met, is_within
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.status import EPIStatus


def verdict(
    simulations: Simulations, scores: Scores, *, is_whole: bool = True
) -> tuple[EPIStatus, str]:
    """Status of one restart from its final draws.

    Args:
        simulations: of the run.
        scores: of the draws.
        is_whole: whether the run has ended by itself.
    """
    options = simulations.options
    good = is_met(scores, options)
    if good.all():
        return EPIStatus.CONVERGED, (
            f"All {good.size} constraints are met within {options.tolerance:g} "
            "scaled units."
        )
    problem = simulations.ledger.seen.unreachable(simulations.table)
    if problem is not None and is_whole:
        return EPIStatus.UNREACHABLE, problem
    if scores.invalid == 1.0:
        return EPIStatus.NOT_CONVERGED, (
            "None of the draws can be simulated. Use more restarts, or restrict "
            "the prior to latents whose simulation is finite."
        )
    bound = np.abs(scores.violation) + options.z_score * scores.violation_error
    worst = int(np.argmax(bound))
    advice = (
        "Train longer (`num_epochs`, `num_steps`, `num_particles`), use a more "
        "flexible guide, or ask whether the model can have this mean and variance at "
        "once."
    )
    if is_within(scores, options):
        advice = (
            "It may be met: a few draws far away make the error large. Use more of "
            "them (`num_evaluation`), or a statistic without far values."
        )
    miss = (
        f"The {simulations.table.labels[worst]} is off by "
        f"{scores.violation[worst]:+.3g} +- {scores.violation_error[worst]:.2g} scaled "
        f"units (tolerance {options.tolerance:g})."
    )
    return EPIStatus.NOT_CONVERGED, f"{miss} {advice}" if is_whole else miss


def final_verdict(
    simulations: Simulations,
    scores: Scores,
    ended: tuple[EPIStatus, str] | None,
    multipliers: np.ndarray,
    correction: Callable[[], Correction | None],
    own_scores: Scores,
    *,
    is_whole: bool = True,
) -> tuple[EPIStatus, str]:
    """Status of one restart: what ended it before, unless it is lost, or its draws'.

    Args:
        simulations: of the run.
        scores: of the final draws.
        ended: status and message of a run that ended early, or by another test.
        multipliers: scaled units, shape (K,).
        correction: weighs the final draws to the law, if that is trusted.
        own_scores: with fit and divergence of such a law, else of the draws.
        is_whole: whether the run has ended by itself.
    """
    found = ended
    if found is None:
        found = verdict(simulations, scores, is_whole=is_whole)
    if found[0] in (EPIStatus.UNREACHABLE,):
        return found
    if scores.invalid < 1.0 and is_whole:
        broken = why_model_lost(simulations, own_scores)
        if broken is not None:
            return EPIStatus.NOT_CONVERGED, broken
        lost = why_lost(simulations, scores, multipliers)
        found = found if lost is None else (EPIStatus.NOT_CONVERGED, lost)
    if found[0] is EPIStatus.CONVERGED or simulations.options.schedule is not None:
        return found
    weighted = correction()
    return found if weighted is None else _rescue(simulations, scores, weighted)


def _rescue(
    simulations: Simulations, scores: Scores, weighted: Correction
) -> tuple[EPIStatus, str]:
    """Status of a guide that misses its targets, beside a law that meets them."""
    options, labels = simulations.options, simulations.table.labels
    alone = "none of its draws can be simulated"
    if scores.invalid < 1.0:
        bound = np.abs(scores.violation) + options.z_score * scores.violation_error
        worst = int(np.argmax(bound))
        alone = (
            f"its {labels[worst]} is off by {scores.violation[worst]:+.3g} +- "
            f"{scores.violation_error[worst]:.2g} scaled units (tolerance "
            f"{options.tolerance:g})"
        )
    use = "Use draws of the law (`result.law.sample`)."
    if weighted.is_met:
        return EPIStatus.CORRECTED, (
            f"The law meets all {len(labels)} constraints, and draws of the guide do "
            f"when they are weighted to it (k-hat {weighted.khat:.2f}). The guide "
            f"alone does not: {alone}. {use}"
        )
    return EPIStatus.LAW_ONLY, (
        f"The law meets all {len(labels)} constraints, but the guide is no copy of it: "
        f"{alone}. {use}"
    )
