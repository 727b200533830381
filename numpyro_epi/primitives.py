# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The emergent-property primitive: one line in a model, one message on the stack.

What the message is good for is left to `numpyro_epi.handlers` and to the trainer.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.primitives import _PYRO_STACK, apply_stack

from ._checks import (
    broadcast,
    check_name,
    check_positive,
    describe,
    is_real,
    is_traced,
    real_array,
)
from ._typing import Message

# Key of the annotation in the `infer` dictionary of the site.
ANNOTATION = "emergent_property"

Nested: TypeAlias = float | tuple[Any, ...]


def emergent_property(
    stat: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike | None = None,
    *,
    name: str = "emergent_property",
) -> jax.Array:
    r"""Ask that a statistic of the simulation has a given mean and variance.

    With latents :math:`z` and simulation noise :math:`x`, every element of the
    statistic :math:`f(x; z)` (`stat`) adds the constraints

    .. math:: E[f] = \mu, \qquad E[(f - \mu)^2] = \sigma^2,

    with :math:`\mu` from `mean` and :math:`\sigma^2` from `var`. Expectations are over
    the latents and the noise. Inference looks for the least committed distribution of
    the latents that obeys them [1].

    The statistic is recorded as a `deterministic` site, annotated with its targets. The
    model stays an ordinary NumPyro model: `Predictive`, `MCMC`, `SVI` and every handler
    see the statistic and are otherwise unaffected. Outside of handlers, `stat` is
    returned and nothing else happens.

    Args:
        stat: Statistic of one simulation, of any shape. Integers and booleans (a count,
            an indicator) become floating point numbers.
        mean: Wanted mean, finite. Broadcasts to the shape of `stat`.
        var: Wanted variance about `mean`, positive and finite, in squared units of
            `stat`. Broadcasts to its shape. None constrains the mean only.
        name: Name of the site. Each property of a model needs its own.

    Returns:
        `stat` as an array.

    Raises:
        TypeError: If `stat` or a target does not consist of real numbers, or a target
            is traced: it must be a number or a NumPy array, not one that `jax.numpy`
            computes in the model. Targets keep double precision: deviations from them
            are taken without rounding them to that of `stat`. `EPI` refuses a statistic
            whose own steps are more than a tenth of its target's standard deviation.
        ValueError: If a target is not finite, `var` is not positive, a shape does not
            broadcast, or `stat` or `name` is empty. Two sites of one name are refused
            by the handlers of this package, and by `numpyro.handlers.trace`.

    Example:
        >>> import jax, numpyro, numpyro_epi as epi
        >>> import numpyro.distributions as dist
        >>> def model():
        ...     gain = numpyro.sample("gain", dist.LogNormal())
        ...     epi.emergent_property(3 * gain, mean=2.0, var=0.1, name="rate")
        >>> seeded = numpyro.handlers.seed(model, jax.random.key(0))
        >>> site = numpyro.handlers.trace(seeded).get_trace()["rate"]
        >>> site["type"], float(site["infer"]["emergent_property"].mean)
        ('deterministic', 2.0)

    References:
        [1] Bittner et al., "Interrogating theoretical models of neural computation with
        emergent property inference", eLife 2021, doi:10.7554/eLife.56265.
    """
    check_name(name, where="`name` of an emergent property")
    value = real_statistic(stat, name)
    targets = EmergentTargets.of(mean, var, site=name)
    targets.broadcast(value.shape, site=name)
    if not _PYRO_STACK:
        return value
    msg: Message = {
        "type": "deterministic",
        "name": name,
        "value": value,
        "cond_indep_stack": [],
        "infer": {ANNOTATION: targets},
    }
    return apply_stack(msg)["value"]


@dataclass(frozen=True)
class EmergentTargets:
    """Targets of one emergent property, as a message carries them.

    Nested tuples of Python floats: they keep double precision and they are hashable,
    which lets the annotation out of NumPyro's `scan` and `cond`.
    """

    mean: Nested
    var: Nested | None = None

    @classmethod
    def of(cls, mean: Any, var: Any = None, *, site: str) -> "EmergentTargets":
        """Check the targets that a user wrote for `site`."""
        expected_mean = _concrete(mean, "mean", site)
        if var is None:
            return cls(_nested(expected_mean.tolist()))
        expected_var = _concrete(var, "var", site)
        fix = "Leave `var` out to constrain the mean only."
        check_positive(expected_var, where=_where("var", site), fix=fix)
        return cls(_nested(expected_mean.tolist()), _nested(expected_var.tolist()))

    def broadcast(
        self, shape: tuple[int, ...], *, site: str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and variance as float64 arrays of the shape of the statistic."""
        mean = broadcast(np.asarray(self.mean), shape, where=_where("mean", site))
        if self.var is None:
            return mean, None
        return mean, broadcast(np.asarray(self.var), shape, where=_where("var", site))


def targets_of(msg: Message) -> EmergentTargets | None:
    """Targets that a message carries, or None if it is not an emergent property."""
    return msg.get("infer", {}).get(ANNOTATION)


def real_statistic(stat: Any, site: str) -> jax.Array:
    """The statistic as a floating point array with at least one element."""
    where = _where("stat", site)
    try:
        value = jnp.asarray(stat)
    except (TypeError, ValueError, OverflowError):
        # Not from JAX's own error, whose traces of internals would hide this one.
        raise TypeError(
            f"Expected an array of real numbers as {where}, got {describe(stat)}. Join "
            "numbers by `jnp.stack`, or call `emergent_property` once for each, with a "
            "`name`."
        ) from None
    if not (is_real(value.dtype) or value.dtype == bool):
        raise TypeError(
            f"Expected real numbers as {where}, got {describe(stat)} with dtype "
            f"{value.dtype}. Split a complex statistic with `jnp.real` and `jnp.imag`."
        )
    if not value.size:
        raise ValueError(f"Expected at least one number as {where}, got none.")
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(value.dtype if floating else jnp.result_type(float))


def _concrete(target: Any, argument: str, site: str) -> np.ndarray:
    """A target as a float64 array, on the host."""
    where = _where(argument, site)
    if is_traced(target):
        raise TypeError(
            f"Expected concrete numbers as {where}, got a traced array. Under `jit`, "
            "`vmap` and `scan` everything that `jax.numpy` computes is traced: write "
            "targets as Python numbers or with `numpy`. To vary them without editing "
            "the model, use `numpyro_epi.handlers.retarget`."
        )
    return real_array(target, where=where)


def _where(argument: str, site: str) -> str:
    return f"`{argument}` of emergent property `{site}`"


def _nested(value: Any) -> Nested:
    """Lists to tuples, at every level."""
    return tuple(map(_nested, value)) if isinstance(value, list) else value
