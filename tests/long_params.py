# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Models for the long table: improper priors, fixed parameters, changed arguments.

`LONG[name]` is (model, args, kwargs, truth). A truth is a function without arguments
that returns `{"entropy": nats}` and the moments `{site: (mean, sd)}` of latents and
statistics, or (error, part of its message).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.distributions import constraints
from numpyro.infer.reparam import CircularReparam, LocScaleReparam
from numpyro.primitives import mutable

import numpyro_epi as epi

KEY = jax.random.key(0)
DATA = np.array([49.0, 50.0, 51.5])
SCALES = DATA - 50


def gauss(sd):
    """Entropy of a Gaussian with these standard deviations, nats."""
    return float(np.sum(0.5 * np.log(2 * np.pi * np.e * np.square(sd))))


def flat(name, support=constraints.real, shape=()):
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def grid_law(log_density, statistic, target, low, high, num=40_001):
    """A law on a grid of u, tilted to a mean of a statistic: u, weights, width."""
    u = np.linspace(low, high, num)
    base, f = log_density(u), statistic(u)
    left, right = -1e3, 1e3
    for _ in range(200):
        tilt = 0.5 * (left + right)
        log_p = base - tilt * f
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        left, right = (tilt, right) if p @ f > target else (left, tilt)
    return u, p, u[1] - u[0]


def moments(values, p):
    mean = p @ values
    return float(mean), float(np.sqrt(p @ (values - mean) ** 2))


# -- improper priors ------------------------------------------------------------------


def improper_mean(y):
    m = flat("m")
    numpyro.sample("y", dist.Normal(m, 1.0), obs=y)
    epi.emergent_property(m, mean=50.5, var=0.2, name="f")


def improper_mean_truth():
    return {"m": (50.5, 0.2**0.5), "entropy": gauss([0.2**0.5])}


def far_mean(y):
    m = flat("m")
    numpyro.sample("y", dist.Normal(m, 0.1), obs=y)
    epi.emergent_property(m, mean=10033.4, name="f")


def improper_scale(y):
    s = flat("s", constraints.positive)
    numpyro.sample("y", dist.Normal(0.0, s), obs=y)
    epi.emergent_property(jnp.log(s), mean=0.4, name="f")


def improper_scale_truth():
    def log_density(u):
        return u - 3 * u - 0.5 * np.sum(SCALES**2) * np.exp(-2 * u)

    u, p, width = grid_law(log_density, lambda u: u, 0.4, -4.0, 8.0)
    entropy = -p @ (np.log(p / width + 1e-300) - u)
    return {"f": moments(u, p), "entropy": float(entropy)}


def improper_vector():
    m = flat("m", constraints.real_vector, (3,))
    numpyro.sample("y", dist.Normal(m, 1.0).to_event(1), obs=jnp.array([-30.0, 0, 70]))
    epi.emergent_property(m.sum(), mean=41.0, name="f")


def improper_vector_truth():
    # A shift of 1/3 in each element, at the covariance of the data.
    return {"f": (41.0, 3**0.5), "entropy": gauss(np.ones(3))}


def improper_regression(x, y):
    a, b = flat("a"), flat("b")
    numpyro.sample("y", dist.Normal(a + b * x, 0.5), obs=y)
    epi.emergent_property(b, mean=1.2, name="slope")


X = np.linspace(-1.0, 2.0, 12)
Y = 3.0 + 1.0 * X + 0.3 * np.cos(7 * X)


def improper_regression_truth():
    design = np.stack([np.ones_like(X), X], axis=1)
    covariance = 0.25 * np.linalg.inv(design.T @ design)
    mean = np.linalg.lstsq(design, Y, rcond=None)[0]
    # The tilt of b shifts along its row of the covariance.
    mean = mean + covariance[:, 1] / covariance[1, 1] * (1.2 - mean[1])
    sd = np.sqrt(np.diag(covariance))
    entropy = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * covariance))
    return {
        "a": (mean[0], sd[0]),
        "b": (mean[1], sd[1]),
        "entropy": float(entropy),
    }


def improper_logit():
    m = flat("m")
    numpyro.sample("y", dist.Binomial(20, logits=m), obs=14)
    epi.emergent_property(jax.nn.sigmoid(m), mean=0.6, name="share")


def improper_logit_truth():
    def share(u):
        return 1 / (1 + np.exp(-u))

    def log_density(u):
        return 14 * u - 20 * np.logaddexp(0.0, u)

    u, p, width = grid_law(log_density, share, 0.6, -8.0, 10.0)
    entropy = -p @ np.log(p / width + 1e-300)
    return {"share": moments(share(u), p), "m": moments(u, p), "entropy": entropy}


def improper_unit():
    """Flat on a bounded support: proper without data."""
    m = flat("m", constraints.unit_interval)
    epi.emergent_property(m, mean=0.3, name="f")


def improper_unit_truth():
    u, p, width = grid_law(lambda u: 0 * u, lambda u: u, 0.3, 0.0, 1.0)
    return {"m": moments(u, p), "entropy": float(-p @ np.log(p / width + 1e-300))}


