# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which derivatives has a program? Asked of JAX, which lowers it and runs nothing.

Not every program has both kinds. A loop whose length the data decide has no reverse
mode; a rule for reverse mode alone (`jax.custom_vjp`), as the default adjoint of
diffrax is, has no forward mode; what leaves JAX has neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import vmap

# How JAX says that a derivative does not exist: a rule for reverse mode alone, a loop
# or a callback, a missing rule. They are common errors, so the program itself is traced
# first, in a batch: what it raises without derivatives is its own.
REFUSALS = (TypeError, ValueError, NotImplementedError)


class Derivatives(NamedTuple):
    """Why a derivative does not exist; None where it does.

    Attributes:
        forward: of forward mode.
        reverse: of reverse mode.
    """

    forward: str | None
    reverse: str | None

    @classmethod
    def of(cls, fn: Callable[[jax.Array], Any], x: jax.Array) -> "Derivatives":
        """Those of a function of x to a tree of numbers.

        Of a batch, as all simulations are: there JAX may refuse what it lets pass for
        one x, such as a solver of diffrax of which the result uses no more than the
        news whether it was successful. Errors of `fn` without derivatives are raised.
        """
        jax.eval_shape(vmap(fn), x[None])

        def total(x: jax.Array) -> jax.Array:
            return sum(leaf.sum() for leaf in jax.tree.leaves(fn(x)))

        return cls(
            _refusal(vmap(lambda x: jax.jvp(fn, (x,), (x,))), x[None]),
            _refusal(vmap(jax.grad(total)), x[None]),
        )

    @property
    def has_any(self) -> bool:
        """Whether one of them exists."""
        return self.forward is None or self.reverse is None

    def reason_against(self, mode: str) -> str | None:
        """Why "forward" or "reverse" mode does not exist."""
        return getattr(self, mode)

    def check(self, mode: str, *, option: str) -> None:
        """Refuse a mode that a user has asked for and that does not exist."""
        reason = self.reason_against(mode)
        if reason is None:
            return
        other = "reverse" if mode == "forward" else "forward"
        fix = "`score`, which needs no derivative"
        if self.reason_against(other) is None:
            fix = f"`{other}`, or `auto`, which finds out"
        raise ValueError(
            f"Expected a model with derivatives in {mode} mode for `{option}='{mode}'`,"
            f" but JAX refuses them: {reason} Use {fix}. (A solver of diffrax has "
            "forward mode with `adjoint=diffrax.ForwardMode()`, and reverse mode with "
            "its default.)"
        )


def exists(fn: Callable[[jax.Array], Any], x: jax.Array) -> bool:
    """Whether JAX accepts a function that takes derivatives of a program."""
    return _refusal(fn, x) is None


def _refusal(fn: Callable[[jax.Array], Any], x: jax.Array) -> str | None:
    try:
        # Tracing alone lets pass what has no forward mode.
        jax.jit(fn).lower(x)
    except REFUSALS as err:
        first = str(err).strip().splitlines() or [type(err).__name__]
        return first[0].strip().rstrip(".") + "."
    return None
