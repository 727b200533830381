# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Arrays of NumPy that a model reads from outside of itself, not as arguments.

They cannot be copied as arguments are. So a change of one, between two runs, is found
and refused: compiled programs, and JAX itself, go on with the old numbers.
"""

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from numpyro_epi._model.arguments import attributes_of, content_of, digest_of

# Functions called by functions of the model that are looked into.
MAX_DEPTH = 4

# The array by its identity, and its digest when a model was first compiled with it.
# One table for the process, as there is one for the constants of JAX.
_compiled: dict[int, tuple[weakref.ref, str]] = {}


def check_outside(model: Callable) -> None:
    """Refuse a model that reads an array which has changed since it was compiled.

    Raises:
        ValueError: Naming the array.
    """
    for name, array in outside_arrays(model):
        digest = digest_of(array)
        known = _compiled.get(id(array))
        if known is None or known[0]() is not array:
            _compiled[id(array)] = weakref.ref(array, _forget(id(array))), digest
        elif known[1] != digest:
            raise ValueError(
                f"Expected the array `{name}`, which the model reads from outside, as "
                "it was in an earlier run: compiled programs keep its old numbers. "
                "Pass arrays that change as arguments of the model, as in "
                f"`run(rng_key, {name.rsplit('.', 1)[-1]})`."
            )


def outside_arrays(model: Callable) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that a model, or a function that it calls, closes over, and their names.

    Those of `functools.partial` and of handlers around the model belong to it.
    """
    seen: set[int] = set()
    yield from _arrays(model, "", 0, seen)


def _arrays(
    value: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, np.ndarray]]:
    if id(value) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        if value.dtype != object and value.flags.writeable:
            yield name, value
        return
    for inner, item in _inside(value):
        yield from _arrays(item, inner, depth + 1, seen)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function reads, or what an object around a function holds, by name."""
    if isinstance(value, partial):
        yield "func", value.func
        yield from ((f"args[{i}]", item) for i, item in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, MethodType):
        yield "func", value.__func__
        yield from attributes_of(value.__self__).items()
    elif isinstance(value, FunctionType):
        yield from _read(value)
    elif isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())
    elif callable(value) and not isinstance(value, type):
        # A handler holds its model as `fn`; other callables, what they need.
        yield from attributes_of(value).items()
        call = vars(type(value)).get("__call__")
        if isinstance(call, FunctionType):
            yield "call", call


def _read(function: FunctionType) -> Iterator[tuple[str, Any]]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    for name, cell in cells:
        yield name, content_of(cell)
    wanted = np.ndarray, FunctionType
    for name in function.__code__.co_names:
        item = function.__globals__.get(name)
        if isinstance(item, wanted):
            yield name, item


def _forget(key: int) -> Callable[[Any], None]:
    def forget(_: Any) -> None:
        _compiled.pop(key, None)

    return forget
