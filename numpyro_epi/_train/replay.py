# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulated draws of the last epochs, to be used again (gradient "replay")."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.importance import mixture_log_density
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.state import Memory

# Epochs whose draws are replayed.
NUM_REMEMBERED = 4


class Replay(NamedTuple):
    """The draws that judged the last epochs, with the guides that they came from.

    Attributes:
        epochs: parameters of all restarts, and their draws; the latest come last.
    """

    epochs: tuple[tuple[Any, Evaluation], ...] = ()

    def after(self, params: Any, ev: Evaluation) -> "Replay":
        """With those of another epoch; the oldest are forgotten."""
        return Replay((*self.epochs, (params, ev))[-NUM_REMEMBERED:])

    def memory(self, engine: Engine) -> Memory:
        """All draws, with their density under the mixture of those guides.

        Always of one size, for the compiler's sake: early draws are repeated.
        """
        drawn = [ev for _, ev in self.epochs]
        u = np.concatenate([ev.u for ev in drawn], axis=1)
        counts = np.array([ev.u.shape[1] for ev in drawn])
        log_q = mixture_log_density(
            np.stack([engine.chunks.log_q(params, u) for params, _ in self.epochs]),
            counts,
        )
        rest = [
            np.concatenate([getattr(ev, name) for ev in drawn], axis=1)
            for name in ("log_prior", "log_likelihood", "stats")
        ]
        rows = np.arange(NUM_REMEMBERED * counts[0]) % u.shape[1]
        arrays = (u, log_q.astype(u.dtype), *rest)
        return Memory(*(jnp.asarray(x[:, rows]) for x in arrays))
