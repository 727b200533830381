# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which ordinary NumPyro model has the emergent properties of a given one?"""

from collections.abc import Mapping
from types import TracebackType

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.handlers import block
from numpyro.primitives import _PYRO_STACK, plate

from .._checks import check_name, describe, is_traced, real_array
from .._math.precision import subtract_parts, two_parts
from .._typing import Message, Model, Multipliers
from ._sites import Property, PropertySites
from .noise import noise


class tilt(noise):
    r"""Tilts a model exponentially by its emergent properties.

    With the deviations :math:`T = (f - \mu, (f - \mu)^2 - \sigma^2)` of all statistics
    from their targets and multipliers :math:`\lambda`, a run gets the factor

    .. math:: \exp(-\lambda \cdot T).

    The least committed distribution that has the emergent properties is such a tilt of
    the prior [1, 2], :math:`p_\lambda(z) \propto p_0(z) \exp(-\lambda \cdot E[T | z])`,
    so whatever NumPyro can do with a model it can do with this one, within limits:

    - `SVI` is exact for every model: it averages :math:`T` over simulation noise, which
      this handler draws and hides as `noise` does.
    - `MCMC` is exact if the statistics are deterministic given the latents. Otherwise
      it would sample :math:`p_0(z) E[\exp(-\lambda \cdot T) | z]`, or, with a key from
      `numpyro.prng_key`, freeze the noise to one draw: it is refused. A plate with a
      `subsample_size` is such noise too, unless a kernel chooses its elements, as
      `HMCECS` does.
    - `AutoLaplaceApproximation` takes its Hessian at a single draw of the noise.
    - `Predictive` ignores factors: it draws from the prior, tilted or not.

    The factor is added once, at the end of the run, whatever scopes and plates are
    around the properties or around this handler. Tilts nest, and multipliers add up.

    Args:
        fn: A model.
        multipliers: `{site name: array}` for every emergent property of the model, in
            the units of 1 / T. An array of shape `(2, *stat.shape)` goes with T[0] and
            T[1], one of shape `(1, *stat.shape)` with a property without `var`. Zeros
            leave a property out. May be traced. Whatever the units, products with T
            neither over- nor underflow; multipliers beyond the range of float32 must be
            NumPy arrays of float64. Names are those that the sites have where the
            handler sits.
        name: Name of the factor. If a site of the run already has it, as in a nested
            tilt, the next free of `name_1`, `name_2`, ... is taken.

    Raises:
        TypeError: If `multipliers` is not a mapping to arrays of real numbers.
        ValueError: At the end of a run, if a property has no multipliers or multipliers
            have no property, or a shape is wrong; within a `numpyro.handlers.mask` with
            an array.
        RuntimeError: At the end of a noisy run if MCMC evaluates it.

    Example:
        A standard Normal, tilted to mean 2 and variance 1/4:

        >>> import jax.numpy as jnp, numpyro, numpyro_epi as epi
        >>> import numpyro.distributions as dist
        >>> from numpyro.infer.util import log_density
        >>> def model():
        ...     a = numpyro.sample("a", dist.Normal())
        ...     epi.emergent_property(a, mean=2.0, var=0.25, name="level")
        >>> tilted = epi.handlers.tilt(model, {"level": jnp.array([-2.0, 1.5])})
        >>> at = lambda a: log_density(tilted, (), {}, {"a": jnp.array(a)})[0]
        >>> wanted = dist.Normal(2.0, 0.5)
        >>> ratio = at(2.5) - at(1.0)
        >>> bool(jnp.isclose(ratio, wanted.log_prob(2.5) - wanted.log_prob(1.0)))
        True

    References:
        [1] Bittner et al., "Interrogating theoretical models of neural computation with
        emergent property inference", eLife 2021, doi:10.7554/eLife.56265.
        [2] Jaynes, "Information theory and statistical mechanics", Physical Review
        1957, doi:10.1103/PhysRev.106.620.
    """

    def __init__(
        self,
        fn: Model | None = None,
        multipliers: Multipliers | None = None,
        *,
        name: str = "tilt",
    ) -> None:
        super().__init__(fn)
        if not isinstance(multipliers, Mapping):
            raise TypeError(
                "Expected a mapping {site name: array} as `multipliers` of `tilt`, got "
                f"{describe(multipliers)}."
            )
        self.multipliers = multipliers
        self.name = check_name(name, where="`name` of `tilt`")
        self._sites = PropertySites()

    def __enter__(self) -> None:
        super().__enter__()
        self._sites = PropertySites()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        sites, self._sites = self._sites, PropertySites()  # holds no tracer from here
        if exc_type is None:
            self._add_factor(sites)

    def process_message(self, msg: Message) -> None:
        super().process_message(msg)
        self._sites.add(msg)

    def note_subsampling(self, name: str, subsample_size: int, size: int) -> None:
        if _is_sampled_by_mcmc():
            raise RuntimeError(
                f"Expected a plate with all its elements, got `{name}`, which draws "
                f"{subsample_size} of {size}, in a model tilted by "
                "`numpyro_epi.handlers.tilt` and evaluated by MCMC, which freezes them "
                "to one draw: the data would be one minibatch. Drop `subsample_size`, "
                "or use `numpyro.infer.HMCECS`, or SVI."
            )
        super().note_subsampling(name, subsample_size, size)

    def _add_factor(self, sites: PropertySites) -> None:
        """Send the factor to the handlers around this one."""
        sites.check_known(self.multipliers, where="`multipliers` of `tilt`")
        log_factor = jnp.zeros(())
        for name, site in sites.properties().items():
            log_factor += log_tilt(site, self._multipliers_of(name, site))
        if self.is_noisy and _is_sampled_by_mcmc():
            raise RuntimeError(_NOISY_MCMC)
        mask = numpyro.get_mask()
        if mask is not None and jnp.ndim(mask):
            raise ValueError(
                "Expected a single number as the mask around `tilt`, got one of shape "
                f"{jnp.shape(mask)}. Put `numpyro.handlers.mask` inside the model."
            )
        if mask is not False:
            _factor_beside_plates(_free_name(self.name, sites.names), log_factor)

    def _multipliers_of(self, name: str, site: Property) -> jax.Array | np.ndarray:
        where = f"`multipliers` of emergent property `{name}`"
        if name not in self.multipliers:
            raise ValueError(
                f"Expected {where} in `tilt`, got none. Zeros leave it untilted."
            )
        value = self.multipliers[name]
        if is_traced(value):
            multipliers: jax.Array | np.ndarray = jnp.asarray(value)
        else:
            multipliers = real_array(value, where=where)
        expected = (1 if site.var is None else 2, *site.stat.shape)
        if multipliers.shape != expected:
            raise ValueError(
                f"Expected shape {expected} as that of {where}, got "
                f"{multipliers.shape}: first axis for the mean"
                + (" only." if site.var is None else " and the variance.")
            )
        return multipliers


