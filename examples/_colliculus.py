# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the paper claims about the superior colliculus, measured."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _claims import Claim, verdict
from _modes import modes_along

from numpyro_epi.circuits import colliculus

CONNECTIONS = ("sW", "vW", "hW", "dW")
AXES = tuple(colliculus.LABELS[f"z[{i}]"][0] for i in range(len(CONNECTIONS)))
SELF, HORIZONTAL = 0, 2
BOUND = colliculus.PAPER.bound
MEAN, SD = colliculus.PAPER.mean[0], colliculus.PAPER.var[0] ** 0.5
WANTED = (0.6, 0.9)  # accuracies that brute force accepts, in both tasks
MODES = np.linspace(1.0, -1.0, 9)  # values of sW, as in the paper
# Regime 1 has weakly negative, regime 2 weakly positive sW: bounds, and a mode.
REGIMES = {1: ((-1.0, -0.5), -0.75), 2: ((0.5, 1.0), 0.75)}
PUBLISHED_ENTROPY = -0.62
PUBLISHED_SPEED_UP = 21_500


@partial(jax.jit, static_argnames="num_trials")
def accuracies(z, rng_key, silencing=0.0, num_trials=None):
    """Pro and Anti accuracy of each row of z, shape (n, 2)."""
    return colliculus.accuracies(z, rng_key, silencing=silencing, num_trials=num_trials)


class Bend(NamedTuple):
    """Correlation of sW and hW where sW is small, and where it is large.

    Attributes:
        bins: Limits of sW, `{regime: (low, high)}`.
        correlations: In each bin; NaN if there are fewer than five draws.
        errors: Standard errors, of Fisher's z.
    """

    bins: dict
    correlations: np.ndarray
    errors: np.ndarray


def bend(z, bins):
    """Correlation of sW and hW by bin of sW; z has shape (n, 4)."""
    found = []
    for low, high in bins.values():
        inside = z[(low <= z[:, SELF]) & (z[:, SELF] < high)]
        if len(inside) < 5:
            found.append((np.nan, np.nan))
            continue
        r = np.corrcoef(inside[:, SELF], inside[:, HORIZONTAL])[0, 1]
        found.append((r, (1 - r**2) / np.sqrt(len(inside) - 3)))
    return Bend(bins, *np.array(found).T)


class BruteForce(NamedTuple):
    """Draws of the prior that happen to have the property.

    Attributes:
        accepted: Connections, shape (m, 4).
        num_draws: Draws of the prior.
        seconds: Wall-clock time, without compilation.
    """

    accepted: np.ndarray
    num_draws: int
    seconds: float


