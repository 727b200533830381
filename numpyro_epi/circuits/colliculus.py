# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Superior colliculus: which connections let it switch between two tasks?

In the Pro task an animal turns towards a light, in the Anti task away from it. Four
units, left and right, Pro and Anti (LP, LA, RP, RA), obey

.. math:: \tau \dot u = -u + W x + h(t) + \mathrm{noise}, \qquad
    x = \phi(u) = \tfrac12 + \tfrac12 \tanh \frac{u - a}{b},

with connections of four strengths: of a unit onto itself (sW), between both tasks on
one side (vW, vertical), between both sides for one task (hW, horizontal), and across
(dW, diagonal). The latents are z = (sW, vW, hW, dW). Times are in s, all else is
dimensionless. The steps are those of Euler, with the input at the end of a step and
with noise that is an input like any other, not scaled with sqrt(dt):

.. math:: u_i = u_{i-1} +
    \tfrac{dt}{\tau} (-u_{i-1} + W x_{i-1} + h(t_i) + \sigma \xi_i).

References:
    Bittner et al., Interrogating theoretical models of neural computation with emergent
    property inference, eLife 2021, doi:10.7554/eLife.56265, Figures 4 and 5 and Methods
    (eqs. 87 to 110). The published code orders units LP, LA, RA, RP and latents sW, vW,
    dW, hW. The model was made by Duan and others, who are cited there.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_epi._checks import describe, is_traced
from numpyro_epi.primitives import emergent_property

from . import _ode
from ._colliculus_constants import (
    PAPER,
    ColliculusConstants,
    activation,
    check_constants,
    check_silencing,
    eigenvalues,
    from_eigenvalues,
    input_of,
    inputs,
    weights,
)
from ._colliculus_simulation import (
    ColliculusPaths,
    accuracies,
    first_drive,
    paths,
    soft_accuracy,
)
from ._noise import simulation_key
from ._ranges import vector

if TYPE_CHECKING:
    import diffrax

__all__ = [
    "LABELS",
    "PAPER",
    "ColliculusConstants",
    "ColliculusPaths",
    "accuracies",
    "activation",
    "eigenvalues",
    "from_eigenvalues",
    "inputs",
    "model",
    "noise_free",
    "paths",
    "soft_accuracy",
    "weights",
]


# When inputs or silencing change.
JUMPS = ("rule_end", "light_end", "silencing_start", "silencing_end")

# Names and units of latents and statistics in figures, for `plotting`.
LABELS = {
    "z[0]": ("sW (self)", ""),
    "z[1]": ("vW (same side)", ""),
    "z[2]": ("hW (same task)", ""),
    "z[3]": ("dW (diagonal)", ""),
    "pro_accuracy": ("Pro accuracy", ""),
    "anti_accuracy": ("Anti accuracy", ""),
    "silencing": (r"share of activity silenced, $\gamma$", ""),
}


