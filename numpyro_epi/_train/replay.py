# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulated draws of the last epochs, to be used again (gradient "replay")."""

from collections import deque
from typing import Any

import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.importance import mixture_log_density
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.state import Memory

# Epochs whose draws are replayed.
NUM_REMEMBERED = 4


class Replay:
    """The draws that judged the last epochs, with the guides that they came from.

    Args:
        engine: compiled functions.
        num_draws: of one epoch.
    """

    def __init__(self, engine: Engine, num_draws: int) -> None:
        self.engine = engine
        self.num_draws = num_draws
        self.epochs: deque[tuple[Any, Evaluation]] = deque(maxlen=NUM_REMEMBERED)

    def memory(self) -> Memory:
        """All draws, with their density under the mixture of those guides.

        Always of one size, for the compiler's sake: early draws are repeated.
        """
        drawn = [ev for _, ev in self.epochs]
        u = np.concatenate([ev.u for ev in drawn], axis=1)
        log_density = self.engine.chunks.log_q
        log_q = mixture_log_density(
            np.stack([log_density(params, u) for params, _ in self.epochs]),
            np.array([ev.u.shape[1] for ev in drawn]),
        )
        rest = [
            np.concatenate([getattr(ev, name) for ev in drawn], axis=1)
            for name in ("log_prior", "log_likelihood", "stats")
        ]
        rows = np.arange(NUM_REMEMBERED * self.num_draws) % u.shape[1]
        arrays = (u, log_q.astype(u.dtype), *rest)
        return Memory(*(jnp.asarray(x[:, rows]) for x in arrays))
