# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The table of `test_advice`: which function follows which advice."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Functions by the file of the package and a part of the message that no other has.
CASES: dict[tuple[str, str], Callable[[], None]] = {}
# Functions that train, or compile much.
SLOW: set[Callable[[], None]] = set()
# Messages that cases have seen, whole.
SEEN: list[str] = []


def case(file: str, *parts: str, slow: bool = False) -> Callable:
    """Enter a function: it provokes messages with these parts and does as they say."""

    def enter(function: Callable[[], None]) -> Callable[[], None]:
        if slow:
            SLOW.add(function)
        for part in parts:
            assert (file, part) not in CASES
            CASES[file, part] = function
        return function

    return enter


def said(text: str) -> str:
    """Take note of a message that is no error: a status, a line of a report."""
    SEEN.append(" ".join(text.split()))
    return text


@contextmanager
def refused(kind: type[Exception] = ValueError) -> Iterator[None]:
    """An error is raised inside, and its message noted."""
    try:
        yield
    except kind as err:
        said(str(err))
    else:
        raise AssertionError("Nothing was refused.")


@contextmanager
def warned() -> Iterator[None]:
    """A warning is given inside, and its message noted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert caught
    for warning in caught:
        said(str(warning.message))
