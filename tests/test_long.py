# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Further models of the kinds that were once answered wrongly, with default options.

None may end "converged" with a violation above 0.1 scaled units, and none in an error
other than the one it should end with; those of `RIGHT` end converged and right.
"""

import warnings

import jax
import pytest

import numpyro_epi as epi
from long_table import LONG, MAX_VIOLATION, fresh_violation, wrong

# What may end as it says, but not converged: it says so, and is not silently wrong.
MAY_FAIL = frozenset(
    {
        # Log likelihoods of -6e6, whose steps in float32 are half a nat: named so.
        "params: improper mean, far",
    }
)
# Rows that `.ci/run` runs: one or two of each kind, in some ten minutes.
IN_CI = frozenset(
    {
        "coords: missing value",
        "copies: copies, moved",
        "copies: copies, refused",
        "failures: 1% fail",
        "failures: 10% fail",
        "noise: 200 data, 20 at a time",
        "noise: factor, noise of 5 nats",
        "params: improper mean",
        "params: improper without data",
        "params: fixed centring",
        "precision: latent about 1e4",
        "precision: offset of 1e4",
        "precision: offset of 1e6",
    }
)


def marks(name):
    return [pytest.mark.long, *[pytest.mark.ci] * (name in IN_CI)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name), id=name) for name in LONG]
)
def test_default_options_are_right_or_say_so(name, record_property):
    row = LONG[name]
    inference = epi.EPI(row.model, progress_bar=False, **row.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # moved targets, coarse rounding
        warnings.simplefilter("ignore", RuntimeWarning)  # failures that are left out
        if row.error is not None:
            kind, words = row.error
            with pytest.raises(kind, match=words):
                inference.run(jax.random.key(0), *row.args, **row.kwargs)
            return
        result = inference.run(jax.random.key(0), *row.args, **row.kwargs)
        print(result)
        print(result.message)
        if name not in MAY_FAIL:
            assert result.converged, result.message
        if result.converged:
            assert fresh_violation(result) <= MAX_VIOLATION
            assert wrong(result, row.truth()) == []


def test_the_table_is_large_and_most_of_it_is_right():
    assert len(LONG) >= 40
    assert set(LONG) >= MAY_FAIL
    assert set(LONG) >= IN_CI
    has_truth = {name for name, row in LONG.items() if row.error is None}
    assert len(has_truth - MAY_FAIL) >= 28
