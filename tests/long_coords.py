# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Models with masked elements and with circles, and what is true of each.

Truths are by quadrature, in NumPy: a trapezoidal rule on the circle, which is exact to
rounding for smooth laws, and Gauss-Legendre panels on the line.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import numpyro_epi as epi
from quadrature import Latents, Measure, Rule, deviations, panels, product_rule

MASK = np.array([True, False, True])
OBS = np.array([1.0, np.nan, 2.0])


class Case(NamedTuple):
    """A model, and either the truth or the error that it should end with.

    Attributes:
        model: Of NumPyro.
        args: Of the model.
        kwargs: Of the model.
        truth: Makes the law, whose `log_normalizer` at its `solve()` is the maximum of
            `result.score`, and whose `mean_and_variance` there is that of `functions`.
        functions: Of the latents of a result, each to an array of shape (n,).
        entropy: Of the law in nats, where it is known in closed form.
        error: Type and a pattern of the message.
    """

    model: Callable
    args: tuple = ()
    kwargs: Mapping[str, Any] = {}  # noqa: RUF012
    truth: Callable[[], Measure] | None = None
    functions: Mapping[str, Callable[[Latents], np.ndarray]] = {}  # noqa: RUF012
    entropy: float | None = None
    error: tuple[type[Exception], str] | None = None


def circle(num: int) -> Rule:
    nodes = -np.pi + 2 * np.pi * (np.arange(num) + 0.5) / num
    return Rule(nodes, np.full(num, 2 * np.pi / num))


def line(low: float, high: float) -> Rule:
    return panels(np.linspace(low, high, 41), 10)


def log_von_mises(x, loc, concentration):
    log_norm = np.log(2 * np.pi * np.i0(concentration))
    return concentration * np.cos(x - loc) - log_norm


def log_normal(x, loc=0.0, scale=1.0):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))


def law(rules, log_joint, stats, functions):
    """The law of latents at the nodes of a product rule.

    Args:
        rules: One for each coordinate.
        log_joint: Of the coordinates: log p0 + log L.
        stats: Of the coordinates: a list of (statistic, mean, variance or None).
        functions: By name, of the coordinates.
    """

    def measure():
        nodes, weights = product_rule(*rules)
        found = {
            str(i): deviations(stat, mean, var)
            for i, (stat, mean, var) in enumerate(stats(*nodes))
        }
        return Measure.at_points(
            {"nodes": np.stack(nodes, axis=-1)},
            np.log(weights) + log_joint(*nodes),
            lambda _: found,
            {name: lambda _, f=f: f(*nodes) for name, f in functions.items()},
        )

    return measure


# -- circles --------------------------------------------------------------------------


def one_circle(loc, concentration, mean, var, *, fold=1, phase=0.0):
    """cos(fold z - phase) has a mean, and perhaps a variance."""
    z = numpyro.sample("z", dist.VonMises(loc, concentration))
    epi.emergent_property(jnp.cos(fold * z - phase), mean=mean, var=var)


def one(loc, concentration, mean, var, fold=1, phase=0.0):
    functions = {
        "cos": np.cos,
        "sin": np.sin,
        "cos 2": lambda x: np.cos(2 * x),
    }
    truth = law(
        [circle(2000)],
        lambda x: log_von_mises(x, loc, concentration),
        lambda x: [(np.cos(fold * x - phase), mean, var)],
        functions,
    )
    seen = {k: lambda z, f=f: f(np.asarray(z["z"])) for k, f in functions.items()}
    args, kwargs = (loc, concentration, mean, var), {"fold": fold, "phase": phase}
    return Case(one_circle, args, kwargs, truth, seen)


def torus():
    a = numpyro.sample("a", dist.VonMises(3.0, 1.0))
    b = numpyro.sample("b", dist.VonMises(-3.0, 1.0))
    epi.emergent_property(jnp.cos(a - b), mean=0.5, var=0.1)
    epi.emergent_property(jnp.cos(a), mean=-0.6, name="first")


def vector():
    z = numpyro.sample("z", dist.VonMises(jnp.array([3.0, -3.0, 1.5]), 2.0).to_event(1))
    epi.emergent_property(jnp.cos(z).sum(), mean=-1.5, var=0.2)


def nested():
    """The prior of an angle depends on another latent, and there are data."""
    loc = numpyro.sample("loc", dist.Normal(3.0, 0.3))
    z = numpyro.sample("z", dist.VonMises(loc, 3.0))
    numpyro.sample("y", dist.VonMises(z, 4.0), obs=-2.8)
    epi.emergent_property(jnp.sin(z), mean=0.1, var=0.05)