def improper_without_data():
    epi.emergent_property(flat("m"), mean=3.0, var=1.0)


def improper_sum():
    a, b = flat("a"), flat("b")
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=1.0)
    epi.emergent_property(a, mean=0.0)


def improper_pair(y):
    m, s = flat("m"), flat("s", constraints.positive)
    numpyro.sample("y", dist.Normal(m, s), obs=y)
    epi.emergent_property(m, mean=50.0)


def circular_reparam():
    with handlers.reparam(config={"angle": CircularReparam()}):
        angle = numpyro.sample("angle", dist.VonMises(0.3, 4.0))
    epi.emergent_property(jnp.cos(angle), mean=0.5)


# -- parameters -----------------------------------------------------------------------


def group():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
    epi.emergent_property(theta, mean=1.0, name="f")


centred = handlers.reparam(group, {"theta": LocScaleReparam(None)})


def group_truth():
    # theta ~ Normal(0, 5), shifted to 1; mu follows with a fifth of it.
    return {"f": (1.0, 5**0.5), "mu": (0.2, 1.0)}


def scaled():
    w = numpyro.param("w", 2.0)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    epi.emergent_property(w * z, mean=1.0, name="f")


def stateful():
    state = mutable("s", {"v": 1.0})
    state["v"] += 1.0
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    epi.emergent_property(state["v"] * z, mean=1.5, name="f")


class Linear(eqx.Module):
    """A layer, of which the weight is all."""

    weight: jax.Array

    def __call__(self, x):
        return jnp.dot(self.weight, x)


LINEAR = Linear(jnp.array([1.0, 2.0]))


def random_network():
    net = random_eqx_module("net", LINEAR, dist.Normal(0.0, 1.0))
    epi.emergent_property(net(jnp.array([3.0, 4.0])), mean=5.0, name="f")


def random_network_truth():
    # f ~ Normal(0, 25), shifted by one standard deviation along its direction.
    return {"f": (5.0, 5.0), "entropy": gauss([1.0, 1.0])}


def fixed_network():
    net = eqx_module("net", LINEAR)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    epi.emergent_property(net(z), mean=1.0, name="f")


def fixed_network_truth():
    return {"f": (1.0, 5**0.5), "entropy": gauss([1.0, 1.0])}


WEIGHTS = eqx.filter(LINEAR, eqx.is_inexact_array)
NO_LAW = "make a law of the improper prior of"

LONG = {
    "improper mean": (improper_mean, (DATA,), {}, improper_mean_truth),
    "improper mean, far": (
        far_mean,
        (DATA * 200,),
        {},
        lambda: {"m": (10033.4, 0.1 / 3**0.5), "entropy": gauss([0.1 / 3**0.5])},
    ),
    "improper scale": (improper_scale, (SCALES,), {}, improper_scale_truth),
    "improper vector": (improper_vector, (), {}, improper_vector_truth),
    "improper regression": (
        improper_regression,
        (X, Y),
        {},
        improper_regression_truth,
    ),
    "improper logit": (improper_logit, (), {}, improper_logit_truth),
    "improper on a bounded support": (improper_unit, (), {}, improper_unit_truth),
    "improper without data": (improper_without_data, (), {}, (ValueError, NO_LAW)),
    "improper sum": (improper_sum, (), {}, (ValueError, NO_LAW)),
    "improper mean and scale, two data": (
        improper_pair,
        (DATA[:2],),
        {},
        (ValueError, NO_LAW),
    ),
    "CircularReparam": (circular_reparam, (), {}, (ValueError, "leave that out")),
    "fixed centring": (
        handlers.substitute(centred, {"theta_centered": 0.3}),
        (),
        {},
        group_truth,
    ),
    "free centring": (centred, (), {}, (ValueError, "'theta_centered': value")),
    "fixed parameter": (
        handlers.substitute(scaled, {"w": 4.0}),
        (),
        {},
        lambda: {"z": (0.25, 1.0), "entropy": gauss([1.0])},
    ),
    "fixed state": (
        handlers.substitute(stateful, {"s": {"v": 2.0}}),
        (),
        {},
        lambda: {"z": (0.5, 1.0), "entropy": gauss([1.0])},
    ),
    "random weights": (random_network, (), {}, random_network_truth),
    "fixed weights": (
        handlers.substitute(fixed_network, {"net$params": WEIGHTS}),
        (),
        {},
        fixed_network_truth,
    ),
}


# -- changed arguments ----------------------------------------------------------------


def posterior_mean(y):
    """Normal data about z, prior Normal(0, 10), and no more than its own mean."""
    z = numpyro.sample("z", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    epi.emergent_property(z, mean=float(np.mean(y)), name="f")


def refill(y, value):
    """Fill an array anew in place: the next run is to answer for these data.

    The law of `posterior_mean` is then Normal(value, 1 / (n + 0.01)).
    """
    y[...] = value
    return {"z": (float(value), float((y.size + 0.01) ** -0.5))}
