# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Model arguments are compared by value, in a process and in files."""

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._model.arguments import Arguments, private
from small_results import GUIDE

OPTIONS = {
    "num_particles": 4,
    "num_epochs": 1,
    "num_steps": 2,
    "num_evaluation": 100,
    "warm_start": False,
    "stat_gradient": "reverse",
    "progress_bar": False,
}
KEY = jax.random.key(0)


def model(y, scale=1.0):
    z = numpyro.sample("z", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(z, scale), obs=y)
    epi.emergent_property(z, mean=0.0)


def likelihood(inference, *args, **kwargs):
    """Log likelihood of z = 0 in the compiled programs of these arguments."""
    engine = inference._engine(KEY, args, kwargs)
    sim = engine.chunks.simulate(np.zeros((1, 1, 1), np.float32), KEY[None])
    return float(sim.log_likelihood[0, 0])


def exact(y):
    return -0.5 * float(np.sum(np.square(y))) - 0.5 * y.size * np.log(2 * np.pi)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("new", [False, True], ids=["one EPI", "two"])
def test_an_array_filled_anew_is_a_new_argument(dtype, new):
    """JAX itself takes it for unchanged: `test_jax_knows_constants_by_identity`."""
    y = np.zeros(4, dtype)
    first = epi.EPI(model, GUIDE, **OPTIONS)
    assert likelihood(first, y) == pytest.approx(exact(y), rel=1e-5)
    y[:] = 3.0
    second = epi.EPI(model, GUIDE, **OPTIONS) if new else first
    assert likelihood(second, y) == pytest.approx(exact(y), rel=1e-5)


def test_jax_knows_constants_by_identity():
    """Broken twin: as long as a program lives, its constants do not change."""
    y = np.zeros(4)
    first = jax.jit(lambda x: jnp.sum(x - y))
    assert first(0.0) == 0.0
    y[:] = 3.0
    assert jax.jit(lambda x: jnp.sum(x - y))(0.0) in (0.0, -12.0)
    assert first(0.0) == 0.0


def test_a_result_keeps_the_arguments_of_its_run():
    """Also in programs that are compiled later."""
    y = np.zeros(4)
    engine = epi.EPI(model, GUIDE, **OPTIONS)._engine(KEY, (y,), {})
    y[:] = 3.0
    found = engine.problem.simulate(jnp.zeros(1), KEY).log_likelihood
    assert float(found) == pytest.approx(exact(np.zeros(4)), rel=1e-5)


@dataclass
class Setting:
    gain: Any
    name: str = "a"


class Module(eqx.Module):
    weight: Any
    width: int = eqx.field(static=True, default=3)


class Opaque:
    pass


ONE = Opaque()
SAME = {
    "array": lambda: np.arange(3.0),
    "nan": lambda: np.array([np.nan, 1.0]),
    "jax": lambda: jnp.arange(3.0),
    "key": lambda: jax.random.key(3),
    "tree": lambda: {"a": [np.ones(2), 3], "b": (None, "x")},
    "object": lambda: Setting(np.ones(2)),
    "module": lambda: Module(jnp.ones(2)),
    "distribution": lambda: dist.Normal(np.zeros(2), 1.0),
    "words": lambda: np.array(["a", None], dtype=object),
    "function": lambda: model,
    "opaque": lambda: ONE,
    "set": lambda: {"b", "a"},
}

OTHER = {
    "array": np.array([0.0, 1.0, 3.0]),
    "dtype": np.arange(3),
    "shape": np.arange(3.0)[None],
    "jax": jnp.array([0.0, 1.0, 3.0]),
    "key": jax.random.key(4),
    "tree": {"a": [np.ones(2), 4], "b": (None, "x")},
    "order": {"a": [3, np.ones(2)], "b": (None, "x")},
    "object": Setting(np.full(2, 2.0)),
    "attribute": Setting(np.ones(2), "b"),
    "module": Module(jnp.zeros(2)),
    "static": Module(jnp.ones(2), 4),
    "distribution": dist.Normal(np.zeros(2), 2.0),
    "words": np.array(["b", None], dtype=object),
    "function": likelihood,
    "opaque": Opaque(),
    "truth": True,
    "integer": 1,
    "float": 1.0,
    "none": None,
}


def of(value):
    return Arguments(model, (value,), {})


@pytest.mark.parametrize("name", SAME)
def test_equal_values_are_the_same_argument(name):
    assert of(SAME[name]()) == of(SAME[name]())
    copied = private(SAME[name]())
    assert of(copied) == of(SAME[name]())


def test_different_values_are_different_arguments():
    values = [make() for make in SAME.values()] + list(OTHER.values())
    for i, a in enumerate(values):
        assert [of(a) == of(b) for b in values].index(True) == i


