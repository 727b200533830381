# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulations of the model of primary visual cortex, and their statistics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike

from numpyro_epi._checks import as_key

from ._ranges import check_range, check_whole, real, vector
from ._v1_constants import PAPER, POPULATIONS, V1Constants, inputs

# One array for each population: the compiler then vectorises over trials.
Four = tuple[jax.Array, ...]


class V1Paths(NamedTuple):
    """Simulated activity, T steps.

    Attributes:
        times: ms, shape (T + 1,).
        rates: Of E, P, S, V, Hz, shape (..., trials, T + 1, 4).
        noise: epsilon, sqrt(Hz), shape (..., trials, T + 1, 4).
    """

    times: jax.Array
    rates: jax.Array
    noise: jax.Array


def temporal_std(rates: ArrayLike, axis: int = -1) -> jax.Array:
    """Standard deviation over time, with division by the number of points.

    Args:
        rates: Traces, any shape.
        axis: The axis of time.

    Returns:
        The standard deviation in the units of `rates`, without that axis. Its gradient
        is zero, not infinite, where a trace does not change.

    Raises:
        TypeError: If `rates` does not consist of real numbers.

    Example:
        >>> float(temporal_std([1.0, 3.0, 1.0, 3.0]))
        1.0
    """
    traces = real("rates", rates)
    return _safe_sqrt(jnp.var(traces, axis=axis))


