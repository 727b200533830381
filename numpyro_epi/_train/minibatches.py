# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Plates with a `subsample_size`: whose elements does a simulation take?

A model that is written for any number of elements gives, with all of them, the mean of
its log likelihood over minibatches, without noise. Whether it is, is not assumed: it is
measured on draws of the prior, against minibatches with the same random keys.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random, vmap
from numpyro.primitives import Messenger

from numpyro_epi._sites import run_now
from numpyro_epi._train.cost import Cost
from numpyro_epi._typing import Message, Model

# Which elements of a plate: those that it draws, all, or the first ones.
DRAWN, ALL, FIRST = "drawn", "all", "first"
# Prior draws on which a model is looked at, and minibatches of each.
NUM_DRAWS, NUM_MINIBATCHES = 16, 100
# Standard errors by which the mean over minibatches may miss the value of all elements.
MAX_Z_SCORE = 6.0
# Rounding of statistics between the two, relative to their size.
ROUNDING = 1e-4
# Scalar operations of a simulation with all elements: some 200,000 of them should take
# minutes, or no more than so many times what they take with minibatches.
MAX_OPERATIONS, MAX_FACTOR = 1e6, 20.0
# Below this a simulation with all elements costs less than a step of the default flow.
MAX_STEP_OPERATIONS = 1e5

# Log prior, log likelihood and statistics at u with a key, in one of the modes.
Run = Callable[[jax.Array, jax.Array, str], tuple[Any, Any, Any]]


class choose_elements(Messenger):
    """Gives plates that are subsampled all their elements, or the first ones.

    A key is drawn and dropped for each, so that all other noise stays what it is.
    """

    def __init__(self, fn: Model, mode: str) -> None:
        super().__init__(fn)
        self.mode = mode

    def process_message(self, msg: Message) -> None:
        if self.mode == DRAWN or msg["type"] != "plate" or msg["value"] is not None:
            return
        if msg["kwargs"]["rng_key"] is None:
            numpyro.prng_key()
        size, subsample_size = msg["args"]
        num = size if self.mode == ALL else subsample_size
        msg["value"], msg["args"] = jnp.arange(num), (size, num)


class Minibatches(NamedTuple):
    """The subsampled plates of a model.

    Attributes:
        plates: `{name: (subsample_size, size)}`.
        are_noisy: whether the log likelihood differs between minibatches.
        elements: that simulations take, `DRAWN` or `ALL`.
        step_elements: that those of gradient steps take.
    """

    plates: Mapping[str, tuple[int, int]]
    are_noisy: bool = False
    elements: str = DRAWN
    step_elements: str = DRAWN

    @classmethod
    def of(
        cls,
        plates: Mapping[str, tuple[int, int]],
        run: Run,
        draw: Callable[[jax.Array], jax.Array],
    ) -> "Minibatches":
        """Look at a model.

        Args:
            plates: those that a run has drawn from.
            run: the model.
            draw: one draw u of the prior, for a key.
        """
        if not plates:
            return cls({})
        num_operations = {mode: _operations(run, draw, mode) for mode in (ALL, FIRST)}
        num, few = num_operations[ALL], num_operations[FIRST]
        if num > max(MAX_OPERATIONS, MAX_FACTOR * few):
            return cls(plates, _are_noisy(_compare(run, draw, DRAWN)))
        found = _compare(run, draw, ALL)
        if not _accepts_all(found):
            return cls(plates, _are_noisy(_compare(run, draw, DRAWN)))
        step = ALL if num <= MAX_STEP_OPERATIONS else DRAWN
        return cls(plates, _are_noisy(found), ALL, step)


class Comparison(NamedTuple):
    """Minibatches against a second simulation with the same keys, draw by draw.

    Attributes:
        log_likelihood: of minibatches, shape (n, m).
        log_prior_error: difference of log priors, (n, m).
        error: difference of log likelihoods, (n, m).
        stats_error: largest difference of statistics, relative to their size, (n, m).
    """

    log_likelihood: Any
    log_prior_error: Any
    error: Any
    stats_error: Any


def _operations(run: Run, draw: Callable, mode: str) -> float:
    """Infinite where the model cannot be run in this mode."""
    key = random.key(0)
    u = jnp.zeros(jax.eval_shape(draw, key).shape)
    try:
        return Cost.of(lambda u, k: run(u, k, mode), u, key).num_operations
    except Exception:  # whatever a model says to shapes that it does not expect
        return np.inf


def _compare(run: Run, draw: Callable, mode: str) -> Comparison:
    """Draw, and simulate in both modes; with `DRAWN`, the second key is another one."""

    def one(keys: tuple[jax.Array, jax.Array]) -> Comparison:
        u, key = draw(keys[0]), keys[1]
        prior, likelihood, stats = run(u, key, DRAWN)
        other_key = random.fold_in(key, 1) if mode == DRAWN else key
        other_prior, other_likelihood, other = run(u, other_key, mode)
        size = jnp.maximum(jnp.abs(stats), jnp.abs(other))
        off = jnp.abs(stats - other) / jnp.where(size > 0, size, 1.0)
        return Comparison(
            likelihood, prior - other_prior, likelihood - other_likelihood, off.max()
        )

    def all_of_them(key: jax.Array) -> Comparison:
        draw_key, key = random.split(key)
        draw_keys = random.split(draw_key, NUM_DRAWS)
        keys = random.split(key, (NUM_DRAWS, NUM_MINIBATCHES))
        return lax.map(
            lambda pair: vmap(lambda k: one((pair[0], k)))(pair[1]), (draw_keys, keys)
        )

    (found,) = run_now(all_of_them)
    return Comparison(*(np.asarray(x, np.float64) for x in found))


def _are_noisy(found: Comparison) -> bool:
    """Whether the log likelihood differs by more than a sum's rounding."""
    rounding = ROUNDING * (1.0 + np.abs(found.log_likelihood))
    return bool((np.abs(found.error) > rounding).any())


def _accepts_all(found: Comparison) -> bool:
    """Whether all elements give what minibatches give on average, and nothing else."""
    rows = np.isfinite(found.error).all(axis=1)
    rows &= np.isfinite(found.stats_error).all(axis=1)
    if not rows.any():
        return False
    error, off = found.error[rows], found.stats_error[rows]
    size = ROUNDING * (1.0 + np.abs(found.log_likelihood[rows]).max())
    if off.max() > ROUNDING or np.abs(found.log_prior_error[rows]).max() > size:
        return False
    standard_error = error.std(axis=1, ddof=1) / np.sqrt(error.shape[1])
    return bool(
        (np.abs(error.mean(axis=1)) <= MAX_Z_SCORE * standard_error + size).all()
    )
