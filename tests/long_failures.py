# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Models for the long table: rare failures, callbacks, long scans.

`LONG` maps a name to (model, positional arguments, keyword arguments of `EPI`, truth).
A truth is a dictionary: "entropy", exact where it can be had; "moments", the mean and
variance of each statistic; "latents", a function of the draws that all must pass; or
"error", the class and a pattern of its message.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.integrate import solve_ivp
from scipy.stats import norm

import numpyro_epi as epi

GRID = np.linspace(-8.0, 8.0, 80_001)


def tilted_entropy(keep, mean, var):
    """Of a standard Gaussian, weighted by `keep` and tilted to mean and variance."""
    x = GRID
    devs, lam = np.stack([x - mean, (x - mean) ** 2 - var]), np.zeros(2)
    base = np.exp(-(x**2) / 2) * keep
    for _ in range(200):  # Newton on the dual
        w = base * np.exp(-lam @ devs)
        w /= w.sum()
        centred = devs - (devs @ w)[:, None]
        lam += np.linalg.solve((centred * w) @ centred.T, devs @ w)
    inside = w > 0
    return -(w[inside] * np.log(w[inside] / (x[1] - x[0]))).sum()


def tail_fails(share, mean, var):
    """The upper tail cannot be simulated: its square root and derivative are NaN."""
    z = numpyro.sample("z", dist.Normal())
    edge = norm.isf(share)
    epi.emergent_property(z + 0.0 * jnp.sqrt(edge - z), mean=mean, var=var)


def tail(share, mean=0.4, var=0.7, **options):
    truth = {
        "entropy": tilted_entropy(norm.isf(share) > GRID, mean, var),
        "moments": [(mean, var)],
        "latents": lambda draws: (draws["z"] <= norm.isf(share) + 1e-5).all(),
    }
    if share > 0.06 and not options:
        truth = {"error": (epi.InvalidStatisticError, 'on_invalid="mask"')}
    return tail_fails, (share, mean, var), options, truth


def fails_by_chance(share, mean, var):
    """Failures that do not depend on the latent: the law of a run without them."""
    z = numpyro.sample("z", dist.Normal())
    u = jax.random.uniform(numpyro.prng_key())
    epi.emergent_property(jnp.where(u < share, jnp.nan, z), mean=mean, var=var)


def likelihood_fails(mean, var):
    """A log likelihood that is not a number for 1% of the prior, beside a property."""
    z = numpyro.sample("z", dist.Normal())
    numpyro.factor("data", 0.0 * jnp.log(norm.isf(0.01) - z))
    epi.emergent_property(z, mean=mean, var=var)


def two_latents_fail(mean, var):
    """Outside of a disc of radius 3 (1.1% of the prior) nothing can be simulated."""
    z = numpyro.sample("z", dist.Normal().expand([2]).to_event(1))
    inside = jnp.sqrt(9.0 - (z**2).sum())
    epi.emergent_property(z[0] + 0.0 * inside, mean=mean, var=var)


def disc_entropy(mean, var):
    x = GRID
    height = np.sqrt(np.maximum(9.0 - x**2, 0.0))
    # Integrate the second latent out of the law, for a given first one.
    share = norm.cdf(height) - norm.cdf(-height)
    keep = share
    devs, lam = np.stack([x - mean, (x - mean) ** 2 - var]), np.zeros(2)
    for _ in range(200):
        w = np.exp(-(x**2) / 2 - lam @ devs) * keep
        w /= w.sum()
        centred = devs - (devs @ w)[:, None]
        lam += np.linalg.solve((centred * w) @ centred.T, devs @ w)
    inside = w > 0
    first = -(w[inside] * np.log(w[inside] / (x[1] - x[0]))).sum()
    h, s = height[inside], share[inside]
    # Entropy of a Gaussian cut to (-h, h).
    second = np.log(np.sqrt(2 * np.pi * np.e) * s) - h * norm.pdf(h) / s
    return first + (w[inside] * second).sum()


def in_scipy(mean, var):
    """Exponential decay by `solve_ivp`: z to exp(-z)."""

    def solve(z):
        found = solve_ivp(lambda t, y: -float(z) * y, (0.0, 1.0), [1.0], rtol=1e-5)
        return np.asarray(found.y[0, -1], np.asarray(z).dtype)

    z = numpyro.sample("z", dist.Uniform(0.0, 3.0))
    shape = jax.ShapeDtypeStruct((), z.dtype)
    x = jax.pure_callback(solve, shape, z, vmap_method="sequential")
    epi.emergent_property(x, mean=mean, var=var)


