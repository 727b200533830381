# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the superior colliculus does along the path of its modes, measured."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _colliculus import (
    BOUND,
    MODES,
    REGIMES,
    SELF,
    BruteForce,
    accuracies,
    brute_force,
)

from numpyro_epi import sensitivity
from numpyro_epi.circuits import colliculus

# Names of both laws whose Hessian is taken: the flow, and the exact law that belongs to
# its multipliers.
LAWS = {"flow": "flow", "exact law": "tilted"}
EIGENMODES = {"task": 2, "diag": 3}
REACH = 0.25  # of lines from a mode
EDGE = 0.02  # so near, the edge of the box holds a mode
LEVELS = (0.0, 0.3, 0.5, 0.6, 0.675, 0.75, 0.8, 0.85, 1.0)  # gamma
# Simulations of each draw are kept at these: none, that of the experiment, saturation.
NONE, EXPERIMENT, SATURATED = 0.0, 0.675, 0.85


class Path(NamedTuple):
    """Modes for one sW after the other, and the sensitive directions there.

    Attributes:
        modes: `ModePath`, M modes.
        seconds: Wall-clock time of the modes, compilation included.
        points: The modes, but not so near to the edge of the box that lines of length
            `REACH` would leave it, (M, 4).
        at_edge: Whether the edge holds a mode, (M,).
        v1: Sensitive direction at each point, of length one, hW negative,
            `{law: (M, 4)}`.
        curvatures: Of the exact law at each point with sW held, ascending, (M, 3). The
            flattest one is last.
    """

    modes: sensitivity.ModePath
    seconds: float
    points: np.ndarray
    at_edge: np.ndarray
    v1: dict
    curvatures: np.ndarray

    def row(self, value):
        """Of the mode with this sW."""
        return int(np.argmin(np.abs(self.modes.values - value)))

    def turn(self, law):
        """Angle between v1 in both regimes, degrees."""
        first, last = (self.v1[law][self.row(v)] for _, v in REGIMES.values())
        return float(np.degrees(np.arccos(np.clip(first @ last, -1, 1))))

    def agreement(self):
        """Angle between v1 of both laws at each point, degrees, up to sign, (M,)."""
        flow, exact = self.v1.values()
        cosine = np.abs((flow * exact).sum(axis=-1))
        return np.degrees(np.arccos(np.clip(cosine, 0, 1)))


def follow_path(result, rng_key, num_simulations) -> Path:
    """Modes from sW = 1 to -1, and v1 in the flow and in the exact law."""
    start = time.perf_counter()
    modes = sensitivity.conditional_modes(result, f"z[{SELF}]", MODES)
    seconds = time.perf_counter() - start
    room = BOUND - 1.01 * REACH
    points = np.clip(modes.points, -room, room)
    found = {
        law: sensitivity.directions(
            result,
            {"z": points},
            positive="-z[2]",
            of=of,
            with_tilted=of == "tilted",
            num_simulations=num_simulations,
            rng_key=rng_key,
        )
        for law, of in LAWS.items()
    }
    exact, is_free = found["exact law"], np.arange(4) != SELF
    hessian = np.einsum(
        "mki,mk,mkj->mij", exact.vectors, exact.tilted_eigenvalues, exact.vectors
    )
    curvatures = np.linalg.eigvalsh(hessian[:, is_free][:, :, is_free])
    v1 = {law: directions.vectors[:, 0] for law, directions in found.items()}
    at_edge = (np.abs(modes.points) > BOUND - EDGE).any(axis=1)
    return Path(modes, seconds, points, at_edge, v1, curvatures)


class Grouping(NamedTuple):
    """Draws of the flow by nearest mode, and what they would cost by brute force.

    Attributes:
        groups: `Groups`, M of n draws.
        shares: Of the flow's draws nearest to each mode, (M,).
        brute: Draws of the box that have the property, and their cost.
        full_seconds: Of one simulation in both tasks, in a batch, without early stops.
    """

    groups: sensitivity.Groups
    shares: np.ndarray
    brute: BruteForce
    full_seconds: float

    @property
    def flow_cost(self):
        """Seconds until each group has one draw more."""
        return self.groups.seconds / self.groups.points.shape[1]

    @property
    def brute_costs(self):
        """The same by brute force: with all trials, and with early stops.

        Seconds for each accepted draw over the share of the rarest group.
        """
        full = self.full_seconds * self.brute.num_draws
        num = max(len(self.brute.accepted), 1) * self.shares.min()
        return np.array([full, self.brute.seconds]) / max(num, 1e-9)

    @property
    def speed_ups(self):
        return self.brute_costs / self.flow_cost