def log_tilt(site: Property, multipliers: jax.Array | np.ndarray) -> jax.Array:
    r"""Logarithm of the factor of one property, :math:`-\lambda \cdot T`.

    With :math:`s^2 =` `var` and :math:`d = (f - \mu) / s`, it is
    :math:`-(\lambda_1 s) d - (\lambda_2 s^2) (d^2 - 1)`: no term leaves the range of
    float32 on the way, whatever the units of the statistic.
    """
    stat, mean, var = site
    scale = np.ones_like(mean) if var is None else np.sqrt(var)
    dtype = jnp.promote_types(stat.dtype, jnp.float32)
    # In double precision on the host if the multipliers are, else factor by factor.
    first = jnp.asarray(multipliers[0] * scale, dtype)
    away = subtract_parts(jnp.asarray(stat, dtype), *two_parts(mean, dtype))
    deviation = away / jnp.asarray(scale, dtype)
    if var is None:
        return -jnp.sum(first * deviation)
    second = jnp.asarray(multipliers[1] * scale * scale, dtype)
    return -jnp.sum(first * deviation + second * (deviation**2 - 1))


def _factor_beside_plates(name: str, log_factor: ArrayLike) -> None:
    """Like `numpyro.factor`, but counted once inside plates, and not subsampled."""
    unit = dist.Unit(log_factor)
    plates = [handler.name for handler in _PYRO_STACK if isinstance(handler, plate)]
    infer = {"is_auxiliary": True, "block_plates": plates}
    numpyro.sample(name, unit, obs=unit.sample(None), infer=infer)


def _free_name(name: str, taken: set[str]) -> str:
    free, count = name, 0
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free


def _is_sampled_by_mcmc() -> bool:
    """Whether this run evaluates a potential energy for MCMC.

    NumPyro evaluates one under a `substitute` that constrains the latents. Guides do so
    as well, to find where to start, but inside a `block`.
    """
    for handler in _PYRO_STACK:
        if isinstance(handler, block):
            return False
        function = getattr(getattr(handler, "substitute_fn", None), "func", None)
        if getattr(function, "__name__", "") == "_unconstrain_reparam":
            return True
    return False


_NOISY_MCMC = (
    "Expected statistics that are deterministic given the latents, got simulation "
    "noise (`numpyro.prng_key`, or a site marked as noise) in a model tilted by "
    "`numpyro_epi.handlers.tilt` and evaluated by MCMC, which freezes the noise to one "
    "draw: the target would not be the prior times exp(-multipliers . E[T | latents]). "
    "Use SVI on the tilted model, which averages T over the noise, or a statistic "
    "without noise, such as its expectation, or fix the draw on purpose with "
    "`numpyro.handlers.seed` inside of `tilt`."
)
