# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Constants of the model of superior colliculus, its inputs, and its connections."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._ranges import (
    check_kind,
    check_known,
    check_positive,
    check_range,
    check_whole,
    real,
    scalar,
    vector,
)

CONNECTIONS = "sW vW hW dW"
EIGENVALUES = "all side task diag"

# Signs of the eigenvectors over LP, LA, RP, RA, a row for each of `EIGENVALUES`. The
# same signs turn connections into eigenvalues. The matrix is symmetric.
SIGNS = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))


class ColliculusConstants(NamedTuple):
    """Constants of the paper. Activities and inputs are dimensionless, times in s.

    Change some with `PAPER._replace(noise=0.3)`.

    Attributes:
        threshold: a of the activation function.
        slope: b of the activation function.
        tau: Time constant, s.
        dt: Time step, s.
        num_steps: Steps of a trial: the last of 75 points in time is at 1.776 s.
        constant_input: To all units, always.
        pro_bias: Input to the Pro units, always.
        rule_input: To the units of the task of the trial, before `rule_end`.
        choice_input: To all units, after `rule_end`.
        light_input: To the left units, after `rule_end` and before `light_end`.
        rule_end: End of the delay, s.
        light_end: End of the stimulus, s.
        silencing_start: First time at which silencing acts, s.
        silencing_end: Last time at which silencing acts, s.
        noise: Standard deviation of the input noise of a step. It is multiplied by dt
            / tau like any input, not by sqrt(dt).
        start: Mean activity at time zero.
        start_noise: Its standard deviation over units and trials.
        start_shift: Added to b atanh(2 x - 1) for the first u. The published code has
            -a, kept here; the exact inverse of the activation function has +a. It
            changes accuracies by up to 0.03.
        steepness: Of the sigmoid of a soft accuracy.
        num_trials: Independent trials for each task.
        bound: Prior of each connection: uniform on [-bound, bound].
        mean: Wanted mean accuracies in the Pro and the Anti task.
        var: Their wanted variances.
    """

    threshold: float | jax.Array = 0.05
    slope: float | jax.Array = 0.5
    tau: float | jax.Array = 0.09
    dt: float = 0.024
    num_steps: int = 74
    constant_input: float | jax.Array = 0.75
    pro_bias: float | jax.Array = 0.5
    rule_input: float | jax.Array = 0.6
    choice_input: float | jax.Array = 0.25
    light_input: float | jax.Array = 0.5
    rule_end: float = 1.2
    light_end: float = 1.5
    silencing_start: float = 0.8
    silencing_end: float = 1.2
    noise: float | jax.Array = 0.2
    start: float | jax.Array = 0.1
    start_noise: float | jax.Array = 0.005
    start_shift: float | jax.Array = -0.05
    steepness: float | jax.Array = 100.0
    num_trials: int = 200
    bound: float = 5.0
    mean: tuple[float, float] = (0.75, 0.75)
    var: tuple[float, float] = (0.075**2, 0.075**2)


PAPER = ColliculusConstants()


def check_constants(constants: Any) -> None:
    """Refuse constants that make no sense, and say which."""
    check_kind("constants", constants, ColliculusConstants)
    levels = "constant_input pro_bias rule_input choice_input light_input"
    for name in f"threshold start_shift {levels}".split():
        scalar(f"constants.{name}", getattr(constants, name))
    for name in ("slope", "tau", "dt", "steepness", "bound"):
        scalar(f"constants.{name}", getattr(constants, name))
        check_positive(f"constants.{name}", getattr(constants, name))
    for name in ("noise", "start_noise"):
        scalar(f"constants.{name}", getattr(constants, name))
        check_range(f"constants.{name}", getattr(constants, name), 0.0)
    for name in ("dt", "rule_end", "light_end", "silencing_start", "silencing_end"):
        check_known(f"constants.{name}", getattr(constants, name))
    scalar("constants.start", constants.start)
    check_range("constants.start", constants.start, 0.0, 1.0, is_open=True)
    check_whole("constants.num_steps", constants.num_steps)
    check_whole("constants.num_trials", constants.num_trials)


def check_silencing(silencing: Any) -> jax.Array:
    """The share of activity that is taken away, from 0 to 1."""
    share = scalar("silencing", silencing)
    check_range("silencing", silencing, 0.0, 1.0)
    return share


def inputs(constants: ColliculusConstants = PAPER) -> jax.Array:
    """Inputs to the units at each point in time, without noise.

    Exactly at `rule_end`, as published, there is neither rule nor choice nor light.

    Args:
        constants: `ColliculusConstants`.

    Returns:
        h, shape (T + 1, 2, 4): times by tasks (Pro, Anti) by units (LP, LA, RP, RA).

    Raises:
        TypeError: If a constant is of the wrong kind.
        ValueError: If a constant has a wrong shape or value.

    Example:
        >>> print(inputs()[0])  # constant, bias and rule; no light yet
        [[1.85 0.75 1.85 0.75]
         [1.25 1.35 1.25 1.35]]
    """
    check_constants(constants)
    times = constants.dt * np.arange(constants.num_steps + 1)
    # Times that agree but for rounding are equal.
    margin = 1e-6 * constants.dt
    before = times < constants.rule_end - margin
    after = times > constants.rule_end + margin
    is_lit = after & (times < constants.light_end - margin)
    before, after, is_lit = (x[:, None, None] for x in (before, after, is_lit))
    return input_of(constants, before=before, after=after, is_lit=is_lit)


