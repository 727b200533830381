# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Read a result into the model and the guide that made it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from numpyro_epi._files import _archive
from numpyro_epi._files._checks import (
    check_arguments,
    check_density,
    check_guide,
    check_model,
    pairs,
)
from numpyro_epi._files._format import (
    FORMAT,
    VERSION,
    Arrays,
    is_x64,
    package_version,
)
from numpyro_epi._files._tree import OptimiserError, Unpacker
from numpyro_epi._files._writing import stored
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._model.arguments import Arguments, private
from numpyro_epi._model.problem import Problem
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.optim import as_optax
from numpyro_epi._train.options import Options, PublishedSchedule
from numpyro_epi.result import EPIResult


def load(
    path: Path, model: Callable, guide: Any, optim: Any, args: tuple, kwargs: dict
) -> EPIResult:
    """Read a result; see `EPIResult.load`."""
    header, arrays = _read(path)
    check_arguments(path, header, Arguments(model, args, kwargs))
    engine = _engine(header, model, guide, optim, args, kwargs)
    check_model(path, header, _given(header), engine)
    try:
        values = Unpacker(arrays, engine).unpack(header["result"])
        found = EPIResult(**{name: values[name] for name in stored()}, _engine=engine)
    except OptimiserError as err:
        raise ValueError(
            f"Expected the parameters and state of `{path}`, {err}. Pass the model, "
            "its arguments, the guide and the optimiser of the run."
        ) from err
    except _archive.DAMAGE as err:
        raise ValueError(f"{_foreign(path)}: {err}.") from err
    check_guide(path, found.state, engine)
    check_density(path, found.restarts[found.best], engine, found.state, found.best)
    return found


def _foreign(path: Path) -> str:
    return (
        f"Expected a file that `EPIResult.save` wrote, got `{path}`, which is not one, "
        "or is damaged"
    )


def _given(header: dict) -> ConstraintTable:
    """The targets of the model of the run."""
    mean, var = (np.array(header[f"given_{name}"]) for name in ("mean", "var"))
    return ConstraintTable(
        tuple(pairs(header["statistics"]).items()), mean, var, np.sqrt(var)
    )


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a file of this format."""
    foreign = _foreign(path)
    if not path.exists():
        raise FileNotFoundError(f"Expected a file of a result, got no `{path}`.")
    try:
        header, arrays = _archive.read(path)
        found, *_ = (header[name] for name in ("format", "version", "package_version"))
    except _archive.DAMAGE as err:
        raise ValueError(f"{foreign}: {err}.") from err
    if found != FORMAT:
        raise ValueError(f"{foreign}: its format is {found!r}.")
    if header["version"] != VERSION:
        raise ValueError(
            f"Expected a file of format version {VERSION}, got version "
            f"{header['version']} in `{path}`, which numpyro_epi "
            f"{header['package_version']} wrote. Load it with that version; this is "
            f"{package_version()}."
        )
    if header["is_x64"] != is_x64():
        raise ValueError(
            f"Expected the precision of the run in `{path}`. Set it with "
            f"`jax.config.update('jax_enable_x64', {header['is_x64']})` before "
            "anything else is computed."
        )
    return header, arrays


def _engine(
    header: dict, model: Callable, guide: Any, optim: Any, args: tuple, kwargs: dict
) -> Engine:
    """The engine of the run, as `EPI` builds it."""
    packed = dict(header["options"])
    unknown = sorted(set(packed) - set(Options.names()))
    if unknown:
        raise ValueError(
            f"Expected options of this version of numpyro_epi, got `{unknown[0]}`. The "
            f"file was written by version {header['package_version']}: load it with "
            "that one."
        )
    if packed["schedule"] is not None:
        packed["schedule"] = PublishedSchedule(**packed["schedule"])
    optimiser = as_optax(optim)
    if header["has_own_optim"] != (optimiser is not None):
        wanted = "that of the run" if header["has_own_optim"] else "none, as in the run"
        raise ValueError(
            f"Expected {wanted} as `optim`, got {optim!r}. The state of the optimiser "
            "is a part of the result."
        )
    # Nothing of the run depends on this key: parameters come from the file.
    rng_key = jax.random.key(0)
    args, kwargs = private((args, kwargs))
    problem = Problem(model, args, kwargs, rng_key)
    problem.cut_circles(header["centres"])
    problem.num_pilot_simulations = header["num_pilot_simulations"]
    functions = GuideFunctions(guide, problem, rng_key)
    return Engine(problem, functions, Options(**packed), optimiser)
