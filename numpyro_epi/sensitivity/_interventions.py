# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Virtual experiments: the same draws, simulated with another argument of the model."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import as_key, describe
from numpyro_epi._model.problem import Problem
from numpyro_epi._sites import Latent
from numpyro_epi.result import EPIResult

from ._arguments import count, number
from ._groups import Groups
from ._layout import layout_of, stored_points

# Simulations that run at a time.
BATCH = 1000


class Bands(NamedTuple):
    """Result of `intervene`: I interventions on G groups.

    Attributes:
        argument: of the model that is changed.
        values: that it is given, (I,).
        mean: over the draws of a group, `{site: (G, I, *stat)}`.
        lower: lower end of the band over draws, `{site: (G, I, *stat)}`.
        upper: upper end, `{site: (G, I, *stat)}`.
        standard_error: of `mean`, `{site: (G, I, *stat)}`.
        names: of the groups: "all", or "group 0", ...
        latents: names of the components of the draws, D of them.
    """

    argument: str
    values: np.ndarray
    mean: dict[str, np.ndarray]
    lower: dict[str, np.ndarray]
    upper: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    names: tuple[str, ...]
    latents: tuple[str, ...]


def intervene(
    result_or_groups: EPIResult | Groups,
    interventions: Sequence[Any],
    rng_key: Any,
    *,
    argument: str,
    num_simulations: int = 1,
    num_draws: int = 500,
    level: float = 0.95,
    result: EPIResult | None = None,
) -> Bands:
    """Simulate draws again with another value of one argument of the model.

    The latents stay what they are: what changes is the experiment. The other arguments
    are those of the run.

    Args:
        result_or_groups: a result, whose stored draws are one group, or what
            `group_by_mode` returns (with `result`).
        interventions: values of the argument, in turn, such as `[0.0, 0.675]`.
        rng_key: random key, for simulation noise; the same noise at each value.
        argument: name of the model's argument, such as "silencing".
        num_simulations: of each draw, averaged before bands are made: one for bands of
            single simulations, many for bands of expected statistics.
        num_draws: of each group, at most.
        level: share of the draws inside a band.
        result: of the run, if groups are given.

    Returns:
        `Bands`. NaN where a simulation is.

    Raises:
        TypeError: if an argument is of the wrong kind, or `result` is missing.
        ValueError: if the model has no such argument, has other latents or statistics
            at a value, or a number is out of range.

    Notes:
        The model is compiled again for each value, which may be anything.

    Example:
        With a model that takes `gain`:

        >>> gains = [1.0, 2.0]
        >>> bands = intervene(result, gains, jax.random.key(0), argument="gain")
        >>> bands.mean["f"].shape
        (1, 2, 2)

    References:
        Bittner et al., eLife 2021, doi:10.7554/eLife.56265, Figure 5: optogenetic
        silencing.
    """
    key = as_key(rng_key)
    values = _values(interventions)
    num_each = count("num_simulations", num_simulations)
    num = count("num_draws", num_draws)
    tail = 0.5 * (1.0 - number("level", level, low=0.0, high=1.0))
    source, groups, names = _sources(result_or_groups, result, num)
    u = layout_of(source).to_u(jnp.asarray(groups, float))
    found = []
    for value in values:
        problem = _sibling(source, argument, value)
        stats = _simulate(problem, np.asarray(u), key, num_each)
        found.append(stats.mean(axis=2))
    draws = np.stack(found, axis=1)  # (G, I, n, S)
    split = source.table.split
    error = draws.std(axis=2, ddof=1) if draws.shape[2] > 1 else np.nan * draws[:, :, 0]
    return Bands(
        argument=argument,
        values=np.asarray(values),
        mean=split(draws.mean(axis=2)),
        lower=split(np.quantile(draws, tail, axis=2)),
        upper=split(np.quantile(draws, 1.0 - tail, axis=2)),
        standard_error=split(error / np.sqrt(draws.shape[2])),
        names=names,
        latents=layout_of(source).names,
    )


