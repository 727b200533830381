# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Sensitive and robust directions: eigenvectors of the Hessian of log q."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from numpyro_epi._checks import as_key, describe
from numpyro_epi.result import EPIResult

from ._arguments import count, flag
from ._density import log_q_near
from ._layout import Layout, layout_of
from ._tilted import tilted_hessian


class Hessian(NamedTuple):
    """Result of `hessian`.

    Attributes:
        matrix: second derivatives of log q, (..., D, D).
        tilted: second derivatives of the log density of the exact law with the result's
            multipliers, (..., D, D); NaN if it was not asked for.
        points: where, as flat points of the constrained space, (..., D).
        names: of the components, D of them.
        coordinates: in which both are differentiated.
    """

    matrix: np.ndarray
    tilted: np.ndarray
    points: np.ndarray
    names: tuple[str, ...]
    coordinates: str

    @property
    def difference(self) -> np.ndarray:
        """`matrix - tilted`: what of the curvature is the fit's alone, (..., D, D)."""
        return self.matrix - self.tilted


class Directions(NamedTuple):
    """Result of `directions`, most sensitive first.

    The curvatures of the chosen law are eigenvalues of its Hessian, ascending.

    Attributes:
        eigenvalues: curvature of log q along each direction, (..., D).
        vectors: `vectors[..., i, :]` is the i-th direction, of length one, (..., D, D).
        tilted_eigenvalues: curvature of the exact law along each direction, (..., D).
            Where it differs from `eigenvalues`, the fit is at fault, not the model.
        points: where, as flat points of the constrained space, (..., D).
        names: of the components, D of them.
        coordinates: of the vectors.
        of: whose directions they are: "flow" or "tilted".
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    tilted_eigenvalues: np.ndarray
    points: np.ndarray
    names: tuple[str, ...]
    coordinates: str
    of: str

    @property
    def difference(self) -> np.ndarray:
        """`eigenvalues - tilted_eigenvalues`: the part of the fit alone, (..., D)."""
        return self.eigenvalues - self.tilted_eigenvalues


def hessian(
    result: EPIResult,
    latents: Mapping[str, Any],
    *,
    coordinates: str = "constrained",
    with_tilted: bool = True,
    num_simulations: int = 100,
    derivative: str = "auto",
    rng_key: Any = None,
) -> Hessian:
    r"""Second derivatives of log q, and of the exact law that it approximates.

    At a mode of a Gaussian it is minus the precision. The exact law is

    .. math:: \log \tilde p(z) = \log p_0(z) + E[\log L | z] - \lambda \cdot E[T | z]

    with the result's `multipliers`. It is flat where the expected statistics and the
    prior are; log q is so only as far as the fit is good.

    Args:
        result: of a run.
        latents: points inside the support, `{site: (..., *shape)}`.
        coordinates: "constrained" (the latents in their own units), "standardised"
            (divided by the standard deviations of the stored draws), "log" (logarithms,
            of positive latents) or "unconstrained" (NumPyro's). The density is that of
            the coordinates. A simplex-like site is unconstrained in all of them.
        with_tilted: whether to compute `tilted` too, which runs the simulator.
        num_simulations: of the average E[T | z] of noisy statistics, at each point; one
            is enough otherwise.
        derivative: of the statistics: "autodiff", "differences" (central, a quarter of
            a standard deviation wide), or "auto": differences where training did
            without their gradient ("score", "replay").
        rng_key: for simulation noise, the same at every point; `None` is
            `jax.random.key(0)`.

    Returns:
        A `Hessian`.

    Raises:
        TypeError: if `result` is no result, or `rng_key` no key.
        ValueError: if a point is outside the support (the message names the component),
            a site is unknown or of the wrong shape, or an option is unknown.
        NotImplementedError: if the guide has no density at given points.

    Notes:
        Compiled once for each result and choice of coordinates. Guides of splines have
        kinks in the second derivative, and jumps where pieces meet.

    Example:
        With a `result` whose only latent is `z`, of shape (2,):

        >>> found = hessian(result, {"z": [1.0, -1.0]})
        >>> found.names, found.matrix.shape
        (('z[0]', 'z[1]'), (2, 2))
    """
    layout = layout_of(result)
    points = layout.check(latents, where="`latents`")
    key = jax.random.key(0) if rng_key is None else as_key(rng_key)
    num = count("num_simulations", num_simulations)
    flat = points.reshape(-1, layout.num_latents)
    matrix = log_q_near(result, flat, coordinates).hessian
    if flag("with_tilted", with_tilted):
        tilted = tilted_hessian(
            result,
            flat,
            coordinates,
            key,
            num_simulations=num,
            derivative=derivative,
        )
    else:
        tilted = np.full_like(matrix, np.nan)
    shape = (*points.shape, layout.num_latents)
    return Hessian(
        matrix.reshape(shape),
        tilted.reshape(shape),
        points,
        layout.names,
        coordinates,
    )


def directions(
    result: EPIResult,
    latents: Mapping[str, Any],
    *,
    coordinates: str = "constrained",
    positive: str | None = None,
    of: str = "flow",
    **options: Any,
) -> Directions:
    """Directions in which the property is sensitive, and in which it is robust.

    Eigenvectors of the Hessian of log q. The first has the most negative eigenvalue: a
    short step along it loses the property. A robust one has an eigenvalue near zero.
    Both depend on units, hence on `coordinates`.

    Args:
        result: of a run.
        latents: points inside the support, `{site: (..., *shape)}`.
        coordinates: as in `hessian`.
        positive: component whose entry is made positive in every direction, such as
            "g_synA"; "-hW" makes it negative. None: the entry of largest magnitude
            is positive.
        of: whose eigenvectors: of log q, "flow", or of the exact law with the result's
            multipliers, "tilted". On a ridge the fit is rough, and the exact law tells
            which directions the model leaves free.
        **options: of `hessian`.

    Returns:
        A `Directions`.

    Raises:
        TypeError: as `hessian`.
        ValueError: as `hessian`, or if `positive` is no component or `of` is unknown.
        NotImplementedError: if the guide has no density at given points.

    Example:
        >>> found = directions(result, {"z": [1.0, -1.0]}, positive="z[0]")
        >>> bool((found.vectors[:, 0] > 0).all())
        True
    """
    layout = layout_of(result)
    sign = _sign_rule(layout, positive)
    if of not in ("flow", "tilted"):
        raise ValueError(f"Expected 'flow' or 'tilted' as `of`, got {describe(of)}.")
    found = hessian(result, latents, coordinates=coordinates, **options)
    matrix = (found.matrix if of == "flow" else found.tilted).astype(np.float64)
    _check_finite(matrix, found)
    vectors = np.swapaxes(np.linalg.eigh(matrix)[1], -1, -2)
    vectors = vectors * sign(vectors)[..., None]
    own, tilted = (
        np.einsum("...ij,...jk,...ik->...i", vectors, x.astype(np.float64), vectors)
        for x in (found.matrix, found.tilted)
    )
    return Directions(own, vectors, tilted, found.points, found.names, coordinates, of)


def _check_finite(matrix: np.ndarray, found: Hessian) -> None:
    bad = ~np.isfinite(matrix).all(axis=(-2, -1))
    if bad.any():
        first = found.points[tuple(np.argwhere(bad)[0])]
        raise ValueError(
            "Expected points where the density has second derivatives, got "
            f"{dict(zip(found.names, first.tolist(), strict=True))}. It may lie too "
            "near to the edge of the support, or too far from all draws."
        )


def _sign_rule(layout: Layout, positive: Any) -> Any:
    """From vectors (..., D) to their signs, (...)."""
    if positive is None:

        def largest(vectors: np.ndarray) -> np.ndarray:
            at = np.abs(vectors).argmax(axis=-1)[..., None]
            return np.where(np.take_along_axis(vectors, at, -1)[..., 0] < 0, -1.0, 1.0)

        return largest
    wanted, name = 1.0, positive
    if isinstance(positive, str) and positive.startswith("-"):
        wanted, name = -1.0, positive[1:]
    column = layout.index(name, where="`positive`")
    return lambda v: np.where(wanted * v[..., column] < 0, -1.0, 1.0)
