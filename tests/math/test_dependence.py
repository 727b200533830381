# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Relations between statistics: a table of sets that have them, and of sets without.

Statistics are float32, as simulations are. Truth is how each set is made.
"""

from typing import NamedTuple

import numpy as np
import pytest

from numpyro_epi._math.agreement import (
    AGREED,
    disagreeing,
    distance,
    free_directions,
    nearest_targets,
    own_shares,
    smallest_multipliers,
)
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.dependence import confirmed_relations, find_relations
from numpyro_epi._math.relation_text import describe_relations

NUM = 2000
UNITS = (1e-9, 1e-3, 1.0, 1e3, 1e9)


def normals(seed=0, num=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, NUM)).astype(np.float32)


def stack(*columns):
    return np.stack([np.asarray(c, np.float32) for c in columns], axis=1)


A, B, C = normals()
ABOVE = (A > 0.3).astype(np.float32)
BINS = np.digitize(A, [-1.0, 0.0, 1.0])[:, None] == np.arange(4)
COUNTS = np.random.default_rng(1).poisson(2.0, NUM)
RARE = np.random.default_rng(2).poisson(0.01, NUM)
HEAVY = np.random.default_rng(3).standard_cauchy(NUM).astype(np.float32)
SUM_32 = np.cumsum(np.float32(0.001) * np.ones((1000, 1), np.float32) * A, axis=0)[-1]

# Name: statistics, and how the relations read.
DEPENDENT = {
    "copy": (stack(A, 2 * A + 1), ["`b` = 2 `a` + 1"]),
    "mirror image": (stack(A, 1 - A), ["`b` = -`a` + 1"]),
    "far from zero": (stack(1000 + A, 0.5 * (1000 + A)), ["`b` = 0.5 `a`"]),
    "sum": (stack(A, B, A + B), ["`c` = `a` + `b`"]),
    "small share in a sum": (stack(A, B, A + 1e-2 * B), ["`c` = `a` + 0.01 `b`"]),
    "two pairs": (
        stack(A, 3 * A, B, B - 2),
        ["`b` = 3 `a`", "`d` = `c` - 2"],
    ),
    "indicator": (stack(ABOVE, B), ["`a` takes only the values 0 and 1"]),
    "two levels": (stack(7 * ABOVE - 2, B), ["`a` takes only the values -2 and 5"]),
    "bins": (
        stack(*BINS.T),
        ["`d` = -`a` - `b` - `c` + 1"]
        + [f"`{name}` takes only the values 0 and 1" for name in "abcd"],
    ),
    "rectified pair": (stack(np.maximum(A, 0), 2 * np.maximum(A, 0)), ["`b` = 2 `a`"]),
    "counts": (stack(COUNTS, 10 - COUNTS), ["`b` = -`a` + 10"]),
    "same square": (stack(A, np.abs(A)), ["`b`^2 = `a`^2"]),
    "circle": (stack(np.cos(A), np.sin(A)), ["`b`^2 = -`a`^2 + 1"]),
    "heavy tails": (stack(HEAVY, 3 * HEAVY + 2), ["`b` = 3 `a` + 2"]),
    "long sum in float32": (stack(A, SUM_32), ["`b` = `a`"]),
}

INDEPENDENT = {
    "pair": stack(A, B),
    "nearly a copy": stack(A, A + 1e-3 * B),
    "very nearly a copy": stack(A, A + 1e-4 * B),
    "nearly a copy, far from zero": stack(1000 + A, 1000 + A + 1e-3 * B),
    "smooth function": stack(A, np.tanh(A)),
    "rectified": stack(A, np.maximum(A, 0)),
    "two rectified": stack(np.maximum(A, 0), np.maximum(B, 0)),
    "counts": stack(COUNTS, A),
    "two noisy readings": stack(A + 0.01 * B, A + 0.01 * C),
    "sum but for one row": stack(A, B, A + B + (np.arange(NUM) == 7)),
    "heavy tails hide the rest": stack(HEAVY, HEAVY + B),
    "constant": stack(np.zeros(NUM), A),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_relations_are_found_and_read_as_they_were_made(name):
    stats, expected = DEPENDENT[name]
    found = confirmed_relations(stats, np.ones(stats.shape[1], bool))
    assert describe_relations(found, "abcd") == expected


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_statistics_have_no_relation(name):
    stats = INDEPENDENT[name]
    assert find_relations(stats, np.ones(stats.shape[1], bool)) == []


@pytest.mark.parametrize("first", UNITS)
@pytest.mark.parametrize("second", UNITS)
def test_units_do_not_matter(first, second):
    has_var = np.ones(2, bool)
    units = np.array([first, second], np.float32)
    copy, near = stack(A, 2 * A + 1) * units, stack(A, A + 1e-3 * B) * units
    assert len(find_relations(copy, has_var)) == 2  # of the means, and of the squares
    assert find_relations(near, has_var) == []


def test_squares_count_only_with_a_variance():
    has_var = np.array([True, False])
    (found,) = find_relations(stack(A, A * A), has_var)
    assert describe_relations([found], "ab") == ["`a`^2 = `b`"]
    assert find_relations(stack(A, A * A), np.zeros(2, bool)) == []
    assert find_relations(stack(ABOVE, B), np.zeros(2, bool)) == []


@pytest.mark.parametrize(
    "stats",
    [
        stack(np.maximum(A - 2.5, 0), 2 * np.maximum(A - 2.5, 0)),
        stack(RARE, A),
        stack(A > 2.5, B),
        stack(A, RARE, A + RARE),
    ],
)
def test_few_informative_rows_confirm_nothing(stats):
    """8 to 32 of 2,000 rows tell of these relations, which look exact in all."""
    has_var = np.ones(stats.shape[1], bool)
    assert find_relations(stats, has_var)
    assert confirmed_relations(stats, has_var) == []


def test_later_rows_refute_what_earlier_rows_had():
    has_var = np.ones(2, bool)
    far, near = 5 + A, 0.3 + A
    prior, law = (stack(x, np.maximum(x, 0)) for x in (far[far > 0], near))
    assert len(confirmed_relations(prior, has_var)) == 2
    both = np.concatenate([prior, law])
    assert find_relations(both, has_var, len(law)) == []
    assert find_relations(both[: len(prior) + 50], has_var) == []


def test_a_narrow_law_is_measured_in_its_own_units():
    """Near the law, a ten-thousandth as wide as the prior, the copy is none."""
    prior, narrow = stack(A, A), stack(1e-4 * A, 1e-4 * (A + 0.3 * B))
    both = np.concatenate([prior, narrow])
    assert find_relations(both, np.ones(2, bool), NUM) == []
    assert len(find_relations(prior, np.ones(2, bool))) == 2


def test_rows_that_are_not_finite_and_too_few_rows_tell_nothing():
    has_var = np.ones(2, bool)
    stats = stack(A, 2 * A + 1)
    stats[::7, 1] = np.nan
    stats[::11, 0] = np.inf
    assert len(confirmed_relations(stats, has_var)) == 2
    assert find_relations(stack(A, B)[:5], has_var) == []
    assert find_relations(stack(A, B)[:0], has_var) == []


# -- targets --------------------------------------------------------------------------


def table(mean, var=None):
    return ConstraintTable.from_targets({"s": (np.shape(mean), mean, var)})


def relations_of(stats, targets):
    return confirmed_relations(stats, targets.has_var)


class Targets(NamedTuple):
    stats: np.ndarray
    given: tuple
    nearest: tuple  # by hand: the least squares of scaled shifts


# A copy b = 2 a + 1 has sd 2 where a has 1: shifts of both count alike.
COPY = DEPENDENT["copy"][0]
CONTRADICTORY = {
    "mean": Targets(COPY, ([1, 3.02], [0.25, 1]), ([1.005, 3.01], [0.25, 1])),
    "mean, far": Targets(COPY, ([1, 3.6], [0.25, 1]), ([1.15, 3.3], [0.25, 1])),
    # (v - 1)^2 + (v / 1.04 - 1)^2 is least at v = (1 + 1 / 1.04) / (1 + 1 / 1.04^2).
    "variance": Targets(COPY, ([1, 3], [0.25, 1.04]), ([1, 3], [0.2548077, 1.0192307])),
    "sum": Targets(
        DEPENDENT["sum"][0],
        ([0, 0, 0.3], [1, 1, 1]),
        ([0.1, 0.1, 0.2], [1, 1, 1]),
    ),
    "indicator": Targets(
        DEPENDENT["indicator"][0][:, :1], ([0.5], [0.26]), ([0.5], [0.25])
    ),
}
AGREEING = {
    "copy": (COPY, [1, 3], [0.25, 1]),
    "sum": (DEPENDENT["sum"][0], [0.1, 0.2, 0.3], [1, 2, 9]),
    "indicator": (DEPENDENT["indicator"][0][:, :1], [0.3], [0.21]),
    "bins": (
        DEPENDENT["bins"][0],
        [0.1, 0.2, 0.3, 0.4],
        [0.09, 0.16, 0.21, 0.24],
    ),
}


@pytest.mark.parametrize("name", CONTRADICTORY)
def test_nearest_targets_are_the_least_squares(name):
    stats, given, expected = CONTRADICTORY[name]
    given, expected = table(*given), table(*expected)
    relations = relations_of(stats, given)
    assert disagreeing(given, relations)
    found = nearest_targets(given, relations)
    np.testing.assert_allclose(found.mean, expected.mean, atol=2e-6)
    np.testing.assert_allclose(found.var, expected.var, rtol=2e-5)
    assert disagreeing(found, relations) == []
    np.testing.assert_allclose(found.scale, np.sqrt(found.var))


@pytest.mark.parametrize("name", AGREEING)
def test_targets_that_agree_stay(name):
    stats, mean, var = AGREEING[name]
    given = table(mean, var)
    relations = relations_of(stats, given)
    assert relations
    assert disagreeing(given, relations) == []
    assert distance(given, nearest_targets(given, relations)) < AGREED


def test_targets_beyond_all_values_have_none_near():
    given = table([1.5], [0.01])
    assert nearest_targets(given, relations_of(stack(ABOVE), given)) is None


def test_units_do_not_move_nearest_targets():
    reference = None
    for unit in UNITS:
        units = np.array([unit, 1 / unit], np.float32)
        mean, var = np.array([1, 3.3]) * units, np.array([0.25, 1]) * units**2
        given = table(mean, var)
        found = nearest_targets(given, relations_of(COPY * units, given))
        shift = (found.mean - given.mean) / given.scale
        reference = shift if reference is None else reference
        np.testing.assert_allclose(shift, [0.15, -0.15], atol=1e-5)


def test_smallest_multipliers_share_and_change_no_tilt():
    given = table([1, 3], [0.25, 1])
    relations = relations_of(COPY, given)
    multipliers = np.array([200.0, -100.0, 3.0, 0.0])
    found = smallest_multipliers(multipliers, given, relations)
    np.testing.assert_allclose(found, [50, 50, 1.5, 1.5], atol=1e-3)
    devs = given.deviations(COPY)
    np.testing.assert_allclose(devs @ found, devs @ multipliers, atol=1e-2)
    assert free_directions(given, relations).shape == (4, 2)
    np.testing.assert_allclose(own_shares(given, relations), 0.5, atol=1e-5)
    np.testing.assert_array_equal(
        smallest_multipliers(multipliers, given, []), multipliers
    )
