# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Constants of the model of primary visual cortex, and its inputs."""

from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from numpyro_epi._checks import is_traced

from ._ranges import (
    check_kind,
    check_positive,
    check_range,
    check_whole,
    real,
    scalar,
    table,
    vector,
)

POPULATIONS = "E P S V"

Row = tuple[float, float, float, float]


class V1Constants(NamedTuple):
    """Constants of the paper, in units of Hz and ms. Populations are E, P, S, V.

    A rate is the square of an input, so that inputs and noise are in sqrt(Hz). Change
    some with `PAPER._replace(dt=0.25, num_steps=400, first_step=300)`.

    Attributes:
        weights: W, target by source, 1 / sqrt(Hz).
        baseline: Input without a stimulus, sqrt(Hz).
        contrast_input: Input added at full contrast, sqrt(Hz).
        contrast: Of the stimulus, from 0 to 1.
        tau: Time constant of the rates, ms.
        noise_tau: Time constant of the noise, ms.
        dt: Time step, ms.
        num_steps: Steps of a simulation.
        first_step: Standard deviations are over the points first_step to num_steps,
            both included: 75 to 100 ms.
        start: Rates at time zero are uniform between these two, Hz.
        ceiling: Rates are cut off there, Hz.
        num_trials: Independent trials that a statistic is averaged over.
        max_sigma: Prior of each noise level: uniform on [0, max_sigma], sqrt(Hz).
        mean: Wanted mean of the standard deviation of the E rate, Hz.
        var: Its wanted variance, Hz^2.
        max_entropy: Entropy of the maximum-entropy distribution, nats, from 8,000
            reweighted draws with 16 evaluations each, to 0.02. With a mean of 10 Hz it
            is -13.30.
    """

    weights: tuple[Row, Row, Row, Row] | jax.Array = (
        (0.218, -0.119, -0.0594, -0.0229),
        (0.166, -0.0651, -0.0680, -0.0242),
        (0.0895, -5.22e-4, -1.51e-5, -0.0761),
        (0.334, -0.231, -0.0254, -2.52e-5),
    )
    baseline: Row | jax.Array = (4.16, 4.29, 4.91, 4.86)
    contrast_input: Row | jax.Array = (3.59, 4.03, 0.0, 0.0)
    contrast: float | jax.Array = 0.5
    tau: float | jax.Array = 1.0
    noise_tau: float | jax.Array = 5.0
    dt: float | jax.Array = 0.5
    num_steps: int = 200
    first_step: int = 150
    start: tuple[float, float] = (10.0, 25.0)
    ceiling: float = 1e5
    num_trials: int = 100
    max_sigma: float = 0.05
    mean: float = 5.0
    var: float = 1.0
    max_entropy: float = -13.05


PAPER = V1Constants()


def check_constants(constants: Any) -> None:
    """Refuse constants that make no sense, and say which."""
    check_kind("constants", constants, V1Constants)
    table("constants.weights", constants.weights, (4, 4))
    table("constants.baseline", constants.baseline, (4,))
    table("constants.contrast_input", constants.contrast_input, (4,))
    for name in ("tau", "noise_tau", "dt", "ceiling", "max_sigma"):
        scalar(f"constants.{name}", getattr(constants, name))
        check_positive(f"constants.{name}", getattr(constants, name))
    steps = check_whole("constants.num_steps", constants.num_steps, 2)
    first = check_whole("constants.first_step", constants.first_step)
    if first >= steps:
        raise ValueError(
            f"Expected a number below `constants.num_steps`, {steps}, as "
            f"`constants.first_step`, got {first}. The window ends with the simulation."
        )
    check_whole("constants.num_trials", constants.num_trials)
    table("constants.start", constants.start, (2,))
    check_range("constants.start", constants.start, 0.0)
    if not is_traced(constants.start) and constants.start[0] > constants.start[1]:
        raise ValueError(
            "Expected the lower rate first as `constants.start`, got "
            f"{constants.start}."
        )


def inputs(
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """Input to each population, without noise: h = h_b + c h_c + change.

    Args:
        contrast: c, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        constants: `V1Constants`.

    Returns:
        h of E, P, S, V, sqrt(Hz), shape (4,).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> print(inputs(contrast=0.0), inputs(contrast=1.0))
        [4.16 4.29 4.91 4.86] [7.75 8.32 4.91 4.86]
    """
    check_constants(constants)
    if contrast is None:
        contrast = constants.contrast
    level = scalar("contrast", contrast)
    check_range("contrast", contrast, 0.0, 1.0)
    extra = real("change", change)
    extra = vector("change", extra, POPULATIONS) if extra.ndim else extra
    baseline = table("constants.baseline", constants.baseline, (4,))
    stimulus = table("constants.contrast_input", constants.contrast_input, (4,))
    return baseline + level * stimulus + extra
