# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Model arguments by value: what they are, in a digest, and private copies of them.

A compiled program has the arguments in it as constants. An array that is filled anew in
place would leave it as it was; and for as long as any such program lives, JAX takes the
array for unchanged in new ones too, because it knows constants by their identity. So a
run works on copies, and arguments are compared by what is in them.
"""

import copy
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import describe

# Objects inside of objects that are looked into.
MAX_DEPTH = 8
# Characters of a number or a word that a message shows.
MAX_SHOWN = 40
# Where an object lies in memory, as `repr` tells it, says nothing of its value.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

PLAIN = (bool, int, float, complex, str, bytes, type(None))
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, type, ModuleType)


class Argument(NamedTuple):
    """One argument of a model.

    Attributes:
        digest: Of its value: equal for equal ones, in another process too.
        shown: What a message says of it.
        is_given: Whether it was passed: false of defaults.
    """

    digest: str
    shown: str
    is_given: bool = True


class Arguments:
    """Arguments of a model as they were at one moment.

    Args:
        model: Whose arguments they are.
        args: Positional arguments.
        kwargs: Keyword arguments.
        last: What was known before: arrays of JAX, which cannot change, are not read
            twice.

    Attributes:
        by_name: Arguments by the names that the model gives them, defaults included.
        objects: Functions and other things that only their identity tells apart.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        last: "Arguments | None" = None,
    ) -> None:
        self.objects: list[Any] = []
        self._known: dict[int, tuple[Any, str]] = {} if last is None else last._known
        self._seen: dict[int, tuple[Any, str]] = {}
        self.by_name = {
            name: Argument(self._digest(value), shown(value), is_given)
            for name, (value, is_given) in named(model, args, kwargs).items()
        }
        self._known = self._seen

    def __eq__(self, other: object) -> bool:
        """Whether the values are the same, and the functions the same objects."""
        if not isinstance(other, Arguments) or self._digests != other._digests:
            return False
        first, second = self.objects, other.objects
        is_same = [a is b or _is_same_method(a, b) for a, b in zip(first, second)]  # noqa: B905
        return len(first) == len(second) and all(is_same)

    __hash__ = None  # type: ignore[assignment]

    @property
    def _digests(self) -> dict[str, str]:
        return {name: argument.digest for name, argument in self.by_name.items()}

    def _digest(self, value: Any) -> str:
        parts: list[str] = []
        self._visit(value, parts, 0, ())
        return _hash("\0".join(parts).encode())

    def _visit(
        self, value: Any, parts: list[str], depth: int, parents: tuple[int, ...]
    ) -> None:
        """Append what makes up a value, in an order that only the value decides."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        parts.append(kind)
        inner = (depth + 1, (*parents, id(value)))
        if isinstance(value, PLAIN):
            parts.append(repr(value))
        elif isinstance(value, jax.core.Tracer):
            parts.append(f"traced {id(value)}")
        elif isinstance(value, jax.Array):
            parts.append(self._jax_array(value))
        elif isinstance(value, np.ndarray) and value.dtype == object:
            parts.append(str(value.shape))
            for item in value.ravel():
                self._visit(item, parts, *inner)
        elif isinstance(value, (np.ndarray, np.generic)):
            parts.append(_array(np.asarray(value)))
        elif isinstance(value, FUNCTIONS):
            self.objects.append(value)
            parts.append(_name(value))
            for cell in self._cells(value, depth, parents):
                self._visit(content_of(cell), parts, *inner)
        elif depth >= MAX_DEPTH or id(value) in parents:  # a cycle, or too deep
            self.objects.append(value)
        elif isinstance(value, Mapping):
            for key in value:
                self._visit(key, parts, *inner)
                self._visit(value[key], parts, *inner)
        elif isinstance(value, (list, tuple)):
            parts.append(str(len(value)))
            for item in value:
                self._visit(item, parts, *inner)
        elif isinstance(value, (set, frozenset)):
            parts.append(repr(sorted(map(repr, value))))
        elif hasattr(value, "__array__"):  # a table of pandas, a series
            parts.append(_array(np.asarray(value)))
        elif not jax.tree_util.all_leaves([value]):  # a distribution, a module
            leaves, tree = jax.tree.flatten(value)
            parts.append(ADDRESS.sub("", str(tree)))
            for leaf in leaves:
                self._visit(leaf, parts, *inner)
        elif attributes_of(value):
            for name, item in sorted(attributes_of(value).items()):
                parts.append(name)
                self._visit(item, parts, *inner)
        else:
            text = repr(value)
            parts.append(ADDRESS.sub("", text))
            if ADDRESS.search(text):
                self.objects.append(value)

    @staticmethod
    def _cells(value: Any, depth: int, parents: tuple[int, ...]) -> tuple:
        """What a function has closed over, unless it is looked into already."""
        if depth >= MAX_DEPTH or id(value) in parents:
            return ()
        return getattr(value, "__closure__", None) or ()

    def _jax_array(self, value: jax.Array) -> str:
        """The digest of an array, read once while it lives."""
        if id(value) not in self._seen:
            known = self._known.get(id(value))
            digest = known[1] if known and known[0] is value else _jax_digest(value)
            self._seen[id(value)] = value, digest
        return self._seen[id(value)][1]


def named(
    model: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, tuple[Any, bool]]:
    """Arguments by the names of a model's parameters, and whether they were passed."""
    try:
        bound = inspect.signature(model).bind(*args, **kwargs)
    except (TypeError, ValueError):  # no signature; or wrong, which the model will say
        listed = {f"argument {i}": value for i, value in enumerate(args)}
        return {name: (value, True) for name, value in (listed | dict(kwargs)).items()}
    given = set(bound.arguments)
    bound.apply_defaults()
    return {name: (value, name in given) for name, value in bound.arguments.items()}


