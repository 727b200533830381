# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Directions and perturbations of the stomatogastric circuit at given couplings."""

from typing import NamedTuple

import jax
import numpy as np
from _stg import HIGH, LOW

from numpyro_epi import sensitivity

# The mode in the paper's code, nS, and the eigenvalues in its text, 1/nS^2.
PUBLISHED_MODE = {"g_el": 6.107, "g_synA": 1.309}
PUBLISHED_EIGENVALUES = (-10.7, -3.22)
# Perturbations reach as far as the paper's arrow along the sensitive direction, nS.
REACH = (-PUBLISHED_EIGENVALUES[0]) ** -0.5
NUM_DISTANCES = 13
# Laws whose Hessian is taken, and what `directions` calls them.
LAWS = {"flow": "flow", "exact law": "tilted"}
KINDS = ("sensitive", "robust")


class Look(NamedTuple):
    """What the Hessian of one law says at a place, and what the simulator does there.

    Attributes:
        directions: `Directions`, sensitive and robust.
        eigenvalues: Of the Hessian of the law itself, ascending, 1/nS^2, shape (2,).
        tests: `DirectionTest` along each of both directions.
        lines: `Perturbation` along each of both directions.
    """

    directions: sensitivity.Directions
    eigenvalues: np.ndarray
    tests: list
    lines: list

    @property
    def angle(self):
        """Between the sensitive direction and the axis of g_synA, degrees.

        Eigenvectors are orthogonal: it is also that of the robust one and g_el.
        """
        g_el, g_synA = np.abs(self.directions.vectors[0])
        return float(np.degrees(np.arctan2(g_el, g_synA)))

    @property
    def slopes(self):
        """Of the error along both directions, target sds per nS, and their errors."""
        return [(float(t.slope[0]), float(t.slope_error[0])) for t in self.tests]

    @property
    def ratio(self):
        """Slope along the sensitive direction over the size of that of the robust."""
        (sensitive, _), (robust, _) = self.slopes
        return sensitive / max(abs(robust), 1e-12)

    @property
    def reach(self):
        """Largest distance that both perturbations have, nS."""
        return float(min(np.abs(line.deltas).max() for line in self.lines))


class Place(NamedTuple):
    """A pair of couplings.

    Attributes:
        name: Of the place.
        at: The couplings, `{site: nS}`.
        looks: `Look` by law.
    """

    name: str
    at: dict
    looks: dict


def look_around(result, name, at, rng_key, num_simulations) -> Place:
    """Ask both laws for their directions at a place, and the simulator about them.

    The gradient of a simulation misses the jumps of the hub frequency where noise
    decides between two rhythms, so the exact law is differentiated by differences.
    """
    law_key, *keys = jax.random.split(rng_key, 5)
    # A difference of differences needs more simulations than a mean.
    options = {"num_simulations": max(num_simulations // 10, 2)}
    looks = {}
    for law, of in LAWS.items():
        found = sensitivity.directions(
            result,
            at,
            positive="g_synA",  # as in the paper
            of=of,
            derivative="differences",
            num_simulations=num_simulations,
            rng_key=law_key,
        )
        own = found.eigenvalues if law == "flow" else found.tilted_eigenvalues
        ways = [(result, at, v, distances(found.points, v)) for v in found.vectors]
        looks[law] = Look(
            found,
            own,
            [
                sensitivity.direction_test(*way, key, **options)
                for way, key in zip(ways, keys[:2], strict=True)
            ],
            [
                sensitivity.perturb(*way, key, **options)
                for way, key in zip(ways, keys[2:], strict=True)
            ],
        )
    return Place(name, at, looks)


def distances(point, vector):
    """Distances of the perturbations, nS, that stay in the support.

    Near a face of it they go one way alone; in a corner they are shorter.
    """
    deltas = np.linspace(-REACH, REACH, NUM_DISTANCES)
    while True:
        z = point + deltas[:, None] * vector
        inside = ((z > LOW) & (z < HIGH)).all(axis=1)
        if inside.sum() > NUM_DISTANCES // 2:
            return deltas[inside]
        deltas = 0.5 * deltas
