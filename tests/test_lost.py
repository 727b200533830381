# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A run whose numbers are those of no law says so, whatever its other tests said."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._train.correction import Correction
from numpyro_epi._train.lost import why_lost
from numpyro_epi._train.options import Options
from numpyro_epi._train.records import Scores
from numpyro_epi._train.status import EPIStatus, SeenRange
from numpyro_epi._train.verdict import final_verdict

pytestmark = pytest.mark.core

TABLE = ConstraintTable.from_targets({"rate": ((), 1.0, 0.25)})


def simulations(*, has_likelihood=False, is_proper=True):
    seen = SeenRange.empty(1).add(np.array([[-5.0], [5.0]]))
    ledger = SimpleNamespace(
        seen=seen,
        largest_seen=np.array([12.0, 101.0]),
        log_likelihood_dtype=np.float32,
    )
    problem = SimpleNamespace(
        has_likelihood=has_likelihood,
        can_sample_prior=is_proper,
        sites=[SimpleNamespace(name="gain")],
    )
    return SimpleNamespace(
        problem=problem,
        table=TABLE,
        ledger=ledger,
        options=Options(),
    )


def scores(**changes):
    good = Scores(1.0, 0.5, -3.0, np.zeros(2), np.full(2, 0.01), 0.0, np.ones(2), 0.01)
    return good._replace(**changes)


LOST = {
    "negative divergence": (scores(divergence=-22.8), {}, np.zeros(2), "KL divergence"),
    "violation": (
        scores(violation=np.array([0.0, 3e14])),
        {},
        np.zeros(2),
        "variance of rate is off by 3e.14",
    ),
    "violation not finite": (
        scores(violation=np.array([np.inf, 0.0])),
        {},
        np.zeros(2),
        "mean of rate is off by inf",
    ),
    "multiplier": (scores(), {}, np.array([0.0, np.inf]), "multiplier of the variance"),
    "log likelihood": (
        scores(log_likelihood=-1e8),
        {"has_likelihood": True},
        np.zeros(2),
        "differences of a nat are lost",
    ),
}


def no_law():
    return None


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("ended", [None, (EPIStatus.CONVERGED, "The published test.")])
def test_a_lost_run_is_named(name, ended):
    found, kind, multipliers, words = LOST[name]
    status, message = final_verdict(
        simulations(**kind), found, ended, multipliers, no_law, found
    )
    assert status is EPIStatus.NOT_CONVERGED
    assert words.replace(".14", "+14") in message
    assert "rain longer" not in message


GOOD = {
    "met": (scores(), {}),
    "a KL of zero within its error": (
        scores(divergence=-0.06, divergence_error=0.03),
        {},
    ),
    "rounding": (scores(divergence=-0.04, divergence_error=0.001), {}),
    "no proper prior": (scores(divergence=-20.0), {"is_proper": False}),
    "as far off as the prior": (scores(violation=np.array([11.0, 90.0])), {}),
    "a large log likelihood": (scores(log_likelihood=-1e5), {"has_likelihood": True}),
}


@pytest.mark.parametrize("name", GOOD)
def test_other_runs_are_not_lost(name):
    found, kind = GOOD[name]
    assert why_lost(simulations(**kind), found, np.ones(2)) is None


def test_out_of_reach_stays_what_it_is():
    worst = scores(violation=np.array([0.0, 3e14]))
    ended = (EPIStatus.UNREACHABLE, "Why.")
    found = final_verdict(simulations(), worst, ended, np.zeros(2), no_law, worst)
    assert found == ended


@pytest.mark.parametrize(
    ("own", "status"),
    [
        (-500.0, EPIStatus.LAW_ONLY),
        (-1e8, EPIStatus.NOT_CONVERGED),  # nor can the law be trusted
    ],
)
def test_a_guide_that_is_lost_leaves_a_law_that_is_good(own, status):
    worst = scores(log_likelihood=-1e11, violation=np.array([0.0, 3e14]))
    found, message = final_verdict(
        simulations(has_likelihood=True),
        worst,
        None,
        np.zeros(2),
        lambda: Correction(np.inf, is_met=False),
        scores(log_likelihood=own),
    )
    assert found is status
    assert ("result.law.sample" in message) == (status is EPIStatus.LAW_ONLY)


class Unnormalised(dist.Normal):
    """Integrates to e."""

    def log_prob(self, value, intermediates=None):
        return super().log_prob(value) + 1.0


@pytest.mark.long
def test_an_unnormalised_prior_is_named():
    def model(prior):
        z = numpyro.sample("z", prior)
        epi.emergent_property(z, mean=0.3)

    def run(prior):
        guide = partial(epi.guides.AutoRealNVP, num_flows=2, base="normal")
        sizes = {"num_epochs": 2, "num_steps": 50, "num_evaluation": 4000}
        inference = epi.EPI(model, guide, progress_bar=False, **sizes)
        return inference.run(jax.random.key(0), prior)

    result = run(Unnormalised(0.0, 1.0))
    assert not result.converged
    assert "at the sites ['z']" in result.message
    assert "does not integrate to one" in result.law_reason
    assert run(dist.Normal(0.0, 1.0)).converged
