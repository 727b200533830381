# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results in ArviZ, of version 0.23 and 1.x alike.

What a run has stored is handed over; nothing is drawn and nothing is simulated.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_epi._draws import EPIDraws
from numpyro_epi._files import package_version
from numpyro_epi._math.importance import systematic_resample
from numpyro_epi._restart import EPIRestart
from numpyro_epi._train.status import EPIStatus
from numpyro_epi.result import EPIResult

if TYPE_CHECKING:
    import xarray

SAMPLE_DIMS = ("chain", "draw")
GUIDE_DRAWS = "Draws are those of the guide, and independent of each other."
LAW_DRAWS = (
    "Draws are those of the exact law, resampled by their weights: as many as are "
    "effective, of which some may be the same."
)
# How the arrays of `EPIHistory` are laid out, after the axis of epochs.
PER_CONSTRAINT = (
    "violation",
    "violation_error",
    "p_values",
    "multipliers",
    "penalty",
)


def to_arviz(
    result: EPIResult, *, all_restarts: bool = False, draws: str = "auto"
) -> Any:
    """Export the stored draws of a result, with targets and history.

    The groups are `posterior` (latents), `sample_stats` (`lp`, the log density of q in
    the constrained space, and `log_prior`; with data also `log_likelihood`),
    `posterior_predictive` (statistics), `targets` (of each statistic, with its
    multipliers in raw units), `history` (of the training) and `restarts` (what each
    reached). Names that netCDF does not allow are changed, such as `scope/site` to
    `scope.site`; the attribute `site` of a variable keeps the name in the model.

    Draws are independent: effective sample sizes are their number. With `all_restarts`
    each restart is a chain, and r-hat measures how much restarts disagree, not how well
    a chain mixes.

    Args:
        result: of a run.
        all_restarts: whether to export all restarts, not only the best.
        draws: "guide" for the stored draws of the guide; "law" for those of the law,
            resampled by their weights (as many as are effective); "auto" for the law's
            where the guide alone misses targets that the law meets (status "corrected"
            and "law only"). The attribute `draws` says which they are.

    Returns:
        `arviz.InferenceData` with ArviZ 0.23, `xarray.DataTree` with ArviZ 1.x. Both
        have `to_netcdf(path)`.

    Raises:
        ImportError: if ArviZ is not installed.
        ValueError: if `draws` is none of these, or "law" where a restart has none.

    Example:
        >>> import jax, numpyro, numpyro_epi as epi
        >>> import numpyro.distributions as dist
        >>> def model():
        ...     z = numpyro.sample("z", dist.Normal(0, 1))
        ...     epi.emergent_property(z, mean=1.0, var=0.25, name="shifted")
        >>> options = dict(num_epochs=2, num_steps=50, progress_bar=False)
        >>> result = epi.EPI(model, **options).run(jax.random.key(0))
        >>> data = epi.to_arviz(result)
        >>> data["posterior"]["z"].dims, list(data["posterior_predictive"].data_vars)
        (('chain', 'draw'), ['shifted'])
    """
    try:
        import arviz
        from xarray import DataTree
    except ImportError as err:
        raise ImportError(
            "`to_arviz` needs ArviZ. Install it with `pip install arviz h5netcdf h5py`."
        ) from err
    if draws not in ("auto", "guide", "law"):
        raise ValueError(
            f'Expected "auto", "guide" or "law" as `draws`, got {draws!r}.'
        )
    restarts = result.restarts if all_restarts else (result._best,)
    is_law = draws == "law" or (draws == "auto" and any(map(_needs_law, restarts)))
    if is_law:
        restarts = tuple(_with_draws_of_the_law(restart) for restart in restarts)
    attrs = _attributes(result, restarts, is_law=is_law)
    groups = _draws(restarts) | {
        "targets": _targets(result, restarts),
        "history": _history(result, restarts),
        "restarts": _restarts(restarts),
    }
    for group in groups.values():
        group.attrs = dict(attrs)
    tree = DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    tree.attrs = attrs
    # ArviZ 1.x answers `hasattr` for this name with a warning.
    if "InferenceData" in vars(arviz):
        return arviz.InferenceData.from_datatree(tree)
    return tree


def _needs_law(restart: EPIRestart) -> bool:
    return restart.status in (EPIStatus.CORRECTED, EPIStatus.LAW_ONLY)


def _with_draws_of_the_law(restart: EPIRestart) -> EPIRestart:
    """The same restart with draws of its law, as many as are effective."""
    law = restart.law
    if law is None:
        raise ValueError(
            f'Expected a law, got none: {restart.law_reason}. Use `draws="guide"`.'
        )
    num = max(int(law.ess), 1)
    rows = np.random.default_rng(0).permutation(
        systematic_resample(law.weights, num, 0.5)
    )

    def take(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: array[rows] for name, array in value.items()}
        return value[rows]

    return replace(restart, draws=EPIDraws(*map(take, law.draws)))


# -- groups ---------------------------------------------------------------------------


