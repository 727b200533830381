# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a property costs, and what other targets would cost."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._checks import as_key
from numpyro_epi._math.agreement import disagreeing, free_directions, nearest_targets
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.dependence import confirmed_relations
from numpyro_epi._math.dual import DualSolution, solve_dual, solve_noisy_dual
from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._math.noisy import MAX_VARIANCE, log_weight_variance
from numpyro_epi._math.psis import MAX_KHAT, pareto_smooth
from numpyro_epi._math.relation_text import describe_relations
from numpyro_epi._train.agreement import contradiction
from numpyro_epi.diagnostics._mixture import MixtureDraws, draw_mixture
from numpyro_epi.result import EPIResult


class ShadowPrices(NamedTuple):
    """Result of `shadow_price_diagnostic`.

    Attributes:
        mean: derivative of the maximum with respect to each target mean, nats per unit
            of the statistic, `{site: shape}`.
        mean_error: standard errors of `mean`.
        var: derivative with respect to each target variance, nats per squared unit, of
            sites that have one.
        var_error: standard errors of `var`.
        khat: Pareto shape of the weights; above 0.7 errors cannot be trusted.
        ess: effective number of draws.
        relations: what holds between statistics in all draws, such as "`b` = 2 `a` +
            1". Their prices belong to their sum: the smallest ones are given, which
            share it, and only moving their targets together has them as its cost.
    """

    mean: dict[str, np.ndarray]
    mean_error: dict[str, np.ndarray]
    var: dict[str, np.ndarray]
    var_error: dict[str, np.ndarray]
    khat: float
    ess: float
    relations: tuple[str, ...] = ()


class WhatIf(NamedTuple):
    """Result of `what_if`.

    Attributes:
        objective: estimate of the maximum `-KL(q || p0) + E log L` with the new
            targets, nats.
        change: the same minus the maximum with the old targets, nats; an estimate from
            the same draws, so their error cancels in part.
        multipliers: of the new targets, raw units, `{site: (2, *shape)}`.
        latents: draws of the new distribution, resampled with replacement,
            `{site: (n, *shape)}`.
        khat: Pareto shape of the new weights.
        ess: effective number of draws behind everything here.
        is_trusted: whether the constraints can be met on these draws, with `khat` at
            most 0.7, `ess` at least 100 and little noise left in a noisy log
            likelihood; if not, run `EPI` with the new targets.
    """

    objective: float
    change: float
    multipliers: dict[str, np.ndarray]
    latents: dict[str, np.ndarray]
    khat: float
    ess: float
    is_trusted: bool


class FineTuning(NamedTuple):
    """Result of `fine_tuning_diagnostic`.

    Attributes:
        divergence: KL(q || p0), nats.
        divergence_error: its standard error.
        share: exp(-divergence), the effective share of the prior that is left.
    """

    divergence: float
    divergence_error: float
    share: float


def fine_tuning_diagnostic(result: EPIResult) -> FineTuning:
    """How much of the prior the property rules out.

    `exp(-KL(q || p0))` is the share of a uniform prior's volume that a uniform
    distribution with the same KL would fill: 0.01 means that parameters must be tuned
    to one part in a hundred, all together.

    Args:
        result: of a run; its stored draws are used.

    Returns:
        A `FineTuning`.
    """
    draws = result.draws
    values = np.asarray(draws.log_density, np.float64) - draws.log_prior
    mean = float(values.mean())
    error = float(values.std(ddof=1) / np.sqrt(values.size))
    return FineTuning(mean, error, float(np.exp(-mean)))


def shadow_price_diagnostic(
    result: EPIResult, rng_key: Any, num_samples: int = 20_000
) -> ShadowPrices:
    """Derivative of the maximum with respect to each target: what a target costs.

    By the envelope theorem it is the multiplier of the constraint (Boyd &
    Vandenberghe, Convex Optimization, 5.6.3). A price of zero marks a target that the
    rest of the model meets by itself; a large one, a target that is hard to have.
    Statistics that depend on each other (`ShadowPrices.relations`) share their price.

    Args:
        result: of a run.
        rng_key: random key.
        num_samples: draws of the mixture on which the dual is solved again.

    Returns:
        A `ShadowPrices`, with standard errors from the spread of the weighted draws.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if `num_samples` is below 100, or the constraints cannot be met on
            the draws, or the log likelihood is too noisy to weight them.
        NotImplementedError: if the guide has no density at given points.
    """
    table = result.table
    draws = draw_mixture(result, rng_key, num_samples)
    start = table.scaled_multipliers(result.multipliers)
    solution = _solve(draws, table, start)
    if solution.residual > 0.05:
        raise ValueError(
            "The constraints cannot be met by reweighting the draws, so the prices are "
            f"unknown: a violation of {solution.residual:.2g} is left. Use more "
            "`num_samples`, or train longer."
        )
    stats = table.flatten(result.draws.statistics)
    relations = confirmed_relations(stats, table.has_var)
    free = free_directions(table, relations)
    error = table.raw_multipliers(_multiplier_errors(draws, table, solution, free))
    value = table.raw_multipliers(free @ (free.T @ solution.multipliers))
    with_var = [name for name, rows in value.items() if len(rows) == 2]
    return ShadowPrices(
        {name: rows[0] for name, rows in value.items()},
        {name: rows[0] for name, rows in error.items()},
        {name: value[name][1] for name in with_var},
        {name: error[name][1] for name in with_var},
        pareto_smooth(_log(solution.weights)).khat,
        solution.ess,
        tuple(describe_relations(relations, table.statistic_labels)),
    )


