# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Primary visual cortex: whose noise makes excitatory rates fluctuate by 5 Hz?

Four populations, excitatory (E), parvalbumin (P), somatostatin (S) and vasoactive
intestinal peptide (V) neurons, form a stochastic stabilised supralinear network,

.. math:: \tau \dot x = -x + [W x + h + \epsilon]_+^2, \qquad
    d\epsilon_\alpha = -\frac{\epsilon_\alpha}{\tau_n} dt +
    \sqrt{\frac{2}{\tau_n}} \tilde\sigma_\alpha dB_\alpha, \qquad
    \tilde\sigma_\alpha = \sigma_\alpha \sqrt{1 + \tau / \tau_n}.

Rates x are in Hz, times in ms, and inputs h and noise levels sigma in sqrt(Hz). The
steps are those of Euler and Maruyama, with noise that scales with sqrt(dt):

.. math:: x \leftarrow x + \tfrac{dt}{\tau}(-x + [W x + h + \epsilon]_+^2), \qquad
    \epsilon \leftarrow \epsilon - \tfrac{dt}{\tau_n} \epsilon +
    \sqrt{2 dt / \tau_n}\, \tilde\sigma \xi.

References:
    Bittner et al., Interrogating theoretical models of neural computation with emergent
    property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 3 and Methods (eqs.
    68 to 86). Published noise levels are in other units: on the scale of the code,
    where rates are in 100 Hz, levels lie in [0, 0.005], and figures show them times
    100. Multiply code levels by 10, and displayed ones by 0.1, for those used here.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_epi.primitives import emergent_property

from . import _ode
from ._noise import simulation_key
from ._ranges import vector
from ._v1_constants import PAPER, POPULATIONS, V1Constants, check_constants, inputs
from ._v1_simulation import V1Paths, fluctuations, paths, temporal_std
from ._v1_theory import (
    gains,
    input_covariance,
    isn_coefficient,
    jacobian,
    linear_covariance,
    linear_std,
    noise_variances,
    steady_state,
)

if TYPE_CHECKING:
    import diffrax

__all__ = [
    "LABELS",
    "PAPER",
    "V1Constants",
    "V1Paths",
    "fluctuations",
    "gains",
    "input_covariance",
    "inputs",
    "isn_coefficient",
    "jacobian",
    "linear_covariance",
    "linear_std",
    "model",
    "noise_free",
    "noise_variances",
    "paths",
    "steady_state",
    "temporal_std",
]

# Names and units of latents and statistics in figures, for `plotting`.
LABELS = {
    "sigma[0]": (r"$\sigma_E$", r"$\sqrt{\mathrm{Hz}}$"),
    "sigma[1]": (r"$\sigma_P$", r"$\sqrt{\mathrm{Hz}}$"),
    "sigma[2]": (r"$\sigma_S$", r"$\sqrt{\mathrm{Hz}}$"),
    "sigma[3]": (r"$\sigma_V$", r"$\sqrt{\mathrm{Hz}}$"),
    "s_E": ("$s_E$", "Hz"),
}


def noise_free(
    times: ArrayLike,
    start: ArrayLike,
    *,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    solver: "diffrax.AbstractSolver | None" = None,
    dt0: float | None = None,
    stepsize_controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    max_steps: int = 16**4,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """Rates without noise, from an ODE solver of diffrax.

    With `solver=diffrax.Euler()` these are the steps of the paper.

    Args:
        times: When to save, ms, increasing, from 0 on, shape (T,). Known numbers.
        start: Rates of E, P, S, V at time zero, Hz, shape (4,).
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        solver: None is `diffrax.Tsit5()`.
        dt0: Step, or first step, ms. None is `constants.dt`.
        stepsize_controller: None keeps the step constant.
        adjoint: How to differentiate. None is diffrax's default, for reverse mode;
            forward mode needs `diffrax.ForwardMode()`.
        max_steps: The solver gives up after so many steps.
        constants: `V1Constants`.

    Returns:
        Rates, Hz, shape (T, 4).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> print(noise_free([200.0], [17.5, 17.5, 17.5, 17.5])[0].round(1))
        [45.9 54.  27.5 49.3]
    """
    drive = inputs(contrast, change, constants)
    rates = vector("start", start, POPULATIONS)
    if rates.ndim != 1:
        raise ValueError(f"Expected shape (4,) as `start`, got {rates.shape}.")
    saved = _ode.check_times(times)
    weights = jnp.asarray(constants.weights, rates.dtype)
    args = weights, drive.astype(rates.dtype), jnp.asarray(constants.tau, rates.dtype)
    return _ode.solve(
        _drift,
        [(float(saved[-1]), args)],
        rates,
        saved,
        dt0=constants.dt if dt0 is None else dt0,
        solver=solver,
        stepsize_controller=stepsize_controller,
        adjoint=adjoint,
        max_steps=max_steps,
    )


def model(
    mean: float = PAPER.mean,
    var: float | None = PAPER.var,
    *,
    contrast: ArrayLike | None = None,
    change: ArrayLike = 0.0,
    num_trials: int | None = None,
    rng_impl: str | None = None,
    constants: V1Constants = PAPER,
) -> jax.Array:
    """NumPyro model: noise that makes the E rate fluctuate by 5 Hz.

    Pass other targets through a run: `EPI(model).run(key, mean=10.0)`. The statistic is
    averaged over trials first, so that `var` is its variance over noise levels.

    Args:
        mean: Wanted mean of s_E, Hz.
        var: Its wanted variance, Hz^2, or None to constrain the mean only.
        contrast: Of the stimulus, from 0 to 1. None is that of the constants.
        change: Input added to each population, sqrt(Hz), shape (4,) or a number.
        num_trials: Independent trials. None is the number of the constants.
        rng_impl: Another generator for the noise, such as "unsafe_rbg". None gives each
            particle noise that depends on its own key only, and is faster on a CPU.
        constants: `V1Constants`.

    Returns:
        s_E, s_P, s_S, s_V, Hz, shape (4,). Sites: `sigma`, shape (4,), the noise levels
        of E, P, S, V, sqrt(Hz), and the emergent property `s_E`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.
        RuntimeError: If nothing supplies a random key.

    Example:
        >>> from numpyro.handlers import seed, trace
        >>> sites = trace(seed(model, jax.random.key(0))).get_trace(mean=10.0)
        >>> list(sites), sites["sigma"]["value"].shape
        (['sigma', 's_E'], (4,))
    """
    check_constants(constants)
    prior = dist.Uniform(0.0, constants.max_sigma).expand([4]).to_event(1)
    sigma = numpyro.sample("sigma", prior)
    stds = fluctuations(
        sigma,
        simulation_key(rng_impl),
        contrast=contrast,
        change=change,
        num_trials=num_trials,
        constants=constants,
    )
    emergent_property(stds[0], mean, var, name="s_E")
    return stds


def _drift(_: jax.Array, x: jax.Array, args: tuple[jax.Array, ...]) -> jax.Array:
    """Rate of change of x without noise, Hz / ms."""
    weights, drive, tau = args
    return (jnp.maximum(weights @ x + drive, 0.0) ** 2 - x) / tau
