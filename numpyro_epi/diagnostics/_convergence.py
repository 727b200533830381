# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Are the constraints met? Equivalence, p-values, and the published test by name."""

from typing import Any, NamedTuple

import numpy as np
from jax import random

from numpyro_epi._checks import as_key, describe
from numpyro_epi._math.convergence import (
    adjusted_p_values,
    is_equivalent,
    published_p_values,
    two_sided_p_value,
    violation_with_error,
)
from numpyro_epi.result import EPIResult

# Estimates of the violation in the published test (eLife 2021, Methods).
NUM_ESTIMATES = 200


class Convergence(NamedTuple):
    """Result of `convergence_diagnostic`; one entry for each of K constraints.

    Attributes:
        labels: names of the constraints.
        violation: E[T] in scaled units.
        violation_error: its standard errors.
        p_values: of a violation of zero, one at a time.
        adjusted_p_values: the same for all K at once (Holm).
        is_met: whether `|violation| + z * error` is within the tolerance.
        converged: whether all are met.
    """

    labels: tuple[str, ...]
    violation: np.ndarray
    violation_error: np.ndarray
    p_values: np.ndarray
    adjusted_p_values: np.ndarray
    is_met: np.ndarray
    converged: bool


class PublishedTest(NamedTuple):
    """Result of `published_test_diagnostic`.

    Attributes:
        labels: names of the constraints.
        p_values: of each constraint, shape (K,).
        threshold: the level over the number of constraints (Bonferroni).
        converged: whether no p-value falls below the threshold.
    """

    labels: tuple[str, ...]
    p_values: np.ndarray
    threshold: float
    converged: bool


def _deviations(result: EPIResult) -> np.ndarray:
    """T of the stored draws in scaled units, shape (n, K)."""
    stats = [v.reshape(len(v), -1) for v in result.draws.statistics.values()]
    return result.table.deviations(np.concatenate(stats, axis=1))


def convergence_diagnostic(
    result: EPIResult, *, tolerance: float | None = None, z_score: float = 1.645
) -> Convergence:
    """Test whether each constraint is met within a tolerance, on the stored draws.

    Converged means equivalence, two one-sided tests of each constraint (Schuirmann,
    1987, doi:10.1007/BF01068419): a violation at the tolerance passes in at most 5% of
    cases at the default `z_score`, and more draws only help. P-values of a violation of
    zero are information: with enough draws any violation is significant.

    Args:
        result: of a run.
        tolerance: largest harmless violation, scaled units; that of the run by default.
        z_score: Gaussian quantile of one minus the error rate.

    Returns:
        A `Convergence`.

    Raises:
        ValueError: if `tolerance` or `z_score` is not positive.
    """
    tolerance = result.tolerance if tolerance is None else tolerance
    for name, value in (("tolerance", tolerance), ("z_score", z_score)):
        if not isinstance(value, (int, float, np.number)) or not float(value) > 0:
            raise ValueError(
                f"`{name}` must be a positive number, but got {describe(value)}."
            )
    violation, error = violation_with_error(_deviations(result))
    p_values = two_sided_p_value(violation, error)
    is_met = is_equivalent(violation, error, tolerance=tolerance, z_score=z_score)
    return Convergence(
        result.table.labels,
        violation,
        error,
        p_values,
        adjusted_p_values(p_values),
        is_met,
        bool(is_met.all()),
    )


def published_test_diagnostic(
    result: EPIResult, rng_key: Any, *, num_test: int = 100, alpha: float = 0.05
) -> PublishedTest:
    """The convergence test of the paper, for comparison.

    200 estimates of the violation from `num_test` draws each; a constraint fails if
    zero lies in a tail of the estimates (Bittner et al., eLife 2021, eqs. 21-23). With
    few draws it passes large violations: use `convergence_diagnostic` to decide.

    Args:
        result: of a run; its stored draws are resampled.
        rng_key: random key.
        num_test: draws in each estimate.
        alpha: error rate, divided by the number of constraints.

    Returns:
        A `PublishedTest`.

    Raises:
        TypeError: if `rng_key` is not a key.
        ValueError: if `num_test` is not positive or `alpha` not in (0, 1).
    """
    if not isinstance(num_test, (int, np.integer)) or num_test < 1:
        raise ValueError(
            f"`num_test` must be a positive integer, but got {describe(num_test)}."
        )
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"`alpha` must lie in (0, 1), but got {alpha!r}.")
    devs = _deviations(result)
    shape = (NUM_ESTIMATES, int(num_test))
    rows = np.asarray(random.randint(as_key(rng_key), shape, 0, len(devs)))
    p_values = published_p_values(devs[rows].mean(axis=1))
    threshold = alpha / p_values.size
    return PublishedTest(
        result.table.labels, p_values, threshold, bool((p_values >= threshold).all())
    )
