# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results on disk: one `.npz` file of plain arrays, one of them a header in JSON.

Nothing is pickled and no code is stored: whoever loads a file brings the model and the
guide, and what the file says of them decides whether they are those of the run.
Longer than most files here: what is written stands next to how it is read.
"""

import json
import os
import secrets
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.optim import as_optax
from numpyro_epi._train.options import Options, PublishedSchedule
from numpyro_epi._train.pilot import GradientHealth
from numpyro_epi._train.problem import Problem
from numpyro_epi._train.state import EPIState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.result import EPIDraws, EPIHistory, EPIRestart, EPIResult

FORMAT = "numpyro_epi result"
# Raise it when a file of the previous version could be misread.
VERSION = 2
# Draws whose stored density is compared with that of the model and guide at hand.
NUM_COMPARED = 200
# Nats: far above rounding, far below what another prior or guide makes of it.
MAX_DENSITY_ERROR = 0.05

Arrays = dict[str, np.ndarray]


def package_version() -> str:
    """Version of this package."""
    return sys.modules["numpyro_epi"].__version__


# -- writing --------------------------------------------------------------------------


def save(result: EPIResult, path: Path) -> None:
    """Write a result; see `EPIResult.save`."""
    engine = result._engine
    specs, arrays = _pack_state(result.state)
    for r, restart in enumerate(result.restarts):
        arrays |= _pack_restart(f"restarts/{r}", restart)
    table = result.table
    arrays |= {f"table/{name}": getattr(table, name) for name in ("mean", "var")}
    arrays["table/scale"] = table.scale
    header = {
        "format": FORMAT,
        "version": VERSION,
        "package_version": package_version(),
        "is_x64": _is_x64(),
        "guide": engine.guide.name,
        "has_own_optim": _has_own_optim(engine),
        "options": _pack_options(engine.options),
        "latents": [[site.name, list(site.shape)] for site in engine.problem.sites],
        "statistics": [[name, list(shape)] for name, shape in table.sites],
        "state": specs,
        "restarts": [_words(restart) for restart in result.restarts],
        "best": result.best,
        "gradient": result.gradient._asdict(),
        "is_noisy": result.is_noisy,
        "num_simulations": result.num_simulations,
        "seconds": result.seconds,
    }
    text = json.dumps(header, default=lambda number: number.item())
    arrays["header"] = np.frombuffer(text.encode(), np.uint8)
    _write(path, arrays)


def _write(path: Path, arrays: Arrays) -> None:
    """Write beside the file, then rename: a file is whole, or it is the older one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _has_own_optim(engine: Engine) -> bool:
    return engine.options.schedule is None and not engine.decays


def _pack_options(options: Options) -> dict[str, Any]:
    """Options as JSON; devices are not stored."""
    packed = {field.name: getattr(options, field.name) for field in fields(options)}
    packed["mesh"] = None
    if options.schedule is not None:
        packed["schedule"] = asdict(options.schedule)
    return packed


