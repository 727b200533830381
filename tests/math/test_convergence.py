# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Error rates of the equivalence test; the published test; scaled constraints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi._math.constraints import ConstraintTable, deviations
from numpyro_epi._math.convergence import (
    is_equivalent,
    published_p_values,
    two_sided_p_value,
    violation_with_error,
    welch_growth_probability,
)
from numpyro_epi._math.lattice import shifted_lattice

pytestmark = pytest.mark.core

RULE = {"tolerance": 0.05, "z_score": 1.645}


def share_declared(true_violation, num_draws, seed):
    """Share of 4,000 experiments that declare the constraint met."""
    rng = np.random.default_rng(seed)
    error = 1.0 / np.sqrt(num_draws)
    means = true_violation + error * rng.normal(size=4000)
    return is_equivalent(means, np.full(4000, error), **RULE).mean()


def test_violation_at_the_tolerance_passes_in_five_percent():
    # Binomial standard error 0.0034: five of them are a false alarm of 1e-6.
    assert abs(share_declared(0.05, 10_000, seed=0) - 0.05) < 0.018


def test_more_draws_never_make_it_harder():
    shares = [share_declared(0.01, n, seed=1) for n in (500, 2000, 8000, 100_000)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] == 0.0


def test_published_test_counts_signs():
    violations = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(published_p_values(violations), [1.0, 0.0])


def test_p_values_of_known_z_scores():
    values = two_sided_p_value(np.array([0.0, 1.96]), np.ones(2))
    np.testing.assert_allclose(values, [1.0, 0.05], atol=1e-3)


def test_welch_probability_follows_the_gap():
    rng = np.random.default_rng(0)
    low, high = rng.normal(1.0, 0.1, 200), rng.normal(2.0, 0.1, 200)
    assert welch_growth_probability(high, low) > 0.999
    assert welch_growth_probability(low, high) == 0.0


def test_violation_and_its_error():
    mean, error = violation_with_error(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose((mean[0], error[0]), (2.0, 1.0))


@pytest.mark.parametrize("unit", [1.0, 1e7, 1e-9])
def test_deviations_do_not_depend_on_units(unit):
    draws = np.random.default_rng(0).normal(1.0, 0.3, size=(50, 1))
    table = ConstraintTable.from_targets({"a": ((1,), unit, (0.3 * unit) ** 2)})
    found = deviations(jnp.asarray(unit * draws), table.targets, table.has_var)
    scaled = (draws - 1.0) / 0.3
    exact = np.concatenate([scaled, (scaled**2 - 1.0) / np.sqrt(2.0)], axis=1)
    np.testing.assert_allclose(found, exact, atol=2e-5)


def test_raw_multipliers_tilt_as_the_scaled_ones():
    targets = {"a": ((2,), [1.0, -1.0], [0.25, 4.0]), "b": ((), 3.0, None)}
    table = ConstraintTable.from_targets(targets)
    table = table.with_scale(np.random.default_rng(0).normal(size=(100, 3)) * 2.0)
    stats = np.array([0.3, 2.0, 2.5])
    scaled = np.array([0.5, -1.0, 2.0, 0.7, -0.2])
    devs = deviations(jnp.asarray(stats), table.targets, table.has_var)
    raw = table.raw_multipliers(scaled)
    d = stats - table.mean
    total = raw["a"][0] @ d[:2] + raw["a"][1] @ (d[:2] ** 2 - table.var[:2])
    total += raw["b"][0] * d[2]
    assert raw["b"].shape == (1,)
    assert float(devs @ scaled) == pytest.approx(total, rel=1e-5)


def test_labels_name_elements():
    table = ConstraintTable.from_targets({"a": ((2,), 0.0, 1.0), "b": ((), 0.0, None)})
    assert table.statistic_labels == ("a[0]", "a[1]", "b")
    assert table.labels[-1] == "variance of a[1]"


def test_lattice_is_uniform_and_more_even_than_chance():
    """Coordinates are uniform over shifts; smooth means vary little."""
    keys = jax.random.split(jax.random.key(0), 400)
    points = jax.vmap(lambda k: shifted_lattice(k, 100, 3))(keys)
    assert float(jnp.abs(points.mean((0, 1)) - 0.5).max()) < 0.01
    means = (points**2).sum(-1).mean(1)
    independent = 3 * (1 / 5 - 1 / 9) / 100  # variance of the mean of 100 draws
    assert float(means.var()) < 0.25 * independent
    assert float(jnp.abs(means.mean() - 1.0)) < 0.005