def _values(interventions: Any) -> list[Any]:
    if isinstance(interventions, str | bytes) or not hasattr(interventions, "__len__"):
        raise TypeError(
            "Expected a sequence of values as `interventions`, got "
            f"{describe(interventions)}. Write `[{interventions!r}]` for a single one."
        )
    if len(interventions) == 0:
        raise ValueError("Expected at least one value as `interventions`, got none.")
    return list(interventions)


def _sources(
    given: Any, result: Any, num: int
) -> tuple[EPIResult, np.ndarray, tuple[str, ...]]:
    """The result, points (G, n, D) and the names of the groups."""
    if isinstance(given, Groups):
        if result is None:
            raise TypeError(
                "Expected `result` along with groups, got None. Pass the result that "
                "the groups are from."
            )
        layout = layout_of(result)
        if given.names != layout.names:
            raise ValueError(
                f"Expected groups of the result's components {list(layout.names)}, got "
                f"{list(given.names)}."
            )
        if given.points.shape[1] == 0:
            raise ValueError(
                "Expected draws in every group, got none. Ask `group_by_mode` for at "
                "least one draw a group."
            )
        labels = tuple(f"group {i}" for i in range(len(given.points)))
        return result, given.points[:, :num], labels
    if result is not None:
        raise TypeError("Expected `result` with groups only, got it with a result.")
    layout_of(given)
    return given, stored_points(given)[None, :num], ("all",)


def _sibling(result: EPIResult, argument: str, value: Any) -> Problem:
    """The problem of the run with one argument changed."""
    problem = result._engine.problem
    args, kwargs = _replaced(problem, argument, value)
    key = jax.random.key(0)
    other = Problem(problem.model, args, kwargs, key)
    sites, wanted = ({s.name: _shapes(s) for s in p.sites} for p in (other, problem))
    if sites != wanted or other.table.sites != problem.table.sites:
        raise ValueError(
            f"Expected the same latents and statistics with `{argument}` = {value!r}, "
            f"got latents {sorted(sites)} and statistics {dict(other.table.sites)}."
        )
    other.order_sites([site.name for site in problem.sites])
    centres = {s.name: s.centre for s in problem.sites if s.centre is not None}
    other.cut_circles(centres)
    return other


def _shapes(site: Latent) -> tuple:
    """Of the value, of its coordinates, and which elements have them."""
    return site.shape, site.unconstrained_shape, site.is_kept.tolist()


def _replaced(problem: Problem, argument: str, value: Any) -> tuple[tuple, dict]:
    """Arguments of the run with one of them changed, wherever it stood."""
    function: Any = problem.model
    while hasattr(function, "fn"):  # handlers of NumPyro wrap a model
        function = function.fn
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    kinds = inspect.Parameter
    named = [
        p.name
        for p in parameters
        if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    ]
    takes_all = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    if argument not in named and not takes_all:
        raise ValueError(
            f"Expected an argument of the model as `argument`, one of {named}, got "
            f"{describe(argument)}."
        )
    names = list(signature.parameters)
    place = names.index(argument) if argument in names else len(problem.args)
    if place < len(problem.args):
        args = (*problem.args[:place], value, *problem.args[place + 1 :])
        return args, problem.kwargs
    return problem.args, {**problem.kwargs, argument: value}


def _simulate(
    problem: Problem, u: np.ndarray, rng_key: jax.Array, num_each: int
) -> np.ndarray:
    """Statistics (G, n, num_each, S) of simulations at u, shape (G, n, D)."""
    flat = np.repeat(u.reshape(-1, u.shape[-1]), num_each, axis=0)
    keys = jax.random.split(rng_key, len(flat))
    run: Callable = jax.jit(jax.vmap(problem.simulate))
    size = min(BATCH, len(flat))
    stats = []
    for start in range(0, len(flat), size):
        rows = np.arange(start, start + size) % len(flat)
        found = run(jnp.asarray(flat[rows]), keys[rows]).stats
        stats.append(np.asarray(found, np.float64))
    joined = np.concatenate(stats)[: len(flat)]
    return joined.reshape(*u.shape[:2], num_each, -1)
