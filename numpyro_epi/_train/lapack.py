# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Whether batches of LAPACK calls of a model may wait for each other for ever.

On a CPU jaxlib 0.10 cuts a batch of matrices into tasks for a pool of workers, and the
worker that came upon the batch waits for them (`ParallelBatchMap` in its
`jaxlib/cpu/lapack_kernels.cc`). With as many batches at once as there are workers, none
is left for the tasks, and the program never ends: two independent solves will do where
there are two cores. Nothing in a program can prevent it, more workers can.
"""

import math
import os
import warnings
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax import random, vmap

from numpyro_epi._model.cost import inner_programs
from numpyro_epi._model.problem import Problem

# Operations of each call, as multiples of rows x columns x the smaller of them.
LAPACK = {
    "cholesky": 0.33,
    "lu": 1.0,
    "triangular_solve": 1.0,
    "qr": 2.0,
    "geqrf": 2.0,
    "eigh": 10.0,
    "svd": 10.0,
    "eig": 10.0,
    "schur": 10.0,
}
# Batches of fewer operations are not cut into tasks.
MIN_OPERATIONS = 200_000


def warn_of_deadlock(problem: Problem, num_particles: int) -> None:
    """Warn if the simulations of a batch may hang.

    Args:
        problem: the model.
        num_particles: simulations that run side by side.
    """
    if jax.default_backend() != "cpu":
        return
    num_workers = count_workers()
    shape = (num_particles, problem.num_latents)
    u = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    keys = jax.eval_shape(lambda: random.split(random.key(0), num_particles))
    found = calls_at_once(jax.make_jaxpr(vmap(problem.simulate))(u, keys).jaxpr)
    if num_workers > 1 and found >= num_workers:
        warnings.warn(
            f"The model calls LAPACK for {found} batches of matrices that do not need "
            f"each other, and JAX has {num_workers} workers on this CPU. jaxlib 0.10 "
            "may then wait for ever, without a message. Give it more workers: set the "
            f"environment variable NPROC={max(16, 2 * found)} before Python starts.",
            RuntimeWarning,
            stacklevel=5,
        )


def count_workers() -> int:
    """Workers that JAX has on a CPU: one a core, or what the environment says."""
    try:
        num = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        num = os.cpu_count() or 1
    for name in ("NPROC", "PJRT_NPROC"):
        value = os.environ.get(name, "")
        num = int(value) if value.isdigit() else num
    return num


def calls_at_once(jaxpr: Any) -> int:
    """The most batches of LAPACK calls of which none needs the result of another.

    Calls are sorted by how many others come before them; those with the same number do
    not need each other. Programs inside of others count as one step.
    """
    counts: Counter[int] = Counter()
    _count_calls(jaxpr, 0, counts)
    return max(counts.values(), default=0)


def _count_calls(jaxpr: Any, start: int, counts: Counter[int]) -> int:
    """Count calls by their depth, of a program at depth `start`; how deep it goes."""
    depths: dict[Any, int] = {}
    deepest = start
    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not hasattr(v, "val")]
        depth = max([depths.get(v, start) for v in variables], default=start)
        if equation.primitive.name == "custom_linear_solve":
            # The other three programs are for derivatives.
            depth = _count_calls(equation.params["jaxprs"].solve.jaxpr, depth, counts)
        elif inner := list(inner_programs(equation)):
            depth = max(_count_calls(program, depth, counts) for program in inner)
        elif _is_cut(equation):
            counts[depth] += 1
            depth += 1
        depths.update({v: depth for v in equation.outvars})
        deepest = max(deepest, depth)
    return deepest


def _is_cut(equation: Any) -> bool:
    """Whether a call of LAPACK is for several matrices, and enough work for tasks."""
    factor = LAPACK.get(equation.primitive.name)
    if factor is None:
        return False
    *batch, rows, columns = equation.invars[-1].aval.shape
    least = (
        rows if equation.primitive.name == "triangular_solve" else min(rows, columns)
    )
    num = math.prod(batch)
    return num > 1 and num * factor * rows * columns * least >= MIN_OPERATIONS
