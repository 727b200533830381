# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A NumPyro program seen as functions of a flat unconstrained vector u.

One run of the model per particle gives the log density of the prior, the log likelihood
of observed sites and the statistics. Which guide proposes u is not known here.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import handlers as numpyro_handlers
from numpyro.infer.util import compute_log_probs

from numpyro_epi._charts import Charted
from numpyro_epi._coordinates import with_centre
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._model.cost import Cost
from numpyro_epi._model.dependence import depends_on_last
from numpyro_epi._model.derivatives import Derivatives
from numpyro_epi._model.improper import find_start
from numpyro_epi._model.likelihood_noise import DataSites, LikelihoodNoise, stack_of
from numpyro_epi._model.minibatches import (
    Elements,
    Minibatches,
    choose_elements,
    first_elements,
    run_with,
)
from numpyro_epi._model.params import check_untrained, untrained
from numpyro_epi._model.start import Start
from numpyro_epi._sites import (
    Latent,
    draw_improper,
    find_latents,
    is_improper,
    is_latent,
    trace_model,
)
from numpyro_epi.handlers import collect, noise

# Beyond this, float32 cannot tell a bounded latent from its bound.
MAX_COORDINATE = 80.0


class Simulation(NamedTuple):
    """What one run of the model yields.

    Attributes:
        log_prior: log density of the latents in unconstrained coordinates, scalar.
        log_likelihood: of observed sites and factors, scalar.
        stats: all statistics, flattened, shape (S,).
    """

    log_prior: Any
    log_likelihood: Any
    stats: Any


