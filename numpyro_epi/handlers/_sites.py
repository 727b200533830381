# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Bookkeeping shared by the handlers: the emergent properties of one run."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Message
from ..primitives import targets_of


class Property(NamedTuple):
    """An emergent property of one run.

    Attributes:
        stat: Statistic of this run.
        mean: Wanted mean, float64, of the shape of `stat`.
        var: Wanted variance, like `mean`, or None if only the mean is constrained.
    """

    stat: jax.Array
    mean: np.ndarray
    var: np.ndarray | None


class PropertySites:
    """Emergent properties that passed a handler, by their names at that handler."""

    def __init__(self) -> None:
        self.names: set[str] = set()  # of all sites
        self._messages: dict[str, Message] = {}  # of emergent properties

    def add(self, msg: Message) -> None:
        """Take note of a message on its way out. To be called while it is processed."""
        if msg["type"] not in ("sample", "deterministic"):
            return
        name = msg["name"]
        is_property = targets_of(msg) is not None
        if name in self.names and (is_property or name in self._messages):
            raise ValueError(
                f"Expected a name of its own for each emergent property, got a second "
                f"site called `{name}`. Pass `name=` to `emergent_property`, or wrap "
                "a part of the model in `numpyro.handlers.scope`."
            )
        self.names.add(name)
        if is_property:
            # Read only when asked for, because handlers further out may change it.
            self._messages[name] = msg

    def properties(self) -> dict[str, Property]:
        """Statistics and targets, in the order of the run."""
        return {name: _property(name, msg) for name, msg in self._messages.items()}

    def check_known(self, names: Iterable[str], *, where: str) -> None:
        """Refuse names that no property of the run has."""
        known = ", ".join(f"`{name}`" for name in self._messages) or "none"
        for name in names:
            if name not in self._messages:
                raise ValueError(
                    f"Expected names of emergent properties of the model ({known}) in "
                    f"{where}, got `{name}`."
                )


def _property(name: str, msg: Message) -> Property:
    stat, targets = jnp.asarray(msg["value"]), targets_of(msg)
    if targets is None:
        raise RuntimeError(f"A handler removed the targets of `{name}`.")
    return Property(stat, *targets.broadcast(stat.shape, site=name))
