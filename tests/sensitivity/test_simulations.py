# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Perturbations, direction tests and interventions of models with known statistics."""

import jax
import numpy as np
import pytest

from numpyro_epi import sensitivity
from numpyro_epi.sensitivity import _groups, _interventions, _perturb
from sensitivity_results import MIX, gaussian, sites

KEY = jax.random.key(0)
# Here both statistics are on target.
AT = {"z": np.array([1.5, -1.0])}
# Here, too.
SITES_AT = {"a": [0.5, -0.3], "b": 1.5, "p": [0.2, 0.3, 0.5]}


def test_statistics_along_a_line_are_those_of_the_model():
    deltas = np.array([-0.5, 0.0, 0.5])
    found = sensitivity.perturb(gaussian(), AT, [3.0, 4.0], deltas, KEY)
    np.testing.assert_allclose(found.direction, [0.6, 0.8])
    expected = AT["z"] + deltas[:, None] * np.array([0.6, 0.8])
    np.testing.assert_allclose(found.points, expected)
    np.testing.assert_allclose(found.statistics["f"], expected @ MIX.T, rtol=1e-5)
    assert (found.standard_errors["f"] == 0).all()
    assert found.names == ("z[0]", "z[1]")


def test_standard_errors_are_those_of_the_noise():
    """Noise sd 0.1, 400 simulations: sd to 5 s.e. (3.5% each), means to 5 s.e."""
    direction = {"b": 1.0, "a[0]": 1.0}
    deltas = [-0.2, 0.0, 0.2]
    found = sensitivity.perturb(
        sites(), SITES_AT, direction, deltas, KEY, num_simulations=400
    )
    np.testing.assert_allclose(found.standard_deviations["total"], 0.1, rtol=0.18)
    np.testing.assert_allclose(
        found.standard_errors["total"], found.standard_deviations["total"] / 20
    )
    share = np.sqrt(0.5) * np.array(deltas)
    mean = (0.2 + share) + (1.5 + share) * 0.2
    error = np.abs(found.statistics["total"] - mean)
    assert (error < 5 * found.standard_errors["total"]).all()


def test_slopes_are_those_of_the_error():
    """From the target, the error along v is |delta| sqrt(mean((M v)^2 / s^2))."""
    result, deltas = gaussian(), np.array([0.0, 0.1, 0.2, 0.4])
    found = sensitivity.direction_test(result, AT, np.eye(2), deltas, KEY)
    expected = np.sqrt(((MIX / np.sqrt([[0.2], [0.5]])) ** 2).mean(axis=0))
    np.testing.assert_allclose(found.slope, expected, rtol=1e-4)
    assert (found.p_value < 1e-6).all()
    assert found.angles is None


def test_a_direction_that_the_property_ignores_has_no_slope():
    """p[2] does not enter; 6 distances with noise, p > 1e-3 by chance in 99.9%."""
    deltas = np.linspace(0.0, 0.5, 6)
    names = sensitivity.hessian(sites(), SITES_AT, with_tilted=False).names
    lines = np.eye(5)[[names.index("a[0]"), names.index("p(u)[1]")]]
    found = sensitivity.direction_test(
        sites(), SITES_AT, lines, deltas, KEY, num_simulations=200
    )
    assert found.p_value[0] < 1e-3 < found.p_value[1]
    assert abs(found.slope[0]) > 10 * abs(found.slope[1])


def test_directions_of_a_plane_turn_from_the_first_to_the_second():
    found = sensitivity.direction_test(
        gaussian(), AT, [[1, 0], [1, 1]], [0.0, 0.1, 0.2], KEY, num_angles=4
    )
    half = np.sqrt(0.5)
    expected = [[1, 0], [half, half], [0, 1], [-half, half]]
    np.testing.assert_allclose(found.directions, expected, atol=1e-12)
    np.testing.assert_allclose(found.angles, np.arange(4) * np.pi / 4)
    # The most sensitive of them is the one most along the sensitive eigenvector.
    first = sensitivity.directions(gaussian(), AT).vectors[0]
    assert found.slope.argmax() == np.abs(found.directions @ first).argmax()


def test_p_values_are_those_of_students_t():
    """Quantiles of t with 4 degrees of freedom: 2.776 (5%), 4.604 (1%)."""
    slope, error = np.array([2.776, 4.604, 0.0]), np.ones(3)
    found = _perturb._p_values(slope, error, 4)
    np.testing.assert_allclose(found, [0.05, 0.01, 1.0], rtol=1e-3)


def test_regression_recovers_a_line_and_its_error():
    """1,000 regressions: mean slope and mean squared error to 5 standard errors."""
    rng, x = np.random.default_rng(0), np.linspace(0.0, 1.0, 10)
    y = 2.0 * x + rng.normal(size=(1000, 10))
    slope, error = _perturb._regress(x, y)
    exact = 1.0 / ((x - x.mean()) ** 2).sum()
    assert abs(slope.mean() - 2.0) < 5 * np.sqrt(exact / 1000)
    assert abs((error**2).mean() / exact - 1.0) < 5 * np.sqrt(2 / 8 / 1000)


def test_a_line_that_leaves_the_support_names_the_component():
    with pytest.raises(ValueError, match=r"`deltas` up to 4, got `a\[0\]` = 4.5"):
        sensitivity.perturb(sites(), SITES_AT, {"a[0]": 1.0}, [0.0, 4.0], KEY)
    deltas = [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match=r"`b` = -0.5, .* between 0 and inf"):
        sensitivity.direction_test(sites(), SITES_AT, -np.eye(5)[2], deltas, KEY)


