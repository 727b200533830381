# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which latents does a model have, on which supports, and are their priors fixed?

The model is traced once, under `jax.jit`, and only its latents leave the compiled
function: whatever it simulates is dropped as dead code and never runs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform
from numpyro.infer.initialization import init_to_uniform

from ._charts import Charted
from ._checks import is_traced
from ._typing import Message, Model

# Draws of the latents that are compared: what differs between them depends on them. A
# mask may do so rarely.
NUM_TRACES, NUM_MASK_TRACES = 3, 64


class Latent(NamedTuple):
    """One latent site of a model, as seen from outside.

    Attributes:
        name: Of the site.
        prior: Distribution at the site, with the parameters of one run.
        shape: Shape of the value, plates included.
        has_density: Whether the site adds the log density of `prior`, once, to that of
            the model: false if improper or scaled.
        is_fixed: Whether the parameters of `prior` were the same in all runs.
    """

    name: str
    prior: dist.Distribution
    shape: tuple[int, ...]
    has_density: bool
    is_fixed: bool

    @property
    def transform(self) -> Transform:
        """From unconstrained coordinates to the support."""
        return biject_to(self.prior.support)

    @property
    def event_dim(self) -> int:
        """Rightmost axes of the value that belong to one draw of the prior."""
        return self.prior.event_dim

    @property
    def unconstrained_shape(self) -> tuple[int, ...]:
        """Of the value in unconstrained coordinates: (2,) for a simplex in 3-D."""
        return self.transform.inverse_shape(self.shape)

    @property
    def num_coordinates(self) -> int:
        """Unconstrained coordinates of the site."""
        return math.prod(self.unconstrained_shape)

    @property
    def centre(self) -> Any:
        """Angle opposite to the cut of a circle; None on other supports."""
        return self.prior.centre if isinstance(self.prior, Charted) else None

    @property
    def is_kept(self) -> np.ndarray:
        """Which numbers of the value belong to latents: not those that are masked."""
        if isinstance(self.prior, Charted) and self.prior.rows is not None:
            kept = self.prior.support.kept
            lead = kept.reshape(kept.shape + (1,) * (len(self.shape) - kept.ndim))
            return np.broadcast_to(lead, self.shape)
        return np.ones(self.shape, bool)


def is_latent(msg: Message) -> bool:
    """Whether a message comes from a site to be inferred: not data, not noise."""
    is_free = msg["type"] == "sample" and not msg["is_observed"]
    return is_free and not (msg.get("infer") or {}).get("noise", False)


def is_improper(prior: dist.Distribution) -> bool:
    """Whether a distribution has no draws, whatever it is wrapped in."""
    return any(isinstance(layer, dist.ImproperUniform) for layer in unwrap(prior))


def unwrap(prior: dist.Distribution) -> list[dist.Distribution]:
    """A distribution and those it is made of by `expand`, `to_event` and `mask`.

    A prior with coordinates of its own is made of the one at the site.
    """
    layers = [prior]
    wrappers = (
        Charted,
        dist.ExpandedDistribution,
        dist.Independent,
        dist.MaskedDistribution,
    )
    while isinstance(layers[-1], wrappers):
        layers.append(layers[-1].base_dist)
    return layers


def find_latents(
    model: Model, args: tuple = (), kwargs: Mapping[str, Any] | None = None
) -> dict[str, Latent]:
    """Find the latents of a model and refuse those that no continuous guide can have.

    Args:
        model: A NumPyro model.
        args: Positional arguments of the model, concrete.
        kwargs: Keyword arguments of the model, concrete.

    Returns:
        The latents by name, in the order of the model. Empty if it has none.

    Raises:
        ValueError: Naming the site: if it is discrete, has a support that depends on
            other latents or that NumPyro cannot map to the reals, lies in a plate that
            is subsampled, or has a mask that is not fixed or covers what the model
            uses.
        RuntimeError: If `args` or `kwargs` are traced.
    """
    kwargs = dict(kwargs or {})
    if is_traced((args, kwargs)):
        raise RuntimeError(
            "Expected concrete model arguments when a guide meets its model, got "
            "traced ones. Call the guide, or `SVI.init`, once outside of `jax.jit`."
        )
    found: dict[str, Message] = {}

    def run(rng_key: jax.Array) -> dict[str, dist.Distribution]:
        trace = trace_model(model, rng_key, args, kwargs)
        _check_plates(trace)
        found.update({name: msg for name, msg in trace.items() if is_latent(msg)})
        for msg in found.values():
            _check_support(msg)
        return {name: msg["fn"] for name, msg in found.items()}

    runs = run_now(run, lambda: NUM_MASK_TRACES if _has_masks(found) else NUM_TRACES)
    latents = {}
    for name, msg in found.items():
        priors = [priors[name] for priors in runs]
        _check_fixed_support(name, priors)
        latents[name] = Latent(
            name=name,
            prior=priors[0],
            shape=jnp.shape(msg["value"]),
            has_density=_has_density(msg),
            is_fixed=_are_equal(priors),
        )
    from ._coordinates import settle_coordinates  # which runs models by what is here

    return settle_coordinates(model, latents, runs, args, kwargs)


def run_now(
    fn: Callable[[jax.Array], Any], num_runs: int | Callable[[], int] = 1
) -> list[Any]:
    """Compile a function of a key, and run it with the first few keys, concretely.

    That is, even where JAX is tracing the caller. How many may be asked for once the
    function has been traced.
    """
    with jax.ensure_compile_time_eval():
        first = jax.random.key(0)
    compiled = jax.jit(fn).lower(first).compile()
    num = num_runs if isinstance(num_runs, int) else num_runs()
    with jax.ensure_compile_time_eval():
        keys = [jax.random.key(i) for i in range(num)]
    return [compiled(key) for key in keys]


