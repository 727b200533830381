# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Refuse a model or guide that is not the one of the file."""

from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._files._format import flatten
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._model.arguments import Argument, Arguments
from numpyro_epi._restart import EPIRestart
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.state import GuideState

# Draws whose stored density is compared with that of the model and guide at hand.
NUM_COMPARED = 200
# Nats: far above rounding, far below what another prior or guide makes of it.
MAX_DENSITY_ERROR = 0.05
NO_ARGUMENT = Argument("", "none", is_given=False)


def pairs(listed: list) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in listed}


def check_arguments(path: Path, header: dict, got: Arguments) -> None:
    """Refuse arguments of the model with other values than those of the run."""
    old = {name: Argument(*parts) for name, parts in header["arguments"].items()}
    new = got.by_name
    for name in [*old, *new]:
        first, second = old.get(name, NO_ARGUMENT), new.get(name, NO_ARGUMENT)
        # A default that the other model has not is a matter of the models.
        is_alone = NO_ARGUMENT in (first, second)
        is_default = is_alone and not (first.is_given or second.is_given)
        if first.digest == second.digest or is_default:
            continue
        other = second.shown
        if other == first.shown:
            other = f"{other} with other values"
        raise ValueError(
            f"Expected the model arguments of `{path}`, {first.shown} as `{name}`, got "
            f"{other}. Pass those of the run as `model_args` or `model_kwargs`. With "
            "other arguments the distribution is another one: for that, run `EPI`."
        )


def check_model(
    path: Path, header: dict, table: ConstraintTable, engine: Engine
) -> None:
    """Refuse a model or guide with other sites, shapes or targets than a table has."""
    problem = engine.problem
    if header["guide"] != engine.guide.name:
        raise ValueError(
            f"Expected the guide of `{path}`, {header['guide']}, as `guide`, got "
            f"{engine.guide.name}."
        )
    check_same(
        f"latents of `{path}` at the sites of `model`",
        pairs(header["latents"]).items(),
        ((site.name, site.shape) for site in problem.sites),
    )
    check_same(
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
                "targets of the run; those of another model need a run of their own."
            )


def check_same(what: str, expected: Iterable, got: Iterable) -> None:
    """Compare names with what is known of each, and name the first that differs."""
    old, new = dict(expected), dict(got)
    for name in [*old, *new]:
        if old.get(name) != new.get(name):
            shown = [str(d[name]) if name in d else "none" for d in (old, new)]
            raise ValueError(
                f"Expected the {what}: {shown[0]} at `{name}`, got {shown[1]}. Pass "
                "the model, its arguments and the guide of the run."
            )


def check_guide(path: Path, state: GuideState, engine: Engine) -> None:
    """Refuse a guide whose parameters have other names or shapes."""
    keys = jax.random.split(jax.random.key(0), engine.options.num_restarts)
    fresh = jax.eval_shape(engine.init_params, keys)
    num = engine.num_components(state.params)
    if num:
        fresh = jax.eval_shape(lambda x: engine.widened(x, num), fresh)
    old, new = (
        {f".params{k}": (tuple(v.shape), str(v.dtype)) for k, v in flatten(x).items()}
        for x in (state.params, fresh)
    )
    check_same(f"parameters and state of `{path}`", old.items(), new.items())


def check_density(
    path: Path, restart: EPIRestart, engine: Engine, state: GuideState, best: int
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