def brute_force(rng_key, num_draws, batch_size=1000):
    """Keep connections whose accuracies are both in `WANTED`.

    Draws that are far off in 20 trials, or never wrong in one of the tasks, are not
    simulated any further. This makes it several times faster, and loses few: of those
    with an accuracy of 0.75 in both tasks, one in 150.
    """
    low, high = WANTED
    size = min(batch_size, num_draws)
    keys = jax.random.split(rng_key, (-(-num_draws // size), 3))
    jax.block_until_ready(accuracies(jnp.zeros((size, 4)), rng_key, num_trials=20))
    jax.block_until_ready(accuracies(jnp.zeros((100, 4)), rng_key))
    start, candidates = time.perf_counter(), []
    for draw_key, short_key, _ in keys:
        z = jax.random.uniform(draw_key, (size, 4), minval=-BOUND, maxval=BOUND)
        rough = accuracies(z, short_key, num_trials=20)
        is_near = ((rough > low - 0.25) & (rough < 0.999)).all(axis=-1)
        candidates.append(np.asarray(z[is_near]))
    z = np.concatenate(candidates)
    z = z[keep(z, keys[0, 2])]
    return BruteForce(z, size * len(keys), time.perf_counter() - start)


def keep(z, rng_key, size=100):
    """Which connections have accuracies in `WANTED`, shape (n,)."""
    low, high = WANTED
    chunks = []
    for i in range(0, len(z), size):
        rows = np.arange(i, i + size) % len(z)  # one shape, compiled once
        found = np.asarray(accuracies(z[rows], jax.random.fold_in(rng_key, i)))
        chunks.append(((found > low) & (found < high)).all(axis=-1))
    return np.concatenate(chunks)[: len(z)] if chunks else np.zeros(0, bool)


def draw_rate(result, rng_key, num_draws=20_000):
    """Seconds for each accepted draw of the flow, without compilation."""
    z = result.sample(rng_key, num_draws)["z"]
    start = time.perf_counter()
    z = jax.block_until_ready(result.sample(jax.random.fold_in(rng_key, 1), num_draws))
    seconds = time.perf_counter() - start
    share = keep(np.asarray(z["z"][:1000]), rng_key).mean()
    return seconds / (num_draws * max(share, 1e-9)), float(share)


def eigenmode_errors(z):
    """Largest errors of three formulas about connections z, shape (n, 4).

    Eigenvalues against those of W; z = A lambda with the A used here; and with the A
    that the paper prints, which belongs to the order sW, dW, vW, hW.
    """
    found = np.asarray(colliculus.eigenvalues(z))
    numeric = np.linalg.eigvalsh(np.asarray(colliculus.weights(z)))
    back = np.asarray(colliculus.from_eigenvalues(found))
    printed = back[:, [0, 3, 1, 2]]
    return (
        float(np.abs(np.sort(found) - numeric).max()),
        float(np.abs(back - z).max()),
        float(np.abs(printed - z).max()),
    )


def find_modes(result):
    """Modes with sW held at each of `MODES`, `{sW: Mode}`; v1 points to smaller hW."""
    return modes_along(result, f"z[{SELF}]", MODES, positive=f"-z[{HORIZONTAL}]")


class Silencing(NamedTuple):
    """Accuracies under silencing, of draws of the whole distribution and of regimes.

    Attributes:
        levels: gamma, shape (m,), the first one 0.
        found: `{"all", 1, 2: (m, n, 2)}`, accuracies in Pro and Anti.
    """

    levels: np.ndarray
    found: dict

    def at(self, level, group="all"):
        """Accuracies without and with silencing at a level, both (n, 2)."""
        index = np.argmin(np.abs(self.levels - level))
        return self.found[group][0], self.found[group][index]

    def rise(self, level, task, group="all"):
        """Mean rise of the error in a task (0 Pro, 1 Anti), and its standard error."""
        before, after = self.at(level, group)
        change = before[:, task] - after[:, task]
        return change.mean(), change.std() / len(change) ** 0.5


def silence(result, rng_key, num_draws):
    """Silence late in the delay, at several strengths."""
    levels = np.array([0, 0.3, 0.5, 0.6, 0.675, 0.75, 0.8, 0.85, 0.9, 1.0])
    z = result.draws.latents["z"]
    groups = {"all": z[:num_draws]}
    for regime, ((low, high), _) in REGIMES.items():
        groups[regime] = z[(low <= z[:, SELF]) & (z[:, SELF] < high)][:num_draws]
    found = {}
    for name, rows in groups.items():
        keys = jax.random.split(rng_key, len(levels))
        found[name] = np.stack(
            [
                np.asarray(accuracies(rows, key, level))
                for key, level in zip(keys, levels, strict=True)
            ]
        )
    return Silencing(levels, found)


def both(form: str, values: dict) -> str:
    """A number of each regime, as text."""
    return "; ".join(f"regime {r}: {form.format(value)}" for r, value in values.items())


def task_claim(alike: dict) -> Claim:
    """From the correlation of the Anti curves along v1 and minus v_task, by regime."""
    return Claim(
        "Lowering the task eigenvalue acts on Anti accuracy as v1 does",
        "very similar",
        both("{0:+.2f}", alike),
        "correlation of both curves; bar 0.5",
        verdict(min(alike.values()) > 0.5, "not in both regimes"),
    )
