# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a run says of its last draws: multipliers, status and message."""

import numpy as np

from numpyro_epi._math.dual import DualSolution
from numpyro_epi._train.adaptive import AdaptiveSampler
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.lost import why_lost
from numpyro_epi._train.records import Scores
from numpyro_epi._train.schedule import is_met, is_within
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import EPIState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi._train.warm_start import Pool

# Effective sample size below which multipliers from a pool are not trusted.
MIN_DUAL_ESS = 1000.0


def final_duals(
    simulations: Simulations, sampler: AdaptiveSampler, state: EPIState, ev: Evaluation
) -> list[DualSolution | None]:
    """Exact multipliers from pool and evaluation draws, where that can be trusted.

    With noisy statistics E[T | z] is not known draw by draw, and a tilt by single
    simulations is another law: None. The same holds of a noisy log likelihood.
    """
    none: list[DualSolution | None] = [None] * simulations.num_restarts
    is_noisy = simulations.is_noisy or simulations.is_likelihood_noisy
    if is_noisy or not sampler.pools:
        return none
    new = Pool(
        np.asarray(ev.u),
        ev.log_prior,
        ev.log_likelihood,
        simulations.deviations(ev.stats),
        np.isfinite(ev.stats).all(axis=-1),
    )
    start = [(np.asarray(m, np.float64), 0.0) for m in state.multipliers]
    sampler.add(
        new,
        [lambda u: simulations.engine.chunks.log_q(state.average, u)],
        [ev.u.shape[1]],
    )
    return [
        solution if distance == 0.0 else None
        for solution, distance in sampler.solve(start, MIN_DUAL_ESS)
    ]


def verdict(simulations: Simulations, scores: Scores) -> tuple[EPIStatus, str]:
    """Status of one restart from its final draws."""
    options = simulations.options
    good = is_met(scores, options)
    if good.all():
        return EPIStatus.CONVERGED, (
            f"All {good.size} constraints are met within {options.tolerance:g} "
            "scaled units."
        )
    problem = simulations.seen.unreachable(simulations.table)
    if problem is not None:
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
    return EPIStatus.NOT_CONVERGED, (
        f"The {simulations.table.labels[worst]} is off by "
        f"{scores.violation[worst]:+.3g} +- {scores.violation_error[worst]:.2g} scaled "
        f"units (tolerance {options.tolerance:g}). {advice}"
    )


def final_verdict(
    simulations: Simulations,
    scores: Scores,
    ended: tuple[EPIStatus, str] | None,
    multipliers: np.ndarray,
) -> tuple[EPIStatus, str]:
    """Status of one restart: what ended it before, unless it is lost, or its draws'.

    Args:
        simulations: of the run.
        scores: of the final draws.
        ended: status and message of a run that ended early, or by another test.
        multipliers: scaled units, shape (K,).
    """
    found = verdict(simulations, scores) if ended is None else ended
    if found[0] in (EPIStatus.UNREACHABLE, EPIStatus.INTERRUPTED):
        return found
    if scores.invalid == 1.0:
        return found
    lost = why_lost(simulations, scores, multipliers)
    return found if lost is None else (EPIStatus.NOT_CONVERGED, lost)