def trace_model(
    model: Model,
    rng_key: jax.Array,
    args: tuple,
    kwargs: Mapping[str, Any],
    init_loc_fn: Callable | None = None,
) -> dict[str, Message]:
    """Trace one run: latents from `init_loc_fn`, by default from their prior.

    Priors without draws are replaced by uniform ones in unconstrained coordinates.
    """

    def draw(msg: Message) -> Any:
        if not is_latent(msg) or msg["fn"].support.is_discrete:
            return None
        if init_loc_fn is not None:
            return init_loc_fn(msg)
        return init_to_uniform(msg) if is_improper(msg["fn"]) else None

    seeded = handlers.seed(model, rng_key)
    with handlers.block():
        drawn = handlers.substitute(seeded, substitute_fn=draw)
        return handlers.trace(drawn).get_trace(*args, **kwargs)


def draw_improper(model: Model) -> Model:
    """A model whose priors without draws draw uniformly in unconstrained coordinates.

    To be put around the handler that supplies keys.
    """

    def draw(msg: Message) -> Any:
        return (
            init_to_uniform(msg) if is_latent(msg) and is_improper(msg["fn"]) else None
        )

    return handlers.substitute(model, substitute_fn=draw)


def sample_unconstrained(
    model: Model,
    latents: Mapping[str, Latent],
    num_samples: int,
    args: tuple,
    kwargs: Mapping[str, Any],
    init_loc_fn: Callable | None = None,
) -> np.ndarray:
    """Draw all latents, as `trace_model` does, in flat unconstrained coordinates.

    Returns:
        Shape (`num_samples`, D), sites in the order of `latents`.
    """

    def draw(rng_key: jax.Array) -> jax.Array:
        trace = trace_model(model, rng_key, args, kwargs, init_loc_fn)
        pieces = [
            unconstrain(latent.prior.support, trace[name]["value"], len(latent.shape))
            for name, latent in latents.items()
        ]
        return jnp.concatenate(pieces)

    (u,) = run_now(lambda key: jax.vmap(draw)(jax.random.split(key, num_samples)))
    return np.asarray(u, float)


def unconstrain(
    support: constraints.Constraint, value: jax.Array, ndim: int
) -> jax.Array:
    """Flat unconstrained coordinates of values with `ndim` axes, batch axes first.

    On the very edge of a support, where rounding may put a draw, they are those of a
    point as far inside as rounding goes.
    """
    u = biject_to(support).inv(value)
    limit = -np.log(jnp.finfo(u.dtype).eps)
    u = jnp.nan_to_num(u, nan=0.0, posinf=limit, neginf=-limit)
    return u.reshape(*jnp.shape(value)[: jnp.ndim(value) - ndim], -1)


def _has_masks(messages: Mapping[str, Message]) -> bool:
    layers = (layer for msg in messages.values() for layer in unwrap(msg["fn"]))
    return any(isinstance(layer, dist.MaskedDistribution) for layer in layers)


def _has_density(msg: Message) -> bool:
    return msg["scale"] is None and not is_improper(msg["fn"])


def _check_support(msg: Message) -> None:
    name, prior = msg["name"], msg["fn"]
    if prior.support.is_discrete:
        raise ValueError(
            f"Expected continuous latents, got a discrete one, `{name}` "
            f"({_kind(prior)}). Mark it with `infer={{'noise': True}}` if it is "
            "simulation noise, or replace it by a continuous latent."
        )
    try:
        biject_to(prior.support)
    except NotImplementedError as err:
        raise ValueError(
            f"Expected latents with a support that NumPyro can map to real numbers, "
            f"got {prior.support} at `{name}` ({_kind(prior)}). Reparametrise the "
            "site, for example with `numpyro.handlers.reparam`."
        ) from err


def _check_plates(trace: Mapping[str, Message]) -> None:
    sizes = {k: msg["args"][0] for k, msg in trace.items() if msg["type"] == "plate"}
    for name, msg in trace.items():
        for frame in msg["cond_indep_stack"] if is_latent(msg) else ():
            if sizes.get(frame.name, frame.size) != frame.size:
                raise ValueError(
                    f"Expected latents outside of subsampled plates, got `{name}` in "
                    f"plate `{frame.name}`, of which {frame.size} of "
                    f"{sizes[frame.name]} elements are drawn. Drop `subsample_size`."
                )


def _check_fixed_support(name: str, priors: list[dist.Distribution]) -> None:
    if not _are_equal([prior.support for prior in priors]):
        raise ValueError(
            f"Expected latents with fixed supports, but that of `{name}` "
            f"({_kind(priors[0])}) depends on other latents, or on noise. "
            "Reparametrise: sample a fraction from a fixed support, such as "
            f'`fraction = numpyro.sample("{name}_fraction", dist.Uniform(0, 1))`, and '
            f"let `{name}` be a function of it and of the other latents."
        )


def _are_equal(trees: list[Any]) -> bool:
    """Whether trees of arrays agree in all leaves."""
    first, *others = [[np.asarray(leaf) for leaf in jax.tree.leaves(t)] for t in trees]
    return all(
        np.array_equal(a, b, equal_nan=True)
        for other in others
        for a, b in zip(first, other, strict=True)
    )


def _kind(prior: dist.Distribution) -> str:
    """Name of the class of a distribution, without wrappers."""
    return type(unwrap(prior)[-1]).__name__