BAD = [
    ({"direction": [0.0, 0.0]}, "not zero as `direction`"),
    ({"direction": [1.0, 0.0, 0.0]}, "2 numbers as `direction`"),
    ({"direction": {"w": 1.0}}, "a key of `direction`, got 'w'"),
    ({"deltas": []}, "at least 1 numbers in one dimension as `deltas`"),
    ({"num_simulations": 1.5}, "`num_simulations`, got 1.5"),
    ({"at": {"z": np.zeros((3, 2))}}, "one point as `at`"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments_of_perturb_are_named(options, message):
    good = {"at": AT, "direction": [1.0, 0.0], "deltas": [0.1]}
    with pytest.raises(ValueError, match=message):
        sensitivity.perturb(gaussian(), **{**good, **options}, rng_key=KEY)


@pytest.mark.parametrize(
    ("directions", "deltas", "options", "message"),
    [
        (np.eye(2), [0.1, -0.1, 0.1], {}, "`deltas` of different sizes"),
        (np.eye(2), [0.1, 0.2], {}, "at least 3 numbers"),
        ([1.0, 0.0], [0.0, 0.1, 0.2], {"num_angles": 3}, "two `directions`"),
        ([[1, 0], [2, 0]], [0.0, 0.1, 0.2], {"num_angles": 3}, "got parallel ones"),
    ],
)
def test_bad_arguments_of_direction_test_are_named(
    directions, deltas, options, message
):
    with pytest.raises(ValueError, match=message):
        sensitivity.direction_test(gaussian(), AT, directions, deltas, KEY, **options)


# -- interventions --------------------------------------------------------------------


def test_an_intervention_simulates_the_same_draws():
    """The gain multiplies the statistics of every draw."""
    result = gaussian()
    found = sensitivity.intervene(result, [1.0, 3.0], KEY, argument="gain")
    stats = result.draws.statistics["f"][:500]
    np.testing.assert_allclose(found.mean["f"][0, 0], stats.mean(axis=0), rtol=1e-4)
    for name in ("mean", "lower", "upper", "standard_error"):
        values = getattr(found, name)["f"]
        assert values.shape == (1, 2, 2)
        np.testing.assert_allclose(values[:, 1], 3.0 * values[:, 0], rtol=1e-4)
    below = (stats < found.lower["f"][0, 0]).mean()
    assert below == pytest.approx(0.025, abs=0.002)
    assert found.names == ("all",)


def test_groups_are_simulated_apart():
    result = gaussian()
    path = sensitivity.conditional_modes(result, "z[0]", [0.5, 2.5])
    groups = sensitivity.group_by_mode(result, path, KEY, num_per_group=100)
    found = sensitivity.intervene(groups, [2.0], KEY, argument="gain", result=result)
    expected = 2.0 * (groups.points @ MIX.T).mean(axis=1)
    np.testing.assert_allclose(found.mean["f"][:, 0], expected, rtol=1e-4)
    assert found.names == ("group 0", "group 1")


def test_averaged_simulations_have_less_noise():
    """Noise sd 20, the same 100 draws: that of averages of 50 is 3."""
    bands = [
        sensitivity.intervene(
            sites(), [20.0], KEY, argument="noise", num_simulations=num, num_draws=100
        )
        for num in (1, 50)
    ]
    widths = [band.upper["total"] - band.lower["total"] for band in bands]
    assert widths[0] > 3.0 * widths[1]


def test_an_argument_given_by_position_is_replaced():
    problem = gaussian()._engine.problem
    args, problem.args = problem.args, (1.0,)
    found = _interventions._replaced(problem, "gain", 2.0)
    problem.args = args
    assert found == ((2.0,), {})
    assert _interventions._replaced(problem, "gain", 2.0) == ((), {"gain": 2.0})


def test_bad_interventions_are_named():
    result = gaussian()
    with pytest.raises(ValueError, match=r"one of \['gain'\], got 'gamma'"):
        sensitivity.intervene(result, [1.0], KEY, argument="gamma")
    with pytest.raises(TypeError, match="sequence of values as `interventions`"):
        sensitivity.intervene(result, 1.0, KEY, argument="gain")
    with pytest.raises(ValueError, match="at least one value as `interventions`"):
        sensitivity.intervene(result, [], KEY, argument="gain")
    with pytest.raises(ValueError, match="`level`, got 1.0"):
        sensitivity.intervene(result, [1.0], KEY, argument="gain", level=1.0)
    groups = _groups.Groups({}, np.zeros((1, 1, 2)), np.zeros((1, 1)), 1, 0.0, ("a",))
    with pytest.raises(TypeError, match="Expected `result` along with groups"):
        sensitivity.intervene(groups, [1.0], KEY, argument="gain")
    with pytest.raises(ValueError, match="groups of the result's components"):
        sensitivity.intervene(groups, [1.0], KEY, argument="gain", result=result)
    names = ("z[0]", "z[1]")
    empty = _groups.Groups({}, np.zeros((2, 0, 2)), np.zeros((2, 0)), 1, 0.0, names)
    with pytest.raises(ValueError, match="draws in every group, got none"):
        sensitivity.intervene(empty, [1.0], KEY, argument="gain", result=result)
    bands = sensitivity.intervene(result, [1.0], KEY, argument="gain", num_draws=5)
    assert bands.latents == names
