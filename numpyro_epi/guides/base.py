# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What all normalizing-flow guides share: set-up, base distribution, posterior, draws.

Which functions the layers are made of is left to the subclasses.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    UnpackTransform,
)
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.initialization import init_to_uniform

from .._sites import Latent, find_latents, sample_unconstrained
from .._typing import Message, Model
from ._checks import check_count, check_hidden_dims, check_switch
from ._components import BaseComponents
from ._conditioner import Activation, Network, init_networks
from ._coupling import CouplingMap, FlowDistribution, Partition, partitions
from ._distributions import StandardNormal
from ._mixing import init_mixing
from ._mixture import MixtureBase
from ._prior import Base, make_base
from ._stack import CouplingStack, stack_layers
from ._steps import divided, step_sizes, times

# Layers by default, and from so many latent coordinates on.
NUM_FLOWS, DEEP_FLOWS, DEEP_LATENTS = 8, 12, 8
# Most coordinates whose linear maps, with their square as parameters, pay by default.
MAX_MIXED_LATENTS = 128
BASES = ("prior", "normal")


class AutoFlow(AutoContinuous):
    r"""A normalizing flow over all latents: base class of the guides here.

    With standard base draws e, layers :math:`f_i` (a coupling of the coordinates, after
    a linear map of them if `mixing`), and the location m and scale s of the base, the
    latents z of the model are

    .. math:: u = m + s \odot (f_L \circ \dots \circ f_1)(e), \qquad z = T(u),

    where u are the flat unconstrained coordinates of all sites and T is NumPyro's
    `biject_to` of each support; circles are cut where the prior is rare, and masked
    elements of a site are no latents: they have a fixed value. A layer starts as the
    identity, so that an untrained guide is its base. Draws and densities both cost one
    pass of each layer.

    By default the base is the prior of the model, exactly: a logistic for a `Uniform`
    site behind a sigmoid, a Gaussian for a `Normal` or `LogNormal` one, and so on. A
    site whose prior depends on other latents, or is scaled, starts as a Gaussian with
    the median and spread of prior draws, and so does each bounded site of a model with
    sites whose prior depends on others: scales that reach zero. A site with an improper
    prior starts as a Gaussian of `base_loc` and `base_scale`, or where `EPI` finds the
    law to lie.

    Args:
        model: A NumPyro model. If it has simulation noise, wrap it in
            `numpyro_epi.handlers.noise` for `SVI`; the guide ignores noise either way.
        prefix: Prefix of the guide's own sites.
        init_loc_fn: Initial values that replace `base_loc` if that is None.
        num_flows: Number of layers; by default 8, and 12 for 8 latent coordinates or
            more, of which `AutoRealNVP` takes 8 if its layers are `directed`. One moves
            only half of the coordinates.
        hidden_dims: Units in each hidden layer of the conditioners.
        base: "prior", or "normal" for a Gaussian of `base_loc` and `base_scale`.
        base_loc: Location of the Gaussian, unconstrained: a number or shape (D,).
        base_scale: Scale of the Gaussian, unconstrained: a number or shape (D,).
        nonlinearity: Of the conditioners. A smooth one makes the density smooth.
        mixing: Whether a learned linear map of all coordinates precedes each layer; by
            default, up to 128 latent coordinates, but not in `AutoRealNVP` if it is
            `directed`. It has the square of their number as parameters.
        multimodal: Whether `EPI` may give the base a Gaussian component for each of
            several islands, if its warm start finds the law of 2 to 12 latent
            coordinates in pieces.

    Attributes:
        latent_dim: Number of unconstrained coordinates, D, once the guide met its
            model: in its first call, as with all guides of NumPyro.
        base_kind: "prior" if the base is the prior exactly, "moments" if some site
            starts as a Gaussian like its prior, "normal" if some site starts as a
            Gaussian of `base_loc` and `base_scale`. Once the guide met its model.

    Raises:
        ValueError: If an option is out of range. In the first call: if a latent is
            discrete, has a support or a mask that depends on other latents, or lies in
            a subsampled plate, or if the model uses what a mask covers.
    """

    base_kind: str

    def __init__(
        self,
        model: Model,
        *,
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_uniform,
        num_flows: int | None = None,
        hidden_dims: tuple[int, ...] = (50, 50),
        base: str = "prior",
        base_loc: ArrayLike | None = 0.0,
        base_scale: ArrayLike = 1.0,
        nonlinearity: Activation = jax.nn.silu,
        mixing: bool | None = None,
        multimodal: bool = True,
    ) -> None:
        if num_flows is not None:
            check_count("num_flows", num_flows, minimum=1)
        check_hidden_dims(hidden_dims)
        if base not in BASES:
            raise ValueError(f"Expected one of {BASES} as `base`, got {base!r}.")
        check_switch("mixing", mixing)
        if not isinstance(multimodal, bool):
            raise ValueError(
                f"Expected True or False as `multimodal`, got {multimodal!r}."
            )
        if not np.all(np.asarray(base_scale) > 0):
            raise ValueError(
                f"Expected positive numbers as `base_scale`, got {base_scale}. It is a "
                "standard deviation, in unconstrained coordinates."
            )
        self._num_flows = num_flows
        self.hidden_dims = hidden_dims
        self.base = base
        self.base_loc = base_loc
        self.base_scale = base_scale
        self.nonlinearity = nonlinearity
        self._mixing = mixing
        self.multimodal = multimodal
        self._start: dict[str, tuple[ArrayLike, ArrayLike]] = {}
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    @property
    def num_flows(self) -> int:
        """Number of layers; by default it depends on the model's latents."""
        if self._num_flows is not None:
            return self._num_flows
        return self._default_num_flows

    @property
    def _default_num_flows(self) -> int:
        return DEEP_FLOWS if self.latent_dim >= DEEP_LATENTS else NUM_FLOWS

    @abstractmethod
    def _get_function(self) -> CouplingMap:
        """The functions along which layers move coordinates."""

    @property
    def _num_layers(self) -> int:
        return self.num_flows

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # Instead of NumPyro's set-up, which simulates and differentiates the model.
        # The result is concrete even if the first call is traced, and takes no key.
        latents = find_latents(self.model, args, kwargs)
        if not latents:
            raise ValueError(
                f"Expected a model with latents for {type(self).__name__}, got one "
                "without: all of its sample sites are observed, masked, or noise."
            )
        sizes = [latent.num_coordinates for latent in latents.values()]
        self.latent_dim = sum(sizes)
        self._unpack_latent = _unpack_transform(latents)
        sample_prior = partial(
            sample_unconstrained, self.model, latents, args=args, kwargs=kwargs
        )
        gaussian = self._start_sites(latents, self._get_gaussian(sample_prior))
        self._base, self.base_kind = make_base(
            latents, self.base, gaussian, sample_prior
        )
        self._init_latent = self._base.loc.astype(jnp.result_type(float))
        self._init_locs = self._unpack_latent(self._init_latent)
        self.prototype_trace = {k: _message(latent) for k, latent in latents.items()}

    def _get_gaussian(self, sample: Callable[..., np.ndarray]) -> Base:
        """The Gaussian of `base_loc` and `base_scale`."""
        loc = self.base_loc
        if loc is None:
            loc = sample(1, init_loc_fn=self.init_loc_fn)[0]
        loc = self._flat_option("base_loc", loc)
        scale = self._flat_option("base_scale", self.base_scale)
        return Base(StandardNormal(self.latent_dim), loc, scale)

    def start_at(self, sites: dict[str, tuple[ArrayLike, ArrayLike]]) -> None:
        """Start sites with an improper prior elsewhere, unless options say where.

        Args:
            sites: Location and scale of each, unconstrained. To be called before the
                guide meets its model, as `EPI` does.
        """
        is_default = np.all(np.asarray(self.base_loc) == 0.0)
        if is_default and np.all(np.asarray(self.base_scale) == 1.0):
            self._start = dict(sites)

    def _start_sites(self, latents: dict[str, Latent], gaussian: Base) -> Base:
        loc, scale = np.array(gaussian.loc), np.array(gaussian.scale)
        stops = list(accumulate(latent.num_coordinates for latent in latents.values()))
        for (name, latent), stop in zip(latents.items(), stops, strict=True):
            if name in self._start:
                rows = slice(stop - latent.num_coordinates, stop)
                loc[rows], scale[rows] = (np.ravel(x) for x in self._start[name])
        return gaussian._replace(loc=loc, scale=scale)

    def _flat_option(self, name: str, value: ArrayLike) -> np.ndarray:
        try:
            return np.broadcast_to(np.asarray(value, float), (self.latent_dim,))
        except ValueError as err:
            raise ValueError(
                f"Expected a number or an array of shape ({self.latent_dim},) as "
                f"`{name}`, one element for each unconstrained coordinate, got shape "
                f"{np.shape(value)}."
            ) from err

    def _init_flow(self, rng_key: jax.Array) -> dict[str, list]:
        """Parameters of all layers: linear maps, and networks of the couplings."""
        mixings = [init_mixing(self.latent_dim)] * self._num_layers
        weights = {
            "mixings": stack_layers(mixings) if self.mixing else [],
            "networks": stack_layers(self._init_networks(rng_key)),
        }
        return divided(weights, self._steps(weights))

    def _steps(self, flow: dict[str, Any]) -> dict[str, Any]:
        return step_sizes(flow, self._get_function().steps, self._num_layers)

    def step_sizes(self, params: dict[str, Any]) -> dict[str, Any]:
        """The factor between each parameter of the flow and the weight it stands for.

        It keeps the steps of an optimiser small that moves each parameter as far as any
        other. `EPI`, whose gradients are of a thousand draws, steps in the weights.

        Args:
            params: Of the guide, or of more.
        """
        return {self._param: self._steps(params[self._param])}

    @property
    def _param(self) -> str:
        return f"{self.prefix}_flow$params"

    @property
    def mixing(self) -> bool:
        """Whether linear maps precede layers; by default it depends on the latents."""
        if self.latent_dim == 1:
            return False
        if self._mixing is not None:
            return self._mixing
        return self._default_mixing

    @property
    def _default_mixing(self) -> bool:
        return self.latent_dim <= MAX_MIXED_LATENTS

    @property
    def _is_linear_too(self) -> bool:
        """Whether a linear map of what is kept is added to each network's outputs."""
        return False

    def _init_networks(self, rng_key: jax.Array) -> list[Network]:
        num_parameters = self._get_function().num_parameters
        sizes = tuple(
            (len(kept), *self.hidden_dims, len(moved) * num_parameters)
            for kept, moved in self._get_partitions()
        )
        return init_networks(rng_key, sizes, is_linear_too=self._is_linear_too)

    def _get_partitions(self) -> list[Partition]:
        return partitions(self.latent_dim, self._num_layers)

    def _get_posterior(self) -> FlowDistribution:
        flow = numpyro.param(self._param, self._init_flow)
        flow = times(flow, self._steps(flow))
        stack = CouplingStack(
            flow["networks"],
            flow["mixings"],
            self._get_function(),
            tuple(self._get_partitions()),
            activation=self.nonlinearity,
        )
        to_base = AffineTransform(self._base.loc, self._base.scale)
        base = self.get_base_dist()
        if "components" in flow:
            base = MixtureBase(base, lax.stop_gradient(flow["components"]))
        return FlowDistribution(base, [stack, to_base])

    @property
    def components(self) -> BaseComponents:
        """Those of its base, for a law in several pieces; once it met its model."""
        return BaseComponents(
            self._param,
            self.latent_dim,
            self.multimodal,
            lambda u: (u - self._base.loc) / self._base.scale,
            self.get_posterior,
        )

    def get_base_dist(self) -> dist.Distribution:
        return self._base.standard

    def get_posterior(self, params: dict[str, Any]) -> FlowDistribution:
        return handlers.substitute(self._get_posterior, params)()

    def get_transform(self, params: dict[str, Any]) -> ComposeTransform:
        return ComposeTransform(self.get_posterior(params).transforms)

    def _unpack_and_constrain(
        self, latent_sample: jax.Array, params: dict[str, Any]
    ) -> dict[str, jax.Array]:
        # Latents only: NumPyro's version runs the model again, once for each draw, to
        # add its deterministic sites.
        return {
            name: biject_to(self.prototype_trace[name]["fn"].support)(u)
            for name, u in self._unpack_latent(latent_sample).items()
        }


def _unpack_transform(latents: dict[str, Latent]) -> UnpackTransform:
    """From the flat vector of coordinates to those of each site."""
    shapes = {name: latent.unconstrained_shape for name, latent in latents.items()}
    sizes = [latent.num_coordinates for latent in latents.values()]
    stops = list(accumulate(sizes))
    starts = [0, *stops[:-1]]

    def unpack(flat: jax.Array) -> dict[str, jax.Array]:
        pieces = [flat[i:j] for i, j in zip(starts, stops, strict=True)]
        named = zip(shapes.items(), pieces, strict=True)
        return {name: piece.reshape(shape) for (name, shape), piece in named}

    def pack(values: dict[str, jax.Array]) -> jax.Array:
        return jnp.concatenate([jnp.ravel(values[name]) for name in shapes])

    return UnpackTransform(unpack, pack)


def _message(latent: Latent) -> Message:
    """What NumPyro expects of a site in `prototype_trace`."""
    return {
        "type": "sample",
        "name": latent.name,
        "fn": latent.prior,
        "value": None,
        "is_observed": False,
        "infer": {},
        "scale": None,
        "cond_indep_stack": [],
    }
