# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The examples in docstrings run and give what they print."""

import doctest
import importlib

import pytest

MODULES = [
    "circuits._colliculus_constants",
    "circuits._colliculus_simulation",
    "circuits._low_rank",
    "circuits._stg_neurons",
    "circuits._v1_constants",
    "circuits._v1_simulation",
    "circuits._v1_theory",
    "circuits.colliculus",
    "circuits.rnn",
    "circuits.spectrum",
    "circuits.stg",
    "circuits.v1",
    "handlers.collect",
    "handlers.noise",
    "handlers.retarget",
    "handlers.tilt",
    "primitives",
]


@pytest.mark.core
@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_printed(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"numpyro_epi.{name}"))
    assert attempted > 0
    assert failed == 0
