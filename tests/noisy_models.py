# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Models with a noisy log likelihood whose law is Gaussian.

The latent z ~ Normal(0, 1) has E[log L | z] = const - precision (z - centre)^2 / 2, and
an emergent property E[z] = MEAN. The law is Normal(MEAN, 1 / (1 + precision)).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi

MEAN = 0.6


class Known(NamedTuple):
    """A model, and E[log L | z] = top - precision (z - centre)^2 / 2."""

    model: Callable
    precision: float
    centre: float
    top: float

    @property
    def sd(self):
        """Of the law."""
        return (1.0 + self.precision) ** -0.5

    def log_likelihood(self, z):
        """Expectation over the noise."""
        return self.top - 0.5 * self.precision * (z - self.centre) ** 2

    @property
    def maximum(self):
        """-KL(q || p0) + E_q[log L] of the law q."""
        var = self.sd**2
        divergence = 0.5 * (var + MEAN**2 - 1.0 - np.log(var))
        return self.log_likelihood(MEAN) - 0.5 * self.precision * var - divergence

    @property
    def multiplier(self):
        """Of T = z - MEAN, raw: the tilt moves the mean of the posterior to MEAN."""
        return self.precision * self.centre - MEAN / self.sd**2


def data(num):
    return np.random.default_rng(1).normal(0.5, 1.0, num).astype(np.float32)


def of_data(model, x):
    """Known law of data x ~ Normal(z, 1)."""
    x = np.asarray(x, np.float64)
    top = -0.5 * x.size * np.log(2 * np.pi) - 0.5 * ((x - x.mean()) ** 2).sum()
    return Known(model, x.size, x.mean(), top)


def subsampled(size=200, num=20, kind="any"):
    """Data in a minibatch; kinds say what the model accepts in place of one."""
    x = jnp.asarray(data(size))

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("data", size, subsample_size=num) as rows:
            if kind == "any":
                numpyro.sample("y", dist.Normal(z, 1.0), obs=x[rows])
            if kind == "fixed shape":
                loc = z * jnp.ones(num)
                numpyro.sample("y", dist.Normal(loc, 1.0), obs=x[rows])
        if kind == "own scale":
            log_lik = dist.Normal(z, 1.0).log_prob(x[rows]).sum()
            numpyro.factor("f", size / num * log_lik)
        stat = z
        if kind == "statistic":
            numpyro.factor("f", dist.Normal(z, 1.0).log_prob(x).sum())
            stat = z + x[rows].mean() - x.mean()
        epi.emergent_property(stat, mean=MEAN)

    return of_data(model, x)


def nested():
    """Two subsampled plates, one of a length that minibatches do not divide."""
    x = jnp.asarray(data(200)).reshape(20, 10)

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        rows = numpyro.plate("rows", 20, subsample_size=6, dim=-2)
        columns = numpyro.plate("columns", 10, subsample_size=5, dim=-1)
        with rows as i, columns as j:
            loc = z * jnp.ones((6, 5))
            numpyro.sample("y", dist.Normal(loc, 1.0), obs=x[i][:, j])
        epi.emergent_property(z, mean=MEAN)

    return of_data(model, x)


def not_a_sum(size=200, num=8):
    """A function of a minibatch's mean that is not a sum over its elements."""
    x = jnp.asarray(data(size))

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("data", size, subsample_size=num) as rows:
            pass
        numpyro.factor("f", -50.0 * (z - x[rows].mean()) ** 2)
        epi.emergent_property(z, mean=MEAN)

    x64 = np.asarray(x, np.float64)
    var = x64.var() / num * (size - num) / (size - 1)
    return Known(model, 100.0, x64.mean(), -50.0 * var)


def noisy_factor(sd):
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        noise = sd * jax.random.normal(numpyro.prng_key())
        numpyro.factor("f", -2.0 * (z - 1.0) ** 2 + noise)
        epi.emergent_property(z, mean=MEAN)

    return Known(model, 4.0, 1.0, 0.0)


def fed_by_noise():
    """Data y = 1 about a simulation z + Normal(0, 1/2): E[log L] < log E[L]."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        e = numpyro.sample("e", dist.Normal(0, 0.5), infer={"noise": True})
        numpyro.sample("y", dist.Normal(z + e, 0.5), obs=1.0)
        epi.emergent_property(z, mean=MEAN)

    return Known(model, 4.0, 1.0, -0.5 - 0.5 * np.log(2 * np.pi * 0.25))
