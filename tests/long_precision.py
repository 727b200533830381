# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Statistics, latents and data of large size, for the long table.

`LONG[name]` is (model, args, kwargs, truth): a function that returns the entropy in
nats and `{site: (mean, sd)}` of latents, or (error, part of its message).
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import numpyro_epi as epi


def entropy(*sds):
    return float(sum(0.5 * np.log(2 * np.pi * np.e * sd**2) for sd in sds))


def offset(size, mean, var):
    z = numpyro.sample("z", dist.Normal(0, 1))
    epi.emergent_property(size + z, mean=size + mean, var=var)


def offset_truth(mean, var):
    return lambda: {"z": (mean, var**0.5), "entropy": entropy(var**0.5)}


def in_units(size):
    """A statistic of order `size`, and one of order 1 / `size`, far from zero."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    y = numpyro.sample("y", dist.Normal(0, 1))
    epi.emergent_property(
        size * (50 + z), mean=50.4 * size, var=0.5 * size**2, name="a"
    )
    epi.emergent_property((y - 50) / size, mean=-50.3 / size, name="b")


def in_units_truth():
    sd = 0.5**0.5
    return {"z": (0.4, sd), "y": (-0.3, 1.0), "entropy": entropy(sd, 1.0)}


def large_latent(size):
    z = numpyro.sample("z", dist.Normal(size, 1))
    epi.emergent_property(z - size, mean=0.3, var=0.5)


def heavy_data(weight):
    """Twenty data, each counted `weight` times; a property on the other latent."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    y = numpyro.sample("y", dist.Normal(0, 1))
    with handlers.scale(scale=weight):
        numpyro.sample("x", dist.Normal(z, 1).expand([20]), obs=jnp.zeros(20))
    epi.emergent_property(y, mean=1.0, var=0.25)


def count(size):
    """Whole numbers of a size that float32 does not tell apart."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    epi.emergent_property(size + jnp.round(10 * z).astype(int), mean=size + 3.0)


APART = "float32 numbers of that size are"
LONG = {
    "offset of 1e4": (offset, (1e4, 0.03, 0.01), {}, offset_truth(0.03, 0.01)),
    "offset of -3e4": (offset, (-3e4, 0.517, 0.09), {}, offset_truth(0.517, 0.09)),
    "offset of 1e5, wide": (offset, (1e5, 0.03, 0.5), {}, offset_truth(0.03, 0.5)),
    "offset of 1e6": (offset, (1e6, 0.03, 0.01), {}, (ValueError, APART)),
    "offset of 1e7": (offset, (1e7, 0.03, 0.09), {}, (ValueError, APART)),
    "units of 1e9": (
        in_units,
        (1e9,),
        {},
        lambda: {
            "z": (0.4, 0.5**0.5),
            "y": (-0.3, 1.0),
            "entropy": entropy(0.5**0.5, 1),
        },
    ),
    "units of 1e-10": (
        in_units,
        (1e-10,),
        {},
        lambda: {
            "z": (0.4, 0.5**0.5),
            "y": (-0.3, 1.0),
            "entropy": entropy(0.5**0.5, 1),
        },
    ),
    "latent about 1e4": (
        large_latent,
        (1e4,),
        {},
        lambda: {"z": (1e4 + 0.3, 0.5**0.5), "entropy": entropy(0.5**0.5)},
    ),
    "latent about 1e7": (large_latent, (1e7,), {}, (ValueError, "prior of `z`")),
    "2,000 data": (
        heavy_data,
        (100.0,),
        {},
        lambda: {
            "z": (0.0, 2001**-0.5),
            "y": (1.0, 0.5),
            "entropy": entropy(2001**-0.5, 0.5),
        },
    ),
    "a count about 1e9": (count, (10**9,), {}, (ValueError, APART)),
}
