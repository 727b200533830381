# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A NumPyro guide seen as pure functions of its parameters, in coordinates u."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers as numpyro_handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import autoguide

from numpyro_epi._charts import charts
from numpyro_epi._math.lattice import shifted_lattice
from numpyro_epi._model.problem import Problem
from numpyro_epi.handlers import noise

Params = dict[str, Any]

# In more dimensions a lattice of a few hundred points is no more even than chance.
MAX_LATTICE_DIM = 12

WITHOUT_ENTROPY = (
    autoguide.AutoDelta,
    autoguide.AutoLaplaceApproximation,
    autoguide.AutoDAIS,
    autoguide.AutoGuideList,
    autoguide.AutoSemiDAIS,
)


class GuideFunctions:
    """What the trainer asks of a guide: draw u, evaluate log q(u), count parameters.

    Args:
        guide: None (the default flow), a guide class, or a guide instance.
        problem: the model that it is for.
        rng_key: key for the guide's set-up.
    """

    def __init__(self, guide: Any, problem: Problem, rng_key: jax.Array) -> None:
        self.guide = _as_instance(guide, problem)
        self.name = type(self.guide).__name__
        model_args = (problem.args, problem.kwargs)
        if problem.start is not None and hasattr(self.guide, "start_at"):
            scales = problem.unpack(jnp.asarray(problem.start.scale))
            locs = problem.unpack(jnp.asarray(problem.start.loc))
            self.guide.start_at({k: (locs[k], scales[k]) for k in problem.improper})
        if self.guide.prototype_trace is None:
            plain = self.guide.model
            # The guide takes over the coordinates of the problem.
            if problem.has_charts:
                priors = {site.name: site.prior for site in problem.sites}
                self.guide.model = charts(plain, priors)
            try:
                with numpyro_handlers.block(), numpyro_handlers.seed(rng_seed=rng_key):
                    self.guide._setup_prototype(*model_args[0], **model_args[1])
            finally:
                self.guide.model = plain
        _check_sites(self.guide, problem)
        problem.order_sites(list(self.guide._init_locs))
        if self.guide is not guide:
            _begin_at(self.guide, problem)
        self.transforms = self._find_transforms(rng_key)
        self.has_density = not isinstance(self.guide, autoguide.AutoBNAFNormal)
        self.has_fast_density = self.has_density and not isinstance(
            self.guide, autoguide.AutoIAFNormal
        )

    def _find_transforms(self, rng_key: jax.Array) -> dict[str, Any]:
        """By name, of parameters to unconstrained ones; nothing is computed."""
        found = {}

        def look(key: jax.Array) -> None:
            for name, site in self._param_sites(key).items():
                if not name.endswith("$params"):
                    constraint = site["kwargs"].get("constraint", constraints.real)
                    found[name] = biject_to(constraint)

        jax.eval_shape(look, rng_key)
        return found

    def _param_sites(self, rng_key: jax.Array) -> dict[str, dict]:
        seeded = numpyro_handlers.seed(self._posterior_program, rng_key)
        trace = numpyro_handlers.trace(seeded).get_trace()
        return {k: v for k, v in trace.items() if v["type"] == "param"}

    def _posterior_program(self) -> dist.Distribution:
        """Distribution of u; its `param` sites are the guide's."""
        if not isinstance(self.guide, autoguide.AutoContinuous):
            return _mean_field_posterior(self.guide)
        posterior = self.guide._get_posterior()
        # AutoDiagonalNormal gives independent scalars instead of one vector.
        return posterior.to_event(1 - posterior.event_dim)

    def init(self, rng_key: jax.Array) -> Params:
        """Fresh parameters, unconstrained, as SVI initialises them."""
        values = {k: s["value"] for k, s in self._param_sites(rng_key).items()}
        return {
            k: self.transforms[k].inv(v) if k in self.transforms else v
            for k, v in values.items()
        }

    def constrain(self, params: Params) -> Params:
        """Parameters as the guide itself names and bounds them (`SVI.get_params`)."""
        return {
            k: self.transforms[k](v) if k in self.transforms else v
            for k, v in params.items()
        }

    def step_sizes(self, params: Params) -> Params:
        """The number that makes a weight of each parameter; one in other guides.

        See `AutoFlow.step_sizes`. Arrays of its shape, so that they travel with it.
        """
        sizes = jax.tree.map(lambda _: 1.0, params)
        if hasattr(self.guide, "step_sizes"):
            sizes |= self.guide.step_sizes(params)
        return jax.tree.map(
            lambda x, size: jnp.broadcast_to(jnp.asarray(size, x.dtype), x.shape),
            params,
            sizes,
        )

    @property
    def components(self) -> Any:
        """What finds and sets components of the base of a flow; None of other guides.

        See `BaseComponents` of `AutoFlow`.
        """
        return getattr(self.guide, "components", None)

    def posterior(self, params: Params) -> dist.Distribution:
        """The distribution of u, shape (D,), at unconstrained parameters."""
        return numpyro_handlers.substitute(
            self._posterior_program, self.constrain(params)
        )()

    def sample(
        self, params: Params, rng_key: jax.Array, num_samples: int
    ) -> tuple[jax.Array, jax.Array]:
        """Draws u, shape (n, D), and their log q, shape (n,), in one pass."""
        posterior = self.posterior(params)
        if isinstance(posterior, dist.TransformedDistribution):
            u, parts = posterior.sample_with_intermediates(rng_key, (num_samples,))
            return u, posterior.log_prob(u, parts)
        u = posterior.rsample(rng_key, (num_samples,))
        return u, posterior.log_prob(u)

    def sample_evenly(
        self, params: Params, rng_key: jax.Array, num_samples: int
    ) -> tuple[jax.Array, jax.Array]:
        """Like `sample`, with draws of the base that are more even than random ones.

        Each half of them is a lattice with a random shift of its own: estimates stay
        unbiased, the halves independent, and the variance is smaller (Buchholz, Wenzel
        & Mandt, Quasi-Monte Carlo variational inference, ICML 2018). Not for standard
        errors, which need independent draws. Guides without a base that can be moved
        from uniform numbers, or with many latents, draw as usual.
        """
        posterior = self.posterior(params)
        base: Any = getattr(posterior, "base_dist", None)
        dim = posterior.event_shape[-1]
        if not hasattr(base, "from_uniform") or dim > MAX_LATTICE_DIM:
            return self.sample(params, rng_key, num_samples)
        keys = random.split(rng_key, 3)
        halves = [shifted_lattice(key, num_samples // 2, dim) for key in keys[:2]]
        x = base.from_uniform(jnp.concatenate(halves), keys[2])
        parts = []
        for transform in posterior.transforms:
            y, part = transform.call_with_intermediates(x)
            parts.append([x, part])
            x = y
        return x, posterior.log_prob(x, parts)

    def log_prob(self, params: Params, u: jax.Array) -> jax.Array:
        """Log q at u, shape (..., D)."""
        if not self.has_density:
            raise NotImplementedError(
                f"The guide {self.name} has no density at a given point: its transform "
                "cannot be inverted. Use `numpyro_epi.guides.AutoRealNVP` or "
                "`numpyro_epi.guides.AutoNeuralSpline`, which are fast both ways."
            )
        return self.posterior(params).log_prob(u)


def _as_instance(guide: Any, problem: Problem) -> Any:
    if guide is None:
        from numpyro_epi.guides import AutoRealNVP

        guide = AutoRealNVP
    if isinstance(guide, type) or not isinstance(guide, autoguide.AutoGuide):
        if not callable(guide):
            raise TypeError(
                "`guide` must be None, a NumPyro AutoGuide class or an instance of "
                f"one, but got {type(guide).__name__}."
            )
        guide = guide(noise(problem.model))
    if isinstance(guide, WITHOUT_ENTROPY):
        raise ValueError(
            f"The guide {type(guide).__name__} has no entropy that EPI could maximise."
            " Use `numpyro_epi.guides.AutoRealNVP` (the default) or a guide of NumPyro "
            "such as `AutoMultivariateNormal`."
        )
    if not isinstance(guide, (autoguide.AutoContinuous, autoguide.AutoNormal)):
        raise TypeError(
            "`guide` must be an AutoContinuous guide or AutoNormal, but got "
            f"{type(guide).__name__}. Use `numpyro_epi.guides.AutoRealNVP`."
        )
    return guide


def _begin_at(guide: Any, problem: Problem) -> None:
    """Let a guide of NumPyro that was made here begin where improper priors do."""
    if problem.start is None:
        return
    locs = problem.unpack(jnp.asarray(problem.start.loc))
    if isinstance(guide, autoguide.AutoNormal):
        guide._init_locs = {k: locs[k] for k in guide._init_locs}
    elif not hasattr(guide, "start_at"):
        guide._init_latent = jnp.asarray(problem.start.loc)


def _check_sites(guide: Any, problem: Problem) -> None:
    """Refuse a guide that was built for another model."""
    expected = {site.name: site.unconstrained_shape for site in problem.sites}
    found = {name: jnp.shape(value) for name, value in guide._init_locs.items()}
    if found == expected:
        return
    for site in problem.sites:
        if not site.is_kept.all() and found.get(site.name) == site.shape:
            raise ValueError(
                f"The guide {type(guide).__name__} has met its model outside of EPI, "
                f"with masked elements of `{site.name}` among its latents. Pass the "
                "guide's class, or use `numpyro_epi.guides.AutoRealNVP`."
            )
    extra = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found))
    raise ValueError(
        f"The guide {type(guide).__name__} was built for another model: it guides the "
        f"sites {found}, but the latents of this model are {expected}"
        + (f" (not latent here: {extra})" if extra else "")
        + (f" (not guided: {missing})" if missing else "")
        + ". Build the guide from the same model, wrapped in "
        "`numpyro_epi.handlers.noise` if it has noise sites, or pass the guide's class."
    )


def _mean_field_posterior(guide: autoguide.AutoNormal) -> dist.Distribution:
    """`AutoNormal` as one distribution over the flat vector u."""
    locs, scales = [], []
    for name, init in guide._init_locs.items():
        loc = numpyro.param(f"{name}_{guide.prefix}_loc", init)
        scale = numpyro.param(
            f"{name}_{guide.prefix}_scale",
            jnp.full(jnp.shape(init), guide._init_scale),
            constraint=guide.scale_constraint,
        )
        locs.append(jnp.ravel(loc))
        scales.append(jnp.ravel(scale))
    return dist.Normal(jnp.concatenate(locs), jnp.concatenate(scales)).to_event(1)


def num_params(params: Params) -> int:
    """Number of scalars in a tree of parameters."""
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))
