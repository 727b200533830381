# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A result goes with all that was compiled for it: many can be had in one process."""

import gc
from dataclasses import replace
from weakref import WeakKeyDictionary, ref

import jax
import pytest

import numpyro_epi.arviz
from numpyro_epi import diagnostics, sensitivity
from sensitivity_results import gaussian

KEY = jax.random.key(0)
HELD: WeakKeyDictionary = WeakKeyDictionary()


def hold_weakly(result):
    """The broken twin: a weak key does not help where the value refers to it."""
    HELD[result] = jax.jit(lambda x: result.log_prob({"z": x}))


QUESTIONS = {
    "log_prob": lambda r: r.log_prob({"z": r.draws.latents["z"][:3]}),
    "predict": lambda r: r.predict(KEY, 10),
    "hessian": lambda r: sensitivity.hessian(r, {"z": r.draws.latents["z"][:3]}),
    "find_modes": lambda r: sensitivity.find_modes(r, KEY, num_starts=4),
    "correlations": sensitivity.correlations,
    "gap": lambda r: diagnostics.duality_gap_diagnostic(r, KEY, 100),
    "arviz": numpyro_epi.arviz.to_arviz,
}


def is_dropped(question) -> bool:
    """Whether nothing holds a result once it has answered."""
    result = replace(gaussian())
    question(result)
    watch = ref(result)
    del result
    gc.collect()
    return watch() is None


@pytest.mark.parametrize("name", QUESTIONS)
def test_nothing_holds_a_result_that_has_answered(name):
    assert is_dropped(QUESTIONS[name])


def test_a_weak_table_of_compiled_functions_would_hold_it():
    assert not is_dropped(hold_weakly)
