# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Refuse what the floating point type of a run cannot tell apart.

A statistic of 1e6 with a standard deviation of 0.1 moves in steps of 0.06 in float32;
a log likelihood of 1e7 nats in steps of one nat. No result can be finer than that.
"""

import warnings
from typing import Any

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.precision import spacing

# Steps as shares of the wanted scale. Rounding adds a twelfth of the squared share to a
# variance: 1e-5 of it where a warning begins, 1e-3 where the model is refused.
WARN_SHARE, MAX_SHARE = 0.01, 0.1
# Steps of a log likelihood, nats, beyond which differences of a nat are lost.
MAX_LOG_LIKELIHOOD_STEP = 0.1

DOUBLE = (
    "compute in double precision (`jax.config.update('jax_enable_x64', True)` before "
    "anything else is computed)"
)


def check_statistics(table: ConstraintTable, dtypes: tuple[Any, ...]) -> None:
    """Refuse, or warn of, targets too narrow for the type of their statistics.

    Args:
        table: Constraints, with the scales of all statistics.
        dtypes: Of each statistic.

    Raises:
        ValueError: Naming the statistic.
    """
    for i, label in enumerate(table.statistic_labels):
        mean, scale = float(table.mean[i]), float(table.scale[i])
        step = float(spacing(max(abs(mean), scale), dtypes[i]))
        has_var = bool(table.has_var[i])
        what = (
            f"target mean {mean:.10g} with "
            + ("standard deviation" if has_var else "a spread over the prior of")
            + f" {scale:.3g} of the emergent property `{label}`"
        )
        _judge(
            what,
            step / scale,
            f"{dtypes[i]} numbers of that size are {step:.3g} apart. Subtract a "
            f"constant such as {mean:.6g} in the model, from the parts of the statistic"
            " before they are added up and from its target mean, or " + DOUBLE,
        )


def check_latents(latents: dict[str, np.ndarray]) -> None:
    """Refuse, or warn of, priors too narrow for the type of their latents.

    Args:
        latents: Draws from the prior by site, the first axis over draws.

    Raises:
        ValueError: Naming the site.
    """
    for name, values in latents.items():
        low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
        spread = np.asarray((high - low) / 1.349, np.float64)
        steps = spacing(middle, values.dtype)
        shares = np.where(spread > 0, steps / np.where(spread > 0, spread, 1.0), 0.0)
        worst = np.unravel_index(int(np.argmax(shares)), shares.shape)
        where = float(np.asarray(middle)[worst])
        _judge(
            f"prior of `{name}` around {where:.10g} with a spread of "
            f"{float(spread[worst]):.3g}",
            float(shares[worst]),
            f"{values.dtype} numbers of that size are {float(steps[worst]):.3g} apart. "
            "Give the site a prior around zero and add the constant in the model, or "
            + DOUBLE,
        )


def _judge(what: str, share: float, why: str) -> None:
    if share > MAX_SHARE:
        raise ValueError(
            f"Expected numbers that can be told apart, got a {what}: {why}."
        )
    if share > WARN_SHARE:
        warnings.warn(f"Coarse rounding at the {what}: {why}.", stacklevel=2)


def log_likelihood_loss(log_likelihood: float, dtype: Any) -> str | None:
    """What is lost if the steps of a log likelihood of this size are too coarse."""
    if not np.isfinite(log_likelihood):
        return None
    step = float(spacing(log_likelihood, dtype))
    if step <= MAX_LOG_LIKELIHOOD_STEP:
        return None
    return (
        f"The log likelihood of the data is about {log_likelihood:.4g} nats, where "
        f"{dtype} numbers are {step:.3g} nats apart: differences of a nat are lost in "
        "it, and with them the law of the latents. Use fewer data or sufficient "
        "statistics of them, or " + DOUBLE + "."
    )
