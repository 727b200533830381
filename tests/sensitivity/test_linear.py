# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The linear system of the paper: two ridges, along the contours of its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_epi as epi
from numpyro_epi import sensitivity
from numpyro_epi.circuits import linear

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def result():
    return epi.EPI(linear.model, progress_bar=False).run(jax.random.key(0))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_ridges_are_found(result, seed):
    """a12 and a21 have opposite signs: one ridge for each choice."""
    modes = sensitivity.find_modes(result, jax.random.key(seed))
    assert set(modes.component) == {0, 1}
    assert modes.on_ridge.all()
    for label in (0, 1):
        mine = modes.component == label
        assert len(set(np.sign(modes.points[mine, 1]))) == 1
        assert 0.35 < modes.share[mine].sum() < 0.65


def test_without_paths_over_high_ground_ridges_fall_apart(result):
    """The broken twin: tops that any dip parts are modes of their own."""
    modes = sensitivity.find_modes(
        result, jax.random.key(0), num_starts=50, prominence=1e-6, depth=1e-6
    )
    assert len(set(modes.component)) > 2


def statistics(a):
    return jnp.stack(linear.leading_eigenvalue(a.reshape(2, 2)))


def test_robust_directions_are_tangent_to_the_contours(result):
    """At 20 points of both ridges: the plane of the two most robust directions against
    that in which growth and frequency stay.

    The exact law's curvature keeps to it. That of the flow, whose ridge is rough, does
    on the whole: that is what `of="tilted"` is for.
    """
    at = {"a": on_target(result, 20)}
    exact = angles(sensitivity.directions(result, at, of="tilted"))
    assert exact.max() < 5.0
    assert np.median(angles(sensitivity.directions(result, at))) < 15.0
    # The broken twin: the two most sensitive directions.
    found = sensitivity.directions(result, at, of="tilted")
    assert angles(found._replace(vectors=found.vectors[:, ::-1])).min() > 45.0


def angles(found):
    """Largest angle between the last two directions and the tangent plane, degrees."""
    largest = []
    for point, vectors in zip(found.points, found.vectors, strict=True):
        normals = np.asarray(jax.jacobian(statistics)(jnp.asarray(point, float)))
        tangents = np.linalg.svd(normals)[2][2:]
        cosines = np.linalg.svd(tangents @ vectors[2:].T, compute_uv=False)
        largest.append(np.degrees(np.arccos(np.clip(cosines.min(), -1.0, 1.0))))
    return np.array(largest)


def on_target(result, num):
    """Stored draws, moved onto growth 0 and frequency 2 pi by Gauss-Newton steps."""

    target = jnp.array([0.0, 2 * jnp.pi])
    step = jax.jit(
        jax.vmap(
            lambda a: (
                a
                - jnp.linalg.pinv(jax.jacobian(statistics)(a))
                @ (statistics(a) - target)
            )
        )
    )
    draws = result.draws.latents["a"]
    inner = np.abs(draws).max(axis=1) < 9.0
    points = jnp.asarray(draws[inner][:num])
    for _ in range(8):
        points = step(points)
    return np.asarray(points)
