# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Accuracies of the superior colliculus along lines, from modes and from draws."""

from typing import NamedTuple

import jax
import numpy as np
from _colliculus import BOUND, MEAN, REGIMES, SD, SELF
from _colliculus_curves import KINDS, kind
from _colliculus_regimes import EIGENMODES, REACH, Path

from numpyro_epi import sensitivity
from numpyro_epi.circuits import colliculus

DISTANCES = np.linspace(-REACH, REACH, 11)


def perturb_modes(result, path: Path, rng_key, num_simulations):
    """Accuracies along v1 of both laws, v_task and v_diag: `{sW: {name: line}}`.

    A line is a `Perturbation`.
    """
    fixed, lines = eigenmode_axes(), {}
    for i, (value, point) in enumerate(
        zip(path.modes.values, path.points, strict=True)
    ):
        directions = {law: v1[i] for law, v1 in path.v1.items()} | fixed
        lines[float(value)] = {
            name: sensitivity.perturb(
                result,
                {"z": point},
                direction,
                DISTANCES,
                jax.random.fold_in(rng_key, len(directions) * i + j),
                num_simulations=num_simulations,
            )
            for j, (name, direction) in enumerate(directions.items())
        }
    return lines


def eigenmode_axes():
    """Directions v_task and v_diag that raise one eigenvalue each."""
    axes = np.asarray(colliculus.from_eigenvalues(np.eye(4)))
    return {name: axes[row] for name, row in EIGENMODES.items()}


class Line(NamedTuple):
    """One accuracy along a line.

    Attributes:
        distances: From the mode, shape (m,).
        mean: Over simulations, shape (m,).
        error: Standard error, shape (m,).
    """

    distances: np.ndarray
    mean: np.ndarray
    error: np.ndarray

    @property
    def rise(self):
        """From the left end to the right end, and its error."""
        return self.mean[-1] - self.mean[0], np.hypot(self.error[-1], self.error[0])

    @property
    def ends(self):
        """Changes from the mode to the left and to the right end, with errors."""
        k = np.argmin(np.abs(self.distances))
        return [
            (self.mean[i] - self.mean[k], np.hypot(self.error[i], self.error[k]))
            for i in (0, -1)
        ]

    @property
    def drop(self):
        """Largest fall from any point to a later one, in errors."""
        i, j = np.triu_indices(len(self.mean), 1)
        fall = self.mean[i] - self.mean[j]
        return float((fall / np.hypot(self.error[i], self.error[j]).clip(1e-9)).max())


def line_of(found: sensitivity.Perturbation, task) -> Line:
    """Accuracy in one task, "pro" or "anti"."""
    site = f"{task}_accuracy"
    return Line(found.deltas, found.statistics[site], found.standard_errors[site])


class Census(NamedTuple):
    """Draws of both regimes, and how Anti accuracy changes around them.

    Attributes:
        places: The draws, `{regime: (n, 4)}`.
        v1: Sensitive direction of the exact law at each, hW negative, alike.
        ends: Changes of Anti accuracy from a draw to both ends of a line, with errors,
            along v1, v_task and v_diag: `{name: {regime: (n, 2, 2)}}`.
    """

    places: dict
    v1: dict
    ends: dict

    def shares(self, regime):
        """Share of draws with each `kind` of change along v1, `{kind: share}`."""
        found = [kind(ends) for ends in self.ends["v1"][regime]]
        return {name: found.count(name) / max(len(found), 1) for name in KINDS}

    def entry(self, regime):
        """Mean entry of sW in v1, and its standard error."""
        return average(self.v1[regime][:, SELF])

    def change(self, name, regime):
        """Mean change from the left to the right end of lines, and its error."""
        ends = self.ends[name][regime][..., 0]
        return average(ends[:, 1] - ends[:, 0])


def average(values):
    """Mean and standard error."""
    return values.mean(), values.std() / np.sqrt(len(values))


def take_census(result, rng_key, num_places, num_simulations) -> Census:
    """The first draws of each regime with both accuracies 0.75 +- a target sd.

    Others follow if there are too few of them. None is so near to the edge of the box
    that lines would leave it.
    """
    law_key, line_key = jax.random.split(rng_key)
    z, stats = result.draws.latents["z"], result.draws.statistics
    gaps = [np.abs(stats[f"{task}_accuracy"] - MEAN) for task in ("pro", "anti")]
    order = np.argsort(np.maximum(*gaps) >= SD, kind="stable")
    z = z[order][(np.abs(z[order]) < BOUND - REACH).all(axis=1)]
    fixed = eigenmode_axes()
    chosen, v1, ends = {}, {}, {name: {} for name in ("v1", *fixed)}
    for regime, ((low, high), _) in REGIMES.items():
        places = z[(z[:, SELF] > low) & (z[:, SELF] < high)][:num_places]
        chosen[regime] = places
        v1[regime] = sensitivity.directions(
            result,
            {"z": places},
            positive="-z[2]",
            of="tilted",
            num_simulations=num_simulations,
            rng_key=law_key,
        ).vectors[:, 0]
        for i, name in enumerate(ends):
            keys = jax.random.split(jax.random.fold_in(line_key, i), len(places))
            ways = v1[regime] if name == "v1" else [fixed[name]] * len(places)
            ends[name][regime] = np.array(
                [
                    line_of(
                        sensitivity.perturb(
                            result,
                            {"z": place},
                            way,
                            [-REACH, 0.0, REACH],
                            key,
                            num_simulations=num_simulations,
                        ),
                        "anti",
                    ).ends
                    for place, way, key in zip(places, ways, keys, strict=True)
                ]
            )
    return Census(chosen, v1, ends)
