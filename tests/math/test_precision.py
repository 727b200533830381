# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Deviations and multipliers survive units and offsets; rounded targets do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.util import log_density

from numpyro_epi import emergent_property
from numpyro_epi._math.constraints import ConstraintTable, deviations
from numpyro_epi._math.precision import spacing, two_parts
from numpyro_epi._train.precision import (
    MAX_SHARE,
    check_latents,
    check_statistics,
    log_likelihood_loss,
)
from numpyro_epi.handlers import tilt
from numpyro_epi.handlers._sites import Property
from numpyro_epi.handlers.tilt import log_tilt

pytestmark = [
    pytest.mark.core,
    # What is no more than pointed out must be right as well.
    pytest.mark.filterwarnings("ignore:Coarse rounding"),
]

UNITS = st.floats(-12.0, 12.0).map(lambda x: 10.0**x)
# In units of the target's standard deviation, up to where models are refused.
OFFSETS = st.floats(-2e5, 2e5)
NUMBERS = st.lists(st.floats(-5.0, 5.0), min_size=1, max_size=5)
FEW = settings(max_examples=60, deadline=None, derandomize=True)


def table_of(mean, var):
    return ConstraintTable.from_targets({"s": ((), mean, var)})


@jax.jit
def in_single(stats, targets):
    return deviations(stats, targets, np.array([True]))


def case(unit, offset, numbers):
    """A table, statistics in float32, and their deviations in float64."""
    # A mean that float32 does not hold.
    mean = unit * (offset + 0.3217)
    stats = np.asarray(unit * (offset + np.array(numbers)), np.float32)[:, None]
    table = table_of(mean, unit**2)
    return table, stats, table.deviations(stats)


def error(found, exact):
    """Largest error as a share of what is rounded: the deviation and one."""
    return float((np.abs(found - exact) / (1.0 + np.abs(exact))).max())


@given(UNITS, OFFSETS, NUMBERS)
@FEW
def test_deviations_keep_units_and_offsets(unit, offset, numbers):
    table, stats, exact = case(unit, offset, numbers)
    check_statistics(table, (np.dtype(np.float32),))
    assert error(np.asarray(in_single(stats, table.targets)), exact) < 1e-5


def test_rounded_targets_do_not():
    """The broken twin: targets in single precision before they are subtracted."""
    table, stats, exact = case(1.0, 2e5, [0.1, 0.5])
    rounded = table.targets._replace(rest=jnp.zeros(1))
    assert error(np.asarray(in_single(stats, rounded)), exact) > 1e-3
    assert error(np.asarray(in_single(stats, table.targets)), exact) < 1e-5


def test_constants_are_not_added_up_by_the_compiler():
    table, stats, exact = case(1.0, 2e5, [0.1, 0.5])
    closed_over = jax.jit(lambda f: deviations(f, table.targets, np.array([True])))
    # JAX 0.10 adds them up without the barrier, 0.12 does not.
    assert error(np.asarray(closed_over(stats)), exact) < 1e-5


@given(UNITS, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
@FEW
def test_multipliers_survive_a_round_trip(unit, first, second):
    table = table_of(0.3 * unit, unit**2)
    scaled = np.array([first, second])
    again = table.scaled_multipliers(table.raw_multipliers(scaled))
    np.testing.assert_allclose(again, scaled, rtol=1e-12, atol=1e-14)


@given(UNITS, OFFSETS, st.floats(-3.0, 3.0))
@FEW
def test_tilt_keeps_units_and_offsets(unit, offset, number):
    mean = unit * (offset + 0.3217)
    stat = np.float32(unit * (offset + number))
    table = table_of(mean, unit**2)
    scaled = np.array([0.7, 0.4])
    exact = -float(table.deviations(stat[None]) @ scaled)

    site = Property(jnp.asarray(stat), np.asarray(mean), np.asarray(unit**2))
    found = float(log_tilt(site, table.raw_multipliers(scaled)["s"]))
    assert abs(found - exact) < 1e-5 * (1.0 + abs(exact))


def test_a_compiled_tilt_keeps_its_targets():
    def model():
        emergent_property(jnp.float32(1e5 + 0.5), mean=1e5 + 0.3217, var=1.0, name="s")

    tilted = tilt(model, {"s": np.array([1.0, 0.0])})
    found = jax.jit(lambda: log_density(tilted, (), {}, {})[0])()
    assert float(found) == pytest.approx(-(0.5 - 0.3217), abs=1e-6)


def test_two_parts_are_the_number():
    value = np.array([1e6 + 0.03, -1 / 3, 0.0, 1e-12])
    rounded, rest = two_parts(value, np.float32)
    assert rounded.dtype == rest.dtype == np.float32
    both = rounded.astype(np.float64) + rest.astype(np.float64)
    np.testing.assert_allclose(both, value, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_spacing_is_that_of_numpy(dtype):
    values = np.array([1.0, 1.5, 2.0, 3e4, -7.0], dtype)
    np.testing.assert_array_equal(spacing(values, dtype), np.abs(np.spacing(values)))


# -- what is refused ------------------------------------------------------------------


def test_targets_too_narrow_are_refused_by_name():
    table = table_of(1e6 + 0.03, 0.01)
    with pytest.raises(ValueError, match="property `s`: float32 .* 0.0625 apart"):
        check_statistics(table, (np.dtype(np.float32),))
    check_statistics(table, (np.dtype(np.float64),))  # one way out
    check_statistics(table_of(0.03, 0.01), (np.dtype(np.float32),))  # the other


def test_coarse_targets_are_pointed_out():
    with pytest.warns(UserWarning, match="Coarse rounding .* property `s`"):
        check_statistics(table_of(1e5, 0.25), (np.dtype(np.float32),))


def test_half_precision_has_its_own_steps():
    with pytest.raises(ValueError, match="float16 numbers"):
        check_statistics(table_of(1.0, 1e-6), (np.dtype(np.float16),))
    check_statistics(table_of(1.0, 1e-6), (np.dtype(np.float32),))


def test_a_statistic_without_variance_is_judged_by_its_spread():
    table = ConstraintTable.from_targets({"s": ((), 1e7, None)})
    stats = 1e7 + np.linspace(-1, 1, 100)[:, None]
    with pytest.raises(ValueError, match="a spread over the prior"):
        check_statistics(table.with_scale(stats), (np.dtype(np.float32),))


def test_priors_too_narrow_are_refused_by_name():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 2))
    good = {"z": np.asarray(10.0 + draws, np.float32)}
    check_latents(good)
    bad = {"z": np.asarray(np.array([1.0, 1e7]) + draws, np.float32)}
    with pytest.raises(ValueError, match=r"prior of `z` around 1.*float32 numbers"):
        check_latents(bad)
    check_latents({"z": np.array([1.0, 1e7]) + draws})


def test_a_constant_latent_is_no_matter_of_precision():
    check_latents({"z": np.full((100,), 3e7, np.float32)})


def test_log_likelihoods_too_large_lose_nats():
    assert log_likelihood_loss(-1e5, np.dtype(np.float32)) is None
    assert "differences of a nat are lost" in str(
        log_likelihood_loss(-1e7, np.dtype(np.float32))
    )
    assert log_likelihood_loss(-1e7, np.dtype(np.float64)) is None
    assert log_likelihood_loss(-np.inf, np.dtype(np.float32)) is None


def test_what_is_accepted_adds_little_to_a_variance():
    """Uniform rounding adds a twelfth of the squared step: V2 below 0.001."""
    assert MAX_SHARE**2 / 12 / np.sqrt(2) < 1e-3
