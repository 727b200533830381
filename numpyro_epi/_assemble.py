# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""From the outcome of a run to the result that users hold."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._draws import EPIDraws
from numpyro_epi._math.agreement import smallest_multipliers
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.convergence import two_sided_p_value
from numpyro_epi._math.dependence import Relation, confirmed_relations
from numpyro_epi._math.importance import effective_sample_size
from numpyro_epi._restart import EPIHistory, EPIRestart
from numpyro_epi._solver.law import Law
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.records import EpochRecord, RunOutcome
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.law import EPILaw
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
        stopped_by=outcome.stopped_by,
        has_noisy_likelihood=outcome.has_noisy_likelihood,
    )


def _rank(restart: EPIRestart) -> tuple[int, float]:
    score = restart.score if np.isfinite(restart.score) else -np.inf
    order = (EPIStatus.LAW_ONLY, EPIStatus.CORRECTED, EPIStatus.CONVERGED)
    place = order.index(restart.status) + 1 if restart.status in order else 0
    return place, score


def _restart(engine: Engine, outcome: RunOutcome, r: int) -> EPIRestart:
    scores, found = outcome.scores[r], outcome.laws[r]
    law = found if found is not None and found.converged else None
    scaled = np.asarray(outcome.state.multipliers[r], np.float64)
    if law is not None:
        scaled = law.multipliers
    table, draws = outcome.table, _draws(engine, outcome, r)
    relations = confirmed_relations(table.flatten(draws.statistics), table.has_var)
    scaled = smallest_multipliers(scaled, table, relations)
    objective = -scores.divergence + scores.log_likelihood
    average = jax.tree.map(np.asarray, outcome.state.average)
    params = jax.tree.map(lambda x: jnp.asarray(x[r]), average)
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
        multipliers_source="guide" if law is None else "dual",
        dual_ess=np.nan if law is None else law.ess,
        log_normalizer=np.nan if law is None else law.log_normalizer,
        invalid=scores.invalid,
        losses=_losses(outcome.records, r),
        history=_history(outcome.records, r, outcome.table),
        draws=draws,
        law=None if found is None else _law(engine, found, table, relations),
        law_reason=outcome.law_reason if found is None else found.reason,
    )


def _law(
    engine: Engine, law: Law, table: ConstraintTable, relations: list[Relation]
) -> EPILaw | None:
    """The law for users; None where a search has ended before its targets."""
    if not law.is_at_the_targets:
        return None
    pool, weights = law.pool, law.pool_weights
    rows = pool.is_valid & (weights > 0)
    pool, weights = pool.take(np.flatnonzero(rows)), weights[rows]
    dtype = jnp.result_type(float)
    latents, log_dets = engine.problem.constrain_draws(pool.u.astype(dtype))
    log_det = np.asarray(log_dets, np.float64)
    log_p = pool.log_density(1.0, law.multipliers) - law.log_normalizer - log_det
    log_prior = pool.log_prior - log_det
    stats = table.mean + table.scale * pool.repeats[0][:, : table.num_statistics]
    weights = weights / weights.sum()
    scaled = smallest_multipliers(law.multipliers, table, relations)
    return EPILaw(
        method=law.method,
        draws=EPIDraws(
            latents=latents,
            statistics=table.split(stats.astype(dtype)),
            log_density=log_p,
            log_prior=log_prior,
            log_likelihood=pool.log_likelihood,
        ),
        weights=weights,
        multipliers=table.raw_multipliers(scaled),
        log_normalizer=law.log_normalizer,
        log_normalizer_error=law.log_normalizer_error,
        entropy=float(-weights @ log_p),
        divergence=float(weights @ (log_p - log_prior)),
        violation=law.violation,
        violation_error=law.violation_error,
        noise_error=law.noise_error,
        ess=effective_sample_size(weights),
        khat=law.khat,
        lag=law.lag,
        reason=law.reason,
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
    latents, log_det = engine.problem.constrain_draws(ev.u[r][rows])
    log_share = np.log(max(rows.mean(), 1.0 / rows.size))
    return EPIDraws(
        latents=latents,
        statistics=outcome.table.split(stats[rows]),
        log_density=ev.log_q[r][rows] - log_det - log_share.astype(log_det.dtype),
        log_prior=ev.log_prior[r][rows] - log_det,
        log_likelihood=ev.log_likelihood[r][rows],
    )
