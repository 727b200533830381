# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Further models with a noisy log likelihood, for the long table.

`LONG` maps a name to (model, args, kwargs, truth): the truth is a mapping from the name
of a moment to (function of latents by site, true value, standard deviation of the
latent under the law), or the words that an expected error must match.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import noisy_models
import numpyro_epi as epi
from noisy_models import MEAN


def moments(site, mean, sd):
    """Mean and standard deviation of a scalar latent."""
    return {
        "mean": (lambda z: np.mean(z[site]), mean, sd),
        "sd": (lambda z: np.std(z[site]), sd, sd),
    }


def entry(known):
    return known.model, (), {}, moments("z", MEAN, known.sd)


def hierarchical(num_groups=5, size=40, num=20):
    """Group means about z, latents outside of the subsampled plate of observations."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(num_groups, size)) + rng.normal(size=(num_groups, 1))
    y = jnp.asarray(rows.ravel(), jnp.float32)

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("groups", num_groups):
            t = numpyro.sample("t", dist.Normal(z, 1))
        with numpyro.plate("data", y.size, subsample_size=num) as i:
            numpyro.sample("y", dist.Normal(t[i // size], 1.0), obs=y[i])
        epi.emergent_property(z, mean=MEAN)

    precision = 1.0 + num_groups / (1.0 + 1.0 / size)
    return model, (), {}, moments("z", MEAN, precision**-0.5)


def regression(num=30):
    """Slope from a minibatch; the property is a statistic of slope and intercept."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=300)
    y = 1.0 + 0.5 * x + 0.7 * rng.normal(size=300)

    def model(x, y):
        a = numpyro.sample("a", dist.Normal(0, 2))
        b = numpyro.sample("b", dist.Normal(0, 2))
        with numpyro.plate("data", 300, subsample_size=num):
            x, y = (numpyro.subsample(v, event_dim=0) for v in (x, y))
            numpyro.sample("y", dist.Normal(a + b * x, 0.7), obs=y)
        epi.emergent_property(a + b, mean=1.6)

    design = np.column_stack([np.ones(300), x])
    cov = np.linalg.inv(design.T @ design / 0.49 + np.eye(2) / 4.0)
    mean = cov @ design.T @ y / 0.49
    ones = np.ones(2)
    mean = mean + cov @ ones * (1.6 - ones @ mean) / (ones @ cov @ ones)
    sd = np.sqrt(np.diag(cov))
    truth = {f"{s} {k}": v for i, s in enumerate("ab") for k, v in
             moments(s, mean[i], sd[i]).items()}  # fmt: skip
    args = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    return model, args, {}, truth


def both_noisy():
    """One noise in the statistic and in a factor: E[T | z] = z - MEAN."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        e = jax.random.normal(numpyro.prng_key())
        numpyro.factor("f", -2.0 * (z - 1.0) ** 2 + e)
        epi.emergent_property(z + 0.5 * e, mean=MEAN)

    return model, (), {}, moments("z", MEAN, 5**-0.5)


def spread_noise():
    """The noise of a factor grows with the latent: E[log L | z] does not know it."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        e = jax.random.normal(numpyro.prng_key())
        numpyro.factor("f", -2.0 * (z - 1.0) ** 2 + 2.0 * z * e)
        epi.emergent_property(z, mean=MEAN)

    return model, (), {}, moments("z", MEAN, 5**-0.5)


def latent_inside():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("data", 20, subsample_size=5):
            numpyro.sample("t", dist.Normal(z, 1))
        epi.emergent_property(z, mean=MEAN)

    return model, (), {}, "outside of subsampled plates, got `t`"


LONG = {
    "200 data, 20 at a time": entry(noisy_models.subsampled()),
    "2,000 data, 50 at a time": entry(noisy_models.subsampled(2000, 50)),
    "199 data, 20 at a time": entry(noisy_models.subsampled(199, 20)),
    "minibatch of a fixed shape": entry(noisy_models.subsampled(kind="fixed shape")),
    "minibatch scaled by hand": entry(noisy_models.subsampled(kind="own scale")),
    "two subsampled plates": entry(noisy_models.nested()),
    "minibatch in the statistic": entry(noisy_models.subsampled(kind="statistic")),
    "not a sum over elements": entry(noisy_models.not_a_sum()),
    "factor, noise of 0.5 nats": entry(noisy_models.noisy_factor(0.5)),
    "factor, noise of 5 nats": entry(noisy_models.noisy_factor(5.0)),
    "factor, noise of 40 nats": entry(noisy_models.noisy_factor(40.0)),
    "data about a noisy simulation": entry(noisy_models.fed_by_noise()),
    "hierarchical": hierarchical(),
    "regression": regression(),
    "noise in statistic and factor": both_noisy(),
    "noise that grows with the latent": spread_noise(),
    "latents in a subsampled plate": latent_inside(),
}
