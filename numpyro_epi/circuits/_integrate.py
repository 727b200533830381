# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Two ways through time: the fixed steps of a paper, and an accurate solver.

What one step does, and so the noise convention, is left to the circuits.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike

if TYPE_CHECKING:
    import diffrax

# Noise is drawn for this many steps at once. More is faster and takes more memory.
BLOCK = 25

# (carry, index of the step, standard normal noise or None) -> (carry, output)
Step = Callable[[Any, jax.Array, jax.Array | None], tuple[Any, Any]]


def scan_steps(
    step: Step,
    carry: Any,
    num_steps: int,
    *,
    rng_key: jax.Array | None = None,
    noise_shape: tuple[int, ...] = (),
    dtype: Any = None,
) -> tuple[Any, Any]:
    """Apply a step again and again, with fresh standard normal noise each time.

    Args:
        step: Takes the carry, the index of the step and its noise of `noise_shape`, and
            returns the new carry and an output, or None.
        carry: What goes into the first step.
        num_steps: How many, at least one.
        rng_key: Key of the noise. None hands None to each step.
        noise_shape: Shape of the noise of one step.
        dtype: Its type.

    Returns:
        The last carry, and the outputs with a leading axis of steps.

    Notes:
        Noise is drawn in blocks of 25 steps, so that without outputs the memory does
        not depend on the number of steps, also in forward mode. Reverse mode keeps one
        carry for each block and goes through the block again.
    """

    def block(carry: Any, first: jax.Array, size: int) -> tuple[Any, Any]:
        noise = None
        if rng_key is not None:
            key = random.fold_in(rng_key, first)
            noise = random.normal(key, (size, *noise_shape), dtype)
        steps = (first + jnp.arange(size), noise)
        return lax.scan(lambda c, x: step(c, *x), carry, steps)

    num_blocks, rest = divmod(num_steps, BLOCK)
    starts, outputs = jnp.arange(num_blocks) * BLOCK, []
    if num_blocks:
        full = jax.checkpoint(partial(block, size=BLOCK), prevent_cse=False)
        carry, parts = lax.scan(full, carry, starts)
        outputs.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts))
    if rest:
        carry, tail = block(carry, jnp.asarray(num_blocks * BLOCK), rest)
        outputs.append(tail)
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)


def solve_ode(
    drift: Callable[[Any], Any],
    start: Any,
    times: jax.Array,
    *,
    solver: "diffrax.AbstractSolver | None" = None,
    dt0: ArrayLike | None = None,
    stepsize_controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    max_steps: int | None = 100_000,
    tolerance: float = 1e-5,
) -> Any:
    """Solve dy/dt = drift(y) with diffrax.

    Args:
        drift: Of a state, a tree of arrays.
        start: State at time zero.
        times: When to look, shape (T,), ascending, at least zero, in the unit of time
            of `drift`.
        solver: Default `diffrax.Tsit5()`.
        dt0: Size of the first step. Without a controller, that of all steps.
        stepsize_controller: Default: constant steps if `dt0` is given, otherwise
            `diffrax.PIDController` with relative and absolute tolerance `tolerance`.
        adjoint: How to differentiate. Default `diffrax.RecursiveCheckpointAdjoint()`,
            for reverse mode; `diffrax.ForwardMode()` for forward mode.
        max_steps: More are an error. Reverse mode keeps memory for their logarithm.
        tolerance: Of the default controller.

    Returns:
        States at `times`, with a leading axis (T,).
    """
    import diffrax

    if stepsize_controller is None:
        stepsize_controller = (
            diffrax.PIDController(rtol=tolerance, atol=tolerance)
            if dt0 is None
            else diffrax.ConstantStepSize()
        )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: drift(y)),
        diffrax.Tsit5() if solver is None else solver,
        t0=jnp.zeros_like(times[-1]),
        t1=times[-1],
        dt0=dt0,
        y0=start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=stepsize_controller,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=max_steps,
    )
    return solution.ys
