# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Accuracies of the superior colliculus away from modes and from draws."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _colliculus import SELF, accuracies
from _modes import Mode

from numpyro_epi import sensitivity
from numpyro_epi.circuits import colliculus


class Curves(NamedTuple):
    """Accuracies when connections move away from a mode.

    Attributes:
        distances: Shape (m,), symmetric about 0.
        means: `{direction: (m, 2)}`, accuracies in Pro and Anti.
        errors: Standard errors, alike.
    """

    distances: np.ndarray
    means: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]

    def slope(self, direction, task):
        """Accuracy at the right end minus that at the left, and its error."""
        mean, error = self.means[direction][:, task], self.errors[direction][:, task]
        return mean[-1] - mean[0], np.hypot(error[-1], error[0])

    def ends(self, direction, task):
        """Changes of an accuracy towards both ends, and their errors."""
        mean, error = self.means[direction][:, task], self.errors[direction][:, task]
        middle = len(mean) // 2
        return [
            (mean[k] - mean[middle], np.hypot(error[k], error[middle])) for k in (0, -1)
        ]


# What an accuracy does along a line.
KINDS = ("falls both ways", "rises", "falls", "no clear sense")


def kind(ends):
    """In words, what happens towards the two ends of a line; bar of three errors."""
    left, right = (int(np.sign(x)) * (abs(x) > 3 * e) for x, e in ends)
    return {(-1, -1): KINDS[0], (-1, 1): KINDS[1], (1, -1): KINDS[2]}.get(
        (left, right), KINDS[3]
    )


class Moves(NamedTuple):
    """Where to move from, and which way.

    Attributes:
        points: Connections, shape (n, 4).
        sensitive: Unit vector v1 at each, shape (n, 4).
    """

    points: np.ndarray
    sensitive: np.ndarray

    def directions(self):
        """Along v1, and raising two eigenvalues, `{name: (n, 4)}`."""
        axes = 2.0 * np.asarray(colliculus.from_eigenvalues(np.eye(4)))
        same = {"task": axes[2], "diag": axes[3]}
        shape = self.points.shape
        return {"sensitive": self.sensitive} | {
            name: np.broadcast_to(axis, shape) for name, axis in same.items()
        }


def perturb(moves: Moves, rng_key, num_distances=11, num_repeats=25):
    """`Curves` from each point, along the sensitive direction and two eigenvalues."""
    distances = np.linspace(-0.25, 0.25, num_distances)
    means, errors = {}, {}
    for i, (name, axes) in enumerate(moves.directions().items()):
        z = moves.points[:, None] + distances[:, None] * axes[:, None]
        z = np.repeat(z.reshape(-1, 4), num_repeats, axis=0)
        found = _in_batches(z, jax.random.fold_in(rng_key, i))
        found = found.reshape(-1, num_distances, num_repeats, 2)
        means[name] = found.mean(axis=2)
        errors[name] = found.std(axis=2) / num_repeats**0.5
    return [
        Curves(
            distances,
            {name: mean[k] for name, mean in means.items()},
            {name: error[k] for name, error in errors.items()},
        )
        for k in range(len(moves.points))
    ]


def _in_batches(z, rng_key, size=275):
    """Accuracies of all rows of z, shape (n, 2); batches of one shape."""
    rows = np.arange(-(-len(z) // size) * size) % len(z)
    parts = [
        np.asarray(accuracies(jnp.asarray(part, jnp.float32), key))
        for part, key in zip(
            np.split(z[rows], len(rows) // size),
            jax.random.split(rng_key, len(rows) // size),
            strict=True,
        )
    ]
    return np.concatenate(parts)[: len(z)]


def perturb_around(result, mode: Mode, window, rng_key, num_draws):
    """`Curves` at a mode, and at draws of its regime, `window` limits of sW."""
    at_mode = Moves(mode.point[None], mode.directions[:1])
    mode_key, draw_key = jax.random.split(rng_key)
    z = result.draws.latents["z"]
    z = z[(window[0] < z[:, SELF]) & (z[:, SELF] < window[1])][:num_draws]
    curves = perturb(at_mode, mode_key)[0]
    if not len(z):
        return curves, []
    found = sensitivity.directions(result, {"z": z}, positive="-z[2]")
    at_draws = Moves(z, found.vectors[:, 0])
    return curves, perturb(at_draws, draw_key, num_distances=5, num_repeats=10)
