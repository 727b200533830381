# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results in ArviZ: with 0.23 on Python 3.11, with 1.x on later ones."""

import sys
from dataclasses import replace

import arviz
import numpy as np
import pytest
import xarray

import numpyro_epi as epi
from numpyro_epi.arviz import _valid_names
from small_results import OPTIONS, trained

pytestmark = pytest.mark.core

NUM_DRAWS = OPTIONS["num_evaluation"]
GROUPS = {
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "targets",
    "history",
    "restarts",
}


@pytest.fixture(scope="session")
def result():
    return trained().result


@pytest.fixture(scope="session")
def data(result):
    return epi.to_arviz(result)


@pytest.fixture(scope="session")
def all_data(result):
    return epi.to_arviz(result, all_restarts=True)


def groups(data):
    """Names of the groups of either kind of object."""
    names = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in names} - {""}


def test_the_object_is_that_of_the_installed_version(data):
    is_old = arviz.__version__.startswith("0.")
    kind = arviz.InferenceData if is_old else xarray.DataTree
    assert isinstance(data, kind)
    assert groups(data) == GROUPS


def test_draws_are_those_of_the_best_restart(result, data):
    posterior = data["posterior"]
    assert posterior["a"].dims == ("chain", "draw", "a_dim_0")
    assert dict(posterior.sizes) == {"chain": 1, "draw": NUM_DRAWS, "a_dim_0": 2}
    np.testing.assert_array_equal(posterior["a"][0], result.draws.latents["a"])
    np.testing.assert_array_equal(
        posterior["scope.b"][0], result.draws.latents["scope/b"]
    )
    assert posterior["scope.b"].attrs["site"] == "scope/b"
    predictive = data["posterior_predictive"]
    assert predictive["rows"].shape == (1, NUM_DRAWS, 2, 2)
    for name, value in result.draws.statistics.items():
        np.testing.assert_array_equal(predictive[name][0], value)
    stats = data["sample_stats"]
    np.testing.assert_array_equal(stats["lp"][0], result.draws.log_density)
    np.testing.assert_array_equal(stats["log_prior"][0], result.draws.log_prior)
    assert stats["log_likelihood"].dims == ("chain", "draw")


def test_log_likelihood_is_left_out_without_data(result):
    draws = result.draws._replace(log_likelihood=np.zeros(NUM_DRAWS))
    without = replace(result, restarts=(replace(result._best, draws=draws),), best=0)
    stats = epi.to_arviz(without)["sample_stats"]
    assert set(stats.data_vars) == {"lp", "log_prior"}


def test_targets_have_the_multipliers_of_each_statistic(result, data):
    targets = data["targets"]
    assert targets["statistic"].values.tolist() == list(result.table.statistic_labels)
    total, element = (
        targets.sel(statistic=s, chain=0) for s in ("total", "rows[1, 0]")
    )
    assert (float(total["mean"]), float(total["var"])) == (0.5, 0.25)
    assert (float(total["scale"]), float(element["mean"])) == (0.5, 10.0)
    assert np.isnan(element["var"])
    np.testing.assert_array_equal(total["multipliers"], result.multipliers["total"])
    rows = result.multipliers["rows"]
    np.testing.assert_array_equal(element["multipliers"], [rows[0, 1, 0], np.nan])


def test_history_has_a_row_for_each_epoch(result, data):
    history = data["history"]
    assert history["entropy"].dims == ("chain", "epoch")
    assert history["violation"].dims == ("chain", "epoch", "constraint")
    assert history["constraint"].values.tolist() == list(result.table.labels)
    for name, value in result.history._asdict().items():
        np.testing.assert_array_equal(history[name][0], value)


def test_attributes_say_where_the_draws_come_from(result, data):
    for attrs in (data.attrs, data["posterior"].attrs, data["history"].attrs):
        assert attrs["inference_library"] == "numpyro_epi"
        assert attrs["inference_library_version"] == epi.__version__
        assert attrs["status"] == str(result.status)
        assert attrs["entropy"] == result.entropy
        assert attrs["divergence"] == result.divergence
        assert attrs["score"] == result.score
        assert attrs["tolerance"] == 0.05
        assert "independent" in attrs["draws"]
        assert "chains" not in attrs


def test_all_restarts_are_chains(result, all_data):
    posterior = all_data["posterior"]
    assert posterior.sizes["chain"] == len(result.restarts)
    for chain, restart in enumerate(result.restarts):
        np.testing.assert_array_equal(posterior["a"][chain], restart.draws.latents["a"])
        assert float(all_data["restarts"]["score"][chain]) == restart.score
    assert posterior.attrs["best_chain"] == result.best
    assert "restarts disagree" in posterior.attrs["chains"]
    assert all_data["history"].sizes["chain"] == len(result.restarts)


def test_chains_of_unequal_length_are_cut_and_say_so(result):
    first, second = result.restarts
    shorter = second.draws._replace(
        latents={k: v[:300] for k, v in second.draws.latents.items()},
        statistics={k: v[:300] for k, v in second.draws.statistics.items()},
        log_density=second.draws.log_density[:300],
        log_prior=second.draws.log_prior[:300],
        log_likelihood=second.draws.log_likelihood[:300],
    )
    masked = replace(result, restarts=(first, replace(second, draws=shorter)), best=0)
    posterior = epi.to_arviz(masked, all_restarts=True)["posterior"]
    assert posterior.sizes["draw"] == 300
    assert "between 300 and 500 draws" in posterior.attrs["truncated"]
    best = epi.to_arviz(masked)["posterior"]
    assert best.sizes["draw"] == 500
    assert "truncated" not in best.attrs


@pytest.mark.parametrize("all_restarts", [False, True])
def test_files_come_back(result, tmp_path, all_restarts):
    data = epi.to_arviz(result, all_restarts=all_restarts)
    path = tmp_path / "result.nc"
    data.to_netcdf(str(path))
    again = arviz.from_netcdf(str(path))
    assert groups(again) == GROUPS
    for name in GROUPS:
        first, second = data[name], again[name]
        if isinstance(first, xarray.DataTree):
            first, second = first.to_dataset(), second.to_dataset()
        xarray.testing.assert_equal(first.load(), second.load())
    assert again["posterior"].attrs["message"] == result.message
    assert again["posterior"].attrs["entropy"] == pytest.approx(result.entropy)


def test_arviz_summarises_the_export(all_data):
    table = arviz.summary(all_data, var_names=["a"])
    assert list(table.index) == ["a[0]", "a[1]"]
    assert "r_hat" in table.columns


def test_names_are_valid_and_differ():
    names = ["a/b", "a.b", "draw", "chain", "z"]
    assert list(_valid_names(names).values()) == [
        "a.b",
        "a.b_",
        "draw_",
        "chain_",
        "z",
    ]


def test_without_arviz_the_error_has_the_install_line(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="pip install arviz h5netcdf h5py"):
        epi.to_arviz(result)