def _draws(restarts: tuple[EPIRestart, ...]) -> dict[str, "xarray.Dataset"]:
    """Posterior, sample statistics and posterior predictive."""
    draws = [restart.draws for restart in restarts]
    stats = {"lp": "log_density", "log_prior": "log_prior"}
    if any(np.any(d.log_likelihood) for d in draws):
        stats["log_likelihood"] = "log_likelihood"
    return {
        "posterior": _samples([d.latents for d in draws]),
        "sample_stats": _samples(
            [{name: getattr(d, field) for name, field in stats.items()} for d in draws]
        ),
        "posterior_predictive": _samples([d.statistics for d in draws]),
    }


def _samples(chains: list[dict[str, np.ndarray]]) -> "xarray.Dataset":
    """A group of arrays (chain, draw, ...), longer chains cut, axes named by ArviZ."""
    import xarray

    variables, names = {}, _valid_names(chains[0])
    num = min(len(value) for chain in chains for value in chain.values())
    for site, name in names.items():
        value = np.stack([chain[site][:num] for chain in chains])
        others = [f"{name}_dim_{i}" for i in range(value.ndim - 2)]
        variables[name] = ((*SAMPLE_DIMS, *others), value, {"site": site})
    sizes = xarray.Dataset(variables).sizes
    return xarray.Dataset(variables, {dim: np.arange(n) for dim, n in sizes.items()})


def _valid_names(names: Iterable[str]) -> dict[str, str]:
    """Names for variables: no slash, not an axis of draws, and no two alike."""
    valid: dict[str, str] = {}
    for name in names:
        candidate = name.replace("/", ".").strip()
        while candidate in SAMPLE_DIMS or candidate in valid.values():
            candidate += "_"
        valid[name] = candidate
    return valid


def _targets(result: EPIResult, restarts: tuple[EPIRestart, ...]) -> "xarray.Dataset":
    """Target mean, variance and scale of each statistic, and its raw multipliers."""
    import xarray

    table = result.table
    multipliers = np.full((len(restarts), 2, table.num_statistics), np.nan)
    for r, restart in enumerate(restarts):
        parts = restart.multipliers.values()
        for row in range(2):
            flat = [
                np.ravel(
                    part[row] if row < len(part) else np.full_like(part[0], np.nan)
                )
                for part in parts
            ]
            multipliers[r, row] = np.concatenate(flat)
    return xarray.Dataset(
        {
            "mean": ("statistic", table.mean),
            "var": ("statistic", table.var),
            "scale": ("statistic", table.scale),
            "multipliers": (("chain", "moment", "statistic"), multipliers),
        },
        {
            "chain": np.arange(len(restarts)),
            "moment": ["mean", "variance"],
            "statistic": list(table.statistic_labels),
        },
    )


def _history(result: EPIResult, restarts: tuple[EPIRestart, ...]) -> "xarray.Dataset":
    """One row for each epoch; see `EPIHistory` for the meaning of each variable."""
    import xarray

    variables = {}
    for name in restarts[0].history._fields:
        value = np.stack([getattr(restart.history, name) for restart in restarts])
        last = ("constraint",) if name in PER_CONSTRAINT else ()
        variables[name] = (("chain", "epoch", *last), value)
    num_epochs = len(restarts[0].history.entropy)
    return xarray.Dataset(
        variables,
        {
            "chain": np.arange(len(restarts)),
            "epoch": np.arange(num_epochs),
            "constraint": list(result.table.labels),
        },
    )


def _restarts(restarts: tuple[EPIRestart, ...]) -> "xarray.Dataset":
    """What each restart reached."""
    import xarray

    names = ("entropy", "divergence", "log_likelihood", "score", "invalid")
    variables: dict[str, Any] = {
        name: ("chain", np.array([getattr(restart, name) for restart in restarts]))
        for name in names
    }
    # The effective share of the prior that the property leaves.
    variables["prior_share"] = "chain", np.exp(-variables["divergence"][1])
    variables["status"] = "chain", [str(restart.status) for restart in restarts]
    return xarray.Dataset(variables, {"chain": np.arange(len(restarts))})


# -- attributes -----------------------------------------------------------------------


def _attributes(
    result: EPIResult, restarts: tuple[EPIRestart, ...], *, is_law: bool
) -> dict[str, str | float]:
    """Numbers and words about the best restart, and how to read the draws."""
    attrs: dict[str, str | float] = {
        "inference_library": "numpyro_epi",
        "inference_library_version": package_version(),
        "status": str(result.status),
        "message": result.message,
        "stopped_by": result.stopped_by,
        "entropy": result.entropy,
        "divergence": result.divergence,
        "score": result.score,
        "tolerance": result.tolerance,
        "multipliers_source": result.multipliers_source,
        "draws": LAW_DRAWS if is_law else GUIDE_DRAWS,
    }
    if len(restarts) > 1:
        attrs["best_chain"] = result.best
        attrs["chains"] = (
            "Each chain is a restart of the optimisation. r-hat measures how much "
            "restarts disagree, not how well a chain mixes."
        )
    counts = [len(restart.draws.log_density) for restart in restarts]
    if max(counts) > min(counts):
        attrs["truncated"] = (
            f"Restarts have between {min(counts)} and {max(counts)} draws that can be "
            f"simulated; the first {min(counts)} of each are here."
        )
    return attrs
