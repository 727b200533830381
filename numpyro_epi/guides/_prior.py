# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Where does the flow start? At the prior of the model, wherever that is possible."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._sites import Latent, is_improper, run_now, unconstrain, unwrap
from ._distributions import (
    Concatenated,
    LogGamma,
    LogitBeta,
    StandardLogistic,
    StandardNormal,
    Unconstrained,
)

# Prior draws behind the location and spread of a site.
NUM_DRAWS = 2000
# From the best start to the worst.
KINDS = ("prior", "moments", "normal")


class Base(NamedTuple):
    """Standard coordinates e, and u = loc + scale * e, the flat unconstrained ones.

    The conditioners of a flow see e: numbers of order one, whatever the model's units.

    Attributes:
        standard: Distribution of e, event shape (d,).
        loc: Shape (d,).
        scale: Shape (d,), positive.
    """

    standard: dist.Distribution
    loc: np.ndarray
    scale: np.ndarray


def make_base(
    latents: Mapping[str, Latent],
    kind: str,
    gaussian: Base,
    sample_prior: Callable[[int], np.ndarray],
) -> tuple[Base, str]:
    """Choose the base of each site, and join them.

    Args:
        latents: Of the model.
        kind: "prior", or "normal" to take `gaussian`.
        gaussian: What replaces improper priors.
        sample_prior: Draws u from the joint prior, shape (n, D), for sites whose prior
            depends on other latents. Called only if there are any.

    Returns:
        The base of all sites, and the worst kind among them.
    """
    is_hierarchy = any(not latent.is_fixed for latent in latents.values())
    kinds = {
        name: _kind(latent, is_hierarchy=is_hierarchy)
        for name, latent in latents.items()
    }
    if kind == "normal" or set(kinds.values()) == {"normal"}:
        return gaussian, "normal"
    draws = sample_prior(NUM_DRAWS) if "moments" in kinds.values() else None
    bases, start = [], 0
    for name, latent in latents.items():
        stop = start + latent.num_coordinates
        if kinds[name] == "prior":
            base = prior_base(latent)
        elif draws is not None and kinds[name] == "moments":
            base = moment_base(latent, draws[:, start:stop])
        else:
            loc, scale = gaussian.loc[start:stop], gaussian.scale[start:stop]
            base = Base(StandardNormal(loc.size), loc, scale)
        bases.append(base)
        start = stop
    return _join(bases), max(kinds.values(), key=KINDS.index)


def prior_base(latent: Latent) -> Base:
    """The prior of one site, as a distribution of its unconstrained coordinates."""
    core = unwrap(latent.prior)[-1]
    size = latent.num_coordinates

    def flat(parameter: Any) -> np.ndarray:
        value = np.broadcast_to(np.asarray(parameter, float), latent.shape)
        return value[latent.is_kept]

    zeros, ones = np.zeros(size), np.ones(size)
    if type(core) is dist.Uniform:
        return Base(StandardLogistic(size), zeros, ones)
    if type(core) in (dist.Normal, dist.LogNormal):
        return Base(StandardNormal(size), flat(core.loc), flat(core.scale))
    if type(core) in (dist.Gamma, dist.Exponential):
        concentration = flat(getattr(core, "concentration", 1.0))
        return Base(LogGamma(concentration), -np.log(flat(core.rate)), ones)
    if type(core) is dist.Beta:
        a, b = flat(core.concentration1), flat(core.concentration0)
        return Base(LogitBeta(a, b), zeros, ones)
    if type(core) is dist.Dirichlet:
        return _stick_base(flat(core.concentration).reshape(-1, latent.shape[-1]))
    return _generic_base(latent)


def moment_base(latent: Latent, draws: np.ndarray) -> Base:
    """A Gaussian with the location and spread of prior draws, shape (n, d)."""
    loc, scale = _location_and_spread(draws, latent.name)
    return Base(StandardNormal(loc.size), loc, scale)


def _kind(latent: Latent, *, is_hierarchy: bool) -> str:
    """Where a site starts.

    Priors of scales reach zero, where the density of what they scale has no bound:
    with both drawn independently, the mean of 1 / scale^2 is infinite. So none of the
    bounded sites of a hierarchy starts at its prior. A Gaussian of the log of the scale
    has that mean.
    """
    if is_improper(latent.prior):
        return "normal"
    support = latent.prior.support
    is_real = getattr(support, "base_constraint", support) is constraints.real
    is_near_edge = is_hierarchy and not is_real
    is_prior = latent.has_density and latent.is_fixed and not is_near_edge
    return "prior" if is_prior else "moments"


def _join(bases: list[Base]) -> Base:
    """One base for all sites. Neighbours of one kind become one distribution."""
    parts: list[dist.Distribution] = []
    for part in (base.standard for base in bases):
        is_mergeable = isinstance(part, StandardLogistic | StandardNormal)
        if parts and is_mergeable and type(parts[-1]) is type(part):
            parts[-1] = type(part)(parts[-1].event_shape[0] + part.event_shape[0])
        else:
            parts.append(part)
    standard = parts[0] if len(parts) == 1 else Concatenated(tuple(parts))
    loc = np.concatenate([base.loc for base in bases])
    return Base(standard, loc, np.concatenate([base.scale for base in bases]))


def _stick_base(concentration: np.ndarray) -> Base:
    """Dirichlet: the fractions that break the stick are independent beta numbers."""
    a = concentration[..., :-1]
    b = np.cumsum(concentration[..., :0:-1], axis=-1)[..., ::-1]
    # NumPyro's transform maps zero to the middle of the simplex.
    loc = np.broadcast_to(np.log(np.arange(a.shape[-1], 0, -1)), a.shape)
    return Base(LogitBeta(a.ravel(), b.ravel()), loc.ravel(), np.ones(a.size))


def _generic_base(latent: Latent) -> Base:
    batch_shape = latent.shape[: len(latent.shape) - latent.event_dim]
    prior = latent.prior.expand(batch_shape)

    def sample(rng_key: jax.Array) -> jax.Array:
        draws = prior.sample(rng_key, (NUM_DRAWS,))
        return unconstrain(prior.support, draws, len(latent.shape))

    (u,) = run_now(sample)
    loc, scale = _location_and_spread(np.asarray(u, float), latent.name)
    return Base(Unconstrained(prior, loc, scale), loc, scale)


def _location_and_spread(u: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Median and half of the central 68%, which heavy tails do not spoil."""
    low, loc, high = np.quantile(u, [0.159, 0.5, 0.841], axis=0)
    if not (high > low).all():
        raise ValueError(
            f"Expected latents that vary, but all prior draws of `{name}` are equal. "
            "Make it a constant of the model, or `numpyro.deterministic`."
        )
    return loc, (high - low) / 2
