# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A prior in coordinates of its own, and a model whose latents have them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger

from .._typing import Message, Model
from ._circle import turned_circular
from ._rows import kept_rows


class Charted(dist.Distribution):
    """A distribution whose support has other coordinates. Nothing else changes.

    Args:
        base_dist: The distribution.
        centre: Angles opposite to the cuts of circles, of the shape of the value; None
            for another support.
        rows: Indices of the rows of the support that are kept; None for all of them.
        shape: Of the value at the site.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    pytree_data_fields = ("base_dist", "centre")
    pytree_aux_fields = ("rows", "value_shape")

    def __init__(
        self,
        base_dist: dist.Distribution,
        centre: Any,
        rows: tuple[int, ...] | None,
        shape: tuple[int, ...],
    ) -> None:
        self.base_dist, self.centre = base_dist, centre
        self.rows, self.value_shape = rows, shape
        super().__init__(base_dist.batch_shape, base_dist.event_shape)

    def of(self, base_dist: dist.Distribution) -> "Charted":
        """Another distribution in the same coordinates."""
        return Charted(base_dist, self.centre, self.rows, self.value_shape)

    @property
    def support(self) -> constraints.Constraint:
        support = self.base_dist.support
        event_dim = support.event_dim
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if self.centre is not None:
            support = turned_circular(self.centre)
        if self.rows is not None:
            return kept_rows(support, self.value_shape, self.rows, event_dim)
        inner = event_dim - support.event_dim
        return constraints.independent(support, inner) if inner else support

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    def rsample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return self.base_dist.rsample(key, sample_shape)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return self.base_dist.sample(key, sample_shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        more = {} if intermediates is None else {"intermediates": intermediates}
        return self.base_dist.log_prob(value, **more)

    def expand(self, batch_shape: tuple[int, ...]) -> "Charted":
        return self.of(self.base_dist.expand(batch_shape))

    @property
    def mean(self) -> jax.Array:
        return self.base_dist.mean

    @property
    def variance(self) -> jax.Array:
        return self.base_dist.variance


class charts(Messenger):  # noqa: N801
    """Gives latents of a model the coordinates that were found for them.

    Guides of this model have them too. Other sample sites, neither observed nor noise,
    are those of which nothing is kept: they have a fixed value here, and handlers
    around this one do not see them.

    Args:
        fn: A model.
        priors: Of all latents, by the name of their site.
    """

    def __init__(
        self, fn: Model | None, priors: Mapping[str, dist.Distribution]
    ) -> None:
        super().__init__(fn)
        self.priors = priors

    def process_message(self, msg: Message) -> None:
        is_noise = (msg.get("infer") or {}).get("noise", False)
        if msg["type"] != "sample" or msg["is_observed"] or is_noise:
            return
        prior = self.priors.get(msg["name"])
        if prior is None:
            msg["value"], msg["stop"] = _filling(msg), True
        elif isinstance(prior, Charted) and not isinstance(msg["fn"], Charted):
            msg["fn"] = prior.of(msg["fn"])


def _filling(msg: Message) -> jax.Array:
    """Some value in the support of a site."""
    shape = msg["kwargs"].get("sample_shape", ()) + msg["fn"].shape()
    transform = biject_to(msg["fn"].support)
    return transform(jnp.zeros(transform.inverse_shape(shape)))