def input_of(
    constants: ColliculusConstants, *, before: Any, after: Any, is_lit: Any
) -> jax.Array:
    """Input at moments of which three things are known, shape (..., 2, 4)."""
    pro, left = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0])
    rule = np.stack([pro, 1.0 - pro])
    always = constants.constant_input + constants.pro_bias * pro
    late = constants.choice_input * after + constants.light_input * left * is_lit
    return jnp.asarray(always + constants.rule_input * rule * before + late, float)


def is_silenced(constants: ColliculusConstants) -> np.ndarray:
    """Whether silencing acts at each point in time, shape (T + 1,)."""
    times = constants.dt * np.arange(constants.num_steps + 1)
    margin = 1e-6 * constants.dt
    begun = times >= constants.silencing_start - margin
    return begun & (times <= constants.silencing_end + margin)


def activation(u: ArrayLike, constants: ColliculusConstants = PAPER) -> jax.Array:
    """Activity of a unit: phi(u) = (1 + tanh((u - a) / b)) / 2.

    Args:
        u: Dimensionless, any shape.
        constants: `ColliculusConstants`, with a (`threshold`) and b (`slope`).

    Returns:
        Activity from 0 to 1, of the shape of `u`.

    Raises:
        TypeError: If `u` does not consist of real numbers.

    Example:
        >>> activation([-10.0, 0.05, 10.0]).tolist()
        [0.0, 0.5, 1.0]

    References:
        Bittner et al. 2021, eq. 87.
    """
    scaled = (real("u", u) - constants.threshold) / constants.slope
    return 0.5 * jnp.tanh(scaled) + 0.5


def weights(z: ArrayLike) -> jax.Array:
    """Matrix of the connections between LP, LA, RP, RA (left, right; Pro, Anti).

    Args:
        z: Strengths sW of a unit onto itself, vW between both tasks on one side, hW
            between both sides for one task, dW across; shape (..., 4).

    Returns:
        W, target by source, shape (..., 4, 4).

    Raises:
        TypeError: If `z` does not consist of real numbers.
        ValueError: If its last axis is not of length four.

    Example:
        >>> print(weights([1.0, 2.0, 3.0, 4.0]))
        [[1. 2. 3. 4.]
         [2. 1. 4. 3.]
         [3. 4. 1. 2.]
         [4. 3. 2. 1.]]
    """
    s, v, h, d = jnp.moveaxis(vector("z", z, CONNECTIONS), -1, 0)
    rows = [(s, v, h, d), (v, s, d, h), (h, d, s, v), (d, h, v, s)]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def eigenvalues(z: ArrayLike) -> jax.Array:
    """Eigenvalues of the connections, by what their eigenvectors stand for.

    These are patterns of activity over LP, LA, RP, RA: all units alike (1, 1, 1, 1);
    sides apart (1, 1, -1, -1); tasks apart (1, -1, 1, -1); diagonals apart (1, -1, -1,
    1).

    Args:
        z: sW, vW, hW, dW, shape (..., 4).

    Returns:
        Eigenvalues all, side, task, diag, shape (..., 4).

    Raises:
        TypeError: If `z` does not consist of real numbers.
        ValueError: If its last axis is not of length four.

    Example:
        >>> print(eigenvalues([1.0, 2.0, 3.0, 4.0]))
        [10. -4. -2.  0.]
    """
    found = vector("z", z, CONNECTIONS)
    return found @ jnp.array(SIGNS, found.dtype)


def from_eigenvalues(eigenvalues: ArrayLike) -> jax.Array:
    r"""Connections with given eigenvalues: z = A lambda, the inverse of `eigenvalues`.

    .. math:: A = \frac14 \begin{pmatrix} 1 & 1 & 1 & 1 \\ 1 & 1 & -1 & -1 \\
        1 & -1 & 1 & -1 \\ 1 & -1 & -1 & 1 \end{pmatrix}

    The columns of A, times two, are unit vectors: the direction in which one eigenvalue
    grows and the others stay. The paper prints the rows of A in another order, which is
    right only for z = (sW, dW, vW, hW).

    Args:
        eigenvalues: all, side, task, diag, shape (..., 4).

    Returns:
        sW, vW, hW, dW, shape (..., 4).

    Raises:
        TypeError: If `eigenvalues` does not consist of real numbers.
        ValueError: If its last axis is not of length four.

    Example:
        >>> print(from_eigenvalues([10.0, -4.0, -2.0, 0.0]))
        [1. 2. 3. 4.]
    """
    found = vector("eigenvalues", eigenvalues, EIGENVALUES)
    return found @ jnp.array(SIGNS, found.dtype) / 4.0
