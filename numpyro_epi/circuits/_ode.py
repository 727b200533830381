# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Noise-free dynamics through diffrax: one call for all circuits."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import is_traced

from ._ranges import check_positive, real

if TYPE_CHECKING:
    import diffrax

# dy/dt as a function of t, y and arguments, as diffrax calls it.
VectorField = Callable[[Any, Any, Any], Any]


def check_times(times: Any) -> np.ndarray:
    """Increasing times, known beforehand, as float64 on the host."""
    if is_traced(times):
        raise TypeError(
            "Expected known numbers as `times`, got a traced array. Stretches of the "
            "simulation are cut at them."
        )
    if real("times", times).ndim != 1:
        raise ValueError(f"Expected a vector as `times`, got shape {np.shape(times)}.")
    array = np.asarray(times, np.float64)
    if not array.size or array[0] < 0 or not (np.diff(array) > 0).all():
        raise ValueError(
            "Expected times that start at zero or later and increase as `times`, got "
            f"{array.tolist()}."
        )
    return array


def solve(
    field: VectorField,
    stretches: list[tuple[float, Any]],
    start: jax.Array,
    times: np.ndarray,
    *,
    dt0: float | jax.Array,
    solver: "diffrax.AbstractSolver | None" = None,
    stepsize_controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    max_steps: int = 16**4,
) -> jax.Array:
    """Solve an ODE whose right-hand side may jump at known times.

    Each smooth stretch is solved on its own, so that no step crosses a jump.

    Args:
        field: Function of t, y and arguments. One of a module, not made anew for each
            call, is compiled once.
        stretches: (end, arguments of the field) of each smooth stretch, in order. The
            last one ends with the last of `times`.
        start: y at time zero.
        times: When to save, increasing, from `check_times`.
        dt0: (First) step size.
        solver: A diffrax solver. None is `diffrax.Tsit5()`.
        stepsize_controller: None keeps the steps at `dt0`.
        adjoint: How to differentiate. None is diffrax's default, reverse mode.
        max_steps: Bound on the steps of each stretch.

    Returns:
        y at `times`, of shape (T, *start.shape).
    """
    import diffrax

    check_positive("dt0", dt0)
    options = {
        "solver": solver or diffrax.Tsit5(),
        "stepsize_controller": stepsize_controller or diffrax.ConstantStepSize(),
        "adjoint": adjoint or diffrax.RecursiveCheckpointAdjoint(),
        "max_steps": max_steps,
    }
    state, begin, pieces = start, 0.0, []
    if times[0] == 0:
        pieces.append(start[None])
    for end, args in stretches:
        if end <= begin:
            continue
        inside = times[(times > begin) & (times <= end)]
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            t0=begin,
            t1=end,
            dt0=jnp.minimum(dt0, end - begin),
            y0=state,
            args=args,
            saveat=diffrax.SaveAt(ts=jnp.append(inside, end)),
            **options,
        ).ys
        pieces.append(found[:-1])
        state, begin = found[-1], end
    return jnp.concatenate(pieces)
