# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulations of the model of superior colliculus, and their statistics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike

from numpyro_epi._checks import as_key

from ._colliculus_constants import (
    CONNECTIONS,
    PAPER,
    ColliculusConstants,
    activation,
    check_silencing,
    inputs,
    is_silenced,
)
from ._ranges import check_positive, check_whole, real, scalar, vector

# Source of each connection sW, vW, hW, dW, for the targets LP, LA, RP, RA.
SOURCES = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))

# One array for each unit: the compiler then vectorises over tasks and trials.
Four = tuple[jax.Array, ...]


class ColliculusPaths(NamedTuple):
    """Simulated activity, T steps. Tasks are Pro, Anti; units are LP, LA, RP, RA.

    Attributes:
        times: s, shape (T + 1,).
        activity: x, dimensionless, shape (..., 2, trials, T + 1, 4).
        drive: u, dimensionless, shape (..., 2, trials, T + 1, 4).
    """

    times: jax.Array
    activity: jax.Array
    drive: jax.Array


def soft_accuracy(
    margin: ArrayLike, steepness: ArrayLike = PAPER.steepness
) -> jax.Array:
    """How right a choice is: a sigmoid of the margin of the right unit over the other.

    Args:
        margin: Activity of the right unit minus that of the other, any shape.
        steepness: Of the sigmoid, positive. At 100, a margin of 0.05 is 0.993.

    Returns:
        Numbers from 0 to 1, of the shape of `margin`.

    Raises:
        TypeError: If an argument does not consist of real numbers.
        ValueError: If `steepness` is not positive.

    Example:
        >>> soft_accuracy([-1.0, 0.0, 1.0]).tolist()
        [0.0, 0.5, 1.0]
    """
    scalar("steepness", steepness)
    check_positive("steepness", steepness)
    return jax.nn.sigmoid(steepness * real("margin", margin))


def accuracies(
    z: ArrayLike,
    rng_key: jax.Array,
    *,
    silencing: ArrayLike = 0.0,
    num_trials: int | None = None,
    constants: ColliculusConstants = PAPER,
) -> jax.Array:
    """Soft accuracies in both tasks, averaged over trials with a stimulus on the left.

    At the end, LP should beat RP in the Pro task, and RP should beat LP in the Anti
    task. Traces are not kept, so that memory does not grow with simulated time, in
    forward mode too.

    Args:
        z: sW, vW, hW, dW, shape (..., 4).
        rng_key: Key of starting activity and noise. Of keys made with
            `impl="unsafe_rbg"`, `jax.vmap` uses the first one only: do not map over
            those, but give all connections as one array. Each row of it has noise of
            its own.
        silencing: gamma, from 0 to 1: x = (1 - gamma) phi(u) late in the delay, as in
            optogenetic experiments.
        num_trials: Independent trials for each task. None is the number of the
            constants.
        constants: `ColliculusConstants`.

    Returns:
        Accuracies in the Pro and the Anti task, shape (..., 2), in the
        precision of `z`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Notes:
        Safe under `jit`, `vmap` and `grad`, in both modes; forward mode is the cheaper
        one.

    Example:
        >>> z = [0.75, -3.5, -1.6, -1.4]
        >>> pro, anti = accuracies(z, jax.random.key(0))
        >>> bool(pro > 0.6), bool(anti > 0.6)
        (True, True)
    """
    run = _Run.of(z, rng_key, silencing, num_trials, constants)

    def body(u: Four, i: Any) -> tuple[Four, None]:
        return run.step(i, u, run.activity(i - 1, u)), None

    u, x = run.start()
    steps = jnp.arange(2, constants.num_steps + 1)
    u, _ = lax.scan(body, run.step(1, u, x), steps)
    left, _, right, _ = run.activity(constants.num_steps, u)
    signs = jnp.array([[1.0], [-1.0]], left.dtype)
    return soft_accuracy(signs * (left - right), constants.steepness).mean(axis=-1)


