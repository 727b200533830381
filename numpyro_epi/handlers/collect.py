# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which emergent properties does a run of a model have, and what were they?"""

from typing import Self

from numpyro.primitives import Messenger

from .._typing import Message, Model
from ._sites import Property, PropertySites

__all__ = ["Property", "collect"]


class collect(Messenger):
    """Records the emergent properties of a run.

    Names are those that the sites have where the handler sits: a
    `numpyro.handlers.scope` inside of it counts, one around it does not. Targets are
    the ones that hold for the run, also if a `retarget` around it sets them.

    Attributes:
        properties: `{name: Property(stat, mean, var)}` of the last run, in its order,
            with `mean` and `var` as float64 NumPy arrays of the shape of `stat`.

    Args:
        fn: A model.

    Raises:
        ValueError: In a run where an emergent property shares its name with another
            site.

    Example:
        >>> import jax, numpyro_epi as epi
        >>> def model(rate):
        ...     epi.emergent_property(2 * rate, mean=0.55, name="hub")
        >>> found = epi.handlers.collect(model)
        >>> found(0.25)
        >>> stat, mean, var = found.properties["hub"]
        >>> float(stat), float(mean), var
        (0.5, 0.55, None)

        Inside `jit`, build the handler in the function:

        >>> @jax.jit
        ... def statistic(rate):
        ...     with epi.handlers.collect() as found:
        ...         model(rate)
        ...     return found.properties["hub"].stat
        >>> float(statistic(1.0))
        2.0
    """

    def __init__(self, fn: Model | None = None) -> None:
        super().__init__(fn)
        self._sites = PropertySites()

    def __enter__(self) -> Self:
        super().__enter__()
        self._sites = PropertySites()
        return self

    @property
    def properties(self) -> dict[str, Property]:
        return self._sites.properties()

    def process_message(self, msg: Message) -> None:
        self._sites.add(msg)
