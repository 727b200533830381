# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The components of the base of a guide: which it has, and how training sets them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ._islands import find_islands
from ._mixture import Components, reweigh

# Latents whose draws tell whether a law is in pieces: functions of one coordinate that
# bend fit two modes as they are, and in many dimensions draws are too sparse.
MIN_LATENTS, MAX_LATENTS = 2, 12
# Standard deviation of draws in the coordinates of the base that a flow starts from.
MIN_SPREAD = 0.02


class BaseComponents(NamedTuple):
    """Components of the base of a guide, as `EPI` finds and sets them.

    Attributes:
        param: Name of the guide's parameter, a dictionary that has `components`.
        num_latents: D.
        is_multimodal: Whether the base may have components.
        to_standard: From unconstrained coordinates, shape (n, D), to those of the base.
        get_posterior: Distribution of the guide at some parameters.
    """

    param: str
    num_latents: int
    is_multimodal: bool
    to_standard: Callable[[np.ndarray], np.ndarray]
    get_posterior: Callable[[dict[str, Any]], Any]

    def find_islands(self, u: np.ndarray) -> np.ndarray:
        """The island of each of some draws; all zero if they are in one piece.

        Args:
            u: Distinct draws, unconstrained, shape (n, D).
        """
        if not (self.is_multimodal and MIN_LATENTS <= self.num_latents <= MAX_LATENTS):
            return np.zeros(len(u), int)
        return find_islands(self.to_standard(u))

    def is_narrow(self, u: np.ndarray) -> bool:
        """Whether draws, shape (n, D), are too narrow in some direction for the base.

        Layers would have to shrink it by orders of magnitude, all in one direction.
        """
        spread = np.asarray(self.to_standard(u), np.float64).std(axis=0)
        return self.is_multimodal and bool((spread < MIN_SPREAD).any())

    def on_islands(
        self, u: np.ndarray, counts: np.ndarray, islands: np.ndarray
    ) -> Components:
        """A component for each island.

        Args:
            u: Distinct draws, unconstrained, shape (n, D).
            counts: How often each was drawn, shape (n,).
            islands: Of each, from zero up, shape (n,).
        """
        return Components.on_islands(self.to_standard(u), counts, islands)

    def none(self, num: int) -> Components:
        """Components without weight, which leave the base as it is."""
        return Components.none(num, self.num_latents)

    def get(self, params: dict[str, Any]) -> Components | None:
        """Those of the base at some parameters, if it has any."""
        return params[self.param].get("components")

    def set(
        self, params: dict[str, Any], components: Components | None
    ) -> dict[str, Any]:
        """The flow of some parameters on a base with components, or without."""
        flow = {k: v for k, v in params[self.param].items() if k != "components"}
        if components is not None:
            flow["components"] = components
        return {**params, self.param: flow}

    def reweigh(self, params: dict[str, Any], u: jax.Array) -> dict[str, Any]:
        """Weights that are the shares of draws u, shape (n, D), in the components."""
        posterior = self.get_posterior(params)
        for transform in reversed(posterior.transforms):
            u = transform.inv(u)
        return self.set(params, reweigh(posterior.base_dist, u))
