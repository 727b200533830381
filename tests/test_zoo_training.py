# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Default options solve every problem of the zoo: in nats, and with all its modes."""

from functools import partial

import jax
import numpy as np
import pytest

import numpyro_epi as epi
from quadrature import deviations, tilt_of
from zoo import ZOO

pytestmark = pytest.mark.long
# Rows of the first key that `.ci/run` runs.
IN_CI = {"gaussian", "equal_modes", "count", "noisy"}

# A mode may gain or lose this much mass: 0.05 nats at a mass of one half, 0.1 at 0.8.
MASS_BOUND = 0.15


@pytest.fixture(scope="module")
def problem_and_inference(request):
    """One inference for all keys of a problem, which compiles once."""
    problem = ZOO[request.param]
    return problem, epi.EPI(problem.model, progress_bar=False)


def rows():
    for name in ZOO:
        for key in (0, 1, 2):
            marks = [pytest.mark.ci] * (name in IN_CI and key == 0)
            yield pytest.param(name, key, marks=marks)


def corrected_objective(result):
    """log p0 - log q + log L - lambda . T of each evaluation draw.

    The mean is `result.score`. It bounds the objective that is reached without
    violation, to second order in the errors of multipliers and targets.
    """
    draws = result.draws
    targets = zip(result.table.sites, *split_targets(result.table), strict=True)
    devs = {
        site: deviations(
            np.asarray(draws.statistics[site], np.float64),
            mean,
            None if np.isnan(var).any() else var,
        )
        for (site, _), mean, var in targets
    }
    objective = draws.log_prior - draws.log_density + draws.log_likelihood
    return objective + tilt_of(devs, result.multipliers)


def split_targets(table):
    """Means and variances by site, in order."""
    return [list(table.split(x).values()) for x in (table.mean, table.var)]


@pytest.mark.parametrize(
    ("problem_and_inference", "key"), list(rows()), indirect=["problem_and_inference"]
)
def test_default_options_reach_the_maximum(problem_and_inference, key):
    """20,000 evaluation draws or more: standard errors of 0.0001 to 0.02 nats.

    The score may exceed the maximum by 3 of them: its expectation lies below.
    """
    problem, inference = problem_and_inference
    result = inference.run(jax.random.key(key))
    values = corrected_objective(result)
    error = values.std() / np.sqrt(values.size)
    assert abs(values.mean() - result.score) < 0.01
    assert result.converged
    assert result.score > problem.maximum - problem.tolerance
    assert result.score < problem.maximum + problem.error + 3 * error
    if problem.modes is not None:
        mass = (problem.modes(result.draws.latents) == 1).mean()
        assert abs(mass - problem.mode_masses[1]) < MASS_BOUND


def test_a_base_in_one_piece_loses_some_of_nine():
    """The twin: without components the same run falls 0.70 nats short."""
    problem = ZOO["nine_modes"]
    guide = partial(epi.guides.AutoRealNVP, multimodal=False)
    result = epi.EPI(problem.model, guide, progress_bar=False).run(jax.random.key(0))
    is_good = result.converged and result.score > problem.maximum - problem.tolerance
    assert not is_good