def fluctuations(
    sigma: ArrayLike,
    rng_key: jax.Array,
    *,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    num_trials: int | None = None,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """Standard deviation of each rate over time, averaged over trials.

    The window is from `constants.first_step` to the end. Sums are kept while the
    simulation runs and traces are not, so that memory does not grow with its length, in
    forward mode too.

    Args:
        sigma: Noise levels of E, P, S, V, sqrt(Hz), shape (..., 4).
        rng_key: Key of starting rates and noise. Of keys made with `impl="unsafe_rbg"`,
            `jax.vmap` uses the first one only: do not map over those, but give all
            levels as one array. Each row of it has noise of its own.
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        num_trials: Independent trials. None is the number of the constants.
        constants: `V1Constants`.

    Returns:
        s_E, s_P, s_S, s_V, Hz, shape (..., 4), in the precision of `sigma`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Notes:
        Safe under `jit`, `vmap` and `grad`, in both modes; forward mode is the cheaper
        one. Levels far above the prior make rates explode up to `constants.ceiling`.

    Example:
        >>> rng_key = jax.random.key(0)
        >>> bool(fluctuations([0.05, 0, 0, 0], rng_key)[0] > 8.0)
        True
    """
    run = _Run.of(sigma, rng_key, contrast, change, num_trials, constants)
    state = lax.fori_loop(
        0, constants.first_step, lambda i, state: run.step(i, state), run.start()
    )
    # Deviations from the first point of the window: sums of squares of rates themselves
    # would lose half of the digits.
    origin = state[0]
    zeros = tuple(jnp.zeros_like(x) for x in origin)

    def body(i: Any, carry: Any) -> Any:
        state, sums, squares = carry
        state = run.step(i, state)
        moved = tuple(x - x0 for x, x0 in zip(state[0], origin, strict=True))
        sums = tuple(s + d for s, d in zip(sums, moved, strict=True))
        squares = tuple(s + d**2 for s, d in zip(squares, moved, strict=True))
        return state, sums, squares

    first, last = constants.first_step, constants.num_steps
    _, sums, squares = lax.fori_loop(first, last, body, (state, zeros, zeros))
    num = last - first + 1
    variances = [q / num - (s / num) ** 2 for s, q in zip(sums, squares, strict=True)]
    return jnp.stack([_safe_sqrt(v).mean(axis=-1) for v in variances], axis=-1)


def paths(
    sigma: ArrayLike,
    rng_key: jax.Array,
    *,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    num_trials: int | None = None,
    constants: V1Constants = PAPER,
) -> V1Paths:
    """Simulated traces, for pictures. `fluctuations` sees the same with the same key.

    Args:
        sigma: Noise levels of E, P, S, V, sqrt(Hz), shape (..., 4).
        rng_key: Key of starting rates and noise.
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        num_trials: Independent trials. None is the number of the constants.
        constants: `V1Constants`.

    Returns:
        `V1Paths`: times, rates, noise.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> found = paths([0.03, 0.03, 0.03, 0.03], jax.random.key(0), num_trials=5)
        >>> found.rates.shape, float(found.times[-1])
        ((5, 201, 4), 100.0)
    """
    run = _Run.of(sigma, rng_key, contrast, change, num_trials, constants)

    def body(state: Any, i: Any) -> tuple[Any, Any]:
        state = run.step(i, state)
        return state, state

    first = run.start()
    _, later = lax.scan(body, first, jnp.arange(constants.num_steps))
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
    rates, noise = (jnp.moveaxis(jnp.stack(part, axis=-1), 0, -2) for part in whole)
    times = constants.dt * jnp.arange(constants.num_steps + 1)
    return V1Paths(times.astype(rates.dtype), rates, noise)


class _Run(NamedTuple):
    """A simulation that is about to start: its checked arguments, in one precision."""

    weights: jax.Array  # (4, 4)
    drive: jax.Array  # (4,)
    kick: jax.Array  # std of what a step adds to the noise, (..., 4, 1)
    shape: tuple[int, ...]  # (..., trials)
    start_key: jax.Array
    noise_key: jax.Array
    constants: V1Constants

    @classmethod
    def of(
        cls,
        sigma: ArrayLike,
        rng_key: jax.Array,
        contrast: ArrayLike | None,
        change: ArrayLike,
        num_trials: int | None,
        constants: V1Constants,
    ) -> "_Run":
        drive = inputs(contrast, change, constants)
        level = vector("sigma", sigma, POPULATIONS)
        check_range("sigma", sigma, 0.0)
        trials = constants.num_trials if num_trials is None else num_trials
        trials = check_whole("num_trials", trials)
        rate = 2.0 * constants.dt / constants.noise_tau
        growth = jnp.sqrt(rate * (1.0 + constants.tau / constants.noise_tau))
        start_key, noise_key = random.split(as_key(rng_key))
        return cls(
            jnp.asarray(constants.weights, level.dtype),
            drive.astype(level.dtype),
            (growth * level)[..., None].astype(level.dtype),
            (*level.shape[:-1], trials),
            start_key,
            noise_key,
            constants,
        )

    def start(self) -> tuple[Four, Four]:
        """Rates and noise at time zero."""
        low, high = self.constants.start
        shape, dtype = (4, *self.shape), self.kick.dtype
        rates = random.uniform(self.start_key, shape, dtype, low, high)
        zeros = jnp.zeros(self.shape, dtype)
        return tuple(rates), (zeros,) * 4

    def step(self, i: Any, state: tuple[Four, Four]) -> tuple[Four, Four]:
        """Advance by dt; rates see the noise before its own step."""
        rates, noise = state
        dtype, dt = self.kick.dtype, self.constants.dt
        pace = jnp.asarray(dt / self.constants.tau, dtype)
        decay = jnp.asarray(1.0 - dt / self.constants.noise_tau, dtype)
        key = random.fold_in(self.noise_key, i)
        xi = random.normal(key, (4, *self.shape), dtype)

        def rate(a: int) -> jax.Array:
            terms = [self.weights[a, b] * rates[b] for b in range(4)]
            u = sum(terms) + self.drive[a] + noise[a]
            moved = rates[a] + pace * (jnp.maximum(u, 0.0) ** 2 - rates[a])
            return jnp.minimum(moved, jnp.asarray(self.constants.ceiling, dtype))

        new_noise = [decay * noise[a] + self.kick[..., a, :] * xi[a] for a in range(4)]
        return tuple(rate(a) for a in range(4)), tuple(new_noise)


def _safe_sqrt(value: jax.Array) -> jax.Array:
    """Square root with gradient zero at zero."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)
