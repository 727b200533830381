# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a simulation costs, read off its program: the same on every machine."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

# Scalar operations of a simulation that costs more than a step of the default flow.
DEAR_OPERATIONS = 1e5
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
        has_callback: whether it leaves JAX for Python, where operations are not seen.
        live_bytes: of all arrays that it makes, one pass of each loop.
        saved_bytes: the same with all passes: reverse mode keeps no more than that.
    """

    has_loop: bool
    num_operations: float
    largest_array: int
    has_callback: bool
    live_bytes: float
    saved_bytes: float

    @classmethod
    def of(cls, fn: Callable, *args: Any) -> "Cost":
        """Cost of `fn(*args)`, which is traced but not run."""
        jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
        names = set(_primitives(jaxpr))
        return cls(
            has_loop=not names.isdisjoint({"scan", "while"}),
            num_operations=float(_count(jaxpr)),
            largest_array=_largest(jaxpr),
            has_callback=any("callback" in name for name in names),
            live_bytes=_count_bytes(jaxpr, unrolls=False),
            saved_bytes=_count_bytes(jaxpr, unrolls=True),
        )

    @property
    def is_dear(self) -> bool:
        """Whether simulations are to be saved."""
        return self.has_callback or self.num_operations >= DEAR_OPERATIONS


def inner_programs(equation: Any) -> Iterator[Any]:
    """Programs inside one equation."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all primitives, those of programs inside of others too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in inner_programs(equation):
            yield from _primitives(inner)


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


def _count_bytes(jaxpr: Any, *, unrolls: bool) -> float:
    """Bytes of all arrays; `unrolls`: as often as loops make them."""
    total = 0.0
    for equation in jaxpr.eqns:
        total += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
        inner = [_count_bytes(p, unrolls=unrolls) for p in inner_programs(equation)]
        length = 1
        if unrolls and equation.primitive.name == "scan":
            length = equation.params["length"]
        if unrolls and equation.primitive.name == "while":
            length = WHILE_LENGTH
        total += length * sum(inner)
    return total
