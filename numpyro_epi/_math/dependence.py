# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Statistics that say the same thing twice: exact relations between deviations.

Of statistics f with target variances the squares count too, because E[f^2] is what a
variance constrains. A relation is

    sum_j a_j z_j + sum_j b_j z_j^2 = c   with   z = (f - centre) / scale

in every simulation, so every law has E of the left side = c, whatever it is: targets
that say otherwise contradict each other, and multipliers along (a, b) change nothing.
Examples are a copy in other units (`2 f + 1`), shares that sum to one, and an
indicator, whose square is a linear function of it.

Columns are taken in order, means first, and each is compared with those before it that
are independent, so each relation names few statistics. Everything is float64 on the
host, but simulations are exact to single precision only: a relation must hold in each
row to the rounding of its own terms. Centre and scale come from the draws, so units do
not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

# Rounding of a term, in its own size: what some 60 operations in float32 may add up to.
ROUNDING = 64 * float(np.finfo(np.float32).eps)
# Spread of what is left of a column, in its own, beyond which it says something new.
MAX_SPREAD = 3e-4
# The same, beyond which nobody need look for a relation.
CANDIDATE_SPREAD = 1e-2
# Rows in which each statistic of a relation must differ from its most frequent value: a
# relation that fails in more than 3% of those would have failed in one (95%).
MIN_INFORMATIVE = 100
# Rows that coefficients are found from, or four for each column.
MAX_ROWS = 8000
# Sizes of a term, in the spread of its relation, below which it is first left out.
NEGLIGIBLE = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)


@dataclass(frozen=True)
class Relation:
    """One relation; see the module. All arrays have shape (S,).

    Attributes:
        first: a.
        second: b, zero where a statistic has no target variance.
        constant: c.
        centre: of the statistics.
        scale: of the statistics, positive.
        num_informative: rows that tell, of the statistic that has fewest.
    """

    first: np.ndarray
    second: np.ndarray
    constant: float
    centre: np.ndarray
    scale: np.ndarray
    num_informative: int = 0

    @property
    def statistics(self) -> np.ndarray:
        """Indices of the statistics in it."""
        return np.flatnonzero((self.first != 0.0) | (self.second != 0.0))

    @property
    def is_confirmed(self) -> bool:
        """Whether enough rows could have shown it to be wrong."""
        return self.num_informative >= MIN_INFORMATIVE

    def holds(self, stats: np.ndarray) -> bool:
        """Whether it holds in each row of statistics (n, S), to its rounding."""
        z = (stats - self.centre) / self.scale
        left = z @ self.first + z**2 @ self.second - self.constant
        # Relative rounding of each statistic, in units of its scale.
        size = (np.abs(stats) + np.abs(self.centre)) / self.scale + 1.0
        terms = size @ np.abs(self.first)
        terms = terms + ((2.0 * np.abs(z) + 1.0) * size) @ np.abs(self.second)
        return bool((np.abs(left) <= ROUNDING * (terms + abs(self.constant))).all())

    def excess(self, mean: np.ndarray, var: np.ndarray) -> float:
        """E of the left side minus c, for means and variances of shape (S,)."""
        z = (mean - self.centre) / self.scale
        second = np.where(self.second != 0.0, var / self.scale**2 + z**2, 0.0)
        return float(self.first @ z + self.second @ second - self.constant)


def find_relations(
    stats: np.ndarray, has_var: np.ndarray, num_reference: int | None = None
) -> list[Relation]:
    """Relations that hold in all rows; `is_confirmed` says if enough of them tell.

    Statistics that are constant are passed over: of them nothing is known.

    Args:
        stats: statistics, shape (n, S); rows that are not finite are passed over.
        has_var: which statistics have a target variance, shape (S,).
        num_reference: rows at the end that set the scales, by default all. Where the
            law is narrow these should be draws of it.
    """
    stats = np.asarray(stats, np.float64)
    stats = stats[np.isfinite(stats).all(axis=1)]
    num_columns = 1 + stats.shape[1] + int(has_var.sum())
    if len(stats) < 2 * num_columns:
        return []  # as many rows as unknowns have a relation by chance
    columns = _Columns.of(stats, has_var, num_reference)
    vectors, independent = columns.vectors, [0]
    basis = np.zeros(vectors.shape, order="F")
    basis[0, 0] = 1.0
    relations: list[Relation] = []
    for k in range(1, vectors.shape[1]):
        left, spread = _residual(vectors[:, k], basis[:, : len(independent)])
        size = float(np.linalg.norm(left))
        if size <= CANDIDATE_SPREAD * spread:
            found = columns.relation(k, independent, MAX_SPREAD * spread)
            if found is not None:
                relations.append(found)
                continue
        if size > 0.0:
            basis[:, len(independent)] = left / size
            independent.append(k)
    return relations


