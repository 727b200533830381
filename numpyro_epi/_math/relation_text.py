# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Relations between statistics, and targets, in words and in raw units."""

from collections.abc import Sequence

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.dependence import ROUNDING, Relation

# Size of a coefficient's effect, in that of the largest, that is rounding.
NO_EFFECT = 1e-5
# Digits that targets are printed with, beyond the size of their scale.
DIGITS = 6


def describe_relations(
    relations: Sequence[Relation], labels: Sequence[str]
) -> list[str]:
    """A sentence's worth for each relation, such as "`b` = 2 `a` + 1".

    Relations of squares that follow from one of the statistics themselves are left out.
    """
    plain = [set(r.statistics) for r in relations if not r.second.any()]
    texts = []
    for relation in relations:
        names = set(relation.statistics)
        follows = any(names <= other for other in plain) and len(names) > 1
        if not (relation.second.any() and follows):
            texts.append(_describe(relation, labels))
    return texts


def describe_targets(table: ConstraintTable, indices: Sequence[int]) -> str:
    """Targets of some statistics: "mean 1 and variance 0.25 of `a`, ..."."""
    parts = []
    for i in indices:
        text = f"mean {printed(table.mean[i], table.scale[i])!r}"
        if table.has_var[i]:
            text += f" and variance {printed(table.var[i], table.var[i])!r}"
        parts.append(f"{text} of `{table.statistic_labels[i]}`")
    return ", ".join(parts)


def printed(value: float, scale: float) -> float:
    """A number to as many digits as a scale asks for."""
    digits = DIGITS - 1 - int(np.floor(np.log10(abs(scale))))
    return float(np.round(float(value), digits)) + 0.0  # no -0.0


def _describe(relation: Relation, labels: Sequence[str]) -> str:
    squares = np.flatnonzero(relation.second)
    names = relation.statistics
    if len(names) == 1:
        low, high = _two_values(relation, names[0])
        return f"`{labels[names[0]]}` takes only the values {low:.6g} and {high:.6g}"
    pivot = squares[-1] if squares.size else names[-1]
    first, second, constant = _raw(relation)
    factor = -(second if squares.size else first)[pivot]
    left = f"`{labels[pivot]}`" + ("^2" if squares.size else "")
    # Size of the effect of each term, by which rounding is told from a coefficient.
    sizes = np.stack(
        [np.abs(first) * relation.scale, np.abs(second) * _square(relation)]
    )
    is_kept = sizes > NO_EFFECT * sizes.max()
    terms = [
        (values[j] / factor, f"`{labels[j]}`{power}")
        for values, power, kept in ((second, "^2", is_kept[1]), (first, "", is_kept[0]))
        for j in names[kept[names]]
        if not (j == pivot and (power == "^2") == bool(squares.size))
    ]
    offset = (
        np.abs(first) @ np.abs(relation.centre) + np.abs(second) @ relation.centre**2
    )
    if abs(constant) > ROUNDING * (offset + sizes.max()):
        terms.append((-constant / factor, ""))
    return f"{left} = {_sum(terms)}"


def _raw(relation: Relation) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients of f, of f^2, and the constant."""
    a, b = relation.first, relation.second
    centre, scale = relation.centre, relation.scale
    first = a / scale - 2.0 * b * centre / scale**2
    moved = a @ (centre / scale) - b @ (centre / scale) ** 2
    return first, b / scale**2, float(relation.constant + moved)


def _square(relation: Relation) -> np.ndarray:
    """Size of the square of each statistic."""
    return relation.scale * (relation.scale + 2.0 * np.abs(relation.centre))


def _two_values(relation: Relation, index: int) -> np.ndarray:
    """Roots of b z^2 + a z = c in raw units."""
    a, b = relation.first[index], relation.second[index]
    roots = np.sort(np.roots([b, a, -relation.constant]).real)
    values = relation.centre[index] + relation.scale[index] * roots
    size = np.abs(values).max()
    return np.where(np.abs(values) < NO_EFFECT * size, 0.0, values)


def _sum(terms: Sequence[tuple[float, str]]) -> str:
    text = ""
    for value, name in terms:
        number = f"{abs(value):.6g}"
        shown = f"{number} {name}" if name and number != "1" else name or number
        sign = "-" if value < 0 else "+"
        text += f" {sign} {shown}" if text else f"{'-' if value < 0 else ''}{shown}"
    return text or "0"
