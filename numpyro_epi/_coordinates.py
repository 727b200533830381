# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which elements of a latent have coordinates, and where circles are cut."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from ._charts import Charted, find_centre, wrap
from ._sites import Latent, is_latent, run_now, trace_model, unwrap
from ._typing import Message, Model
from .primitives import targets_of

# Runs that tell whether the model uses what is masked.
NUM_USE_RUNS = 8
# Prior draws behind the cut of a circle.
NUM_DRAWS = 2000

Latents = dict[str, Latent]


def settle_coordinates(
    model: Model,
    latents: Latents,
    runs: list[dict[str, dist.Distribution]],
    args: tuple,
    kwargs: Mapping[str, Any],
) -> Latents:
    """Latents without masked elements, and with circles cut where the prior is rare.

    Sites whose prior is `Charted` have their coordinates already.

    Args:
        model: With the latents.
        latents: In NumPyro's own coordinates.
        runs: Priors of several runs.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.

    Raises:
        ValueError: Naming the site, if its mask depends on latents or noise, or the
            model uses what it covers.
    """
    masked = {
        name: kept
        for name, latent in latents.items()
        if not isinstance(latent.prior, Charted)
        and not (kept := _kept(latent.prior, latent.shape)).all()
    }
    _check_fixed_masks(latents, runs)
    if masked:
        _check_unused(model, masked, args, kwargs)
        settled = {}
        for name, latent in latents.items():
            if name not in masked:
                settled[name] = latent
            elif masked[name].any():
                settled[name] = _without(latent, masked[name])
        latents = settled
    return _cut_circles(model, latents, args, kwargs)


def with_centre(latent: Latent, centre: Any) -> Latent:
    """The same site on a circle that is cut opposite to another angle."""
    base, rows = latent.prior, None
    if isinstance(base, Charted):
        base, rows = base.base_dist, base.rows
    centre = jnp.broadcast_to(jnp.asarray(centre, float), latent.shape)
    return latent._replace(prior=Charted(base, wrap(centre), rows, latent.shape))


# -- masks ----------------------------------------------------------------------------


def _kept(prior: dist.Distribution, shape: tuple[int, ...]) -> np.ndarray:
    """Which numbers of the value of a site are not masked, in its shape."""
    kept = np.ones(shape, bool)
    for mask, inner in _masks(prior):
        kept = kept & mask.reshape(mask.shape + (1,) * inner)
    return kept


def _masks(prior: dist.Distribution) -> list[tuple[np.ndarray, int]]:
    """Masks of a prior, each with the number of axes of one of its elements."""
    layers = [x for x in unwrap(prior) if isinstance(x, dist.MaskedDistribution)]
    masks = [(np.asarray(layer._mask), layer.event_dim) for layer in layers]
    return [(mask, inner if mask.ndim else 0) for mask, inner in masks]


def _without(latent: Latent, kept: np.ndarray) -> Latent:
    """A site without the elements that are not kept."""
    support = latent.prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    lead = kept.reshape(*kept.shape[: kept.ndim - support.event_dim], -1)[..., 0]
    rows = tuple(np.flatnonzero(lead).tolist())
    return latent._replace(prior=Charted(latent.prior, None, rows, latent.shape))


