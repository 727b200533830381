# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Write a result, whole or not at all."""

import secrets
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from numpyro_epi._files import _archive
from numpyro_epi._files._format import FORMAT, VERSION, is_x64, package_version
from numpyro_epi._files._tree import Packer
from numpyro_epi._model.arguments import Arguments
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.options import Options
from numpyro_epi.result import EPIResult


def save(result: EPIResult, path: Path) -> None:
    """Write a result; see `EPIResult.save`."""
    engine, packer = result._engine, Packer()
    # The model's own targets, of which those of the run may be the nearest that agree.
    given = engine.problem.table
    header = {
        "format": FORMAT,
        "version": VERSION,
        "package_version": package_version(),
        "is_x64": is_x64(),
        "guide": engine.guide.name,
        "has_own_optim": has_own_optim(engine),
        "options": pack_options(engine.options),
        "arguments": pack_arguments(engine),
        "latents": [[site.name, list(site.shape)] for site in engine.problem.sites],
        "centres": centres(engine),
        "num_pilot_simulations": engine.problem.num_pilot_simulations,
        "statistics": [[name, list(shape)] for name, shape in given.sites],
        "given_mean": given.mean.tolist(),
        "given_var": given.var.tolist(),
        "result": packer.pack({name: getattr(result, name) for name in stored()}),
    }
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    _archive.write(path, draft, header, packer.arrays)


def stored() -> list[str]:
    """Fields of a result that a file has; what is private is made again."""
    return [f.name for f in fields(EPIResult) if not f.name.startswith("_")]


def centres(engine: Engine) -> dict[str, Any]:
    """Angles opposite to the cuts of circles, by site."""
    sites = engine.problem.sites
    return {
        s.name: np.asarray(s.centre).tolist() for s in sites if s.centre is not None
    }


def has_own_optim(engine: Engine) -> bool:
    """Whether the optimiser is the user's."""
    return engine.options.schedule is None and not engine.decays


def pack_options(options: Options) -> dict[str, Any]:
    """Options as JSON; devices are not stored."""
    packed = {field.name: getattr(options, field.name) for field in fields(options)}
    packed["mesh"] = None
    if options.schedule is not None:
        packed["schedule"] = asdict(options.schedule)
    return packed


def pack_arguments(engine: Engine) -> dict[str, list]:
    """What the arguments of the model were: a digest and a word on each."""
    problem = engine.problem
    arguments = Arguments(problem.model, problem.args, problem.kwargs)
    return {name: list(argument) for name, argument in arguments.by_name.items()}
