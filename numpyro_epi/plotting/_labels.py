# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Names and units of what is drawn, given once for all figures.

A label is `"text"` or `("text", "unit")`, by the name of a component (`"g_el"`,
`"a[0]"`, `"J[0,1]"`), of a statistic, or of a whole site, whose components then share
it: `{"U": ("U", "mV")}` gives `U[0,1] (mV)`.

One mapping serves all figures of a model, so it may name what one of them does not
draw. A slip of the pen is found all the same: a name that the figure does not know is
an error as long as something in the figure has no label.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpyro_epi._checks import describe


class Label(NamedTuple):
    """What is written for a component.

    Attributes:
        text: its name.
        unit: its unit, or nothing.
    """

    text: str
    unit: str = ""

    @property
    def axis(self) -> str:
        """With the unit, for an axis."""
        return f"{self.text} ({self.unit})" if self.unit else self.text

    @property
    def density(self) -> str:
        """A density over it, with the unit, for an axis."""
        above, _, below = self.unit.partition("/")
        inverse = f"1/{above}" if not below else below if above == "1" else ""
        inverse = inverse or f"{below}/{above}"
        return f"density ({inverse})" if self.unit else "density"


def resolve_labels(
    labels: Mapping[str, Any] | None,
    drawn: Sequence[str],
    known: Iterable[str] = (),
) -> dict[str, Label]:
    """A label for everything that is drawn.

    Args:
        labels: of the user.
        drawn: names of what is drawn.
        known: other names that a label may have.

    Returns:
        A label for each of `drawn`; its own name where none is given.

    Raises:
        TypeError: if `labels` is not a mapping of names to strings or pairs of strings.
        ValueError: if a name is unknown and something drawn has no label.
    """
    labels = {} if labels is None else labels
    if not isinstance(labels, Mapping):
        raise TypeError(
            "Expected a mapping {name: (text, unit)} as `labels`, got "
            f"{describe(labels)}."
        )
    given = {name: _parse(name, value) for name, value in labels.items()}
    found = {name: _find(name, given) for name in drawn}
    bare = [name for name, label in found.items() if label is None]
    every = {*drawn, *known}
    names = every | {site_of(name) for name in every}
    unknown = [name for name in given if name not in names]
    if unknown and bare:
        raise ValueError(
            f"Expected names out of {sorted(every)} in `labels`, got `{unknown[0]}`, "
            f"while {bare} have no label. Correct the name, or label these too if "
            f"`{unknown[0]}` is meant for another figure."
        )
    return {name: label or Label(name) for name, label in found.items()}


def site_of(name: str) -> str:
    """Name of the site of a component: `a` of `a[0]`."""
    return name.partition("[")[0] if name.endswith("]") else name


def component_names(site: str, shape: tuple[int, ...]) -> list[str]:
    """Names of the components of a site: `a`, or `a[0]`, or `J[0,1]`."""
    return [
        f"{site}[{','.join(map(str, index))}]" if index else site
        for index in np.ndindex(*shape)
    ]


def _find(name: str, given: dict[str, Label]) -> Label | None:
    site = site_of(name)
    if name in given or site not in given:
        return given.get(name)
    return given[site]._replace(text=given[site].text + name[len(site) :])


def _parse(name: Any, value: Any) -> Label:
    pair = (value,) if isinstance(value, str) else value
    is_pair = isinstance(pair, tuple | list) and 1 <= len(pair) <= 2
    if not is_pair or not all(isinstance(part, str) for part in (name, *pair)):
        raise TypeError(
            f"Expected a string or a pair of strings (text, unit) in `labels` for "
            f"`{name}`, got {value!r}."
        )
    return Label(*pair)