def callback_fails(mean, var):
    """NumPy takes the square root of what is negative for 2% of the prior."""

    def simulate(z):
        with np.errstate(invalid="ignore"):
            return z + 0.0 * np.sqrt(norm.isf(0.02) - np.asarray(z)).astype(z.dtype)

    z = numpyro.sample("z", dist.Normal())
    shape = jax.ShapeDtypeStruct((), z.dtype)
    x = jax.pure_callback(simulate, shape, z, vmap_method="expand_dims")
    epi.emergent_property(x, mean=mean, var=var)


def long_network(num_steps):
    """Units relax to z[0], whatever the length: a scan whose path is kept."""
    z = numpyro.sample("z", dist.Normal().expand([2]).to_event(1))

    def step(x, _):
        x = x + 0.1 * (z[0] - x)
        return x, x

    _, path = jax.lax.scan(step, jnp.zeros(64), None, length=num_steps)
    epi.emergent_property(path[-1].mean(), mean=0.5, var=0.5)


def decay_entropy(mean, var):
    """Of the decay rate, uniform on (0, 3), tilted by moments of exp(-z)."""
    z = np.linspace(0.0, 3.0, 40_001)
    f = np.exp(-z)
    devs, lam = np.stack([f - mean, (f - mean) ** 2 - var]), np.zeros(2)
    for _ in range(200):
        w = np.exp(-lam @ devs)
        w /= w.sum()
        centred = devs - (devs @ w)[:, None]
        lam += np.linalg.solve((centred * w) @ centred.T, devs @ w)
    return -(w * np.log(w / (z[1] - z[0]))).sum()


GAUSSIAN = 0.5 * np.log(2.0 * np.pi * np.e)
GAUSS_04_07 = GAUSSIAN + 0.5 * np.log(0.7)
MOMENTS = [(0.4, 0.7)]

LONG = {
    "0.01% fail": tail(1e-4),
    "0.03% fail": tail(3e-4),
    "0.1% fail": tail(1e-3),
    "1% fail": tail(0.01),
    "4% fail": tail(0.04),
    "4% fail, reverse asked for": tail(0.04, stat_gradient="reverse"),
    "10% fail": tail(0.1),
    "50% fail": tail(0.5, -0.8, 0.3),
    "10% fail, masked": tail(0.1, on_invalid="mask"),
    "50% fail, masked": tail(0.5, -0.8, 0.3, on_invalid="mask"),
    "0.03% fail, refused": (
        tail_fails,
        (3e-4, 0.4, 0.7),
        {"on_invalid": "raise"},
        {"error": (epi.InvalidStatisticError, "is not finite")},
    ),
    "1% fail by chance": (
        fails_by_chance,
        (0.01, 0.4, 0.7),
        {},
        {"entropy": GAUSS_04_07, "moments": MOMENTS},
    ),
    "log likelihood of 1% is NaN": (
        likelihood_fails,
        (0.4, 0.7),
        {},
        {
            "entropy": tilted_entropy(norm.isf(0.01) > GRID, 0.4, 0.7),
            "moments": MOMENTS,
        },
    ),
    "outside of a disc": (
        two_latents_fail,
        (0.4, 0.7),
        {},
        {"entropy": disc_entropy(0.4, 0.7), "moments": MOMENTS},
    ),
    "callback of SciPy": (
        in_scipy,
        (0.4, 0.02),
        {},
        {"entropy": decay_entropy(0.4, 0.02), "moments": [(0.4, 0.02)]},
    ),
    "callback of which 2% fail": (
        callback_fails,
        (0.4, 0.7),
        {},
        {
            "entropy": tilted_entropy(norm.isf(0.02) > GRID, 0.4, 0.7),
            "moments": MOMENTS,
        },
    ),
    "scan of 1,000 steps": (
        long_network,
        (1000,),
        {},
        {
            "entropy": 2.0 * GAUSSIAN + 0.5 * np.log(0.5),
            "moments": [(0.5, 0.5)],
        },
    ),
}
