# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a simulation costs, read off its program: the same on every machine."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

# Assumed passes of a loop whose length only the data decide.
WHILE_LENGTH = 100


class Cost(NamedTuple):
    """What one call of a function costs.

    Attributes:
        has_loop: whether it runs a scan or a while loop, as long simulations do.
        num_operations: scalar operations, loops included. Every element of an output
            counts as one, and one of a matrix product as two for each term of its sum;
            the longest branch of a condition counts.
        largest_array: size of the largest array that it makes, inside of loops too, in
            bytes.
    """

    has_loop: bool
    num_operations: float
    largest_array: int

    @classmethod
    def of(cls, fn: Callable, *args: Any) -> "Cost":
        """Cost of `fn(*args)`, which is traced but not run."""
        jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
        has_loop = _has_primitive(jaxpr, {"scan", "while"})
        return cls(has_loop, float(_count(jaxpr)), _largest(jaxpr))


def inner_programs(equation: Any) -> Iterator[Any]:
    """Programs inside one equation."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _has_primitive(jaxpr: Any, names: set[str]) -> bool:
    return any(
        equation.primitive.name in names
        or any(_has_primitive(inner, names) for inner in inner_programs(equation))
        for equation in jaxpr.eqns
    )


def _count(jaxpr: Any) -> float:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    counts = [_count(inner) for inner in inner_programs(equation)]
    if name == "scan":
        return params["length"] * sum(counts)
    if name == "while":
        return WHILE_LENGTH * sum(counts)
    if counts:
        return max(counts) if name == "cond" else sum(counts)
    size = float(sum(math.prod(v.aval.shape) for v in equation.outvars))
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        size *= 2 * math.prod(equation.invars[0].aval.shape[i] for i in axes)
    return size


def _largest(jaxpr: Any) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size * v.aval.dtype.itemsize for v in equation.outvars]
        sizes += [_largest(inner) for inner in inner_programs(equation)]
    return max(sizes)
