# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Models whose statistics depend on each other, for the long table.

`LONG` maps a name to (model, args, kwargs, expected): a class of error, or a function
without arguments that returns the truth, `{"divergence": nats, "z": (mean, sd)}` of the
exact law, from quadrature or in closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi


def _normal_truth(means, variances):
    """Independent normal laws from standard normal priors; moments of the first."""
    means, variances = np.atleast_1d(means), np.atleast_1d(variances)
    kl = 0.5 * (variances + means**2 - 1.0 - np.log(variances)).sum()
    return {"divergence": float(kl), "z": (float(means[0]), float(variances[0] ** 0.5))}


def _tilted_truth(log_prior, stats, targets, grid):
    """Exact law on a grid, by Newton steps on the dual of independent statistics."""
    prior = np.exp(log_prior - log_prior.max())
    prior /= prior.sum()
    devs = np.stack(stats, axis=1) - np.array(targets)
    lam = np.zeros(devs.shape[1])
    for _ in range(200):
        p = prior * np.exp(-devs @ lam - (-devs @ lam).max())
        p /= p.sum()
        mean = p @ devs
        cov = (devs - mean).T @ ((devs - mean) * p[:, None])
        step = np.linalg.solve(cov, mean)
        lam = lam + step * min(
            1.0, 1.0 / max(np.abs(step * np.sqrt(np.diag(cov))).max(), 1e-9)
        )
    keep = p > 0
    kl = float((p[keep] * np.log(p[keep] / prior[keep])).sum())
    centre = float(p @ grid)
    return {
        "divergence": kl,
        "z": (centre, float(np.sqrt(p @ (grid - centre) ** 2))),
    }


def copies_in_units(mean, var, unit=1.0):
    z = numpyro.sample("z", dist.Normal(0, 1))
    stats = jnp.stack([unit * z, (2 * z + 1) / unit])
    scale = np.array([unit, 1 / unit])
    epi.emergent_property(
        stats, mean=np.array(mean) * scale, var=np.array(var) * scale**2, name="s"
    )


def mirrored_sites(shift=0.0):
    z = numpyro.sample("z", dist.Normal(0, 1))
    epi.emergent_property(z, mean=1.0, var=0.25, name="left")
    epi.emergent_property(-z, mean=-1.0 + shift, var=0.25, name="right")


def parts_and_total(total=0.2):
    z = numpyro.sample("z", dist.Normal(0, 1))
    y = numpyro.sample("y", dist.Normal(0, 1))
    epi.emergent_property(z, mean=0.5, var=0.5, name="first")
    epi.emergent_property(y, mean=-0.3, var=0.5, name="second")
    epi.emergent_property(z + y, mean=total, name="total")


def shares(last=0.5):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    epi.emergent_property(
        jax.nn.softmax(jnp.append(z, 0.0)), mean=[0.1, 0.2, 0.2, last], name="shares"
    )


def event(mean=0.7, var=0.21):
    z = numpyro.sample("z", dist.Normal(0, 1))
    epi.emergent_property(z > 0.5, mean=mean, var=var, name="event")


def _event_truth():
    """The prior on both sides of 0.5, with masses 0.7 and 0.3; `event` is an edge."""
    grid = np.linspace(-8.0, 8.0, 160_001)
    above = (grid > 0.5).astype(float)
    return _tilted_truth(-0.5 * grid**2, [above], [0.7], grid)


def rectified(prior=2.0):
    z = numpyro.sample("z", dist.Normal(prior, 0.5))
    epi.emergent_property(jnp.maximum(z, 0.0), mean=0.6, name="rate")
    epi.emergent_property(z, mean=0.3, var=1.0, name="drive")


def _rectified_truth():
    grid = np.linspace(-6.0, 8.0, 40_001)
    stats = [np.maximum(grid, 0.0), grid, (grid - 0.3) ** 2]
    log_prior = -0.5 * ((grid - 2.0) / 0.5) ** 2
    return _tilted_truth(log_prior, stats, [0.6, 0.3, 1.0], grid)


def near_copy(width=0.1):
    """A copy but for another latent: targets that differ ask for that latent."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    y = numpyro.sample("y", dist.Normal(0, 1))
    epi.emergent_property(z, mean=1.0, var=0.25, name="exact")
    epi.emergent_property(z + width * y, mean=1.05, name="near")


def _near_copy_truth():
    """z ~ N(1, 0.25), y ~ N(0.5, 1): KL of both."""
    return _normal_truth([1.0, 0.5], [0.25, 1.0])


def noisy_copies(second=0.5):
    """One noisy reading, twice."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    reading = z + 0.5 * jax.random.normal(numpyro.prng_key())
    epi.emergent_property(
        jnp.stack([reading, 3 * reading]), mean=[0.5, 3 * second], name="readings"
    )


def silent(second=2.0):
    """Both are zero in all but 0.1% of the draws of the prior."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    rate = jnp.maximum(z - 3.0, 0.0)
    epi.emergent_property(jnp.stack([rate, 2 * rate]), mean=[1.0, second], name="rates")


def _silent_truth():
    grid = np.linspace(-8.0, 12.0, 40_001)
    return _tilted_truth(-0.5 * grid**2, [np.maximum(grid - 3.0, 0.0)], [1.0], grid)


REFUSED = epi.ContradictoryTargetsError
# "moved" models warn, once, of the nearest targets: `UserWarning`, "Expected targets".
LONG = {
    "copies, agreeing": (
        copies_in_units,
        ([1.0, 3.0], [0.25, 1.0]),
        {},
        lambda: _normal_truth(1.0, 0.25),
    ),
    "copies, moved": (
        copies_in_units,
        ([1.0, 3.02], [0.25, 1.0]),
        {},
        lambda: _normal_truth(1.005, 0.25),
    ),
    "copies, moved, small and large units": (
        copies_in_units,
        ([1.0, 3.02], [0.25, 1.0]),
        {"unit": 1e-6},
        lambda: _normal_truth(1.005, 0.25),
    ),
    "copies, refused": (copies_in_units, ([1.0, 3.3], [0.25, 1.0]), {}, REFUSED),
    "copies, variance refused": (
        copies_in_units,
        ([1.0, 3.0], [0.25, 1.5]),
        {},
        REFUSED,
    ),
    "mirrored sites, moved": (
        mirrored_sites,
        (0.02,),
        {},
        lambda: _normal_truth(0.99, 0.25),
    ),
    "mirrored sites, refused": (mirrored_sites, (0.3,), {}, REFUSED),
    "parts and total, agreeing": (
        parts_and_total,
        (0.2,),
        {},
        lambda: _normal_truth([0.5, -0.3], [0.5, 0.5]),
    ),
    "parts and total, refused": (parts_and_total, (0.8,), {}, REFUSED),
    "shares, refused": (shares, (0.8,), {}, REFUSED),
    "event, agreeing": (event, (), {}, _event_truth),
    "event, refused": (event, (0.7, 0.3), {}, REFUSED),
    "rectified, not refused": (rectified, (), {}, _rectified_truth),
    "near copy, not refused": (near_copy, (), {}, _near_copy_truth),
    "noisy copies, refused": (noisy_copies, (0.9,), {}, REFUSED),
    "silent, agreeing": (silent, (), {}, _silent_truth),
    "silent, refused": (silent, (3.0,), {}, REFUSED),
}