def two_peaks():
    peaks = dist.VonMises(jnp.array([2.5, -2.5]), 6.0)
    mix = dist.Categorical(probs=jnp.array([0.5, 0.5]))
    z = numpyro.sample("z", dist.MixtureSameFamily(mix, peaks))
    epi.emergent_property(jnp.cos(z), mean=-0.9)


def of(*names):
    """Cosines and sines of angles of a result."""
    functions = {}
    for i, name in enumerate(names):
        site, index = (name[0], (..., int(name[1]))) if len(name) == 2 else (name, ...)
        functions[f"cos {i}"] = lambda z, s=site, k=index: np.cos(np.asarray(z[s])[k])
        functions[f"sin {i}"] = lambda z, s=site, k=index: np.sin(np.asarray(z[s])[k])
    return functions


def angles(num):
    return {
        f"{kind} {i}": lambda *x, i=i, f=f: f(x[i])
        for i in range(num)
        for kind, f in (("cos", np.cos), ("sin", np.sin))
    }


CIRCLES = {
    "law across pi": one(3.0, 2.0, 0.0, 0.1, phase=np.pi / 2),
    "law moved across pi": one(0.0, 0.5, -0.7, 0.05),
    "law where the prior is rare": one(0.0, 3.0, -0.8, None),
    "two peaks on the circle": one(0.3, 0.2, 0.8, None, fold=2),
    "whole circle": one(1.0, 0.5, 0.0, 0.4, fold=3),
    "torus": Case(
        torus,
        truth=law(
            [circle(300)] * 2,
            lambda a, b: log_von_mises(a, 3.0, 1.0) + log_von_mises(b, -3.0, 1.0),
            lambda a, b: [(np.cos(a - b), 0.5, 0.1), (np.cos(a), -0.6, None)],
            angles(2),
        ),
        functions=of("a", "b"),
    ),
    "vector of three angles": Case(
        vector,
        truth=law(
            [circle(72)] * 3,
            lambda a, b, c: (
                log_von_mises(a, 3.0, 2.0)
                + log_von_mises(b, -3.0, 2.0)
                + log_von_mises(c, 1.5, 2.0)
            ),
            lambda a, b, c: [(np.cos(a) + np.cos(b) + np.cos(c), -1.5, 0.2)],
            angles(3),
        ),
        functions=of("z0", "z1", "z2"),
    ),
    "angle below a latent, with data": Case(
        nested,
        truth=law(
            [line(1.0, 5.0), circle(400)],
            lambda m, z: (
                log_normal(m, 3.0, 0.3)
                + log_von_mises(z, m, 3.0)
                + log_von_mises(-2.8, z, 4.0)
            ),
            lambda m, z: [(np.sin(z), 0.1, 0.05)],
            {"loc": lambda m, z: m, "cos": lambda m, z: np.cos(z)},
        ),
        functions={
            "loc": lambda z: np.asarray(z["loc"]),
            "cos": lambda z: np.cos(np.asarray(z["z"])),
        },
    ),
    "mixture on the circle": Case(
        two_peaks,
        truth=law(
            [circle(2000)],
            lambda x: (
                np.logaddexp(log_von_mises(x, 2.5, 6.0), log_von_mises(x, -2.5, 6.0))
                - np.log(2.0)
            ),
            lambda x: [(np.cos(x), -0.9, None)],
            angles(1),
        ),
        functions=of("z"),
    ),
}


# -- masks ----------------------------------------------------------------------------


def missing(mask):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0).expand([3]), obs=OBS, obs_mask=mask)
    epi.emergent_property(z, mean=1.0, var=0.1)


