# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""When are the constraints met? An equivalence test, and the published test."""

from math import erfc, sqrt

import numpy as np


def violation_with_error(deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of T over draws, shape (K,), and its standard error.

    Args:
        deviations: T of independent draws, shape (n, K).
    """
    devs = np.asarray(deviations, np.float64)
    return devs.mean(axis=0), devs.std(axis=0, ddof=1) / np.sqrt(len(devs))


def is_equivalent(
    violation: np.ndarray, error: np.ndarray, *, tolerance: float, z_score: float
) -> np.ndarray:
    """Whether each constraint is shown to be met within the tolerance.

    `|V| + z * se <= tolerance`: two one-sided tests (Schuirmann, 1987, doi:
    10.1007/BF01068419). More draws never make it harder, and few draws never pass it.
    All K constraints must pass; such an intersection-union test needs no correction for
    multiplicity (Berger & Hsu, 1996, doi:10.1214/ss/1032280304).

    Args:
        violation: V in scaled units, shape (K,).
        error: standard errors of V, shape (K,).
        tolerance: largest harmless |V|.
        z_score: Gaussian quantile; 1.645 declares a violation at the tolerance
            harmless in 5% of cases.

    Returns:
        Booleans, shape (K,).
    """
    return np.abs(violation) + z_score * np.asarray(error) <= tolerance


def two_sided_p_value(violation: np.ndarray, error: np.ndarray) -> np.ndarray:
    """P-values of V = 0 (information only: with many draws, any V is significant)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(np.asarray(violation, float)) / np.asarray(error, float)
    return np.array([erfc(r / sqrt(2.0)) if r == r else 1.0 for r in ratio])


def adjusted_p_values(p_values: np.ndarray) -> np.ndarray:
    """P-values for all hypotheses at once, shape (K,).

    Holm's step-down method: all below alpha are significant together with a family-wise
    error rate of alpha (Scand. J. Stat. 1979).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def published_p_values(violations: np.ndarray) -> np.ndarray:
    """P-values of the published test, from repeated estimates of the violation.

    Args:
        violations: M independent estimates of V, each from N_test draws, shape (M, K).

    Returns:
        `2 min(#{V > 0}, #{V < 0}) / M` for each constraint, shape (K,) (Bittner et al.,
        eLife 2021, eqs. 21-23). All above alpha / K: converged.
    """
    positive = (violations > 0).mean(axis=0)
    negative = (violations < 0).mean(axis=0)
    return 2.0 * np.minimum(positive, negative)


def welch_growth_probability(current: np.ndarray, previous: np.ndarray) -> float:
    """Probability of penalty growth in the published schedule.

    One minus the one-sided p-value of Welch's t-test that the mean of `current` exceeds
    that of `previous` (with a Gaussian reference: the samples are 200 norms).
    """
    gap = current.mean() - previous.mean()
    error = np.sqrt(
        current.var(ddof=1) / current.size + previous.var(ddof=1) / current.size
    )
    if error == 0.0:
        return float(gap > 0)
    return 1.0 - 0.5 * erfc(float(gap / error) / sqrt(2.0)) if gap > 0 else 0.0
