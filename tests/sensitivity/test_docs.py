# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Examples of docstrings and of the tutorial run as printed."""

import doctest
import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import numpyro_epi as epi
from numpyro_epi import sensitivity
from sensitivity_results import SMALL, gaussian

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sensitivity.md"
MODULES = [
    "_active",
    "_groups",
    "_hessian",
    "_information",
    "_interventions",
    "_mode_path",
    "_modes",
    "_perturb",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run_as_printed(name):
    module = importlib.import_module(f"numpyro_epi.sensitivity.{name}")
    names = {"result": gaussian(), "jax": jax, "np": np}
    names |= {name: getattr(sensitivity, name) for name in sensitivity.__all__}
    failed, attempted = doctest.testmod(module, extraglobs=names)
    assert attempted > 0
    assert failed == 0


@pytest.mark.long
def test_tutorial_runs():
    """With a shorter run than the page's, which prints other digits."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    names = {}
    code = "\n".join(blocks)
    assert "epi.EPI(model)" in code
    short = "epi.EPI(model, num_restarts=1, **SMALL)"
    code = code.replace("epi.EPI(model)", short)
    names["SMALL"] = SMALL
    exec(compile(code, PAGE.name, "exec"), names)
    assert isinstance(names["result"], epi.EPIResult)
    assert set(names["modes"].component) == {0, 1}


@pytest.mark.core
def test_tutorial_names_every_function():
    functions = [name for name in sensitivity.__all__ if name.islower()]
    page = PAGE.read_text()
    assert [name for name in functions if f"`{name}" not in page] == []