def noise_free(
    z: ArrayLike,
    times: ArrayLike,
    start: ArrayLike | None = None,
    *,
    silencing: ArrayLike = 0.0,
    solver: "diffrax.AbstractSolver | None" = None,
    dt0: float | None = None,
    stepsize_controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    max_steps: int = 16**4,
    constants: ColliculusConstants = PAPER,
) -> jax.Array:
    """Activity without noise, from an ODE solver of diffrax.

    Inputs jump at known times. No step crosses a jump.

    Args:
        z: sW, vW, hW, dW, shape (4,).
        times: When to save, s, increasing, from 0 on, shape (T,). Known numbers.
        start: u at time zero, shape (4,) or (2, 4). None is the mean of the paper's.
        silencing: gamma, from 0 to 1.
        solver: None is `diffrax.Tsit5()`.
        dt0: Step, or first step, s. None is `constants.dt`.
        stepsize_controller: None keeps the step constant.
        adjoint: How to differentiate. None is diffrax's default, for reverse mode;
            forward mode needs `diffrax.ForwardMode()`.
        max_steps: The solver gives up after so many steps between two jumps.
        constants: `ColliculusConstants`.

    Returns:
        x, shape (T, 2, 4): times by tasks (Pro, Anti) by units (LP, LA, RP, RA).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.

    Example:
        >>> found = noise_free([0.75, -3.5, -1.6, -1.4], [0.0, 1.8])
        >>> found.shape
        (2, 2, 4)
    """
    check_constants(constants)
    matrix, share = weights(z), check_silencing(silencing)
    if matrix.ndim != 2:
        raise ValueError(f"Expected shape (4,) as `z`, got {jnp.shape(z)}.")
    if start is None:
        start = jnp.full(4, first_drive(constants.start, constants))
    u = jnp.broadcast_to(vector("start", start, "LP LA RP RA"), (2, 4))
    u = u.astype(matrix.dtype)
    saved = _ode.check_times(times)

    def gate(t: float) -> jax.Array:
        is_on = constants.silencing_start <= t <= constants.silencing_end
        return 1.0 - share.astype(u.dtype) * is_on

    def args_at(t: float) -> tuple[Any, ...]:
        before, lit = t < constants.rule_end, t < constants.light_end
        h = input_of(constants, before=before, after=not before, is_lit=lit > before)
        return matrix, h.astype(u.dtype), gate(t), constants

    jumps = {float(getattr(constants, name)) for name in JUMPS}
    last = float(saved[-1])
    ends = [*sorted(t for t in jumps if 0 < t < last), last]
    begins = [0.0, *ends[:-1]]
    drives = _ode.solve(
        _drift,
        [(b, args_at(0.5 * (a + b))) for a, b in zip(begins, ends, strict=True)],
        u,
        saved,
        dt0=constants.dt if dt0 is None else dt0,
        solver=solver,
        stepsize_controller=stepsize_controller,
        adjoint=adjoint,
        max_steps=max_steps,
    )
    gates = jnp.stack([gate(t) for t in saved])[:, None, None]
    return gates * activation(drives, constants).astype(u.dtype)


def model(
    mean: Any = PAPER.mean,
    var: Any = PAPER.var,
    *,
    silencing: ArrayLike = 0.0,
    num_trials: int | None = None,
    rng_impl: str | None = None,
    constants: ColliculusConstants = PAPER,
) -> jax.Array:
    """NumPyro model: connections that solve both tasks in 75% of the trials.

    Pass other targets through a run: `EPI(model).run(key, mean=(0.9, 0.75))`. Each
    accuracy is averaged over trials first, so that `var` is its variance over
    connections.

    Args:
        mean: Wanted mean accuracies in the Pro and the Anti task, from 0 to 1.
        var: Wanted variances of both, or None to constrain the means only.
        silencing: gamma, from 0 to 1, late in the delay.
        num_trials: Independent trials for each task. None is the number of the
            constants.
        rng_impl: Another generator for the noise, such as "unsafe_rbg". None gives each
            particle noise that depends on its own key only, and is faster on a CPU.
        constants: `ColliculusConstants`.

    Returns:
        Accuracies in the Pro and the Anti task, shape (2,). Sites: `z`, shape (4,),
        with sW, vW, hW, dW, and the emergent properties `pro_accuracy` and
        `anti_accuracy`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong shape or value.
        RuntimeError: If nothing supplies a random key.

    Example:
        >>> from numpyro.handlers import seed, trace
        >>> sites = trace(seed(model, jax.random.key(0))).get_trace()
        >>> list(sites), sites["z"]["value"].shape
        (['z', 'pro_accuracy', 'anti_accuracy'], (4,))
    """
    check_constants(constants)
    means = _pair("mean", mean)
    variances = (None, None) if var is None else _pair("var", var)
    prior = dist.Uniform(-constants.bound, constants.bound).expand([4]).to_event(1)
    z = numpyro.sample("z", prior)
    found = accuracies(
        z,
        simulation_key(rng_impl),
        silencing=silencing,
        num_trials=num_trials,
        constants=constants,
    )
    emergent_property(found[0], means[0], variances[0], name="pro_accuracy")
    emergent_property(found[1], means[1], variances[1], name="anti_accuracy")
    return found


def _pair(name: str, value: Any) -> Any:
    """Targets of both tasks; what they are is checked by the primitive."""
    if np.shape(value) != (2,):
        raise ValueError(
            f"Expected two numbers as `{name}`, of the Pro and of the Anti task, got "
            f"{describe(value)}."
        )
    return value if is_traced(value) else np.asarray(value)


def _drift(_: jax.Array, u: jax.Array, args: tuple[Any, ...]) -> jax.Array:
    """Rate of change of u without noise, 1 / s."""
    matrix, h, gate, constants = args
    x = gate * activation(u, constants).astype(u.dtype)
    return ((x @ matrix.T + h - u) / constants.tau).astype(u.dtype)
