# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""From the outcome of a run to the result that users hold."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.agreement import smallest_multipliers
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.convergence import two_sided_p_value
from numpyro_epi._math.dependence import confirmed_relations
from numpyro_epi._restart import EPIDraws, EPIHistory, EPIRestart
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.records import EpochRecord, RunOutcome
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.result import EPIResult


def assemble(engine: Engine, outcome: RunOutcome) -> EPIResult:
    """Build the result; ranks restarts by convergence, then by corrected objective."""
    restarts = tuple(
        _restart(engine, outcome, r) for r in range(engine.options.num_restarts)
    )
    best = max(range(len(restarts)), key=lambda r: _rank(restarts[r]))
    return EPIResult(
        restarts=restarts,
        best=best,
        table=outcome.table,
        state=outcome.state,
        gradient=outcome.gradient,
        is_noisy=outcome.is_noisy,
        masks_invalid=engine.options.leaves_out,
        tolerance=engine.options.tolerance,
        num_simulations=outcome.num_simulations,
        seconds=outcome.seconds,
        _engine=engine,
        num_invalid=outcome.num_invalid,
        has_noisy_likelihood=outcome.has_noisy_likelihood,
    )


def _rank(restart: EPIRestart) -> tuple[bool, float]:
    score = restart.score if np.isfinite(restart.score) else -np.inf
    return restart.status is EPIStatus.CONVERGED, score


def _restart(engine: Engine, outcome: RunOutcome, r: int) -> EPIRestart:
    scores, dual = outcome.scores[r], outcome.duals[r]
    scaled = np.asarray(outcome.state.multipliers[r], np.float64)
    if dual is not None:
        scaled = dual.multipliers
    table, draws = outcome.table, _draws(engine, outcome, r)
    relations = confirmed_relations(table.flatten(draws.statistics), table.has_var)
    scaled = smallest_multipliers(scaled, table, relations)
    objective = -scores.divergence + scores.log_likelihood
    params = jax.tree.map(lambda x: x[r], outcome.state.average)
    return EPIRestart(
        params=engine.guide.constrain(params),
        status=outcome.status[r],
        message=outcome.messages[r],
        entropy=scores.entropy,
        divergence=scores.divergence,
        log_likelihood=scores.log_likelihood,
        score=float(objective - scaled @ scores.violation),
        violation=scores.violation,
        violation_error=scores.violation_error,
        p_values=two_sided_p_value(scores.violation, scores.violation_error),
        multipliers=outcome.table.raw_multipliers(scaled),
        multipliers_source="guide" if dual is None else "dual",
        dual_ess=np.nan if dual is None else dual.ess,
        log_normalizer=np.nan if dual is None else dual.log_normalizer,
        invalid=scores.invalid,
        losses=_losses(outcome.records, r),
        history=_history(outcome.records, r, outcome.table),
        draws=draws,
    )


def _losses(records: list[EpochRecord], r: int) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(e.losses[:, r] for e in records)])


def _history(records: list[EpochRecord], r: int, table: ConstraintTable) -> EPIHistory:
    def stack(values: list, *shape: int) -> np.ndarray:
        return np.asarray(values, np.float64).reshape((len(records), *shape))

    num = table.num_constraints
    scores = [e.scores[r] for e in records]
    return EPIHistory(
        entropy=stack([s.entropy for s in scores]),
        divergence=stack([s.divergence for s in scores]),
        log_likelihood=stack([s.log_likelihood for s in scores]),
        violation=stack([s.violation for s in scores], num),
        violation_error=stack([s.violation_error for s in scores], num),
        p_values=stack(
            [two_sided_p_value(s.violation, s.violation_error) for s in scores], num
        ),
        multipliers=stack([e.multipliers[r] for e in records], num),
        penalty=stack([e.penalty[r] for e in records], num),
        invalid=stack([s.invalid for s in scores]),
        skipped=stack([e.skipped[r] for e in records]),
        seconds=stack([e.seconds for e in records]),
        simulations=stack([e.num_simulations for e in records]),
    )


def _draws(engine: Engine, outcome: RunOutcome, r: int) -> EPIDraws:
    """Evaluation draws of one restart; those that cannot be simulated are left out."""
    ev = outcome.evaluation
    stats = np.asarray(ev.stats[r])
    rows = np.isfinite(stats).all(axis=-1) & np.isfinite(ev.log_likelihood[r])
    latents, log_det = engine.problem.constrain(jnp.asarray(ev.u[r][rows]))
    log_share = np.log(max(rows.mean(), 1.0 / rows.size))
    return EPIDraws(
        latents={name: np.asarray(value) for name, value in latents.items()},
        statistics=outcome.table.split(stats[rows]),
        log_density=np.asarray(ev.log_q[r][rows] - log_det - log_share),
        log_prior=np.asarray(ev.log_prior[r][rows] - log_det),
        log_likelihood=np.asarray(ev.log_likelihood[r][rows]),
    )
