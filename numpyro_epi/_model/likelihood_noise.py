# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Where does the noise of a log likelihood come from, and what is the law with it?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpyro.distributions import Unit

from numpyro_epi._model.minibatches import Minibatches
from numpyro_epi._sites import unwrap
from numpyro_epi._typing import Message


class LikelihoodNoise(NamedTuple):
    """Sources of noise in the log likelihood of a model.

    Attributes:
        plates: that are subsampled, `{name: (subsample_size, size)}`.
        takes_all: whether simulations take all their elements all the same.
        factors: sites of `numpyro.factor` that random keys enter.
        observed: sites with data whose distribution random keys enter.
    """

    plates: Mapping[str, tuple[int, int]]
    takes_all: bool
    factors: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()

    @property
    def is_left(self) -> bool:
        """Whether the log likelihood of a simulation is noisy, with all elements."""
        is_drawn = bool(self.plates) and not self.takes_all
        return is_drawn or bool(self.factors or self.observed)

    @property
    def sources(self) -> str:
        """In words."""
        parts = [
            f"plate `{name}` draws {few} of {size} elements"
            for name, (few, size) in self.plates.items()
        ]
        names = {"factor": self.factors, "data": self.observed}
        parts += [
            f"random keys enter the {kind} `{name}`"
            for kind, sites in names.items()
            for name in sites
        ]
        return ", ".join(parts) or "random keys enter it"

    def sentences(self) -> list[str]:
        """What a reader of a report has to know."""
        found = [
            f"noisy log likelihood ({self.sources}): the law has exp(E[log L | z]), "
            "with the expectation over the noise"
        ]
        if self.plates and self.takes_all:
            found.append(
                "of minibatches that is the likelihood of all elements; weights, "
                "report and certificate take all of them"
            )
        if self.observed:
            names = ", ".join(f"`{name}`" for name in self.observed)
            found.append(
                f"simulation noise enters the distribution of {names}: E[log L] lies "
                "below log E[L], so this is not the marginal likelihood. Where that is "
                "meant, make the noise a latent, without `infer={'noise': True}`"
            )
        return found


class DataSites(NamedTuple):
    """Sites that a log likelihood is made of.

    Attributes:
        factors: names of `numpyro.factor` sites.
        observed: names of sites with data.
        in_minibatch: those of both kinds that lie in a subsampled plate.
    """

    factors: frozenset[str]
    observed: frozenset[str]
    in_minibatch: frozenset[str]

    @classmethod
    def of(cls, trace: Mapping[str, Message], plates: Mapping[str, Any]) -> "DataSites":
        """Those of a traced run with some subsampled plates."""
        sites = {
            name: msg
            for name, msg in trace.items()
            if msg["type"] == "sample" and msg["is_observed"]
        }
        factors = {name for name, msg in sites.items() if is_factor(msg)}
        inside = {
            name
            for name, msg in sites.items()
            if any(frame.name in plates for frame in stack_of(msg))
        }
        observed = sites.keys() - factors
        return cls(frozenset(factors), frozenset(observed), frozenset(inside))

    def noise(
        self, depends: Mapping[str, bool], minibatches: Minibatches
    ) -> LikelihoodNoise:
        """Sources of noise.

        Args:
            depends: of each site, whether its log density depends on random keys.
            minibatches: the subsampled plates, and how they are simulated.
        """
        noisy = {name for name, is_so in depends.items() if is_so}
        takes_all = minibatches.takes_all
        if not takes_all:
            # What else enters cannot be told from the draw of a minibatch.
            noisy -= self.in_minibatch
        return LikelihoodNoise(
            minibatches.plates,
            takes_all,
            tuple(sorted(noisy & self.factors)),
            tuple(sorted(noisy & self.observed)),
        )


def is_factor(msg: Message) -> bool:
    """Whether a message comes from `numpyro.factor`."""
    return any(isinstance(layer, Unit) for layer in unwrap(msg["fn"]))


def stack_of(msg: Message) -> list:
    """Plates around a site."""
    return msg.get("cond_indep_stack") or []