def test_functions_are_the_same_only_if_they_are_one():
    """Two may do different things under one name."""
    first, second = (lambda x: x for _ in range(2))
    assert of(first) == of(first)
    assert of(first) != of(second)
    assert of(first).by_name["y"].digest == of(second).by_name["y"].digest


def test_names_and_defaults_do_not_matter():
    assert Arguments(model, (1.0,), {}) == Arguments(model, (), {"y": 1.0})
    assert Arguments(model, (1.0, 1.0), {}) == Arguments(model, (1.0,), {})
    assert Arguments(model, (1.0, 2.0), {}) != Arguments(model, (1.0,), {})


@pytest.mark.parametrize("name", ["array", "tree", "object", "words"])
def test_copies_share_no_array(name):
    value = SAME[name]()
    arrays = [value] if isinstance(value, np.ndarray) else None
    arrays = arrays or ([value["a"][0]] if name == "tree" else [value.gain])
    copied = private(value)
    before = of(copied)
    arrays[0][...] = 7.0
    assert of(copied) == before
    assert of(value) != before


class Held:
    """Holds an array beside something that cannot be copied."""

    def __init__(self, y):
        self.y, self.lock = y, threading.Lock()


def test_what_cannot_be_copied_is_refused_with_a_way_out():
    """Its array could be filled anew later, and the old answer would come back."""
    with pytest.raises(TypeError, match=r"`?Held.*arrays of NumPy.*jax.numpy.asarray"):
        private({"a": Held(np.ones(2))})
    held = Held(jnp.ones(2))
    assert private(held) is held
    np.testing.assert_array_equal(private(Held(np.ones(2)).y), np.ones(2))


def test_arrays_of_jax_are_read_once():
    y = jnp.arange(3.0)
    first = Arguments(model, (y,), {})
    again = Arguments(model, (y,), {}, first)
    assert again._known[id(y)][1] is first._known[id(y)][1]


# -- arrays from outside --------------------------------------------------------------

OUTSIDE = np.zeros(2)


def with_global():
    return model(OUTSIDE)


def with_closure():
    y = np.zeros(2)

    def closed():
        model(y)

    return closed, y


class Program:
    def __init__(self):
        self.y = np.zeros(2)

    def __call__(self):
        model(self.y)

    def method(self):
        model(self.y)


def reading(kind):
    """A model that reads an array from outside, and the array."""
    program, y = Program(), np.zeros(2)
    return {
        "global": (with_global, OUTSIDE),
        "closure": with_closure(),
        "partial": (partial(model, y=y), y),
        "object": (program, program.y),
        "method": (program.method, program.y),
        "handler": (numpyro.handlers.scope(partial(model, y), prefix="a"), y),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["global", "closure", "partial", "object", "method", "handler"]
)
def test_an_array_from_outside_must_not_change(kind):
    read, y = reading(kind)
    inference = epi.EPI(read, GUIDE, **OPTIONS)
    inference._engine(KEY, (), {})
    inference._engine(KEY, (), {})
    y[:] = 1.0
    for other in (inference, epi.EPI(read, GUIDE, **OPTIONS)):
        with pytest.raises(ValueError, match="which the model reads from outside"):
            other._engine(KEY, (), {})
    # Its advice: the same array as an argument.
    assert likelihood(epi.EPI(model, GUIDE, **OPTIONS), y) == pytest.approx(exact(y))


# -- files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    y = np.zeros(4)
    result = epi.EPI(model, GUIDE, **OPTIONS).run(KEY, y)
    path = tmp_path_factory.mktemp("arguments") / "result.npz"
    y[:] = 5.0  # comes too late
    result.save(path)
    return path


def test_a_file_is_loaded_with_the_arguments_of_the_run(stored):
    zeros = np.zeros(4)
    for given in ({"model_args": (zeros,)}, {"model_kwargs": {"y": zeros}}):
        result = epi.EPIResult.load(stored, model, GUIDE, **given)
        assert result.sample(KEY, 2)["z"].shape == (2,)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((np.ones(4),), {}, "array of shape .4,. as `y`, got .* with other values"),
        ((np.zeros(3),), {}, r"\(4,\) as `y`, got float64 array of shape \(3,\)"),
        ((np.zeros(4), 2.0), {}, "1.0 as `scale`, got 2.0"),
        ((np.zeros(4),), {"scale": 3.0}, "1.0 as `scale`, got 3.0"),
        ((), {}, r"shape \(4,\) as `y`, got none"),
    ],
)
def test_other_arguments_are_named(stored, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        epi.EPIResult.load(stored, model, GUIDE, model_args=args, model_kwargs=kwargs)
