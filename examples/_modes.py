# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Modes with one component held, and the directions in which the density falls off."""

from typing import NamedTuple

import numpy as np

from numpyro_epi import sensitivity


class Mode(NamedTuple):
    """A mode with one component held.

    Attributes:
        point: Shape (D,).
        eigenvalues: Of the Hessian of the log density there in all components,
            ascending, shape (D,): the sensitive direction comes first.
        directions: Unit eigenvectors in the same order, a row each, shape (D, D).
    """

    point: np.ndarray
    eigenvalues: np.ndarray
    directions: np.ndarray


def modes_along(result, component, values, *, positive) -> dict[float, Mode]:
    """`{value: Mode}`; `positive` is the component that gives directions a sign."""
    path = sensitivity.conditional_modes(result, component, values)
    found = sensitivity.directions(result, path.latents, positive=positive)
    parts = zip(path.points, found.eigenvalues, found.vectors, strict=True)
    return dict(zip(path.values.tolist(), map(Mode._make, parts), strict=True))