def paths(
    z: ArrayLike,
    rng_key: jax.Array,
    *,
    silencing: ArrayLike = 0.0,
    num_trials: int | None = None,
    constants: ColliculusConstants = PAPER,
) -> ColliculusPaths:
    """Simulated traces, for pictures. `accuracies` sees the same with the same key.

    Args:
        z: sW, vW, hW, dW, shape (..., 4).
        rng_key: Key of starting activity and noise.
        silencing: gamma, from 0 to 1.
        num_trials: Independent trials for each task. None is the number of the
            constants.
        constants: `ColliculusConstants`.

    Returns:
        `ColliculusPaths`: times, activity, drive.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> found = paths([0.75, -3.5, -1.6, -1.4], jax.random.key(0), num_trials=5)
        >>> found.activity.shape, found.times.shape
        ((2, 5, 75, 4), (75,))
    """
    run = _Run.of(z, rng_key, silencing, num_trials, constants)

    def body(state: tuple[Four, Four], i: Any) -> tuple[Any, Any]:
        u = run.step(i, *state)
        state = u, run.activity(i, u)
        return state, state

    first = run.start()
    _, later = lax.scan(body, first, jnp.arange(1, constants.num_steps + 1))
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
    drive, activity = (jnp.moveaxis(jnp.stack(a, axis=-1), 0, -2) for a in whole)
    times = constants.dt * jnp.arange(constants.num_steps + 1)
    return ColliculusPaths(times.astype(drive.dtype), activity, drive)


def first_drive(activity: ArrayLike, constants: ColliculusConstants) -> jax.Array:
    """Published u at time zero: b atanh(2 x - 1) - a, where +a is the inverse."""
    unit = jnp.arctanh(2.0 * jnp.asarray(activity) - 1.0)
    return constants.slope * unit + constants.start_shift


class _Run(NamedTuple):
    """A simulation that is about to start: its checked arguments, in one precision."""

    strengths: Four  # sW, vW, hW, dW, each (..., 1, 1)
    inputs: jax.Array  # (T + 1, 4, 2, 1)
    gates: jax.Array  # (T + 1,)
    shape: tuple[int, ...]  # (..., 2, trials)
    start_key: jax.Array
    noise_key: jax.Array
    constants: ColliculusConstants

    @classmethod
    def of(
        cls,
        z: ArrayLike,
        rng_key: jax.Array,
        silencing: ArrayLike,
        num_trials: int | None,
        constants: ColliculusConstants,
    ) -> "_Run":
        drive = inputs(constants)
        entries = vector("z", z, CONNECTIONS)
        dtype = entries.dtype
        share = check_silencing(silencing)
        trials = constants.num_trials if num_trials is None else num_trials
        trials = check_whole("num_trials", trials)
        start_key, noise_key = random.split(as_key(rng_key))
        return cls(
            tuple(jnp.moveaxis(entries, -1, 0)[..., None, None]),
            jnp.moveaxis(drive, -1, 1)[..., None].astype(dtype),
            (1.0 - share * is_silenced(constants)).astype(dtype),
            (*entries.shape[:-1], 2, trials),
            start_key,
            noise_key,
            constants,
        )

    def start(self) -> tuple[Four, Four]:
        """Time zero: u and x, which do not quite belong together, as published."""
        dtype = self.inputs.dtype
        xi = random.normal(self.start_key, (4, *self.shape), dtype)
        x = self.constants.start + self.constants.start_noise * xi
        u = first_drive(x, self.constants)
        return tuple(u.astype(dtype)), tuple(self.gates[0] * x.astype(dtype))

    def activity(self, i: Any, u: Four) -> Four:
        """Activity x at the point i in time."""
        constants, gate = self.constants, self.gates[i]
        return tuple((gate * activation(a, constants)).astype(gate.dtype) for a in u)

    def step(self, i: Any, u: Four, x: Four) -> Four:
        """Drive u at the point i in time, from u and x at the one before."""
        dtype = self.inputs.dtype
        pace = jnp.asarray(self.constants.dt / self.constants.tau, dtype)
        noise = jnp.asarray(self.constants.noise, dtype)
        key = random.fold_in(self.noise_key, i)
        xi = random.normal(key, (4, *self.shape), dtype)
        drive = self.inputs[i]

        def moved(a: int) -> jax.Array:
            terms = [w * x[b] for w, b in zip(self.strengths, SOURCES[a], strict=True)]
            return u[a] + pace * (sum(terms) + drive[a] + noise * xi[a] - u[a])

        return tuple(moved(a) for a in range(4))