def missing_and_wanted(mask):
    """The statistic takes the missing value, together with those that were seen."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    y = numpyro.sample("y", dist.Normal(z, 1.0).expand([3]), obs=OBS, obs_mask=mask)
    epi.emergent_property(y.mean(), mean=1.5, var=0.05)


def one_missing(mask):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=1.0, obs_mask=jnp.asarray(mask))
    epi.emergent_property(z, mean=1.0, var=0.1)


def vectors(mask):
    cov = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    with numpyro.plate("rows", 3), handlers.mask(mask=jnp.asarray(mask)):
        x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), cov))
    epi.emergent_property(x[0].sum(), mean=1.0, var=0.5)


def simplices(mask):
    shares = dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])).expand([2])
    x = numpyro.sample("x", shares.mask(jnp.asarray(mask)))
    epi.emergent_property(x[0, 0], mean=0.4, var=0.01)


def masked_angles(mask):
    with numpyro.plate("cells", 3), handlers.mask(mask=jnp.asarray(mask)):
        z = numpyro.sample("z", dist.VonMises(3.0, 1.0))
    epi.emergent_property(jnp.cos(z[0]) + jnp.cos(z[2]), mean=-1.4, var=0.1)


def used(mask):
    with handlers.mask(mask=jnp.asarray(mask)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]))
    epi.emergent_property(z.sum(), mean=1.0, var=0.1)


def dependent(mask):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    mask = jnp.asarray(mask) ^ (z > 0)
    numpyro.sample("y", dist.Normal(z, 1.0).expand([3]), obs=OBS, obs_mask=mask)
    epi.emergent_property(z, mean=1.0, var=0.1)


def seen(z):
    return log_normal(1.0, z) + log_normal(2.0, z)


GAUSS = 0.5 * np.log(2 * np.pi * np.e)  # entropy of a standard normal number
Z = {"z": lambda z: np.asarray(z["z"])}
NODES_Z = {"z": lambda z: z}

MASKS = {
    "missing value": Case(
        missing,
        (MASK,),
        truth=law(
            [line(-8.0, 8.0)],
            lambda z: log_normal(z) + seen(z),
            lambda z: [(z, 1.0, 0.1)],
            NODES_Z,
        ),
        functions=Z,
        entropy=2 * GAUSS + 0.5 * np.log(0.1),
    ),
    "missing value in the statistic": Case(
        missing_and_wanted,
        (MASK,),
        truth=law(
            [line(-8.0, 8.0), line(-9.0, 12.0)],
            lambda z, y: log_normal(z) + log_normal(y, z) + seen(z),
            lambda z, y: [((3.0 + y) / 3, 1.5, 0.05)],
            {"z": lambda z, y: z, "y": lambda z, y: y},
        ),
        functions={
            **Z,
            "y": lambda z: np.asarray(z["y_unobserved"])[:, 1],
        },
    ),
    "nothing missing": Case(
        one_missing,
        (True,),
        truth=law(
            [line(-8.0, 8.0)],
            lambda z: log_normal(z) + log_normal(1.0, z),
            lambda z: [(z, 1.0, 0.1)],
            NODES_Z,
        ),
        functions=Z,
        entropy=GAUSS + 0.5 * np.log(0.1),
    ),
    "everything missing": Case(
        one_missing,
        (False,),
        truth=law([line(-8.0, 8.0)], log_normal, lambda z: [(z, 1.0, 0.1)], NODES_Z),
        functions=Z,
        entropy=2 * GAUSS + 0.5 * np.log(0.1),
    ),
    "masked vectors": Case(
        vectors,
        (MASK,),
        truth=law(
            # x0 + x1 has variance 3; the rest is at its prior.
            [line(-12.0, 12.0)],
            lambda s: log_normal(s, 0.0, np.sqrt(3.0)),
            lambda s: [(s, 1.0, 0.5)],
            {"sum": lambda s: s},
        ),
        functions={"sum": lambda z: np.asarray(z["x"])[:, 0].sum(axis=-1)},
        # Two vectors, of which one has a sum with a sixth of its variance.
        entropy=4 * GAUSS + np.log(0.75) + 0.5 * np.log(0.5 / 3.0),
    ),
    "masked simplices": Case(
        simplices,
        (np.array([True, False]),),
        truth=law(
            # The first share is a beta number.
            [panels(np.linspace(0.0, 1.0, 41), 10)],
            lambda x: np.log(x) + 6 * np.log1p(-x) + np.log(56.0),
            lambda x: [(x, 0.4, 0.01)],
            {"first": lambda x: x},
        ),
        functions={"first": lambda z: np.asarray(z["x"])[:, 0, 0]},
    ),
    "masked angles": Case(
        masked_angles,
        (MASK,),
        truth=law(
            [circle(300)] * 2,
            lambda a, b: log_von_mises(a, 3.0, 1.0) + log_von_mises(b, 3.0, 1.0),
            lambda a, b: [(np.cos(a) + np.cos(b), -1.4, 0.1)],
            angles(2),
        ),
        functions=of("z0", "z2"),
    ),
    "masked element in use": Case(
        used,
        (np.array([True, False]),),
        error=(ValueError, "`emergent_property` depends on those of `z`"),
    ),
    "mask that depends on a latent": Case(
        dependent, (MASK,), error=(ValueError, "fixed mask at.*`y_unobserved`")
    ),
}

LONG = CIRCLES | MASKS