def _flatten(tree: Any) -> dict[str, Any]:
    """Leaves by their path in the tree, such as `.params['auto_loc']`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _pack_state(state: EPIState) -> tuple[dict[str, dict], Arrays]:
    """What the leaves of a state are, and their numbers; of keys, the key data."""
    specs, arrays = {}, {}
    for path, leaf in _flatten(state).items():
        spec = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if _is_key(leaf):
            spec["key_impl"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        specs[path] = spec
        arrays[f"state/{path}"] = np.asarray(leaf)
    return specs, arrays


WORDS = ("status", "message", "multipliers_source")
NESTED = ("params", "multipliers", "history", "draws", *WORDS)
NUMBERS = tuple(f.name for f in fields(EPIRestart) if f.name not in NESTED)


def _words(restart: EPIRestart) -> dict[str, str]:
    return {name: str(getattr(restart, name)) for name in WORDS}


def _pack_restart(prefix: str, restart: EPIRestart) -> Arrays:
    """Everything numeric but `params`, which follow from the state."""
    packed: dict[str, Any] = {name: getattr(restart, name) for name in NUMBERS}
    packed |= _under("multipliers", restart.multipliers)
    packed |= _under("history", restart.history._asdict())
    draws = restart.draws._asdict()
    packed |= _under("draws/latents", draws.pop("latents"))
    packed |= _under("draws/statistics", draws.pop("statistics"))
    packed |= _under("draws", draws)
    return {f"{prefix}/{name}": np.asarray(value) for name, value in packed.items()}


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


# -- reading --------------------------------------------------------------------------


def load(
    path: Path, model: Callable, guide: Any, optim: Any, args: tuple, kwargs: dict
) -> EPIResult:
    """Read a result; see `EPIResult.load`."""
    header, arrays = _read(path)
    engine = _engine(header, model, guide, optim, args, kwargs)
    table = _table(header, arrays)
    _check_model(path, header, table, engine)
    state = _state(path, header, arrays, engine, table)
    restarts = tuple(
        _restart(r, words, header, arrays, engine, state)
        for r, words in enumerate(header["restarts"])
    )
    _check_density(path, restarts[header["best"]], engine, state, header["best"])
    return EPIResult(
        restarts=restarts,
        best=header["best"],
        table=table,
        state=state,
        gradient=GradientHealth(**header["gradient"]),
        is_noisy=header["is_noisy"],
        masks_invalid=engine.options.on_invalid == "mask",
        tolerance=engine.options.tolerance,
        num_simulations=header["num_simulations"],
        seconds=header["seconds"],
        _engine=engine,
    )


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a file of this format."""
    foreign = (
        f"Expected a file that `EPIResult.save` wrote, got `{path}`, which is not one, "
        "or is damaged"
    )
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            header = json.loads(bytes(arrays.pop("header")))
            found = header["format"]
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"{foreign}.") from err
        except (EOFError, OSError, zipfile.BadZipFile) as err:
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
    if header["is_x64"] != _is_x64():
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
    problem = Problem(model, args, kwargs, rng_key)
    functions = GuideFunctions(guide, problem, rng_key)
    return Engine(problem, functions, Options(**packed), optimiser)


def _pairs(listed: list) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in listed}


def _table(header: dict, arrays: Arrays) -> ConstraintTable:
    columns = (arrays[f"table/{name}"] for name in ("mean", "var", "scale"))
    return ConstraintTable(tuple(_pairs(header["statistics"]).items()), *columns)


def _check_model(
    path: Path, header: dict, table: ConstraintTable, engine: Engine
) -> None:
    """Refuse a model or guide with other sites, shapes or targets."""
    problem = engine.problem
    if header["guide"] != engine.guide.name:
        raise ValueError(
            f"Expected the guide of `{path}`, {header['guide']}, as `guide`, got "
            f"{engine.guide.name}."
        )
    _check_same(
        f"latents of `{path}` at the sites of `model`",
        _pairs(header["latents"]).items(),
        ((site.name, site.shape) for site in problem.sites),
    )
    _check_same(
        f"statistics of `{path}` at the emergent properties of `model`",
        table.sites,
        problem.table.sites,
    )
    for name in ("mean", "var"):
        old, new = getattr(table, name), getattr(problem.table, name)
        agree = np.isclose(old, new, rtol=1e-5, atol=0.0, equal_nan=True)
        if not agree.all():
            i = int(np.argmin(agree))
            raise ValueError(
                f"Expected the targets of `{path}` in `model`, {name} = {old[i]:g} of "
                f"`{table.statistic_labels[i]}`, got {new[i]:g}. Load it with the "
                "targets of the run, then train with the new ones."
            )


def _check_same(what: str, expected: Iterable, got: Iterable) -> None:
    """Compare names with what is known of each, and name the first that differs."""
    old, new = dict(expected), dict(got)
    for name in [*old, *new]:
        if old.get(name) != new.get(name):
            shown = [str(d[name]) if name in d else "none" for d in (old, new)]
            raise ValueError(
                f"Expected the {what}: {shown[0]} at `{name}`, got {shown[1]}. Pass "
                "the model, its arguments and the guide of the run."
            )