def what_if(
    result: EPIResult,
    targets: Mapping[str, Any],
    rng_key: Any,
    num_samples: int = 20_000,
) -> WhatIf:
    """Answer for nearby targets by reweighting, without training.

    Args:
        result: of a run.
        targets: `{site: (mean, var)}` of the sites to change; `var` is None, or left
            out as `{site: (mean,)}`, to keep the present one.
        rng_key: random key.
        num_samples: draws of the mixture n.

    Returns:
        A `WhatIf`; look at `is_trusted` first.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if a site is unknown, a target does not broadcast, or a variance is
            not positive or is given for a site that has none, or the targets
            contradict a relation between statistics, as the error says, or the log
            likelihood is too noisy to weight draws.
        NotImplementedError: if the guide has no density at given points.
    """
    rng_key = as_key(rng_key)
    new_table = _retarget(result.table, targets)
    draw_key, offset_key = random.split(rng_key)
    draws = draw_mixture(result, draw_key, num_samples)
    _check_agreement(draws, new_table)
    start = result.table.scaled_multipliers(result.multipliers)
    old = _solve(draws, result.table, start)
    new = _solve(draws, new_table, start)
    khat = pareto_smooth(_log(new.weights)).khat
    offset = float(random.uniform(offset_key))
    rows = systematic_resample(new.weights, len(draws.u), offset)
    latents, _ = result._engine.problem.constrain(jnp.asarray(draws.u[rows]))
    noise = 0.0
    if result._is_likelihood_noisy:
        variance = log_weight_variance(draws.averages(new_table), new.multipliers)
        noise = float(new.weights @ variance)
    return WhatIf(
        new.log_normalizer,
        new.log_normalizer - old.log_normalizer,
        new_table.raw_multipliers(new.multipliers),
        {name: np.asarray(value) for name, value in latents.items()},
        khat,
        new.ess,
        bool(
            new.residual < 0.02
            and khat <= MAX_KHAT
            and new.ess >= 100.0
            and noise <= MAX_VARIANCE
        ),
    )


def _check_agreement(draws: MixtureDraws, table: ConstraintTable) -> None:
    """Refuse targets that contradict what all draws, of the prior too, have."""
    stats = draws.statistics[0][draws.is_valid]
    relations = confirmed_relations(stats, table.has_var)
    if disagreeing(table, relations):
        agreed = nearest_targets(table, relations)
        call = "numpyro_epi.what_if(result"
        raise contradiction(table, agreed, relations, len(stats), call)


def _solve(
    draws: MixtureDraws, table: ConstraintTable, start: np.ndarray
) -> DualSolution:
    """The dual on a mixture; multipliers and log Z at the targets of `table`."""
    averages = draws.averages(table)
    log_w, devs = draws.log_weights(averages), averages.deviations
    if len(draws.statistics) > 1:
        return solve_noisy_dual(log_w, devs, averages.covariance, start)
    return solve_dual(log_w, devs, initial=start)


def _multiplier_errors(
    draws: MixtureDraws,
    table: ConstraintTable,
    solution: DualSolution,
    free: np.ndarray,
) -> np.ndarray:
    """Standard errors of the multipliers, scaled units, shape (K,).

    The sandwich `H^-1 G H^-1` of the covariance H of T, which is the dual's curvature,
    and the variance G of its gradient over weighted draws; in the directions in which
    multipliers make a difference.
    """
    averages = draws.averages(table)
    devs = averages.deviations + averages.covariance @ solution.multipliers
    weights = solution.weights
    centred = devs - weights @ devs
    curvature = (centred * weights[:, None]).T @ centred
    spread = (centred * (weights**2)[:, None]).T @ centred
    inverse = free @ np.linalg.pinv(free.T @ curvature @ free) @ free.T
    return np.sqrt(np.diag(inverse @ spread @ inverse))


def _log(weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(weights)


def _retarget(table: ConstraintTable, targets: Mapping[str, Any]) -> ConstraintTable:
    """The same constraints with other targets, and the scales of the old ones."""
    shapes = dict(table.sites)
    means, variances = table.split(table.mean), table.split(table.var)
    for name, target in targets.items():
        if name not in shapes:
            raise ValueError(
                f"Expected targets for the sites {list(shapes)}, got `{name}`."
            )
        given = target if isinstance(target, tuple | list) else (target,)
        if len(given) not in (1, 2):
            raise ValueError(
                f"The target of `{name}` must be (mean, var) or (mean,), but got "
                f"{len(given)} values."
            )
        mean, var = given[0], given[1] if len(given) == 2 else None
        means[name] = _broadcast(name, "mean", mean, shapes[name])
        if var is None:
            continue
        if np.isnan(variances[name]).any():
            raise ValueError(
                f"`{name}` has no target variance in this result, so a new one cannot "
                "be asked for. Run `EPI` on the model wrapped in "
                "`numpyro_epi.handlers.retarget`."
            )
        variances[name] = _broadcast(name, "var", var, shapes[name])
        if not (variances[name] > 0).all():
            raise ValueError(f"The variance of `{name}` must be positive, got {var!r}.")
    mean = np.concatenate([means[name].ravel() for name, _ in table.sites])
    var = np.concatenate([variances[name].ravel() for name, _ in table.sites])
    scale = np.where(np.isnan(var), table.scale, np.sqrt(var))
    return replace(table, mean=mean, var=var, scale=scale)


def _broadcast(name: str, kind: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, np.float64)
    try:
        array = np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"The {kind} of `{name}` must broadcast to {shape}, but has shape "
            f"{array.shape}."
        ) from None
    if not np.isfinite(array).all():
        raise ValueError(f"The {kind} of `{name}` must be finite, but got {value!r}.")
    return array
