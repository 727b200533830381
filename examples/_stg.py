# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the paper claims about the stomatogastric circuit, measured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _modes import Mode, modes_along

from numpyro_epi.circuits import stg

MEAN, SD = stg.PAPER.mean, stg.PAPER.var**0.5
LOW, HIGH = np.array([stg.PAPER.g_el, stg.PAPER.g_syn_a]).T
PUBLISHED_ENTROPY = 1.04  # of the best of five runs
NUM_SIMULATIONS = 40


@jax.jit
def hub_frequencies(z, keys):
    """Hub frequency, Hz, at all couplings z, (n, 2), with each key, shape (n, k)."""
    one = jax.vmap(stg.hub_frequency, in_axes=(None, None, 0))
    return jax.vmap(lambda x: one(x[0], x[1], keys))(z)


class Elongation(NamedTuple):
    """Spread of the draws, nS, and where their long axis points.

    Attributes:
        sds: Of g_el and g_synA, shape (2,).
        angle: Between the first principal axis and that of g_el, degrees.
        ratio: Of the sds along both principal axes.
    """

    sds: np.ndarray
    angle: float
    ratio: float


def elongation(result, rng_key, num_draws=20_000):
    draws = result.sample(rng_key, num_draws)
    z = np.stack([draws["g_el"], draws["g_synA"]], axis=-1)
    variances, axes = np.linalg.eigh(np.cov(z.T))
    angle = np.degrees(np.arctan2(abs(axes[1, 1]), abs(axes[0, 1])))
    ratio = (variances[1] / variances[0]) ** 0.5
    return Elongation(z.std(axis=0), float(angle), float(ratio))


class Perturbation(NamedTuple):
    """Hub frequency on lines through the mode.

    Attributes:
        mode: The mode, with its sensitive and its robust direction.
        distances: From the mode, nS, shape (m,), symmetric about 0.
        means: Mean frequency, Hz, shape (2, m): sensitive, robust. NaN outside of the
            support.
        errors: Standard errors of the means, same shape.
        reach: Two widths of the sensitive direction, 2 / sqrt(-eigenvalue), nS.
        changes: Mean of |f - f(mode)| at plus and minus `reach`, Hz, shape (2,).
        change_errors: Their standard errors, shape (2,).
    """

    mode: Mode
    distances: np.ndarray
    means: np.ndarray
    errors: np.ndarray
    reach: float
    changes: np.ndarray
    change_errors: np.ndarray


def perturbation(result, rng_key, num_simulations=NUM_SIMULATIONS):
    """Move away from the mode along both eigenvectors of the Hessian.

    The least committed density depends on the couplings through the frequency alone: it
    is equally high all along the contour of 0.55 Hz, and where on it a flow is highest
    is chance. So the mode is looked for at the mean of g_el.
    """
    at = float(result.draws.latents["g_el"].mean())
    mode = modes_along(result, "g_el", [at], positive="g_synA")[at]
    reach = float(np.clip(2.0 / np.sqrt(max(-mode.eigenvalues[0], 1e-6)), 0.2, 1.0))
    distances = reach * np.linspace(-1.6, 1.6, 17)
    z = mode.point + distances[:, None] * mode.directions[:, None]
    keys = jax.random.split(rng_key, num_simulations)
    found = np.array(hub_frequencies(jnp.asarray(z.reshape(-1, 2)), keys))
    found = found.reshape(2, len(distances), -1)
    found[((z < LOW) | (z > HIGH)).any(axis=-1)] = np.nan
    centre = found[:, len(distances) // 2].mean(axis=-1, keepdims=True)
    ends = np.isclose(np.abs(distances), reach)
    apart = np.abs(found[:, ends] - centre[:, None])
    root = num_simulations**0.5
    return Perturbation(
        mode,
        distances,
        found.mean(axis=-1),
        found.std(axis=-1) / root,
        reach,
        apart.mean(axis=(1, 2)),
        apart.std(axis=2).max(axis=1) / root,
    )


def synchrony(mode, rng_key, num_simulations=NUM_SIMULATIONS):
    """Mean frequencies of the five neurons at the mode, Hz, shape (5,)."""
    keys = jax.random.split(rng_key, num_simulations)
    traces = jax.jit(jax.vmap(stg.simulate, in_axes=(None, None, 0)))
    return np.asarray(stg.frequencies(traces(*mode.point, keys).v)).mean(axis=0)