def _state(
    path: Path, header: dict, arrays: Arrays, engine: Engine, table: ConstraintTable
) -> EPIState:
    """The state, in the tree that the guide and the optimiser have now."""
    keys = jax.random.split(jax.random.key(0), engine.options.num_restarts)
    tree = jax.eval_shape(lambda keys: engine.init_state(keys, table.targets), keys)
    specs = {name: _spec(spec) for name, spec in header["state"].items()}
    expected = {
        name: (tuple(leaf.shape), str(leaf.dtype))
        for name, leaf in _flatten(tree).items()
    }
    # The number of draws that anchor the guide, and the kind of key, are the run's.
    for name in (".pool", ".rng_key"):
        if name in specs:
            expected[name] = specs[name]
    # A guide that differs is better named by its parameters than by the optimiser's.
    for prefix in (".params", ""):
        old, new = (
            [item for item in d.items() if item[0].startswith(prefix)]
            for d in (specs, expected)
        )
        _check_same(f"parameters and state of `{path}`", old, new)
    leaves = []
    for name in expected:
        leaf = arrays[f"state/{name}"]
        spec = header["state"][name]
        if "key_impl" in spec:
            data = jnp.asarray(leaf)
            leaves.append(jax.random.wrap_key_data(data, impl=spec["key_impl"]))
        else:
            leaves.append(jnp.asarray(leaf.view(jnp.dtype(spec["dtype"]))))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _spec(spec: dict) -> tuple[tuple[int, ...], str]:
    return tuple(spec["shape"]), spec["dtype"]


def _restart(
    r: int,
    words: dict[str, str],
    header: dict,
    arrays: Arrays,
    engine: Engine,
    state: EPIState,
) -> EPIRestart:
    def part(name: str) -> np.ndarray:
        return arrays[f"restarts/{r}/{name}"]

    numbers: dict[str, Any] = {name: part(name) for name in NUMBERS}
    numbers = {k: v if v.ndim else float(v) for k, v in numbers.items()}
    latents = [name for name, _ in header["latents"]]
    statistics = [name for name, _ in header["statistics"]]
    flat = [name for name in EPIDraws._fields if name not in ("latents", "statistics")]
    params = jax.tree.map(lambda x: x[r], state.average)
    return EPIRestart(
        params=engine.guide.constrain(params),
        status=EPIStatus(words["status"]),
        message=words["message"],
        multipliers_source=words["multipliers_source"],
        multipliers={name: part(f"multipliers/{name}") for name in statistics},
        history=EPIHistory(
            **{name: part(f"history/{name}") for name in EPIHistory._fields}
        ),
        draws=EPIDraws(
            latents={name: part(f"draws/latents/{name}") for name in latents},
            statistics={name: part(f"draws/statistics/{name}") for name in statistics},
            **{name: part(f"draws/{name}") for name in flat},
        ),
        **numbers,
    )


def _check_density(
    path: Path, restart: EPIRestart, engine: Engine, state: EPIState, best: int
) -> None:
    """Refuse a model or guide that gives the stored draws another density."""
    problem, guide, draws = engine.problem, engine.guide, restart.draws
    if not len(draws.log_prior):
        return
    latents = {k: jnp.asarray(v[:NUM_COMPARED]) for k, v in draws.latents.items()}
    u = problem.unconstrain(latents)
    log_det = problem.constrain(u)[1]
    log_prior = jax.jit(jax.vmap(problem.log_prior))(u) - log_det
    densities = {"prior of the model": (log_prior, draws.log_prior)}
    if guide.has_fast_density:
        params = jax.tree.map(lambda x: x[best], state.average)
        log_q = jax.jit(guide.log_prob)(params, u) - log_det
        share = 1.0 - restart.invalid
        densities["guide"] = log_q - np.log(share), draws.log_density
    for name, (now, then) in densities.items():
        gap = np.abs(np.asarray(now) - then[:NUM_COMPARED])
        error = np.median(np.nan_to_num(gap, nan=np.inf))
        if error > MAX_DENSITY_ERROR:
            raise ValueError(
                f"Expected the {name} of `{path}`, got another one: the log densities "
                f"of the stored draws differ by {error:.3g} nats. Pass the model, its "
                "arguments and the guide of the run, with the same options."
            )


def _is_x64() -> bool:
    """Whether JAX computes in double precision by default."""
    return bool(jnp.result_type(float) == np.float64)
