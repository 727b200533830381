# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What of a program depends on one of its inputs? Read off it; nothing runs.

Loops and branches are taken as a whole: what comes out of one counts as dependent as
soon as anything dependent goes in.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from numpyro_epi._model.cost import inner_programs

WHOLE = {"scan", "while", "cond"}


def depends_on_last(fn: Callable, *args: Any) -> Any:
    """For each output of `fn(*args)`, whether it depends on the last argument."""
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    num = len(jax.tree.leaves(args[-1]))
    given = len(program.jaxpr.invars)
    depends = _spread(program.jaxpr, [i >= given - num for i in range(given)])
    return jax.tree.unflatten(jax.tree.structure(shapes), depends)


def _spread(program: Any, depends: Sequence[bool]) -> list[bool]:
    """Dependence of the outputs of a program on some of its inputs."""
    found = {v for v, is_so in zip(program.invars, depends, strict=True) if is_so}
    for equation in program.eqns:
        # Literals are neither hashable nor dependent.
        into = [not hasattr(v, "val") and v in found for v in equation.invars]
        if not any(into):
            continue
        out = [True] * len(equation.outvars)
        inner = list(inner_programs(equation))
        if equation.primitive.name not in WHOLE and len(inner) == 1:
            is_same = len(inner[0].invars) == len(into)
            if is_same and len(inner[0].outvars) == len(out):
                out = _spread(inner[0], into)
        found |= {v for v, is_so in zip(equation.outvars, out, strict=True) if is_so}
    return [not hasattr(v, "val") and v in found for v in program.outvars]