def group(result, path: Path, rng_key, num_per_group, num_brute_force) -> Grouping:
    """Group draws by mode, and extrapolate from brute force what that would take."""
    group_key, brute_key, full_key = jax.random.split(rng_key, 3)
    groups = sensitivity.group_by_mode(
        result, path.modes, group_key, num_per_group=num_per_group
    )
    z = result.draws.latents["z"]
    gaps = (z[:, None, :] - path.modes.points) / z.std(axis=0)  # as `group_by_mode`
    nearest = (gaps**2).sum(axis=-1).argmin(axis=1)
    shares = np.bincount(nearest, minlength=len(path.modes.points)) / len(z)
    brute = brute_force(brute_key, num_brute_force)
    return Grouping(groups, shares, brute, time_simulation(full_key))


def time_simulation(rng_key, size=500):
    """Seconds for each of many draws of the box, compiled before."""
    z = jax.random.uniform(rng_key, (size, 4), minval=-BOUND, maxval=BOUND)
    jax.block_until_ready(accuracies(z, rng_key))
    start = time.perf_counter()
    jax.block_until_ready(accuracies(z, jax.random.fold_in(rng_key, 1)))
    return (time.perf_counter() - start) / size


class Silenced(NamedTuple):
    """Groups of draws under silencing.

    Attributes:
        values: sW of the mode of each group, (M,).
        bands: Of `sensitivity.intervene` at `LEVELS`, M groups.
        draws: Accuracies in Pro and Anti of each draw at three levels,
            `{gamma: (M, n, 2)}`.
        eigenvalues: Task and diag eigenvalue of each draw, `{name: (M, n)}`.
    """

    values: np.ndarray
    bands: sensitivity.Bands
    draws: dict
    eigenvalues: dict

    def rise(self, level, task):
        """Rise of the error in each group, and its error: both (M,)."""
        k = int(np.argmin(np.abs(self.bands.values - level)))
        site = f"{task}_accuracy"
        mean, error = self.bands.mean[site], self.bands.standard_error[site]
        return mean[:, 0] - mean[:, k], np.hypot(error[:, 0], error[:, k])

    def correlation(self, name, level):
        """Of an eigenvalue with the Anti error, in each group, with errors: (M,)."""
        return correlate(self.eigenvalues[name], 1 - self.draws[level][..., 1])

    def flip(self, level, regime):
        """How well Anti accuracy is one minus Pro accuracy without silencing.

        Their correlation, its error, and the mean absolute difference.
        """
        rows = self.rows(regime)
        pro = self.draws[NONE][rows, :, 0].ravel()
        anti = self.draws[level][rows, :, 1].ravel()
        return *correlate(pro, anti), np.abs(anti - (1 - pro)).mean()

    def rows(self, regime):
        """Whether each group belongs to a regime."""
        (low, high), _ = REGIMES[regime]
        return (self.values >= low) & (self.values <= high)


def correlate(x, y):
    """Pearson's r over the last axis, and its standard error."""
    x, y = (a - a.mean(axis=-1, keepdims=True) for a in (x, y))
    size = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    r = (x * y).sum(axis=-1) / np.maximum(size, 1e-30)
    return r, (1 - r**2) / np.sqrt(max(x.shape[-1] - 3, 1))


def silence(result, path: Path, groups, rng_key) -> Silenced:
    """Silence the groups late in the delay, at several strengths."""
    band_key, draw_key = jax.random.split(rng_key)
    bands = sensitivity.intervene(
        groups,
        LEVELS,
        band_key,
        argument="silencing",
        num_draws=groups.points.shape[1],
        result=result,
    )
    shape = groups.points.shape
    rows = jnp.asarray(groups.points.reshape(-1, 4), jnp.float32)
    draws = {
        level: np.asarray(
            simulate(rows, jax.random.fold_in(draw_key, i), level), float
        ).reshape(*shape[:2], 2)
        for i, level in enumerate((NONE, EXPERIMENT, SATURATED))
    }
    found = np.asarray(colliculus.eigenvalues(groups.points), float)
    eigenvalues = {name: found[..., row] for name, row in EIGENMODES.items()}
    return Silenced(path.modes.values, bands, draws, eigenvalues)


def simulate(z, rng_key, level, size=500):
    """Accuracies of connections, shape (n, 2), some at a time."""
    chunks = []
    for i in range(0, len(z), size):
        rows = np.arange(i, i + size) % len(z)  # one shape, compiled once
        chunks.append(accuracies(z[rows], jax.random.fold_in(rng_key, i), level))
    return np.concatenate(chunks)[: len(z)]
