# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Saved results come back whole, and only with the model and guide of the run."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_epi as epi
from numpyro_epi import _report
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.options import Options
from small_results import GUIDE, trained

KEY = jax.random.key(1)


@pytest.fixture(scope="session")
def result():
    return trained().result


@pytest.fixture(scope="session")
def path(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "result.npz"
    result.save(path)
    return path


@pytest.fixture(scope="session")
def loaded(path):
    return epi.EPIResult.load(path, trained().model, GUIDE)


def assert_equal_trees(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


# -- round trip -----------------------------------------------------------------------


@pytest.mark.core
def test_a_loaded_result_is_the_same_distribution(result, loaded):
    draws = result.sample(KEY, 20)
    assert_equal_trees(draws, loaded.sample(KEY, 20))
    np.testing.assert_array_equal(result.log_prob(draws), loaded.log_prob(draws))
    assert _report.summary(loaded) == _report.summary(result)
    assert repr(loaded) == repr(result)
    assert_equal_trees(result.params, loaded.params)


@pytest.mark.core
def test_everything_that_is_stored_comes_back(result, loaded):
    for old, new in zip(result.restarts, loaded.restarts, strict=True):
        for name in vars(old):
            assert_equal_trees(getattr(old, name), getattr(new, name))
    for name in ("best", "gradient", "is_noisy", "num_simulations", "seconds"):
        assert getattr(result, name) == getattr(loaded, name)
    assert result._engine.options == loaded._engine.options
    with_keys = jax.tree.map(lambda x: x, (result.state, loaded.state))
    first, second = (
        state._replace(rng_key=jax.random.key_data(state.rng_key))
        for state in with_keys
    )
    assert_equal_trees(first, second)
    assert jax.random.key_impl(result.state.rng_key) == jax.random.key_impl(
        loaded.state.rng_key
    )


def test_training_goes_on_from_a_loaded_state(result, loaded):
    run_steps = result._engine.run_steps
    old, _ = run_steps(result.state, 1, "reverse")
    new, info = run_steps(loaded.state, 1, "reverse")
    assert_equal_trees(old.params, new.params)
    assert not np.array_equal(
        jax.tree.leaves(new.params)[0], jax.tree.leaves(loaded.params)[0]
    )
    assert np.isfinite(info.loss).all()


def test_a_loaded_result_predicts(result, loaded):
    assert_equal_trees(result.predict(KEY, 5), loaded.predict(KEY, 5))


@pytest.mark.core
def test_draws_densities_and_reports_do_not_run_the_simulator(path, tmp_path):
    model = trained().model.__class__()
    result = epi.EPIResult.load(path, model, GUIDE)
    # Nothing that needs the simulator is compiled yet, so running it means tracing it.
    model.is_forbidden = True
    result.log_prob(result.sample(KEY, 10))
    result.print_summary()
    epi.to_arviz(result, all_restarts=True)
    result.save(tmp_path / "again.npz")
    with pytest.raises(RuntimeError, match="The simulator was run"):
        result.predict(KEY, 10)


def test_densities_of_masked_draws_are_those_of_the_restricted_law(result, tmp_path):
    draws = result.draws
    draws = draws._replace(log_density=draws.log_density - np.log(0.5))
    restart = replace(result._best, draws=draws, invalid=0.5)
    masked = replace(result, restarts=(restart,) * 2)
    masked.save(tmp_path / "masked.npz")
    again = epi.EPIResult.load(tmp_path / "masked.npz", trained().model, GUIDE)
    assert again._best.invalid == 0.5


def with_optimiser(result, optim):
    engine = Engine(
        result._engine.problem, result._engine.guide, result._engine.options, optim
    )
    state = result.state._replace(optim_state=engine.init_optim(result.state.params))
    return replace(result, state=state, _engine=engine)


def test_the_optimiser_is_asked_for_again(result, tmp_path):
    path, model = tmp_path / "result.npz", trained().model
    with_optimiser(result, optax.sgd(1e-3, momentum=0.9)).save(path)
    optim = optax.sgd(1e-2, momentum=0.9)
    again = epi.EPIResult.load(path, model, GUIDE, optim)
    assert again._engine.optim is optim
    with pytest.raises(ValueError, match="that of the run as `optim`, got None"):
        epi.EPIResult.load(path, model, GUIDE)
    with pytest.raises(ValueError, match=r"state of .*optim_state"):
        epi.EPIResult.load(path, model, GUIDE, optax.adam(1e-2))


def test_the_default_optimiser_is_not_replaced(path):
    with pytest.raises(ValueError, match="none, as in the run as `optim`"):
        epi.EPIResult.load(path, trained().model, GUIDE, optax.adam(1e-3))


# -- the file -------------------------------------------------------------------------


def test_a_file_holds_plain_arrays_and_a_header(path):
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    assert all(array.dtype.kind in "fiub" for array in arrays.values())
    header = json.loads(bytes(arrays["header"]))
    assert (header["format"], header["version"]) == ("numpyro_epi result", 7)
    assert header["package_version"] == epi.__version__
    assert "restarts/1/draws/latents/scope/b" in arrays


def test_the_path_is_taken_as_given(result, tmp_path):
    result.save(str(tmp_path / "no_suffix"))
    assert [p.name for p in tmp_path.iterdir()] == ["no_suffix"]


def test_an_interrupted_save_keeps_the_older_file(result, tmp_path, monkeypatch):
    path = tmp_path / "result.npz"
    path.write_bytes(b"older")

    def interrupted(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def edit_header(path, target, **changes):
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    header = json.loads(bytes(arrays["header"])) | changes
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with target.open("wb") as file:
        np.savez(file, **arrays)


def cut(path, target):
    target.write_bytes(path.read_bytes()[:-2000])


def flip(path, target):
    data = bytearray(path.read_bytes())
    # Not one byte: it might be the date in the header of an array, which means nothing.
    middle = len(data) // 2
    data[middle : middle + 500] = bytes(x ^ 0xFF for x in data[middle : middle + 500])
    target.write_bytes(data)


def foreign(path, target):
    with target.open("wb") as file:
        np.savez(file, header=np.zeros(3), x=np.ones(2))


def one_array(path, target):
    with target.open("wb") as file:
        np.save(file, np.ones(3))


DAMAGE = {
    "cut": (cut, "is not one, or is damaged"),
    "flip": (flip, "is not one, or is damaged"),
    "empty": (lambda _, target: target.write_bytes(b""), "is not one, or is damaged"),
    "text": (lambda _, target: target.write_text("z = 1"), "is not one, or is damaged"),
    "foreign": (foreign, "is not one, or is damaged"),
    "one_array": (one_array, "is not one, or is damaged"),
    "other": (partial(edit_header, format="other"), "its format is 'other'"),
    "newer": (
        partial(edit_header, version=8, package_version="9.1"),
        "got version 8 in .* which numpyro_epi 9.1 wrote",
    ),
    "precision": (partial(edit_header, is_x64=True), "'jax_enable_x64', True"),
    "option": (partial(edit_header, options={"novel": 1}), "got `novel`"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_of_another_kind_is_refused(path, tmp_path, name):
    damage, message = DAMAGE[name]
    target = tmp_path / "damaged.npz"
    damage(path, target)
    with pytest.raises(ValueError, match=message):
        epi.EPIResult.load(target, trained().model, GUIDE)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        epi.EPIResult.load(tmp_path / "missing.npz", trained().model, GUIDE)


# -- another model or guide -----------------------------------------------------------


def other_latents():
    a = numpyro.sample("a", dist.Uniform(-2.0, 2.0).expand([3]).to_event(1))
    epi.emergent_property(a.sum(), mean=0.5, var=0.25, name="total")


def other(**changes):
    """The model of the run, with other values in it than the arguments of the run."""

    def model(shift=0.0, *, limit=2.0, name="rows", target=1.0):
        given = {"shift": shift, "limit": limit, "name": name, "target": target}
        trained().model(**(given | changes))

    return model


def guide(**options):
    return partial(GUIDE, **options)


MISMATCHES = {
    "shape of a latent": ({"model": other_latents}, r"latents .*: \(2,\) at `a`"),
    "name of a statistic": (
        {"model": other(name="x")},
        r"statistics .*: \(2, 2\) at `rows`, got n",
    ),
    "target": (
        {"model": other(target=1.5)},
        r"mean = 1 of `rows\[0, 0\]`, got 1.5",
    ),
    "support": ({"model": other(limit=2.5)}, "Expected the prior of the model"),
    "prior": ({"model": other(shift=1.0)}, "Expected the prior of the model"),
    "argument": (
        {"shift": 1.0},
        "arguments of `.*`, 0.0 as `shift`, got 1.0. Pass those of the run as `model_a",
    ),
    "guide": (
        {"guide": epi.guides.AutoNeuralSpline},
        "AutoRealNVP, as `guide`, got AutoNeuralSpline",
    ),
    "size of a guide": (
        {"guide": guide(hidden_dims=(9,))},
        r"parameters and state of .*\(2, 1, 8\).* at `.*auto_flow.*got .*\(2, 1, 9\)",
    ),
    "depth of a guide": ({"guide": guide(num_flows=2)}, "none at `.*auto_flow"),
    "base of a guide": ({"guide": guide(base="normal")}, "Expected the guide of"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_another_model_or_guide_is_refused(path, name):
    changes, message = MISMATCHES[name]
    kwargs = dict(changes)
    model = kwargs.pop("model", trained().model)
    guide = kwargs.pop("guide", GUIDE)
    with pytest.raises(ValueError, match=message):
        epi.EPIResult.load(path, model, guide, model_kwargs=kwargs)


def test_options_are_all_stored():
    """A new option of another type than these needs a way into the header."""
    kinds = {type(getattr(Options(), name)) for name in Options.names()}
    assert kinds <= {int, float, str, bool, type(None)}