class Problem:
    """The model with its arguments, as pure functions.

    Args:
        model: NumPyro program with at least one emergent property.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        rng_key: key for the one run that inspects the model.
    """

    def __init__(
        self, model: Callable, args: tuple, kwargs: dict, rng_key: jax.Array
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        trace, properties, noisy, parameters = self._inspect(rng_key)
        self.sites: tuple[Latent, ...] = tuple(
            find_latents(noise(model), args, kwargs).values()
        )
        if not self.sites:
            raise ValueError(
                "The model has no latents to infer. Add `numpyro.sample` sites with "
                "continuous priors, which are neither masked nor noise."
            )
        names = {site.name for site in self.sites}
        # Sites of which a mask keeps nothing, or whose coordinates are not NumPyro's.
        self.has_charts = any(isinstance(s.prior, Charted) for s in self.sites) or any(
            is_latent(msg) and name not in names for name, msg in trace.items()
        )
        self.has_likelihood = any(
            site["type"] == "sample" and site["is_observed"] for site in trace.values()
        )
        self.table = ConstraintTable.from_targets(
            {name: (p.stat.shape, p.mean, p.var) for name, p in properties.items()}
        )
        self.stat_dtypes = tuple(
            p.stat.dtype for p in properties.values() for _ in range(p.stat.size)
        )
        self.num_latents = sum(site.num_coordinates for site in self.sites)
        # Sites are ordered anew, and cut: what is compiled is for some of them.
        self._constrain_program: tuple[Any, Any] = (None, None)
        # Behind the cuts of circles; see `circles`.
        self.num_pilot_simulations = 0
        self.can_sample_prior = all(site.has_density for site in self.sites)
        self.improper = tuple(s.name for s in self.sites if is_improper(s.prior))
        self.start: Start | None = None
        # Elements of a plate inside of a `scan` are drawn out of sight of handlers.
        frames = {f.name for msg in trace.values() for f in stack_of(msg)}
        self.uses_random_keys = noisy.is_noisy or bool(frames - trace.keys())
        self._data_sites = DataSites.of(trace, noisy.subsampled)
        self.minibatches = Minibatches.of(
            noisy.subsampled, self._run, self.sample_prior
        )
        check_untrained(self, parameters)
        self.start = find_start(self) if self.improper else None

    def _inspect(self, rng_key: jax.Array) -> tuple[dict, dict, noise, dict]:
        """Trace the model abstractly: nothing is simulated."""
        found: dict[str, Any] = {}

        def run(key: jax.Array) -> None:
            parameters = untrained(self.model)
            noisy = noise(parameters)
            collector = collect(noisy)
            seeded = draw_improper(numpyro_handlers.seed(collector, key))
            traced = numpyro_handlers.trace(seeded)
            found["trace"] = traced.get_trace(*self.args, **self.kwargs)
            found["properties"] = collector.properties
            found["noise"] = noisy
            found["parameters"] = parameters.messages

        jax.eval_shape(run, rng_key)
        trace, properties = found["trace"], found["properties"]
        if not properties:
            raise ValueError(
                "The model has no emergent property, so there is nothing to infer. Add "
                "`numpyro_epi.emergent_property(stat, mean=..., var=...)` to it, or "
                "use `numpyro.infer.SVI`."
            )
        return trace, properties, found["noise"], found["parameters"]

    def order_sites(self, names: list[str]) -> None:
        """Lay the sites out in u in the order in which a guide does."""
        by_name = {site.name: site for site in self.sites}
        if self.start is not None:
            flat = jnp.arange(self.num_latents)
            columns = {k: np.ravel(v) for k, v in self.unpack(flat).items()}
            order = np.concatenate([columns[name] for name in names])
            self.start = self.start.ordered(list(order))
        self.sites = tuple(by_name[name] for name in names)

    def cut_circles(self, centres: Mapping[str, Any]) -> None:
        """Cut the circles of some sites opposite to these angles."""
        self.sites = tuple(
            with_centre(site, centres[site.name]) if site.name in centres else site
            for site in self.sites
        )

    def unpack(self, u: jax.Array) -> dict[str, jax.Array]:
        """Unconstrained values by site name; u of shape (..., D)."""
        values, start = {}, 0
        for site in self.sites:
            part = u[..., start : start + site.num_coordinates]
            values[site.name] = part.reshape(u.shape[:-1] + site.unconstrained_shape)
            start += site.num_coordinates
        return values

    def constrain(self, u: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """Latents of a flat vector u, shape (..., D), and log |dz/du|, shape (...)."""
        latents, log_det = {}, jnp.zeros(u.shape[:-1])
        for site, (name, value) in zip(self.sites, self.unpack(u).items(), strict=True):
            latents[name] = site.transform(value)
            term = site.transform.log_abs_det_jacobian(value, latents[name])
            log_det = log_det + term.sum(tuple(range(u.ndim - 1, term.ndim)))
        return latents, log_det

    def constrain_draws(self, u: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The same on the host, by one compiled program for each number of draws."""
        if self._constrain_program[0] is not self.sites:
            self._constrain_program = (self.sites, jax.jit(self.constrain))
        found = self._constrain_program[1](jnp.asarray(u))
        return jax.tree.map(np.asarray, found)

    def unconstrain(self, latents: dict[str, jax.Array]) -> jax.Array:
        """Flat vector u, shape (..., D), of latents by site name."""
        first = self.sites[0]
        batch = jnp.shape(latents[first.name])[
            : jnp.ndim(latents[first.name]) - len(first.shape)
        ]
        parts = [
            jnp.reshape(site.transform.inv(latents[site.name]), batch + (-1,))
            for site in self.sites
        ]
        return jnp.concatenate(parts, axis=-1)

    def simulate(self, u: jax.Array, rng_key: jax.Array) -> Simulation:
        """Run the model once at u, shape (D,), with fresh simulation noise.

        Subsampled plates have all their elements where the model is the same with them.
        """
        return self._run_with(u, rng_key, self.minibatches.elements)

    def simulate_step(self, u: jax.Array, rng_key: jax.Array) -> Simulation:
        """The same for a gradient step, which may take minibatches."""
        return self._run_with(u, rng_key, self.minibatches.step_elements)

    def _run_with(self, u: jax.Array, rng_key: jax.Array, mode: str) -> Simulation:
        plates = self.minibatches.plates
        run = run_with(lambda rows: self._run(u, rng_key, rows), plates, mode)
        return Simulation(*run)

    def _run(self, u: jax.Array, rng_key: jax.Array, elements: Elements) -> Simulation:
        latents, log_det = self.constrain(u)
        collector, log_probs = self._log_probs(latents, rng_key, elements)
        zero = jnp.zeros(())
        log_prior = sum((v for k, v in log_probs.items() if k in latents), zero)
        log_lik = sum((v for k, v in log_probs.items() if k not in latents), zero)
        stats = [jnp.ravel(p.stat) for p in collector.properties.values()]
        return Simulation(
            log_prior + log_det, log_lik, jnp.concatenate(stats).astype(float)
        )

    def _log_probs(
        self, latents: dict, rng_key: jax.Array, elements: Elements
    ) -> tuple[collect, dict[str, jax.Array]]:
        """The properties of a run, and the log densities of its sites."""
        collector = collect(noise(self.model))
        seeded = numpyro_handlers.seed(choose_elements(collector, elements), rng_key)
        return collector, compute_log_probs(seeded, self.args, self.kwargs, latents)[0]

    @cached_property
    def likelihood_noise(self) -> LikelihoodNoise:
        """Sources of noise in the log likelihood; read off the model, nothing runs."""
        minibatches = self.minibatches
        # Fixed elements keep what else is random apart from the draw of a minibatch.
        elements = first_elements(minibatches.plates) if minibatches.takes_all else {}

        def terms(u: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
            latents, _ = self.constrain(u)
            return self._log_probs(latents, key, elements)[1]

        u, key = jnp.zeros(self.num_latents), random.key(0)
        return self._data_sites.noise(depends_on_last(terms, u, key), minibatches)

    @property
    def can_start(self) -> bool:
        """Whether draws of `sample_prior` have a density that is known."""
        return self.can_sample_prior or all(
            site.has_density or site.name in self.improper for site in self.sites
        )

    def log_start(self, u: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
        """Log density of draws u of `sample_prior`, whose prior has `log_prior`."""
        return log_prior if self.start is None else self.start.log_prob(u)

    def log_prior(self, u: jax.Array) -> jax.Array:
        """Log density of the prior alone; the compiler drops the simulator.

        Where the priors of all sites are constants of the model, it is not even traced:
        it may have no derivatives.
        """
        if not all(site.is_fixed and site.has_density for site in self.sites):
            return self.simulate(u, random.key(0)).log_prior
        latents, log_det = self.constrain(u)
        terms = (s.prior.log_prob(latents[s.name]).sum() for s in self.sites)
        return sum(terms, log_det)

    @cached_property
    def cost(self) -> Cost:
        """Of one simulation."""
        return Cost.of(self.simulate, jnp.zeros(self.num_latents), random.key(0))

    @cached_property
    def derivatives(self) -> Derivatives:
        """Of statistics and likelihood with respect to u."""

        def outputs(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            sim = self.simulate(u, random.key(0))
            return sim.log_likelihood, sim.stats

        return Derivatives.of(outputs, jnp.zeros(self.num_latents))

    def sample_prior(self, rng_key: jax.Array) -> jax.Array:
        """One draw u from the prior, shape (D,); the compiler drops the simulator.

        Where a site has no proper prior, it is one from `start` instead.
        """
        if self.start is not None:
            return self.start.sample(rng_key)
        trace = trace_model(noise(self.model), rng_key, self.args, self.kwargs)
        u = self.unconstrain({s.name: trace[s.name]["value"] for s in self.sites})
        # A draw that rounds to the edge of its support has an infinite coordinate.
        # Finite ones may be large: those of a latent without bounds are its values.
        return jnp.where(jnp.isinf(u), jnp.sign(u) * MAX_COORDINATE, u)

    # -- latents given by users -------------------------------------------------------

    def check_latents(self, latents: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Latents as arrays with the same leading axes, or an error naming the site."""
        names = [site.name for site in self.sites]
        if not isinstance(latents, Mapping):
            raise TypeError(
                "Expected latents as a mapping {site: array} with the sites "
                f"{names}, got {type(latents).__name__}."
            )
        for name in latents:
            if name not in names:
                raise ValueError(
                    f"Expected latents at the sites {names}, got `{name}`."
                )
        values, batches = {}, {}
        for site in self.sites:
            if site.name not in latents:
                raise ValueError(
                    f"Expected latents at the sites {names}, got none at `{site.name}`."
                )
            value = jnp.asarray(latents[site.name], float)
            batch = value.ndim - len(site.shape)
            if batch < 0 or value.shape[batch:] != site.shape:
                raise ValueError(
                    f"Expected latents of shape (..., *{site.shape}) at `{site.name}`, "
                    f"got {value.shape}."
                )
            values[site.name], batches[site.name] = value, value.shape[:batch]
        if len(set(batches.values())) > 1:
            raise ValueError(
                f"Expected the same leading axes at every site, got {batches}."
            )
        return values

    def is_inside(self, latents: dict[str, jax.Array]) -> jax.Array:
        """Whether latents lie in the interior of all supports, shape (...)."""
        results = []
        for site in self.sites:
            good = site.prior.support(latents[site.name])
            u = site.transform.inv(latents[site.name])
            batch = latents[site.name].ndim - len(site.shape)
            good = good.all(tuple(range(batch, good.ndim)))
            results.append(good & jnp.isfinite(u).all(tuple(range(batch, u.ndim))))
        return jnp.stack(results).all(0)

    def nudge_inside(
        self, latents: dict[str, jax.Array], inside: jax.Array
    ) -> dict[str, jax.Array]:
        """Replace latents that are not inside by a point that is."""
        centre, _ = self.constrain(jnp.zeros(self.num_latents))
        return {
            site.name: jnp.where(
                inside.reshape(inside.shape + (1,) * len(site.shape)),
                latents[site.name],
                centre[site.name],
            )
            for site in self.sites
        }
