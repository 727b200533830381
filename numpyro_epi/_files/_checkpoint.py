# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The state of a run on disk, from which it goes on as if it had never stopped."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from numpyro_epi._files import _archive
from numpyro_epi._files._format import is_x64, package_version
from numpyro_epi._files._tree import Packer, Unpacker
from numpyro_epi._files._writing import has_own_optim, pack_arguments, pack_options
from numpyro_epi._model.arguments import ADDRESS
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.solver import EPIState

FORMAT = "numpyro_epi checkpoint"
# Raise it when a file of the previous version could be misread.
VERSION = 1
# Share of a run's time that writing may take.
MAX_SHARE = 0.05
# Options that change nothing of what a run finds; a mesh changes only rounding.
FREE = ("progress_bar", "mesh")


class Checkpoint:
    """A file with the state of one run.

    Args:
        path: of the file.
        engine: of the run.
        rng_key: of the run.
    """

    def __init__(self, path: Path, engine: Engine, rng_key: jax.Array) -> None:
        self.path = path.absolute()
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise ValueError(
                f"Expected the path of a file in a folder that exists as `checkpoint`, "
                f"got `{path}`. Make the folder, or pass another path."
            )
        self.engine = engine
        self._identity = identity(engine, rng_key)
        self._earliest = 0.0

    def read(self) -> EPIState | None:
        """The state in the file, or None if there is no file.

        Raises:
            ValueError: if the file is no checkpoint, or damaged, or of another run; the
                message names what differs.
        """
        if not self.path.exists():
            return None
        foreign = f"Expected a checkpoint of a run, got `{self.path}`, which is not one"
        fix = "Pass another path as `checkpoint`, or delete the file to start anew."
        try:
            header, arrays = _archive.read(self.path)
            found, version, state = (header[k] for k in ("format", "version", "state"))
            of_file = dict(header["identity"])
            written_by = str(header["package_version"])
        except _archive.DAMAGE as err:
            raise ValueError(f"{foreign}, or is damaged: {err}. {fix}") from err
        if found != FORMAT:
            raise ValueError(f"{foreign}: its format is {found!r}. {fix}")
        if version != VERSION:
            raise ValueError(
                f"Expected a checkpoint of version {VERSION}, got version {version} in "
                f"`{self.path}`, which numpyro_epi {written_by} wrote; this is "
                f"{package_version()}. {fix}"
            )
        for name, mine in self._identity.items():
            other = of_file.get(name, "none")
            if other != mine:
                raise ValueError(
                    f"Expected the checkpoint of this run, {_told(name, mine)}, got "
                    f"`{self.path}`, a checkpoint {_told(name, other)}. {fix}"
                )
        try:
            found = Unpacker(arrays, self.engine).unpack(state)
        except _archive.DAMAGE as err:
            raise ValueError(f"{foreign}, or is damaged: {err}. {fix}") from err
        if not isinstance(found, EPIState):
            raise ValueError(f"{foreign}. {fix}")
        return found

    def write(self, state: EPIState, *, is_last: bool = False) -> None:
        """Write a state, unless that would take too much of the time.

        Args:
            state: of the run.
            is_last: whether it is written in any case.
        """
        began = time.perf_counter()
        if began < self._earliest and not is_last:
            return
        packer = Packer()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "package_version": package_version(),
            "identity": self._identity,
            "state": packer.pack(state),
        }
        draft = self.path.with_name(f".{self.path.name}.tmp")
        _archive.write(self.path, draft, header, packer.arrays)
        now = time.perf_counter()
        self._earliest = now + (now - began) / MAX_SHARE


def identity(engine: Engine, rng_key: jax.Array) -> dict[str, Any]:
    """What makes a run the run it is, in JSON, by the words of a message."""
    problem, table = engine.problem, engine.problem.table
    options = pack_options(engine.options)
    found: dict[str, Any] = {
        "key": [
            str(jax.random.key_impl(rng_key)),
            _digest(jax.random.key_data(rng_key)),
        ],
        "precision": "double" if is_x64() else "single",
        "guide": engine.guide.name,
        "kind of optimiser": "own" if has_own_optim(engine) else "default",
        "latents": [[site.name, list(site.shape)] for site in problem.sites],
        "statistics": [[name, list(shape)] for name, shape in table.sites],
        "target means": table.mean.tolist(),
        "target variances": [None if np.isnan(v) else v for v in table.var.tolist()],
    }
    found |= {f"argument `{k}`": v for k, v in pack_arguments(engine).items()}
    found |= {f"option `{k}`": v for k, v in options.items() if k not in FREE}
    found["program"] = program_digest(engine)
    text = json.dumps(found, default=lambda number: number.item())
    return json.loads(text)


def program_digest(engine: Engine) -> str:
    """Of the program of the model, priors and simulator, and of the guide's shapes."""
    problem = engine.problem
    dtype = jax.numpy.result_type(float)
    u = jax.ShapeDtypeStruct((problem.num_latents,), dtype)
    traced = jax.make_jaxpr(problem.simulate)(u, jax.random.key(0))
    parts = [ADDRESS.sub("", str(traced.jaxpr))]
    parts += [_digest(x) for x in _constants(traced) if hasattr(x, "dtype")]
    params = jax.eval_shape(engine.guide.init, jax.random.key(0))
    parts += [ADDRESS.sub("", str(params))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _constants(closed: Any) -> list[Any]:
    """Arrays that a program has in it, and the programs in it."""
    found, jaxpr = list(getattr(closed, "consts", [])), closed
    if hasattr(closed, "jaxpr"):
        jaxpr = closed.jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    found += _constants(part)
    return found


def _digest(array: Any) -> str:
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    text = f"{array.shape} {array.dtype}".encode()
    return hashlib.sha256(text + array.tobytes()).hexdigest()


def _told(name: str, value: Any) -> str:
    """What is known of a run, in words; a digest tells nobody anything."""
    if name == "key":
        return f"with `rng_key` {value[1][:6]}" if value != "none" else "without a key"
    if name == "program":
        return f"of program {value[:6]} (model, priors, sizes of the guide, JAX)"
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"with {text} as its {name}"