def _check_fixed_masks(
    latents: Latents, runs: list[dict[str, dist.Distribution]]
) -> None:
    for name in latents:
        first, *others = [[mask for mask, _ in _masks(run[name])] for run in runs]
        for other in others:
            pairs = zip(first, other, strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                raise ValueError(
                    f"Expected a fixed mask at the latent site `{name}`, but its mask "
                    "depends on other latents, or on noise. Pass the mask to the model "
                    "as an argument, and let the latents act on the value instead."
                )


def _check_unused(
    model: Model,
    masked: Mapping[str, np.ndarray],
    args: tuple,
    kwargs: Mapping[str, Any],
) -> None:
    """Refuse a model that uses masked elements: they have no prior.

    Two values of them shall give the same statistics and the same log density.
    """
    names = list(masked)

    def differences(rng_key: jax.Array) -> dict[str, jax.Array]:
        draw_key, run_key = jax.random.split(rng_key)
        trace = trace_model(model, draw_key, args, kwargs)
        values = {k: msg["value"] for k, msg in trace.items() if is_latent(msg)}

        def run(is_filled: jax.Array) -> dict[str, jax.Array]:
            latents = dict(values)
            for name, fill in zip(names, is_filled, strict=True):
                filling = _filling(trace[name]["fn"].support, values[name])
                keep = masked[name] | ~fill
                latents[name] = jnp.where(keep, values[name], filling)
            seeded = handlers.seed(model, run_key)
            given = handlers.substitute(seeded, latents)
            with handlers.block():
                return _outcomes(handlers.trace(given).get_trace(*args, **kwargs))

        # One program for all runs, whose rounding is then the same.
        filled = np.eye(len(names) + 1, len(names), k=-1, dtype=bool)
        return jax.tree.map(_differ, jax.lax.map(run, jnp.asarray(filled)))

    for found in run_now(differences, NUM_USE_RUNS):
        for where, differs in found.items():
            for name, is_used in zip(names, differs, strict=True):
                if is_used:
                    raise ValueError(
                        "Expected a model that does not use masked elements of a "
                        f"latent, which have no prior, but `{where}` depends on those "
                        f"of `{name}`. Sample what the model uses outside of "
                        "`numpyro.handlers.mask`, or under a mask that is True for it."
                    )


def _outcomes(trace: Mapping[str, Message]) -> dict[str, jax.Array]:
    """Statistics of a run, and log densities of its sites, noise aside."""
    found = {}
    for name, msg in trace.items():
        if targets_of(msg) is not None:
            found[name] = msg["value"]
        elif msg["type"] == "sample" and (msg["is_observed"] or is_latent(msg)):
            found[name] = msg["fn"].log_prob(msg["value"])
    return found


def _filling(support: constraints.Constraint, value: jax.Array) -> jax.Array:
    transform = biject_to(support)
    return transform(jnp.zeros(transform.inverse_shape(jnp.shape(value))))


def _differ(runs: jax.Array) -> jax.Array:
    """Whether each further run differs from the first one."""
    first, others = runs[0], runs[1:]
    same = (others == first) | (jnp.isnan(others) & jnp.isnan(first))
    return ~same.reshape(len(others), -1).all(axis=1)


# -- circles --------------------------------------------------------------------------


def _cut_circles(
    model: Model, latents: Latents, args: tuple, kwargs: Mapping[str, Any]
) -> Latents:
    """Cut each circle where prior draws are rarest."""
    names = [name for name, latent in latents.items() if _is_uncut(latent)]
    drawn = [name for name in names if _location(latents[name]) is None]
    draws = _draw(model, drawn, args, kwargs) if drawn else {}
    cut = dict(latents)
    for name in names:
        centre = _location(latents[name])
        if centre is None:
            flat = draws[name].reshape(NUM_DRAWS, -1)
            centre = find_centre(flat).reshape(latents[name].shape)
        cut[name] = with_centre(latents[name], centre)
    return cut


def _is_uncut(latent: Latent) -> bool:
    support: Any = latent.prior.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.circular))


def _location(latent: Latent) -> np.ndarray | None:
    """Of a von Mises prior with fixed parameters: no draws are needed."""
    core: Any = unwrap(latent.prior)[-1]
    if type(core) is dist.VonMises and latent.is_fixed:
        return np.broadcast_to(np.asarray(core.loc), latent.shape)
    return None


def _draw(
    model: Model, names: list[str], args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Prior draws at some sites, (n, *shape)."""

    def one(rng_key: jax.Array) -> dict[str, jax.Array]:
        trace = trace_model(model, rng_key, args, kwargs)
        return {name: trace[name]["value"] for name in names}

    (draws,) = run_now(lambda key: jax.vmap(one)(jax.random.split(key, NUM_DRAWS)))
    return {name: np.asarray(value) for name, value in draws.items()}
