# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Do the targets agree with the relations between the statistics? If not, the nearest.

A relation fixes a combination of E[f] and E[f^2] for every law. Targets that say
otherwise are moved as little as possible, by least squares in scaled units; multipliers
along the combination have no effect, and the smallest are the ones to report.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from numpyro_epi._math.constraints import SQRT2, ConstraintTable
from numpyro_epi._math.dependence import Relation

# Scaled units by which targets may disagree without a word: rounding of the relation.
AGREED = 1e-4
# Newton steps to the nearest targets, and the scaled error at which they have arrived.
NUM_STEPS, ARRIVED = 50, 1e-9


def nearest_targets(
    table: ConstraintTable, relations: Sequence[Relation]
) -> ConstraintTable | None:
    """Targets that agree with all relations, as near as can be.

    Least squares in scaled units, `(mean' - mean) / s` and `(var' - var) / (sqrt(2)
    var)`, by Newton steps on the relations, which are quadratic in the means.

    Returns:
        A table with new means and variances, or None where none with positive
        variances is found near by.
    """
    if not relations:
        return table
    x = np.zeros(table.num_constraints)
    for _ in range(NUM_STEPS):
        moved = _moved(table, x)
        excess = np.array([r.excess(moved.mean, moved.var) for r in relations])
        slopes = np.stack([_slope(r, table, moved) for r in relations])
        new = np.linalg.pinv(slopes) @ (slopes @ x - excess)
        if not np.isfinite(new).all():
            return None
        if np.abs(new - x).max() < ARRIVED:
            found = _moved(table, new)
            if not (found.var[table.has_var] > 0.0).all():
                return None
            scale = np.where(table.has_var, np.sqrt(found.var), table.scale)
            return replace(found, scale=scale)
        x = new
    return None


def distance(table: ConstraintTable, other: ConstraintTable) -> float:
    """Largest difference of two tables' targets, in scaled units of the first."""
    mean = np.abs(other.mean - table.mean) / table.scale
    var = np.abs(other.var - table.var) / (SQRT2 * table.var)
    return float(np.concatenate([mean, var[table.has_var]]).max())


def disagreeing(
    table: ConstraintTable, relations: Sequence[Relation]
) -> list[Relation]:
    """Relations with which the targets disagree by more than rounding."""
    found = []
    for relation in relations:
        size = np.linalg.norm(_slope(relation, table, table))
        if abs(relation.excess(table.mean, table.var)) > AGREED * size:
            found.append(relation)
    return found


def free_directions(
    table: ConstraintTable, relations: Sequence[Relation]
) -> np.ndarray:
    """Multipliers that make a difference: an orthonormal basis, shape (K, K - r)."""
    if not relations:
        return np.eye(table.num_constraints)
    slopes = np.stack([_slope(r, table, table) for r in relations])
    slopes = slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    _, sizes, directions = np.linalg.svd(slopes)
    return directions[int((sizes > AGREED).sum()) :].T


def own_shares(table: ConstraintTable, relations: Sequence[Relation]) -> np.ndarray:
    """What each constraint has of its own, shape (K,): 1 / n of each of n copies."""
    return (free_directions(table, relations) ** 2).sum(axis=1)


def smallest_multipliers(
    multipliers: np.ndarray, table: ConstraintTable, relations: Sequence[Relation]
) -> np.ndarray:
    """The smallest multipliers, in scaled units, that tilt every draw alike, (K,)."""
    if not relations:
        return multipliers
    free = free_directions(table, relations)
    return free @ (free.T @ multipliers)


def _moved(table: ConstraintTable, x: np.ndarray) -> ConstraintTable:
    """Targets moved by x, shape (K,), in the scaled units of a table."""
    var = table.var.copy()
    num = table.num_statistics
    var[table.has_var] *= 1.0 + SQRT2 * x[num:]
    return replace(table, mean=table.mean + table.scale * x[:num], var=var)


def _slope(
    relation: Relation, table: ConstraintTable, at: ConstraintTable
) -> np.ndarray:
    """Derivative of `excess` by x at other targets, shape (K,).

    At the table's own targets it is the combination of scaled T that is constant.
    """
    z = (at.mean - relation.centre) / relation.scale
    first = relation.first + 2.0 * relation.second * z
    second = SQRT2 * table.var / relation.scale**2 * relation.second
    mean = first * table.scale / relation.scale
    return np.concatenate([mean, second[table.has_var]])
