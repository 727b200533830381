# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Stored draws, as plain arrays."""

from typing import NamedTuple

import numpy as np


class EPIDraws(NamedTuple):
    """Draws that a run stores: independent ones of a guide, or weighted ones of a law.

    Draws that cannot be simulated are left out, and `log_density` is that of q
    restricted to the others.

    Attributes:
        latents: `{site: (n, *shape)}`, constrained.
        statistics: `{site: (n, *shape)}`, one simulation for each draw.
        log_density: log density in the constrained space, nats, (n,).
        log_prior: log p0 in the constrained space, nats, (n,).
        log_likelihood: of observed sites, (n,).
    """

    latents: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    log_density: np.ndarray
    log_prior: np.ndarray
    log_likelihood: np.ndarray
