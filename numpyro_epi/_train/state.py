# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a step takes and gives: parameters, multipliers and simulated draws."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_epi._math.constraints import Targets
from numpyro_epi._train.guide import Params


class Memory(NamedTuple):
    """Simulated draws of the guide as it was before the epoch, shapes (R, M, ...).

    Attributes:
        u: unconstrained draws, shape (R, M, D).
        log_q: their log density when they were drawn, shape (R, M).
        log_prior: shape (R, M).
        log_likelihood: shape (R, M).
        stats: raw statistics, shape (R, M, S).
    """

    u: jax.Array
    log_q: jax.Array
    log_prior: jax.Array
    log_likelihood: jax.Array
    stats: jax.Array


class PoolDraws(NamedTuple):
    """Simulated draws of the law, as the search has left them.

    Attributes:
        u: unconstrained draws, shape (R, n, D).
        log_model: log prior and log likelihood at u, shape (R, n), or (R, 0).
        deviations: T, shape (R, n, K), or (R, 0, K).
    """

    u: jax.Array
    log_model: jax.Array
    deviations: jax.Array

    @property
    def has_density(self) -> bool:
        """Whether the density of the tilted model at the draws is known."""
        return self.log_model.shape[-1] == self.u.shape[-2]

    @property
    def without_density(self) -> "PoolDraws":
        """The draws alone: noisy statistics hide the density of the tilted model."""
        axis = self.log_model.ndim - 1
        none = (lax.slice_in_dim(x, 0, 0, axis=axis) for x in self[1:])
        return PoolDraws(self.u, *none)

    @property
    def empty(self) -> "PoolDraws":
        """None of them."""
        return PoolDraws(*(x[:, :0] for x in self))


class GuideState(NamedTuple):
    """State of the optimisation; every array has a leading axis of R restarts.

    Attributes:
        params: parameters of the guide, unconstrained.
        average: their exponential moving average, which is what a run returns.
        optim_state: state of the optimiser.
        multipliers: in scaled units, shape (R, K).
        penalty: penalty coefficient of each constraint, shape (R, K).
        targets: means and frozen scales of the statistics, shape (R, S): the wanted
            ones, but on the way to targets that are far from the prior.
        running: moving average of E[T] over the steps, shape (R, K).
        pool: draws that anchor the guide.
        anchor: weight of the anchor, shape (R,).
        memory: simulated draws for the gradient "replay"; of size M = 0 otherwise.
        rate: factor of the learning rate, shape (R,); see `plateau`.
        cover: parameters of the guide after its first fit, when it was fitted to all
            modes that the pool had seen; what training has lost since shows there.
        rng_key: key of the next step, shape (R,).
        num_steps: steps taken so far, shape (R,).
    """

    params: Params
    average: Params
    optim_state: Any
    multipliers: jax.Array
    penalty: jax.Array
    targets: Targets
    running: jax.Array
    pool: PoolDraws
    anchor: jax.Array
    memory: Memory
    rate: jax.Array
    cover: Params
    rng_key: jax.Array
    num_steps: jax.Array


class StepInfo(NamedTuple):
    """What happened in one step; every array has a leading axis of R restarts.

    Attributes:
        loss: minus the evidence lower bound of the tilted model, without the penalty.
        violation: E[T] over the particles, shape (R, K).
        invalid: share of particles with a non-finite statistic.
        is_skipped: whether the step was skipped because its gradient was not finite.
    """

    loss: jax.Array
    violation: jax.Array
    invalid: jax.Array
    is_skipped: jax.Array


def choose_rows(is_new: Any, new: Any, old: Any) -> Any:
    """A tree of arrays with a leading axis of restarts, some of them from `new`.

    Args:
        is_new: which restarts, shape (R,).
        new: tree to take them from.
        old: tree of the others.
    """
    is_new = np.asarray(is_new)
    if is_new.all() or not is_new.any():
        return new if is_new.all() else old

    def choose(a: Any, b: Any) -> Any:
        rows = is_new.reshape((-1,) + (1,) * (jnp.ndim(a) - 1))
        if jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
            return jnp.where(rows, a, b)
        # On the host, where nothing is compiled.
        return jnp.asarray(np.where(rows, np.asarray(a), np.asarray(b)))

    return jax.tree.map(choose, new, old)


def choose_restarts(
    is_new: np.ndarray, new: GuideState, old: GuideState, keep: tuple[str, ...]
) -> GuideState:
    """The old state, with the rows of some restarts from the new one.

    Args:
        is_new: which restarts, shape (R,).
        new: state to take them from.
        old: state of the others.
        keep: fields that stay the old ones for all.
    """
    return old._replace(
        **{
            name: choose_rows(is_new, getattr(new, name), getattr(old, name))
            for name in GuideState._fields
            if name not in keep
        }
    )
