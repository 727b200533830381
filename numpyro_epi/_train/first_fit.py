# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The first fit of guides: to weighted draws of their laws, by maximum likelihood.

It covers every mode that the draws have seen. Islands of draws get components of their
own in the base of a guide that can have them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.fit import fit_best

# Chunks of steps of the fit.
NUM_CHUNKS = 20
# Draws that tell whether a law is in pieces.
ISLAND_DRAWS = 2000
# Every fifth draw is held out, to judge the fit by.
HELD_OUT = 5


class WeightedDraws(NamedTuple):
    """Draws u, shape (n, D), with weights that sum to one, shape (n,)."""

    u: np.ndarray
    weights: np.ndarray

    def take(self, num: int, offset: float) -> np.ndarray:
        """Equally weighted rows of u, (num, D)."""
        return self.u[systematic_resample(self.weights, num, offset)]

    def split(self) -> tuple["WeightedDraws", "WeightedDraws"]:
        """Draws to fit and draws to hold out; no draw is in both."""
        is_held_out = np.arange(len(self.u)) % HELD_OUT == 0
        return self._part(~is_held_out), self._part(is_held_out)

    def _part(self, rows: np.ndarray) -> "WeightedDraws":
        weights = self.weights[rows]
        total = weights.sum()
        equal = np.full(weights.size, 1.0 / weights.size)
        return WeightedDraws(self.u[rows], weights / total if total > 0 else equal)


def fit_first(
    engine: Engine,
    params: Any,
    draws: Sequence[WeightedDraws],
    next_keys: Callable[[], jax.Array],
) -> Any:
    """Guides of all restarts, fitted to draws of each.

    Args:
        engine: compiled functions.
        params: untrained guides.
        draws: of the law of each restart.
        next_keys: gives a fresh key for each restart.
    """
    size = engine.options.warm_start_size
    offsets = np.asarray(jax.vmap(random.uniform)(next_keys()))
    pairs = [part.split() for part in draws]
    train, held_out = (
        jnp.stack(
            [
                jnp.asarray(pair[i].take(num, float(offset)), float)
                for pair, offset in zip(pairs, offsets, strict=True)
            ]
        )
        for i, num in enumerate((size, size // 4))
    )
    params = _on_islands(engine, params, draws)
    return fit_best(engine.fit, params, train, held_out, next_keys(), NUM_CHUNKS)


def _on_islands(engine: Engine, params: Any, draws: Sequence[WeightedDraws]) -> Any:
    """Give the base of a guide a component on each island of its draws.

    One, if all of them lie within a speck of it: data that tell a lot.
    """
    components = engine.guide.components
    if components is None:
        return params
    new, has_own = [], False
    for part in draws:
        rows = systematic_resample(part.weights, ISLAND_DRAWS, 0.5)
        rows, counts = np.unique(rows, return_counts=True)
        u = part.u[rows]
        islands = components.find_islands(u)
        if islands.any() or components.is_narrow(u):
            has_own = True
            new.append(components.on_islands(u, counts, islands))
        else:
            new.append(components.none(1))
    if not has_own:
        return params
    # Powers of two: a program is compiled for each number of components.
    num = 1 << (max(c.num for c in new) - 1).bit_length()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(c.padded(num) for c in new))
    return components.set(params, stacked)
