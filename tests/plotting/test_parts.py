# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What figures are made of: names, labels, axes, bounds, and pairs that are chosen."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from numpyro_epi import circuits
from numpyro_epi.plotting._choose import dependence, most_dependent, ranks
from numpyro_epi.plotting._components import components, support_bounds
from numpyro_epi.plotting._grid import view
from numpyro_epi.plotting._labels import (
    Label,
    component_names,
    resolve_labels,
    site_of,
)
from numpyro_epi.plotting._style import STYLE, bin_edges, bulk, check_axes
from plotting.scenes import three

# -- names and labels -----------------------------------------------------------------


def test_component_names():
    assert component_names("g_el", ()) == ["g_el"]
    assert component_names("a", (2,)) == ["a[0]", "a[1]"]
    assert component_names("J", (1, 2)) == ["J[0,0]", "J[0,1]"]


def test_components_follow_the_order_of_the_result():
    parts = components(three())
    assert parts.names == ("a[0]", "a[1]", "scope/b")
    draws = three().draws.latents
    np.testing.assert_allclose(parts.draws[:, 2], draws["scope/b"], rtol=1e-6)
    np.testing.assert_allclose(parts.draws[:, 1], draws["a"][:, 1], rtol=1e-6)


def test_labels_of_components_and_of_sites():
    labels = {"J": ("W", "mV"), "J[0,1]": "across", "b": ["gain"]}
    found = resolve_labels(labels, ["J[0,0]", "J[0,1]", "b"])
    assert [label.axis for label in found.values()] == ["W[0,0] (mV)", "across", "gain"]
    assert resolve_labels(None, ["z"]) == {"z": Label("z")}


def test_density_has_the_inverse_unit():
    units = {"": "density", "mV": "(1/mV)", "1/s": "(s)", "rad/s": "(s/rad)"}
    found = [Label("x", unit).density.removeprefix("density ") for unit in units]
    assert found == list(units.values())


def test_labels_may_name_what_another_figure_draws():
    assert list(resolve_labels({"z": "z", "rate": "rate"}, ["z"])) == ["z"]
    assert list(resolve_labels({"rate": "rate"}, ["z"], known=["rate"])) == ["z"]


@pytest.mark.parametrize("labels", [{"y": "y"}, {"z[0]": "y"}, {"y": "y", "rate": "r"}])
def test_misspelt_label_is_refused(labels):
    with pytest.raises(ValueError, match="got `(y|z\\[0\\])`, while \\['z'\\] have no"):
        resolve_labels(labels, ["z"], known=["rate"])


@pytest.mark.parametrize("labels", ["z", {"z": 1}, {"z": ("z", "mV", "")}, {1: "z"}])
def test_label_of_the_wrong_kind_is_refused(labels):
    with pytest.raises(TypeError, match="`labels`"):
        resolve_labels(labels, ["z"])


CIRCUITS = {
    "colliculus": circuits.colliculus,
    "linear": circuits.linear,
    "rnn": circuits.rnn,
    "stg": circuits.stg,
    "v1": circuits.v1,
}


@pytest.mark.parametrize("name", sorted(CIRCUITS))
def test_ready_circuits_label_all_their_sites_and_nothing_else(name):
    module, shapes = CIRCUITS[name], {}

    def run(key):
        trace = handlers.trace(handlers.seed(module.model, key)).get_trace()
        for site in trace.values():
            if site["type"] in ("sample", "deterministic"):
                shapes[site["name"]] = jnp.shape(site["value"])

    jax.eval_shape(run, jax.random.key(0))
    names = [name for site in shapes for name in component_names(site, shapes[site])]
    labels = module.LABELS
    assert [n for n in names if n not in labels and site_of(n) not in labels] == []
    arguments = set(inspect.signature(module.model).parameters)
    assert set(labels) <= {*names, *shapes, *arguments}
    assert list(resolve_labels(labels, names)) == names


# -- axes -----------------------------------------------------------------------------


def test_axes_that_are_given_are_checked():
    _, axes = plt.subplots(2, 2)
    assert check_axes(axes, 4).shape == (4,)
    assert check_axes(axes[0, 0], 1)[0] is axes[0, 0]
    with pytest.raises(ValueError, match="Expected 3 axes as `ax`.*got 4"):
        check_axes(axes, 3)
    with pytest.raises(TypeError, match="matplotlib axes as `ax`, got 'left'"):
        check_axes("left", 1)


def test_style_leaves_font_sizes_to_the_user():
    assert "font.size" not in STYLE
    sizes = [v for k, v in STYLE.items() if "size" in k]
    assert all(isinstance(size, str) for size in sizes)


