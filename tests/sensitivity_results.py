# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results with known answers for the tests of sensitivity."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import init_to_value
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import numpyro_epi as epi

KEY = jax.random.key(0)
SMALL = {
    "num_particles": 200,
    "num_epochs": 4,
    "num_steps": 150,
    "num_evaluation": 2000,
    "warm_start_size": 2000,
    "gap_tolerance": 0.0,
    "progress_bar": False,
}
TINY = {**SMALL, "num_particles": 100, "num_epochs": 1, "num_steps": 30}
TINY |= {"num_evaluation": 500, "warm_start": False, "stat_gradient": "reverse"}
MIX = np.array([[1.0, 0.5], [0.0, 1.0]])


def gaussian_model(gain=1.0):
    """Targets of two linear statistics: the exact law is a Gaussian."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    stat = gain * (jnp.asarray(MIX, z.dtype) @ z)
    epi.emergent_property(stat, mean=[1.0, -1.0], var=[0.2, 0.5], name="f")


@cache
def gaussian():
    """A trained answer to `gaussian_model`, with a Gaussian guide."""
    inference = epi.EPI(
        gaussian_model, AutoMultivariateNormal, optax.adam(1e-2), **SMALL
    )
    return inference.run(KEY)


def fitted_gaussian(result):
    """Mean and covariance of a Gaussian guide of latents on the whole line."""
    loc, tril = (np.float64(result.params[f"auto_{x}"]) for x in ("loc", "scale_tril"))
    return loc, tril @ tril.T


@cache
def flow():
    """The same with a spline flow."""
    guide = partial(epi.guides.AutoNeuralSpline, num_flows=1, hidden_dims=(16,))
    return epi.EPI(gaussian_model, guide, **SMALL).run(KEY)


def sites_model(*, limit=2.0, noise=0.1):
    """Several sites: a bounded vector, a positive scalar, a simplex; noisy."""
    a = numpyro.sample("a", dist.Uniform(-limit, limit).expand([2]).to_event(1))
    b = numpyro.sample("b", dist.LogNormal(0.0, 0.5))
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])))
    eps = noise * jax.random.normal(numpyro.prng_key())
    epi.emergent_property(a.sum() + b * p[0] + eps, mean=0.5, var=0.25, name="total")


@cache
def sites():
    """A short run on `sites_model`."""
    guide = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(8,))
    return epi.EPI(sites_model, guide, **TINY).run(KEY, limit=3.0)


def two_modes_model():
    """z0^2 near 4: two modes at z0 = -2 and 2, equal in mass; z1 is as the prior."""
    z = numpyro.sample("z", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    epi.emergent_property(z[0] ** 2, mean=4.0, var=0.5, name="square")


@cache
def two_modes():
    """A flow on `two_modes_model`."""
    guide = partial(epi.guides.AutoRealNVP, num_flows=4, hidden_dims=(32,))
    return epi.EPI(two_modes_model, guide, **{**SMALL, "num_epochs": 6}).run(KEY)


def edge_model():
    """A bounded latent that the property presses against its upper end."""
    z = numpyro.sample("z", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))
    epi.emergent_property(z[0], mean=0.85, name="first")


@cache
def edge():
    """A flow on `edge_model`: the exact density rises towards z0 = 1."""
    guide = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(8,))
    return epi.EPI(edge_model, guide, **SMALL).run(KEY)


def interval_model():
    """A latent of the unit interval and one of the line; the target does not matter."""
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    numpyro.sample("b", dist.Normal(0.0, 1.0))
    epi.emergent_property(a, mean=0.85, name="first")


@cache
def logit_normal(scale):
    """A result that training has left alone: logit(a) ~ N(logit(0.9), scale^2)."""
    start = init_to_value(values={"a": 0.9, "b": 0.0})
    guide = partial(AutoNormal, init_loc_fn=start, init_scale=scale)
    return epi.EPI(interval_model, guide, optax.sgd(0.0), **TINY).run(KEY)
