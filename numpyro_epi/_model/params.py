# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Sites of a model that NumPyro would train: `param` and `mutable`.

EPI trains none. A site whose value a handler inside supplies (`substitute`) is a
constant of the model. So is one on which neither a density nor a statistic depends, as
in a network whose weights are sample sites (`random_flax_module`): that is read off the
program. The others are refused.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from jax.extend.core import Literal
from numpyro.handlers import substitute
from numpyro.primitives import _PYRO_STACK, Messenger

from numpyro_epi._model.cost import inner_programs
from numpyro_epi._typing import Message, Model

TYPES = ("param", "mutable")
# How `numpyro.contrib.module` names the two sites of a network.
HALVES = {"params": "state", "state": "params"}


class untrained(Messenger):
    """Takes note of parameter sites whose value no handler inside supplies.

    Attributes:
        messages: Of the last run, by name.

    Args:
        fn: A model.
    """

    def __init__(self, fn: Model | None = None) -> None:
        super().__init__(fn)
        self.messages: dict[str, Message] = {}
        self._supplied: set[str] = set()

    def __enter__(self) -> None:
        super().__enter__()
        self.messages = {}
        self._supplied = set()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        halves = [k for k in self.messages if _other_half(k) in self._supplied]
        if exc_type is AssertionError and halves:
            names = sorted([halves[0], _other_half(halves[0])])
            raise ValueError(
                f"Expected values of both `{names[0]}` and `{names[1]}`, which a "
                f"network takes only together, got none of `{halves[0]}`. Fix them "
                f"with {_fix(names)}."
            ) from None

    def process_message(self, msg: Message) -> None:  # noqa: D102
        if msg["type"] not in TYPES:
            return
        if self._is_supplied(msg):
            self._supplied.add(msg["name"])
        else:
            self.messages[msg["name"]] = msg

    def _is_supplied(self, msg: Message) -> bool:
        if msg["type"] == "param":
            return msg["value"] is not None
        # Here NumPyro sets the value to the initial one before any handler sees it.
        if msg["value"] is not msg["args"][0]:
            return True
        inside = _PYRO_STACK[_PYRO_STACK.index(self) + 1 :]
        data = (h.data for h in inside if isinstance(h, substitute))
        return any(msg["name"] in values for values in data if values)


def check_untrained(problem: Any, messages: Mapping[str, Message]) -> None:
    """Refuse parameter sites on which densities or statistics depend.

    Args:
        problem: Of the model.
        messages: Of the sites whose value no handler supplies, after a run.

    Raises:
        ValueError: Naming the site.
    """
    if not messages:
        return
    wanted = _influential(problem, {k: msg["value"] for k, msg in messages.items()})
    if not wanted:
        return
    name = wanted[0]
    # A network takes its parameters and its state from a handler only together.
    together = [k for k in messages if k in (name, _other_half(name))]
    raise ValueError(
        f"Expected a model without parameters to train, got the "
        f"`{messages[name]['type']}` site `{name}`, whose value no handler supplies "
        f"and on which densities or statistics depend. Fix it with {_fix(together)}, "
        "or make it a `numpyro.sample` site with a prior."
    )


def _fix(names: Iterable[str]) -> str:
    """The call that gives sites their values."""
    words = (k.rsplit("$", 1)[1] if "$" in k else "value" for k in names)
    data = ", ".join(f"'{k}': {word}" for k, word in zip(names, words, strict=True))
    return f"`numpyro.handlers.substitute(model, {{{data}}})`"


def _other_half(name: str) -> str:
    """The site that a network has beside its parameters, or beside its state."""
    stem, _, half = name.rpartition("$")
    return f"{stem}${HALVES.get(half, half)}"


class _Sites(NamedTuple):
    """Values of sites, taken apart.

    Attributes:
        names: Of the site of each array.
        arrays: Shapes and types of the arrays in all values.
        leaves: All leaves; None where an array belongs.
        tree: What puts them together.
    """

    names: list[str]
    arrays: list[jax.ShapeDtypeStruct]
    leaves: list[Any]
    tree: Any

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "_Sites":
        names, arrays, kept = [], [], []
        leaves, tree = jax.tree.flatten(dict(values))
        owners = [k for k in sorted(values) for _ in jax.tree.leaves(values[k])]
        for name, leaf in zip(owners, leaves, strict=True):
            is_array = isinstance(leaf, jax.core.Tracer) or _is_number(leaf)
            if is_array:
                names.append(name)
                arrays.append(jax.ShapeDtypeStruct(jnp.shape(leaf), _dtype(leaf)))
            kept.append(None if is_array else leaf)
        return cls(names, arrays, kept, tree)

    def join(self, arrays: Iterable[Any]) -> dict[str, Any]:
        rest = iter(arrays)
        both = [next(rest) if leaf is None else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, both)


def _influential(problem: Any, values: Mapping[str, Any]) -> list[str]:
    """Names of the sites on whose values the outputs of a simulation depend."""
    sites = _Sites.of(values)

    def simulate(arrays: list[Any], u: jax.Array, rng_key: jax.Array) -> Any:
        other = copy.copy(problem)
        other.model = substitute(problem.model, data=sites.join(arrays))
        return other.simulate(u, rng_key)

    u = jnp.zeros(problem.num_latents)
    jaxpr = jax.make_jaxpr(simulate)(sites.arrays, u, random.key(0)).jaxpr
    used = used_inputs(jaxpr, [True] * len(jaxpr.outvars))
    found = {k for k, is_used in zip(sites.names, used, strict=False) if is_used}
    return [name for name in values if name in found]


def used_inputs(jaxpr: Any, used_outputs: list[bool]) -> list[bool]:
    """Which inputs of a program the used ones of its outputs depend on.

    Errs on the side of dependence: in loops and branches everything depends on all.
    """
    pairs = zip(jaxpr.outvars, used_outputs, strict=True)
    live = {v for v, is_used in pairs if is_used and not isinstance(v, Literal)}
    for equation in reversed(jaxpr.eqns):
        outputs = [v in live for v in equation.outvars]
        if not any(outputs):
            continue
        inside = list(inner_programs(equation))
        inputs = [True] * len(equation.invars)
        is_call = equation.primitive.name in ("jit", "pjit", "closed_call", "remat2")
        if is_call and len(inside) == 1:
            inputs = used_inputs(inside[0], outputs)
        args = zip(equation.invars, inputs, strict=True)
        live |= {v for v, is_used in args if is_used and not isinstance(v, Literal)}
    return [v in live for v in jaxpr.invars]


def _is_number(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
