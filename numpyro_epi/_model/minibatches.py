# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Plates with a `subsample_size`: whose elements does a simulation take?

A model that is written for any number of elements gives, with all of them, the mean of
its log likelihood over minibatches, without noise. One that has the size of a minibatch
written into it is run side by side on minibatches that take turns, so that each element
comes equally often: the mean is the same, if the log likelihood is a sum over elements.
None of this is assumed: it is measured on draws of the prior.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random, vmap
from numpyro.primitives import Messenger

from numpyro_epi._model.cost import Cost
from numpyro_epi._sites import run_now
from numpyro_epi._typing import Message, Model

# Which elements of a plate: those that it draws, all at once, or all in turns.
DRAWN, ALL, IN_TURNS = "drawn", "all", "in turns"
# Prior draws on which a model is looked at, minibatches of each, and pairs for swaps.
NUM_DRAWS, NUM_MINIBATCHES, NUM_PAIRS = 16, 100, 8
# Standard errors by which the mean over minibatches may miss the value of all elements.
MAX_Z_SCORE = 6.0
# Rounding of a number, relative to its size.
ROUNDING = 1e-4
# Scalar operations of a simulation with all elements: some 200,000 of them should take
# minutes, or no more than so many times what they take with minibatches.
MAX_OPERATIONS, MAX_FACTOR = 1e6, 20.0
# Below this a simulation with all elements costs less than a step of the default flow.
MAX_STEP_OPERATIONS = 1e5

Plates = Mapping[str, tuple[int, int]]
# Elements of plates by their names; a plate that is missing draws its own.
Elements = Mapping[str, jax.Array]


class Outputs(NamedTuple):
    """Log prior, log likelihood and statistics of one simulation, or of many."""

    log_prior: Any
    log_likelihood: Any
    stats: Any


# One simulation at u with a key and some elements, and a draw u of the prior.
Run = Callable[[jax.Array, jax.Array, Elements], tuple[Any, Any, Any]]
Draw = Callable[[jax.Array], jax.Array]


class choose_elements(Messenger):
    """Gives plates that are subsampled other elements than random ones.

    A key is drawn and dropped for each, so that all other noise stays what it is.
    """

    def __init__(self, fn: Model, elements: Elements) -> None:
        super().__init__(fn)
        self.elements = elements

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "plate" or msg["name"] not in self.elements:
            return
        if msg["value"] is not None or msg["kwargs"]["rng_key"] is not None:
            return  # chosen by the model, or drawn with a key that it has fixed
        numpyro.prng_key()
        rows = self.elements[msg["name"]]
        msg["value"], msg["args"] = rows, (msg["args"][0], len(rows))


def first_elements(plates: Plates) -> Elements:
    """As many as a minibatch has."""
    return {name: jnp.arange(num) for name, (num, _) in plates.items()}


def run_with(
    run: Callable[[Elements], tuple[Any, Any, Any]], plates: Plates, mode: str
) -> Outputs:
    """One simulation in one of the modes."""
    if mode == DRAWN:
        return Outputs(*run({}))
    if mode == ALL:
        return Outputs(
            *run({name: jnp.arange(size) for name, (_, size) in plates.items()})
        )
    first = (0,) * len(plates)
    log_prior, log_likelihood, stats = _in_turns(run, plates, {})
    return Outputs(log_prior[first], log_likelihood.mean(), stats[first])


