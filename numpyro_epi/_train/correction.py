# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of a guide, weighted to its law: do these meet the targets?

Multipliers are those of the law, which other draws have chosen, so that the weights are
fitted to nothing.
"""

from typing import NamedTuple

import jax
import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.psis import MAX_KHAT, pareto_smooth
from numpyro_epi._solver.by_importance import violation_of
from numpyro_epi._solver.draws import Draws, Simulator
from numpyro_epi._solver.law import Law, Standard
from numpyro_epi._train.chunks import Evaluation

# Draws that are weighted where each takes several simulations.
NUM_REPEATED = 4000


class Correction(NamedTuple):
    """Weighted draws of a guide.

    Attributes:
        khat: Pareto shape of the weights.
        is_met: whether these can be trusted, and show that the targets are met.
    """

    khat: float
    is_met: bool


def weigh_to_law(
    law: Law,
    standard: Standard,
    simulator: Simulator,
    ev: Evaluation,
    r: int,
    rng_key: jax.Array,
) -> Correction:
    """Weigh the final draws of one restart to its law.

    Args:
        law: of the restart.
        standard: of the verdict.
        simulator: of the model; simulates again where simulations are noisy.
        ev: final draws of all restarts.
        r: index of the restart.
        rng_key: random key.
    """
    u, log_q = np.asarray(ev.u[r]), np.asarray(ev.log_q[r], np.float64)
    if simulator.num_repeats > 1:
        u, log_q = u[:NUM_REPEATED], log_q[:NUM_REPEATED]
        draws = simulator(u, rng_key)
    else:
        draws = _known(simulator.table, ev, r)
    log_w = draws.log_density(1.0, law.multipliers) - log_q
    log_w = np.where(np.isfinite(log_w), log_w, -np.inf)
    if not np.isfinite(log_w).any():
        return Correction(np.inf, is_met=False)
    khat = pareto_smooth(log_w).khat
    found = violation_of(draws, log_q, law.multipliers)
    is_met = khat <= MAX_KHAT and standard.is_met(*found)
    return Correction(khat, is_met=bool(is_met))


def gap_of_draws(law: Law, table: ConstraintTable, ev: Evaluation, r: int) -> float:
    """KL from the guide to its law by the weights of its own draws, nats.

    Log Z and the score are of the same draws, so that their noise cancels: it is of
    the order of the gap. What the guide has lost, its draws do not see.
    """
    draws = _known(table, ev, r)
    log_w = draws.log_density(1.0, law.multipliers) - np.asarray(ev.log_q[r])
    log_w = log_w[np.isfinite(log_w)]
    if log_w.size == 0:
        return np.inf
    top = log_w.max()
    return float(top + np.log(np.exp(log_w - top).mean()) - log_w.mean())


def _known(table: ConstraintTable, ev: Evaluation, r: int) -> Draws:
    """The final draws, as they are simulated."""
    stats = np.asarray(ev.stats[r], np.float64)
    log_lik = np.asarray(ev.log_likelihood[r], np.float64)
    log_prior = np.asarray(ev.log_prior[r], np.float64)
    is_valid = np.isfinite(stats).all(axis=-1) & np.isfinite(log_lik)
    is_valid &= np.isfinite(log_prior)
    devs = table.deviations(np.where(is_valid[:, None], stats, 0.0))
    log_prior, log_lik = (np.where(is_valid, x, 0.0) for x in (log_prior, log_lik))
    u = np.asarray(ev.u[r])
    return Draws(u, log_prior, log_prior, log_lik[None], devs[None], is_valid)
