# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The certificate: how many nats a result can lie below the maximum."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.importance import effective_sample_size
from numpyro_epi._math.psis import pareto_smooth
from numpyro_epi.diagnostics._mixture import MixtureDraws, draw_mixture
from numpyro_epi.result import EPIResult


class DualityGap(NamedTuple):
    """Result of `duality_gap_diagnostic`; all in nats unless stated.

    Attributes:
        entropy: differential entropy of the result, in the constrained space.
        objective: `-KL(q || p0) + E_q[log L] - lambda . violation` of the result.
        bound: estimate of log Z, which no feasible distribution's objective exceeds.
        gap: `bound - objective`, an estimate of KL(q || exact tilted law).
        objective_error: standard error of `objective`.
        bound_error: standard error of `bound`.
        gap_error: standard error of `gap`.
        noise_error: for noisy simulations, how far the noise of their averages had
            moved `bound` before it was corrected; zero otherwise.
        khat: Pareto shape of the weights; above 0.7 neither bound nor errors can be
            trusted.
        ess: effective number of draws behind `bound`.
        num_samples: draws of the mixture.
    """

    entropy: float
    objective: float
    bound: float
    gap: float
    objective_error: float
    bound_error: float
    gap_error: float
    noise_error: float
    khat: float
    ess: float
    num_samples: int


class LogNormalizer(NamedTuple):
    """Log Z at given multipliers, from weighted draws."""

    value: float
    error: float
    noise_error: float
    khat: float
    ess: float


def estimate_log_normalizer(
    draws: MixtureDraws, table: ConstraintTable, multipliers: np.ndarray
) -> LogNormalizer:
    """Log E_p0[L exp(-lambda . E[T | z])] from raw weights.

    Args:
        draws: simulated draws of a mixture.
        table: targets and scales.
        multipliers: in scaled units, shape (K,).
    """
    averages = draws.averages(table)
    log_w, variance = draws.tilted_log_weights(averages, multipliers)
    plain = log_w + 0.5 * variance
    top = log_w.max()
    if not np.isfinite(top):
        return LogNormalizer(-np.inf, np.inf, 0.0, np.inf, 0.0)
    weights = np.exp(log_w - top)
    mean = weights.mean()
    value = float(top + np.log(mean))
    error = float(weights.std(ddof=1) / np.sqrt(weights.size) / mean)
    uncorrected = float(top + np.log(np.exp(plain - top).mean()))
    return LogNormalizer(
        value,
        error,
        abs(uncorrected - value),
        pareto_smooth(log_w).khat,
        effective_sample_size(weights),
    )


def objective_with_error(
    result: EPIResult, multipliers: np.ndarray
) -> tuple[float, float]:
    """Corrected objective of the stored draws at scaled multipliers, and its error."""
    draws = result.draws
    stats = np.concatenate(
        [v.reshape(len(v), -1) for v in draws.statistics.values()], axis=1
    )
    devs = result.table.deviations(stats)
    values = draws.log_prior + draws.log_likelihood - draws.log_density
    values = np.asarray(values, np.float64) - devs @ multipliers
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def duality_gap_diagnostic(
    result: EPIResult,
    rng_key: Any,
    num_samples: int = 10_000,
    *,
    multipliers: Mapping[str, Any] | None = None,
) -> DualityGap:
    """Estimate how far a result lies below the best distribution there is.

    For any multipliers and every distribution q that meets the constraints,

        -KL(q || p0) + E_q[log L] <= log E_p0[L(z) exp(-lambda . E[T | z])] = log Z.

    The difference is KL(q || p_lambda), in nats (weak duality: Boyd & Vandenberghe,
    Convex Optimization, 5.1.3). A result meets its constraints up to the violation, for
    which its objective is corrected to first order.

    Log Z is estimated with raw weights from a mixture of the prior, the guide after its
    first fit and the trained guide. It is an estimate, not a proof: a mode that none
    of the three reaches counts nowhere. `khat` and `bound_error` say how well the draws
    determine it.

    Args:
        result: of a run.
        rng_key: random key.
        num_samples: draws of the mixture n; each is simulated, 32 times if noisy, up
            to 256 times if the log likelihood is.
        multipliers: `{site: (2, *shape)}` or `(1, *shape)`, raw units; those of the
            result by default. Others give a valid but larger bound.

    Returns:
        A `DualityGap`.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if `num_samples` is below 100, or `multipliers` do not match, or
            the log likelihood is too noisy to weight draws.
        NotImplementedError: if the guide has no density at given points.
    """
    table = result.table
    raw = result.multipliers if multipliers is None else multipliers
    scaled = table.scaled_multipliers(raw)
    draws = draw_mixture(result, rng_key, num_samples, scaled)
    bound = estimate_log_normalizer(draws, table, scaled)
    objective, error = objective_with_error(result, scaled)
    return DualityGap(
        entropy=result.entropy,
        objective=objective,
        bound=bound.value,
        gap=bound.value - objective,
        objective_error=error,
        bound_error=bound.error,
        gap_error=float(np.hypot(error, bound.error)),
        noise_error=bound.noise_error,
        khat=bound.khat,
        ess=bound.ess,
        num_samples=len(draws.u),
    )