def confirmed_relations(
    stats: np.ndarray, has_var: np.ndarray, num_reference: int | None = None
) -> list[Relation]:
    """The same, but only those of which enough rows tell."""
    found = find_relations(stats, has_var, num_reference)
    return [relation for relation in found if relation.is_confirmed]


def num_informative(stats: np.ndarray) -> np.ndarray:
    """Rows in which each statistic differs from its most frequent value, shape (S,)."""
    counts = [np.unique(column, return_counts=True)[1].max() for column in stats.T]
    return len(stats) - np.array(counts, int)


def _residual(column: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, float]:
    """What a column has that the basis has not; and its own size but for a constant."""
    spread = float(np.linalg.norm(column - basis[:, 0] * (basis[:, 0] @ column)))
    for _ in range(2):  # the second time takes off the rounding of the first
        column = column - basis @ (basis.T @ column)
    return column, spread


class _Columns(NamedTuple):
    """A constant, z of each statistic, and z^2 of those with a variance.

    Attributes:
        vectors: the columns, turned into a triangle, which leaves angles as they are.
        source: statistic of each column but the first.
        is_square: whether such a column is a square.
        stats: shape (n, S).
        centre: shape (S,).
        scale: shape (S,).
    """

    vectors: np.ndarray
    source: np.ndarray
    is_square: np.ndarray
    stats: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(
        cls, stats: np.ndarray, has_var: np.ndarray, num_reference: int | None
    ) -> "_Columns":
        centre, scale, is_constant = _scales(stats, num_reference)
        plain = np.flatnonzero(~is_constant)
        squared = np.flatnonzero(has_var & ~is_constant)
        num_rows = max(MAX_ROWS, 4 * (1 + plain.size + squared.size))
        z = (stats[-num_rows:] - centre) / scale
        values = np.concatenate([z[:, plain], z[:, squared] ** 2], axis=1)
        # Rows far away would drown the others: each has its largest entry as its unit.
        weight = 1.0 / (1.0 + np.abs(values).max(axis=1, initial=0.0))
        values = np.column_stack([np.ones(len(z)), values]) * weight[:, None]
        source = np.concatenate([plain, squared])
        is_square = np.arange(source.size) >= plain.size
        vectors = np.asarray(np.linalg.qr(values, mode="r"))
        return cls(vectors, source, is_square, stats, centre, scale)

    def relation(
        self, pivot: int, independent: list[int], max_left: float
    ) -> Relation | None:
        """The relation of a column to fewest of the others, or None if it has none."""
        target = self.vectors[:, pivot]
        for chosen in self._choices(pivot, independent):
            part = self.vectors[:, chosen]
            found = np.linalg.lstsq(part, target, rcond=None)[0]
            if np.linalg.norm(target - part @ found) > max_left:
                continue
            attempt = self._relation([pivot, *chosen], [-1.0, *found])
            if attempt.holds(self.stats):
                num = num_informative(self.stats[:, attempt.statistics]).min()
                return replace(attempt, num_informative=int(num))
        return None

    def _choices(self, pivot: int, independent: list[int]) -> Iterator[list[int]]:
        """Columns to explain one by: fewest first, and always the constant."""
        same = self.source == self.source[pivot - 1]
        own = 1 + np.flatnonzero(same & ~self.is_square)
        if self.is_square[pivot - 1]:
            yield [0, *own]  # of an indicator
        target, others = self.vectors[:, pivot], self.vectors[:, independent]
        terms = np.abs(np.linalg.lstsq(others, target, rcond=None)[0])
        terms *= np.linalg.norm(others, axis=0) / np.linalg.norm(target)
        for least in NEGLIGIBLE:
            is_chosen = terms > least
            yield [0, *np.array(independent[1:], int)[is_chosen[1:]]]

    def _relation(self, columns: list[int], factors: list[float]) -> Relation:
        first, second = np.zeros((2, self.centre.size))
        constant = 0.0
        for k, value in zip(columns, factors, strict=True):
            if k == 0:
                constant = -float(value)
            elif self.is_square[k - 1]:
                second[self.source[k - 1]] = value
            else:
                first[self.source[k - 1]] = value
        return Relation(first, second, constant, self.centre, self.scale)


def _scales(
    stats: np.ndarray, num_reference: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and scale of each statistic, and whether it is constant.

    By the quartiles, or where half of the draws coincide by the standard deviation; of
    the last rows, or where they are constant of all.
    """
    centre, scale = np.median(stats, axis=0), np.zeros(stats.shape[1])
    for rows in (stats[-(num_reference or len(stats)) :], stats):
        low, middle, high = np.percentile(rows, [25, 50, 75], axis=0)
        spread = (high - low) / 1.349
        spread = np.where(spread > 0.0, spread, rows.std(axis=0))
        is_new = (scale == 0.0) & (spread > ROUNDING * np.abs(middle))
        centre = np.where(is_new, middle, centre)
        scale = np.where(is_new, spread, scale)
    is_constant = scale == 0.0
    return centre, np.where(is_constant, 1.0, scale), is_constant