def _in_turns(run: Callable, plates: Plates, elements: Elements) -> Any:
    """Outputs for minibatches one after another; a leading axis for each plate.

    Only what depends on a minibatch is computed more than once.
    """
    left = [name for name in plates if name not in elements]
    if not left:
        return run(elements)
    num, size = plates[left[0]]
    starts = jnp.arange(size // math.gcd(num, size)) * num
    rows = (starts[:, None] + jnp.arange(num)) % size
    return vmap(lambda part: _in_turns(run, plates, {**elements, left[0]: part}))(rows)


class Minibatches(NamedTuple):
    """The subsampled plates of a model.

    Attributes:
        plates: `{name: (subsample_size, size)}`.
        are_noisy: whether the log likelihood differs between minibatches.
        elements: that simulations take, `DRAWN`, `ALL` or `IN_TURNS`.
        step_elements: that those of gradient steps take.
    """

    plates: Plates
    are_noisy: bool = False
    elements: str = DRAWN
    step_elements: str = DRAWN

    @classmethod
    def of(cls, plates: Plates, run: Run, draw: Draw) -> "Minibatches":
        """Look at a model.

        Args:
            plates: those that a run has drawn from.
            run: the model.
            draw: one draw u of the prior, for a key.
        """
        if not plates:
            return cls({})
        sets, pairs = _minibatches(plates)
        found = _simulate(
            lambda u, key: vmap(lambda rows: run(u, key, rows))(sets), draw
        )
        drawn = Outputs(*(x[:, :NUM_MINIBATCHES] for x in found))
        are_noisy = _are_noisy(drawn)
        if not _is_sum(found, pairs):
            return cls(plates, are_noisy)
        few = _operations(lambda u, key: run(u, key, first_elements(plates)), draw)
        for mode in (ALL, IN_TURNS):

            def whole(u: jax.Array, key: jax.Array, mode: str = mode) -> Outputs:
                return run_with(lambda rows: run(u, key, rows), plates, mode)

            num = _operations(whole, draw)
            if num > max(MAX_OPERATIONS, MAX_FACTOR * few):
                continue
            if _agree(drawn, _simulate(whole, draw)):
                step = mode if num <= MAX_STEP_OPERATIONS else DRAWN
                return cls(plates, are_noisy, mode, step)
        return cls(plates, are_noisy)

    @property
    def takes_all(self) -> bool:
        """Whether simulations take all elements."""
        return bool(self.plates) and self.elements != DRAWN


def _operations(fn: Callable, draw: Draw) -> float:
    """Of a simulation; infinite where the model does not accept its elements."""
    key = random.key(0)
    u = jnp.zeros(jax.eval_shape(draw, key).shape)
    try:
        return Cost.of(fn, u, key).num_operations
    except Exception:  # whatever a model says to shapes that it does not expect:
        # nothing is lost, because its own minibatches are simulated as before, and an
        # error of the model itself shows there.
        return np.inf


def _minibatches(plates: Plates) -> tuple[Elements, np.ndarray]:
    """Minibatches, and which of them are pairs before and after a swap, (m, 4).

    In each pair one element of one plate changes place with one of the other, and the
    other plates have the same elements.
    """
    rng = np.random.default_rng(0)
    sets = {
        name: [rng.permutation(size)[:num] for _ in range(NUM_MINIBATCHES)]
        for name, (num, size) in plates.items()
    }
    pairs = []
    for name in plates:
        for i in range(0, 2 * NUM_PAIRS, 2):
            pairs.append(np.arange(4) + len(sets[name]))
            for other in plates:
                first, second = sets[other][i : i + 2]
                swapped = [
                    np.append(y[0], x[1:])
                    for x, y in [(first, second), (second, first)]
                ]
                sets[other] += (
                    [first, second, *swapped] if other == name else 4 * [first]
                )
    elements = {name: jnp.asarray(np.stack(x)) for name, x in sets.items()}
    return elements, np.stack(pairs)


def _simulate(fn: Callable[[jax.Array, jax.Array], Any], draw: Draw) -> Outputs:
    """Outputs of a function for some prior draws and a key of each, as float64."""

    def simulate(key: jax.Array) -> Outputs:
        keys = random.split(key, (NUM_DRAWS, 2))
        return Outputs(*lax.map(lambda pair: fn(draw(pair[0]), pair[1]), keys))

    (found,) = run_now(simulate)
    return Outputs(*(np.asarray(x, np.float64) for x in found))


def _are_noisy(drawn: Outputs) -> bool:
    """Whether log likelihoods of one draw differ by more than a sum's rounding."""
    values = np.where(np.isfinite(drawn.log_likelihood), drawn.log_likelihood, 0.0)
    rounding = ROUNDING * (1.0 + np.abs(values).max(axis=1))
    return bool((np.ptp(values, axis=1) > rounding).any())


def _is_sum(found: Outputs, pairs: np.ndarray) -> bool:
    """Whether the log likelihood is a sum over elements, and nothing else has them.

    The sum for two minibatches is then the same after a swap; prior and statistics are
    the same for all.
    """
    rows = _finite(found)
    if not rows.any():
        return False
    prior, likelihood, stats = (x[rows] for x in found)
    first, second, third, fourth = np.moveaxis(likelihood[:, pairs], -1, 0)
    off = np.abs(first + second - third - fourth)
    if (off > ROUNDING * (1.0 + np.abs(likelihood).max())).any():
        return False
    return all(_are_same(x, x[:, :1]) for x in (prior, stats))


def _agree(drawn: Outputs, whole: Outputs) -> bool:
    """Whether all elements give what minibatches give on average, and nothing else."""
    rows = _finite(drawn) & _finite(whole)
    if not rows.any():
        return False
    prior, likelihood, stats = (
        [pair[0][rows], pair[1][rows][:, None]]
        for pair in zip(drawn, whole, strict=True)
    )
    if not (_are_same(*prior) and _are_same(*stats)):
        return False
    error = likelihood[0] - likelihood[1]
    standard_error = error.std(axis=1, ddof=1) / np.sqrt(error.shape[1])
    rounding = ROUNDING * (1.0 + np.abs(likelihood[0]).max())
    limit = MAX_Z_SCORE * standard_error + rounding
    return bool((np.abs(error.mean(axis=1)) <= limit).all())


def _finite(found: Outputs) -> np.ndarray:
    """Draws of which everything is finite, (n,)."""
    values = [np.isfinite(x.reshape(len(x), -1)).all(axis=1) for x in found]
    return np.logical_and.reduce(values)


def _are_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Up to rounding, relative to the size of each number."""
    size = np.maximum(np.abs(first), np.abs(second))
    return bool((np.abs(first - second) <= ROUNDING * size).all())
