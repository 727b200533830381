# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Read a result into the model and the guide that made it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._draws import EPIDraws
from numpyro_epi._files import _archive
from numpyro_epi._files._checks import (
    check_arguments,
    check_density,
    check_model,
    check_same,
    pairs,
)
from numpyro_epi._files._format import (
    FORMAT,
    LAW_NUMBERS,
    NUMBERS,
    VERSION,
    Arrays,
    flatten,
    is_x64,
    package_version,
)
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._model.arguments import Arguments, private
from numpyro_epi._model.problem import Problem
from numpyro_epi._restart import EPIHistory, EPIRestart
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.optim import as_optax
from numpyro_epi._train.options import Options, PublishedSchedule
from numpyro_epi._train.pilot import GradientHealth
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.law import EPILaw
from numpyro_epi.result import EPIResult


def load(
    path: Path, model: Callable, guide: Any, optim: Any, args: tuple, kwargs: dict
) -> EPIResult:
    """Read a result; see `EPIResult.load`."""
    header, arrays = _read(path)
    check_arguments(path, header, Arguments(model, args, kwargs))
    engine = _engine(header, model, guide, optim, args, kwargs)
    table = _table(header, arrays)
    given = replace(
        table,
        mean=arrays.get("table/given_mean", table.mean),
        var=arrays.get("table/given_var", table.var),
    )
    check_model(path, header, given, engine)
    state = _state(path, header, arrays, engine, table)
    restarts = tuple(
        _restart(r, words, header, arrays, engine, state)
        for r, words in enumerate(header["restarts"])
    )
    check_density(path, restarts[header["best"]], engine, state, header["best"])
    return EPIResult(
        restarts=restarts,
        best=header["best"],
        table=table,
        state=state,
        gradient=GradientHealth(**header["gradient"]),
        is_noisy=header["is_noisy"],
        masks_invalid=engine.options.leaves_out,
        tolerance=engine.options.tolerance,
        num_simulations=header["num_simulations"],
        seconds=header["seconds"],
        _engine=engine,
        num_invalid=header.get("num_invalid", 0),
        stopped_by=header.get("stopped_by", "done"),
        # Files from before it was noticed do not say.
        has_noisy_likelihood=header.get(
            "has_noisy_likelihood", engine.problem.minibatches.are_noisy
        ),
    )


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a file of this format."""
    foreign = (
        f"Expected a file that `EPIResult.save` wrote, got `{path}`, which is not one, "
        "or is damaged"
    )
    if not path.exists():
        raise FileNotFoundError(f"Expected a file of a result, got no `{path}`.")
    try:
        header, arrays = _archive.read(path)
        found = header["format"]
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
    # Files without centres are of a time when circles were cut at pi.
    centres = {s.name: 0.0 for s in problem.sites if s.centre is not None}
    problem.cut_circles(centres | header.get("centres", {}))
    problem.num_pilot_simulations = header.get("num_pilot_simulations", 0)
    functions = GuideFunctions(guide, problem, rng_key)
    return Engine(problem, functions, Options(**packed), optimiser)


def _table(header: dict, arrays: Arrays) -> ConstraintTable:
    columns = (arrays[f"table/{name}"] for name in ("mean", "var", "scale"))
    return ConstraintTable(tuple(pairs(header["statistics"]).items()), *columns)


def _state(
    path: Path, header: dict, arrays: Arrays, engine: Engine, table: ConstraintTable
) -> GuideState:
    """The state, in the tree that the guide and the optimiser have now."""
    keys = jax.random.split(jax.random.key(0), engine.options.num_restarts)
    specs = {name: _spec(spec) for name, spec in header["state"].items()}
    num = _num_components(specs)

    def init(keys: jax.Array) -> GuideState:
        state = engine.init_state(keys, table.targets)
        if num == 0:
            return state
        return engine.with_components(state, num)

    tree = jax.eval_shape(init, keys)
    expected = {
        name: (tuple(leaf.shape), str(leaf.dtype))
        for name, leaf in flatten(tree).items()
    }
    # The number of draws that anchor the guide, and the kind of key, are the run's.
    for name in [n for n in specs if n.split(".")[1] in ("pool", "rng_key")]:
        if name in expected:
            expected[name] = specs[name]
    # A guide that differs is better named by its parameters than by the optimiser's.
    for prefix in (".params", ""):
        old, new = (
            [item for item in d.items() if item[0].startswith(prefix)]
            for d in (specs, expected)
        )
        check_same(f"parameters and state of `{path}`", old, new)
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


def _num_components(specs: dict[str, tuple[tuple[int, ...], str]]) -> int:
    """Of the base of the guide: a run decides on them."""
    for name, (shape, _) in specs.items():
        if name.startswith(".params") and name.endswith("['components'].log_weights"):
            return shape[-1] - 1
    return 0


def _spec(spec: dict) -> tuple[tuple[int, ...], str]:
    return tuple(spec["shape"]), spec["dtype"]


def _restart(
    r: int,
    words: dict[str, Any],
    header: dict,
    arrays: Arrays,
    engine: Engine,
    state: GuideState,
) -> EPIRestart:
    part = _Part(arrays, f"restarts/{r}", header)
    params = jax.tree.map(lambda x: x[r], state.average)
    return EPIRestart(
        params=engine.guide.constrain(params),
        status=EPIStatus(words["status"]),
        message=words["message"],
        multipliers_source=words["multipliers_source"],
        multipliers=part.under("multipliers", part.statistics),
        history=EPIHistory(**part.under("history", EPIHistory._fields)),
        draws=part.draws("draws"),
        law=None if words["law"] is None else _law(words["law"], part),
        law_reason=words["law_reason"],
        **part.numbers("", NUMBERS),
    )


def _law(words: dict[str, Any], part: "_Part") -> EPILaw:
    return EPILaw(
        draws=part.draws("law/draws"),
        multipliers=part.under("law/multipliers", part.statistics),
        **words,
        **part.numbers("law/", LAW_NUMBERS),
    )


class _Part(NamedTuple):
    """Arrays of a file below a prefix."""

    arrays: Arrays
    prefix: str
    header: dict

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics."""
        return [name for name, _ in self.header["statistics"]]

    def get(self, name: str) -> np.ndarray:
        """One array."""
        return self.arrays[f"{self.prefix}/{name}"]

    def under(self, folder: str, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Arrays of a folder by their names."""
        return {name: self.get(f"{folder}/{name}") for name in names}

    def numbers(self, folder: str, names: Iterable[str]) -> dict[str, Any]:
        """Arrays by their names; those without axes as numbers."""
        found = {name: self.get(f"{folder}{name}") for name in names}
        return {k: v if v.ndim else float(v) for k, v in found.items()}

    def draws(self, folder: str) -> EPIDraws:
        """Stored draws."""
        nested = ("latents", "statistics")
        flat = [name for name in EPIDraws._fields if name not in nested]
        latents = [name for name, _ in self.header["latents"]]
        return EPIDraws(
            latents=self.under(f"{folder}/latents", latents),
            statistics=self.under(f"{folder}/statistics", self.statistics),
            **self.under(folder, flat),
        )
