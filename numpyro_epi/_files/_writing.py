# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Write a result, whole or not at all."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._draws import EPIDraws
from numpyro_epi._files import _archive
from numpyro_epi._files._format import (
    FORMAT,
    LAW_NUMBERS,
    LAW_WORDS,
    NUMBERS,
    VERSION,
    WORDS,
    Arrays,
    flatten,
    is_x64,
    package_version,
)
from numpyro_epi._model.arguments import Arguments
from numpyro_epi._restart import EPIRestart
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.options import Options
from numpyro_epi._train.state import GuideState
from numpyro_epi.result import EPIResult


def save(result: EPIResult, path: Path) -> None:
    """Write a result; see `EPIResult.save`."""
    engine = result._engine
    specs, arrays = _pack_state(result.state)
    for r, restart in enumerate(result.restarts):
        arrays |= _pack_restart(f"restarts/{r}", restart)
    table = result.table
    arrays |= {f"table/{name}": getattr(table, name) for name in ("mean", "var")}
    arrays["table/scale"] = table.scale
    # The model's own targets, of which those of the run may be the nearest that agree.
    given = engine.problem.table
    arrays |= {f"table/given_{name}": getattr(given, name) for name in ("mean", "var")}
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
        "centres": _centres(engine),
        "num_pilot_simulations": engine.problem.num_pilot_simulations,
        "statistics": [[name, list(shape)] for name, shape in table.sites],
        "state": specs,
        "restarts": [_words(restart) for restart in result.restarts],
        "best": result.best,
        "gradient": result.gradient._asdict(),
        "is_noisy": result.is_noisy,
        "has_noisy_likelihood": result.has_noisy_likelihood,
        "num_simulations": result.num_simulations,
        "num_invalid": result.num_invalid,
        "seconds": result.seconds,
        "stopped_by": result.stopped_by,
    }
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    _archive.write(path, draft, header, arrays)


def _centres(engine: Engine) -> dict[str, Any]:
    """Angles opposite to the cuts of circles, by site."""
    sites = engine.problem.sites
    return {
        s.name: np.asarray(s.centre).tolist() for s in sites if s.centre is not None
    }


def has_own_optim(engine: Engine) -> bool:
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


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _pack_state(state: GuideState) -> tuple[dict[str, dict], Arrays]:
    """What the leaves of a state are, and their numbers; of keys, the key data."""
    specs, arrays = {}, {}
    for path, leaf in flatten(state).items():
        spec = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if _is_key(leaf):
            spec["key_impl"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        specs[path] = spec
        arrays[f"state/{path}"] = np.asarray(leaf)
    return specs, arrays


def _words(restart: EPIRestart) -> dict[str, Any]:
    words: dict[str, Any] = {name: str(getattr(restart, name)) for name in WORDS}
    law = restart.law
    words["law"] = None if law is None else {k: getattr(law, k) for k in LAW_WORDS}
    return words


def _pack_restart(prefix: str, restart: EPIRestart) -> Arrays:
    """Everything numeric but `params`, which follow from the state."""
    packed: dict[str, Any] = {name: getattr(restart, name) for name in NUMBERS}
    packed |= _under("multipliers", restart.multipliers)
    packed |= _under("history", restart.history._asdict())
    packed |= _pack_draws("draws", restart.draws)
    law = restart.law
    if law is not None:
        packed |= {f"law/{name}": getattr(law, name) for name in LAW_NUMBERS}
        packed |= _under("law/multipliers", law.multipliers)
        packed |= _pack_draws("law/draws", law.draws)
    return {f"{prefix}/{name}": np.asarray(value) for name, value in packed.items()}


def _pack_draws(prefix: str, draws: EPIDraws) -> dict[str, Any]:
    fields = draws._asdict()
    packed = _under(f"{prefix}/latents", fields.pop("latents"))
    packed |= _under(f"{prefix}/statistics", fields.pop("statistics"))
    return packed | _under(prefix, fields)


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
