# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How does a model get new targets without being edited?"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax.numpy as jnp
from numpyro.primitives import Messenger

from .._checks import describe
from .._typing import Message, Model
from ..primitives import ANNOTATION, EmergentTargets, targets_of
from ._sites import PropertySites


class retarget(Messenger):
    """Gives emergent properties new targets, for a sweep or a dose-response curve.

    A site whose mean alone was constrained can get a variance, and the reverse. Sites
    that are not named keep their targets. Of two nested `retarget` that name one site,
    the outer one wins.

    Args:
        fn: A model.
        targets: `{site name: (mean, var)}`, or `(mean,)` to constrain the mean only, as
            in `emergent_property`. Names are those that the sites have where the
            handler sits.

    Raises:
        TypeError: If `targets` is not such a mapping, or a target not concrete numbers.
        ValueError: If a target is not finite, a variance not positive; in a run where a
            shape does not broadcast; after a run without a site of a given name.

    Example:
        >>> import numpyro_epi as epi
        >>> def model(rate):
        ...     epi.emergent_property(rate, mean=0.55, name="hub")
        >>> faster = epi.handlers.retarget(model, {"hub": (0.8, 0.01)})
        >>> with epi.handlers.collect() as found:
        ...     faster(0.5)
        >>> _, mean, var = found.properties["hub"]
        >>> float(mean), float(var)
        (0.8, 0.01)
    """

    def __init__(
        self,
        fn: Model | None = None,
        targets: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> None:
        super().__init__(fn)
        if not isinstance(targets, Mapping):
            raise TypeError(
                "Expected a mapping {site name: (mean, var)} as `targets` of "
                f"`retarget`, got {describe(targets)}."
            )
        self._targets = {name: _parse(name, pair) for name, pair in targets.items()}
        self._sites = PropertySites()

    def __enter__(self) -> None:
        super().__enter__()
        self._sites = PropertySites()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        sites, self._sites = self._sites, PropertySites()  # holds no tracer from here
        if exc_type is None:
            sites.check_known(self._targets, where="`targets` of `retarget`")

    def process_message(self, msg: Message) -> None:
        self._sites.add(msg)
        if targets_of(msg) is None or msg["name"] not in self._targets:
            return
        targets = self._targets[msg["name"]]
        targets.broadcast(jnp.shape(msg["value"]), site=msg["name"])
        msg["infer"] = {**msg["infer"], ANNOTATION: targets}


def _parse(name: str, pair: Any) -> EmergentTargets:
    """Targets from (mean, var), (mean, None) or (mean,)."""
    if not isinstance(pair, tuple) or len(pair) not in (1, 2):
        raise TypeError(
            f"Expected a tuple (mean, var) or (mean,) as new targets of `{name}`, got "
            f"{describe(pair)}."
        )
    return EmergentTargets.of(*pair, site=name)
