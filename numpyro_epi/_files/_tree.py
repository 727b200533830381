# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results and states as plain arrays and JSON: nothing is pickled or run.

A value is a leaf of JSON, or a list whose first item says what it is. Records are those
of this package that `RECORDS` lists, by name; the state of an optimiser, whose records
are anybody's, is stored as its leaves.
"""

from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._draws import EPIDraws
from numpyro_epi._files._format import Arrays, flatten
from numpyro_epi._math.constraints import ConstraintTable, Targets
from numpyro_epi._math.dependence import Relation
from numpyro_epi._restart import EPIHistory, EPIRestart
from numpyro_epi._solver.by_chains import ChainsState, Retrace
from numpyro_epi._solver.by_importance import Verdict
from numpyro_epi._solver.draws import Draws
from numpyro_epi._solver.law import Law
from numpyro_epi._solver.particles import ParticleState
from numpyro_epi._solver.path import Position
from numpyro_epi._solver.population import PopulationState
from numpyro_epi._solver.proposal import DefensiveMixture, LocalMixture
from numpyro_epi._solver.search import Search
from numpyro_epi._train.agreement import Findings
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.failures import Failures
from numpyro_epi._train.options import PublishedSchedule
from numpyro_epi._train.pilot import GradientHealth
from numpyro_epi._train.plateau import Plateau
from numpyro_epi._train.published import Published
from numpyro_epi._train.records import EpochRecord, RunOutcome, Scores
from numpyro_epi._train.replay import Replay
from numpyro_epi._train.simulations import Ledger
from numpyro_epi._train.solver import EPIState
from numpyro_epi._train.state import GuideState, Memory, PoolDraws
from numpyro_epi._train.status import EPIStatus, SeenRange
from numpyro_epi._train.steer import Steering, Way
from numpyro_epi._train.training import Training
from numpyro_epi.guides._mixture import Components
from numpyro_epi.law import EPILaw

RECORDS = {
    record.__name__: record
    for record in (
        ChainsState, Components, ConstraintTable, DefensiveMixture, Draws, EPIDraws,
        EPIHistory, EPILaw, EPIRestart, EPIState, EpochRecord, Evaluation, Failures,
        Findings, GradientHealth, GuideState, Law, Ledger, LocalMixture, Memory,
        ParticleState, Plateau, PoolDraws, PopulationState, Position, Published,
        PublishedSchedule, Relation, Replay, Steering, Way,
        Retrace, RunOutcome, Scores, Search, SeenRange, Targets, Training, Verdict,
    )
}  # fmt: skip
# The field of a guide's state whose records are those of an optimiser.
OPTIMISER = "optim_state"


class OptimiserError(ValueError):
    """The state in a file is that of another optimiser, as the message says."""


class Packer:
    """Turns values into JSON, and collects their arrays.

    Attributes:
        arrays: so far, by name.
    """

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self._names: dict[int, str] = {}
        # For as long as they are kept no other array has their identity.
        self._kept: list[Any] = []

    def pack(self, value: Any, path: str = "") -> Any:
        """A value in JSON; its arrays are named by where they are in it."""
        if isinstance(value, EPIStatus):
            return ["status", str(value)]
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float) and not isinstance(value, np.generic):
            return value
        if isinstance(value, np.dtype):
            return ["dtype", str(value)]
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            return self._array(value, path)
        if isinstance(value, dict):
            parts = [[k, self.pack(v, _join(path, k))] for k, v in value.items()]
            return ["dict", *parts]
        name = type(value).__name__
        if RECORDS.get(name) is type(value):
            return ["record", name, *self._record(value, path)]
        if type(value) in (list, tuple):
            parts = [self.pack(x, _join(path, str(i))) for i, x in enumerate(value)]
            return [name, *parts]
        is_ours = type(value).__module__.startswith(__package__.split(".")[0])
        if is_ours or jax.tree.leaves(value) == [value]:
            raise TypeError(f"A state has a {name}, which no file can hold.")
        # Parameters of a network, say, in records of its own.
        return ["params", self.pack(flatten(value), path)]

    def _record(self, value: Any, path: str) -> list:
        packed = []
        for field in field_names(type(value)):
            part = getattr(value, field)
            if field == OPTIMISER:
                part = flatten(part)
            packed.append([field, self.pack(part, _join(path, field))])
        return packed

    def _array(self, value: Any, path: str) -> list:
        """What an array is; arrays that are the same object are stored once."""
        kind = "numpy"
        if isinstance(value, np.generic):
            kind = "scalar"
        elif isinstance(value, jax.Array):
            kind = "jax"
        name = self._names.get(id(value))
        dtype, impl = str(value.dtype), ""
        data = value
        if kind == "jax" and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            dtype, impl = "key", str(jax.random.key_impl(value))
            data = jax.random.key_data(value)
        if name is None:
            name = path
            if name in self.arrays or not name.isprintable():
                name = f"array {len(self.arrays)}"
            self.arrays[name] = np.asarray(data)
            self._names[id(value)] = name
            self._kept.append(value)
        return ["array", kind, name, dtype, impl]


class Unpacker:
    """Turns JSON and arrays into the values that they were.

    Args:
        arrays: by name.
        engine: of the run; knows the records of its optimiser.
    """

    def __init__(self, arrays: Arrays, engine: Engine) -> None:
        self.arrays = arrays
        self.engine = engine
        self._made: dict[str, Any] = {}

    def unpack(self, spec: Any) -> Any:
        """A value; what is not one raises a ValueError, KeyError or TypeError."""
        if not isinstance(spec, list):
            if isinstance(spec, dict):
                raise TypeError("an object of JSON")
            return spec
        kind, *parts = spec
        match kind:
            case "status":
                return EPIStatus(*parts)
            case "dtype":
                return np.dtype(*parts)
            case "array":
                return self._array(*parts)
            case "dict":
                return {key: self.unpack(value) for key, value in parts}
            case "list":
                return [self.unpack(part) for part in parts]
            case "tuple":
                return tuple(self.unpack(part) for part in parts)
            case "params":
                keys = jax.random.split(jax.random.key(0), 1)
                tree = jax.eval_shape(self.engine.init_params, keys)
                leaves = self.unpack(parts[0])
                if list(leaves) != list(flatten(tree)):
                    raise ValueError("parameters of another guide")
                return jax.tree.unflatten(jax.tree.structure(tree), leaves.values())
            case "record":
                return self._record(*parts)
        raise ValueError(f"a {kind!r}")

    def _record(self, name: str, *parts: list) -> Any:
        record = RECORDS[name]
        values = {field: self.unpack(part) for field, part in parts}
        if list(values) != field_names(record):
            raise ValueError(f"a {name} with other fields")
        if OPTIMISER in values:
            values[OPTIMISER] = self._optimiser(values["params"], values[OPTIMISER])
        return record(**values)

    def _optimiser(self, params: Any, leaves: dict[str, Any]) -> Any:
        """The state of the optimiser of these parameters."""
        try:
            tree = jax.eval_shape(self.engine.init_optim, params)
        except (ValueError, KeyError, TypeError) as err:
            raise OptimiserError(f"parameters that {err!r} is said of") from err
        for name in [*leaves, *flatten(tree)]:
            shown = [
                f"{x[name].shape}, {x[name].dtype}" if name in x else "none"
                for x in (leaves, flatten(tree))
            ]
            if shown[0] != shown[1]:
                raise OptimiserError(
                    f"{shown[0]} at `.{OPTIMISER}{name}`, got {shown[1]}"
                )
        return jax.tree.unflatten(jax.tree.structure(tree), leaves.values())

    def _array(self, kind: str, name: str, dtype: str, impl: str) -> Any:
        known = f"{kind} {name}"
        if known not in self._made:
            self._made[known] = self._make(kind, self.arrays[name], dtype, impl)
        return self._made[known]

    def _make(self, kind: str, data: np.ndarray, dtype: str, impl: str) -> Any:
        if dtype == "key":
            return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
        data = data.view(jnp.dtype(dtype))
        if kind == "jax":
            return jnp.asarray(data)
        return data[()] if kind == "scalar" else data


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def field_names(record: Any) -> list[str]:
    """Of a record, in order."""
    if is_dataclass(record):
        return [field.name for field in fields(record)]
    return list(record._fields)