PRIORS = {
    "interval": (dist.Uniform(-2, np.array([1.0, 3.0])).to_event(1), [-2, -2], [1, 3]),
    "positive": (dist.LogNormal(0, 1).expand([2]), [0, 0], [np.inf] * 2),
    "unit": (dist.Beta(2, 2), [0], [1]),
    "real": (dist.Normal(0, 1), [-np.inf], [np.inf]),
    "simplex": (dist.Dirichlet(np.ones(3)), [0, 0, 0], [1, 1, 1]),
}


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_bounds_of_supports(name):
    prior, lower, upper = PRIORS[name]
    site = SimpleNamespace(prior=prior, shape=prior.batch_shape + prior.event_shape)
    found = support_bounds(site)
    np.testing.assert_allclose(found[0], lower)
    np.testing.assert_allclose(found[1], upper)


def test_view_is_the_support_or_the_draws():
    draws, none = np.linspace(0.2, 0.8, 2000), np.empty(0)
    np.testing.assert_allclose(view(draws, 0.0, 1.0, none), (-0.05, 1.05))
    low, high = view(draws, -100.0, 100.0, none)  # a small part of the support
    assert -0.1 < low < 0.2
    assert 0.8 < high < 1.1
    low, high = view(draws, -np.inf, np.inf, np.array([3.0, np.nan]))  # a mark
    assert 3.0 < high < 3.5
    low, high = view(np.ones(5), -np.inf, np.inf, none)
    assert low < 1 < high


@pytest.mark.parametrize("num", [10, 1000, 100_000])
def test_bins_hold_all_values_and_are_neither_few_nor_many(num):
    values = np.random.default_rng(0).normal(size=num)
    peaks = np.concatenate([values - 50, values + 50])
    for sample in (values, peaks, np.zeros(num)):
        edges = bin_edges(sample, sample.min() - 1, sample.max() + 1)
        assert 15 <= len(edges) - 1 <= 60
        assert np.histogram(sample, edges)[0].sum() == len(sample)
    # Freedman and Diaconis: 2 x 1.349 / cube root of 1000, of a standard normal.
    if num == 1000:
        assert np.diff(bin_edges(values, -4, 4))[0] == pytest.approx(0.27, abs=0.03)


def test_bulk_leaves_out_outliers_only():
    values = np.random.default_rng(0).normal(size=1000)
    assert bulk(values) == (values.min(), values.max())
    low, high = bulk(np.append(values, 1e6))
    assert low == values.min()
    assert high < 10


# -- pairs that are chosen ------------------------------------------------------------


def shapes(num=4000):
    """Columns 0, 1: a line; 2, 3: a ring; 4, 5: an arc; 6, 7: a cross; 8, 9: nothing.

    The least dependence that they must have is far above chance, 1 / sqrt(4000).
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, 10))
    x[:, 1] = -x[:, 0] + 0.3 * x[:, 1]
    x[:, [2, 3]] /= np.hypot(x[:, 2], x[:, 3])[:, None]
    x[:, 5] = x[:, 4] ** 2 + 0.3 * x[:, 5]
    x[:, 7] = x[:, 6] * np.sign(x[:, 7]) + 0.1 * x[:, 7]
    return x


def test_dependence_sees_lines_rings_arcs_and_crosses():
    found = dependence(shapes())
    np.testing.assert_allclose(found, found.T)
    pairs = {(i, j) for i, j, _ in most_dependent(shapes(), 4)}
    assert pairs == {(0, 1), (2, 3), (4, 5), (6, 7)}
    # Of 40 independent pairs, four correlations each: 5 standard errors, false alarm
    # about 1e-4.
    others = [found[i, j] for i in range(0, 10, 2) for j in range(i + 2, 10)]
    assert max([*others, found[8, 9]]) < 5 / np.sqrt(4000)


def test_correlation_alone_would_miss_them():
    found = np.abs(np.corrcoef(shapes().T))
    assert max(found[2, 3], found[4, 5], found[6, 7]) < 0.1


def test_dependence_is_blind_to_units_and_outliers():
    draws = shapes()
    stretched = np.sign(draws) * np.abs(1e6 * draws) ** 3
    np.testing.assert_allclose(dependence(stretched), dependence(draws), atol=1e-12)


def test_wanted_pairs_come_first():
    assert most_dependent(shapes(), 3, always={(8, 9)})[0][:2] == (8, 9)


def test_constant_columns_depend_on_nothing():
    draws = np.ones((100, 3))
    draws[:, 2] = np.arange(100)
    assert np.all(dependence(draws) == 0)
    assert np.all(dependence(draws[:1]) == 0)


def test_ranks_agree_with_pairwise_comparisons():
    draws = np.random.default_rng(0).integers(0, 5, size=(50, 2)).astype(float)
    smaller = (draws[None] < draws[:, None]).sum(1)
    equal = (draws[None] == draws[:, None]).sum(1)
    expected = smaller + 0.5 * (equal - 1)
    expected = (expected - expected.mean(0)) / expected.std(0)
    np.testing.assert_allclose(ranks(draws), expected)
