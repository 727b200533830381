# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Modes, ridges, mode paths and groups of laws whose modes are known."""

import jax
import numpy as np
import pytest

from numpyro_epi import sensitivity
from numpyro_epi.sensitivity import _passes
from sensitivity_results import (
    fitted_gaussian,
    gaussian,
    logit_normal,
    sites,
    two_modes,
)

KEY = jax.random.key(0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_gaussian_has_one_mode(seed):
    result = gaussian()
    loc, covariance = fitted_gaussian(result)
    found = sensitivity.find_modes(result, jax.random.key(seed))
    assert found.names == ("z[0]", "z[1]")
    np.testing.assert_allclose(found.points, loc[None], atol=1e-3)
    np.testing.assert_allclose(found.latents["z"], loc[None], atol=1e-3)
    np.testing.assert_allclose(
        found.eigenvalues[0], np.linalg.eigvalsh(-np.linalg.inv(covariance)), rtol=1e-3
    )
    np.testing.assert_allclose(found.log_prob, result.log_prob(found.latents))
    assert found.share == [1.0]
    assert (found.component, found.on_ridge, found.at_boundary) == ([0], [0], [0])


@pytest.mark.long
def test_both_modes_are_found_once_each():
    """The exact law has modes at z0 = -1.9 and 1.9, each with half of the draws."""
    result = two_modes()
    found = sensitivity.find_modes(result, KEY, num_starts=100)
    order = np.argsort(found.points[:, 0])
    np.testing.assert_allclose(found.points[order, 0], [-2.0, 2.0], atol=0.25)
    right = (result.draws.latents["z"][:, 0] > 0).mean()
    np.testing.assert_allclose(found.share[order], [1 - right, right], atol=0.05)
    assert sorted(found.component) == [0, 1]
    assert not found.on_ridge.any()
    assert (found.log_prob[:-1] >= found.log_prob[1:]).all()


@pytest.mark.ci
@pytest.mark.long
# Where the density of a logit-normal law is stationary, logit(a) = x has
# logit(0.9) - x = scale^2 (1 - 2 a): beyond 0.999, just above 0.001; and in between.
@pytest.mark.parametrize(
    ("scale", "is_held"), [(3.0, [True, False]), (0.5, [False])], ids=["wide", "narrow"]
)
def test_a_mode_held_by_the_edge_is_flagged(scale, is_held):
    found = sensitivity.find_modes(logit_normal(scale), KEY, num_starts=50)
    assert found.at_boundary.tolist() == is_held
    a, b = found.points.T.astype(np.float64)
    np.testing.assert_allclose(b, 0.0, atol=1e-3)
    logit = np.log(a / (1 - a))
    slope = np.log(9.0) - logit - scale**2 * (1 - 2 * a)
    np.testing.assert_allclose(slope[~found.at_boundary], 0.0, atol=1e-2)
    assert (slope[found.at_boundary] > 1.0).all()
    assert (a[found.at_boundary] > 0.99).all()


@pytest.mark.ci
@pytest.mark.long
def test_modes_of_several_sites_lie_inside_the_support():
    result = sites()
    found = sensitivity.find_modes(result, KEY, num_starts=50, min_share=0.0)
    assert np.isfinite(result.log_prob(found.latents)).all()
    assert found.share.sum() == pytest.approx(1.0)
    assert found.latents["p"].shape == (len(found.points), 3)


# Heights of four peaks in a row, and of the passes between neighbours.
HEIGHTS = np.array([0.0, -1.0, -0.5, -3.0])
EDGES = np.array([[0, 1], [1, 2], [2, 3]])
PASSES = np.array([-1.3, -4.0, -3.1])


@pytest.mark.parametrize(
    ("depth", "labels"),
    [(0.05, [0, 1, 2, 3]), (0.2, [0, 1, 2, 2]), (1.0, [0, 0, 2, 2]), (9.0, [0] * 4)],
)
def test_peaks_merge_where_the_pass_is_less_than_a_depth_below(depth, labels):
    found = _passes.merge(HEIGHTS, EDGES, PASSES, depth)
    assert found.tolist() == labels


@pytest.mark.ci
@pytest.mark.long
def test_paths_between_modes_are_as_low_as_the_saddle():
    """Straight: log q on the way; in the base of a Gaussian guide, the same path."""
    result = gaussian()
    loc, _ = fitted_gaussian(result)
    ends = loc + np.array([[1.0, 0.0], [-1.0, 0.0]])
    lowest = sensitivity._density.log_q_at(result, ends)[:1]
    for heights in (_passes.straight_heights, _passes.bent_heights):
        found = heights(result, ends[:1], ends[1:])
        np.testing.assert_allclose(found, lowest, rtol=1e-4)
    result = two_modes()
    found = _passes.straight_heights(
        result, np.array([[-2.0, 0.0]]), np.array([[2.0, 0.0]])
    )
    across = sensitivity._density.log_q_at(result, np.array([[0.0, 0.0]]))[0]
    # To single precision: between its modes a flow may fall by thousands of nats.
    assert found[0] <= across + 1e-5 * abs(across)


def test_conditional_modes_of_a_gaussian_lie_on_the_regression_line():
    result = gaussian()
    loc, covariance = fitted_gaussian(result)
    values = np.linspace(0.5, 2.0, 4)
    found = sensitivity.conditional_modes(result, "z[0]", values)
    slope = covariance[0, 1] / covariance[0, 0]
    expected = loc[1] + slope * (values - loc[0])
    np.testing.assert_allclose(found.points[:, 0], values)
    np.testing.assert_allclose(found.points[:, 1], expected, atol=2e-3)
    np.testing.assert_allclose(
        found.log_prob, result.log_prob(found.latents), rtol=1e-3
    )
    assert found.converged.all()
    assert found.component == "z[0]"
    # The broken twin: the regression of the other component on this one.
    wrong = loc[1] + covariance[0, 1] / covariance[1, 1] * (values - loc[0])
    assert np.abs(wrong - expected).max() > 0.1


@pytest.mark.ci
@pytest.mark.long
def test_a_path_stays_on_the_branch_that_it_starts_on():
    for side in (-1.0, 1.0):
        found = sensitivity.conditional_modes(
            two_modes(), "z[1]", [0.0, 0.5, 1.0], start={"z": [1.5 * side, 0.0]}
        )
        np.testing.assert_allclose(found.points[:, 0], 2.0 * side, atol=0.3)


@pytest.mark.ci
@pytest.mark.long
def test_draws_are_grouped_by_the_nearest_mode():
    result = two_modes()
    modes = sensitivity.find_modes(result, KEY, num_starts=100)
    found = sensitivity.group_by_mode(result, modes, KEY, num_per_group=300)
    assert found.points.shape == (2, 300, 2)
    assert found.latents["z"].shape == (2, 300, 2)
    sides = np.sign(modes.points[:, 0])
    # Draws between the modes, where z0 is near zero, hardly exist.
    assert ((np.sign(found.points[..., 0]) == sides[:, None]).mean(axis=1) > 0.99).all()
    np.testing.assert_allclose(
        found.log_prob, result.log_prob(found.latents), rtol=1e-3, atol=1e-4
    )
    assert found.num_drawn >= 600
    assert found.seconds > 0.0


def test_a_group_that_stays_empty_is_named():
    path = sensitivity.conditional_modes(gaussian(), "z[0]", [1.5, 40.0])
    with pytest.raises(RuntimeError, match=r"got 0 in group 1 \(`z\[0\]` = 40\)"):
        sensitivity.group_by_mode(gaussian(), path, KEY, max_draws=2000)


BAD_MODES = [
    ({"num_starts": 1}, "`num_starts`, got 1"),
    ({"prominence": -1.0}, "`prominence`, got -1.0"),
    ({"depth": 0.1}, "`depth` of at least `prominence`, got 0.1 and 0.5"),
    ({"min_share": 1.5}, "`min_share`, got 1.5"),
]


@pytest.mark.parametrize(("options", "message"), BAD_MODES)
def test_bad_options_of_find_modes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sensitivity.find_modes(gaussian(), KEY, **options)


def test_a_share_that_no_mode_has_is_named():
    with pytest.raises(ValueError, match="`min_share` that some mode has, got 0.9"):
        sensitivity.find_modes(two_modes(), KEY, min_share=0.9)


def test_bad_arguments_of_a_path_are_named():
    with pytest.raises(ValueError, match=r"\['z\[0\]', 'z\[1\]'\] as `site`, got 'w'"):
        sensitivity.conditional_modes(gaussian(), "w", [0.0])
    with pytest.raises(ValueError, match=r"support of `a\[0\]`, from -2.9.* got 5"):
        sensitivity.conditional_modes(sites(), "a[0]", [0.0, 5.0])
    with pytest.raises(ValueError, match="in one dimension as `values`"):
        sensitivity.conditional_modes(gaussian(), "z[0]", [])
    start = {"z": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="Expected one point as `start`"):
        sensitivity.conditional_modes(gaussian(), "z[0]", [0.0], start=start)
    with pytest.raises(TypeError, match="returns as `modes`, got None"):
        sensitivity.group_by_mode(gaussian(), None, KEY)
    with pytest.raises(TypeError, match="Expected a random key"):
        sensitivity.find_modes(gaussian(), 0)