def private(value: Any) -> Any:
    """A copy of arguments that no one else can change, as far as arrays go."""
    return jax.tree.map(_private_leaf, value)


def shown(value: Any) -> str:
    """A number or word as it is, of anything else its kind."""
    if isinstance(value, PLAIN):
        text = repr(value)
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} array of shape {tuple(value.shape)}"
    return f"{type(value).__name__} object"


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes of an object that is neither a class nor a module."""
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                found[name] = getattr(value, name)
    return found


def _private_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return copy.deepcopy(leaf) if leaf.dtype == object else leaf.copy()
    if isinstance(leaf, (*PLAIN, *FUNCTIONS, np.generic, jax.Array)):
        return leaf
    if not _has_array(leaf, 0):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception as err:  # whatever the class raises: its arrays cannot be kept
        raise TypeError(
            f"Expected model arguments that can be copied, got {describe(leaf)}, which "
            "has arrays of NumPy that may be changed in place later, and whose copy "
            f"ends in {type(err).__name__}: {err}. Pass these arrays themselves, or "
            "keep them in it as arrays of JAX (`jax.numpy.asarray`)."
        ) from err


def _has_array(value: Any, depth: int) -> bool:
    """Whether an object holds arrays of NumPy, which may be filled anew."""
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        return not isinstance(value, (np.generic, jax.Array))
    if isinstance(value, (*PLAIN, *FUNCTIONS)) or depth >= MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = list(value)
    else:
        inner = list(attributes_of(value).values())
    return any(_has_array(item, depth + 1) for item in inner)


def content_of(cell: Any) -> Any:
    """What a cell of a closure holds; None if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def digest_of(array: np.ndarray) -> str:
    """Digest of one array."""
    return _hash(_array(array).encode())


def _name(value: Any) -> str:
    """The name of a function, a class or a module: what it does is not compared."""
    name = getattr(value, "__qualname__", value.__name__)
    return f"{getattr(value, '__module__', '')}.{name}"


def _is_same_method(first: Any, second: Any) -> bool:
    return isinstance(first, MethodType) and first == second


def _jax_digest(value: jax.Array) -> str:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(value))
        return f"{value.dtype} {_array(data)}"
    return _array(np.asarray(value))


def _array(value: np.ndarray) -> str:
    if value.dtype == object:
        return f"{value.shape} {[repr(item) for item in value.ravel()]}"
    data = np.ascontiguousarray(value)
    return f"{value.dtype} {value.shape} {_hash(data.tobytes())}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
