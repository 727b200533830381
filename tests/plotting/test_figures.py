# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of all figures, and what each one draws."""

import doctest
import importlib
from dataclasses import replace
from unittest import mock

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from numpyro_epi import plotting, sensitivity
from numpyro_epi.plotting import (
    plot_bands,
    plot_history,
    plot_mode_path,
    plot_pairs,
    plot_perturbation,
    plot_predictive,
    plot_spectrum,
)
from numpyro_epi.sensitivity import Directions
from plotting.scenes import (
    bands,
    directions,
    line,
    modes,
    normal,
    path,
    perturbation,
    three,
)
from sensitivity_results import gaussian
from small_results import trained

LABELS = {
    "a": ("gain", "mV"),
    "scope/b": ("b", "nS"),
    "total": ("total current", "nA"),
    "rows": ("rate", "Hz"),
    "gamma": ("silencing", ""),
}
# Each function with what it draws, and the number of panels.
FIGURES = {
    "plot_bands": (lambda **kw: plot_bands(bands(), **kw), 1),
    "plot_history": (lambda **kw: plot_history(three(), **kw), 4),
    "plot_mode_path": (lambda **kw: plot_mode_path(path(), three(), **kw), 9),
    "plot_pairs": (lambda **kw: plot_pairs(three(), **kw), 9),
    "plot_perturbation": (lambda **kw: plot_perturbation(perturbation(), **kw), 5),
    "plot_predictive": (lambda **kw: plot_predictive(three(), **kw), 5),
    "plot_spectrum": (lambda **kw: plot_spectrum(directions(), **kw), 2),
}
everything = pytest.mark.parametrize("name", sorted(FIGURES))


def drawn(axes) -> list[Axes]:
    return [ax for ax in np.ravel(axes) if ax is not None]


def handles(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


# -- laws -----------------------------------------------------------------------------


def test_every_function_has_a_row():
    assert sorted(FIGURES) == plotting.__all__


@everything
def test_draws_a_new_figure_and_shows_nothing(name):
    plot, _ = FIGURES[name]
    with mock.patch.object(plt, "show") as show:
        axes = plot(labels=LABELS)
    show.assert_not_called()
    assert isinstance(axes, np.ndarray)
    (number,) = plt.get_fignums()
    assert all(ax.figure is plt.figure(number) for ax in drawn(axes))
    plt.figure(number).canvas.draw()


@everything
def test_draws_on_the_axes_it_is_given(name):
    plot, num = FIGURES[name]
    figure, given = plt.subplots(num, 1, squeeze=False)
    if num == 9:
        plt.close(figure)
        figure, given = plt.subplots(3, 3)
    axes = plot(ax=given)
    assert set(drawn(axes)) <= set(given.ravel())
    assert len(plt.get_fignums()) == 1
    assert all(ax.has_data() for ax in drawn(axes))


@everything
def test_refuses_other_axes_and_labels(name):
    plot, num = FIGURES[name]
    _, given = plt.subplots(1, num + 1)
    with pytest.raises(ValueError, match=f"Expected {num} axes as `ax`"):
        plot(ax=given)
    with pytest.raises(TypeError, match="axes as `ax`, got 3"):
        plot(ax=3)
    plt.close("all")
    with pytest.raises(ValueError, match="got `typo`"):
        plot(labels={"typo": ("gain", "mV")})
    with pytest.raises(TypeError, match="`labels`"):
        plot(labels="gain")
    assert not plt.get_fignums()


def crowded_pairs():
    return plot_pairs(
        three(),
        modes=modes(),
        points={"paper": {"a": [1.0, 1.0], "scope/b": 1.5}},
        directions=directions(),
        contours={("a[0]", "a[1]"): (np.add, [0.0], "a total of zero")},
    )


def many_directions():
    names = [f"x[{k}]" for k in range(20)]
    values, vectors = -np.geomspace(100, 0.01, 20), np.eye(20)
    return Directions(values, vectors, values, np.zeros(20), names, "log", "flow")


# Figures with much text in them.
CROWDED = {
    "bands of nine groups": lambda: plot_bands(bands(9), result=three()),
    "directions of twenty latents": lambda: plot_spectrum(many_directions()),
    "pairs of twelve latents": lambda: plot_pairs(normal(12)),
    "pairs that are chosen": lambda: plot_pairs(normal(13), points={"x": np.ones(13)}),
    "pairs with all marks": crowded_pairs,
    "perturbations and targets": lambda: plot_perturbation(
        {"sensitive": perturbation(), "robust": perturbation(0.1)}, result=three()
    ),
    "predictive of many": lambda: plot_predictive(normal(13)),
    "history of many": lambda: plot_history(normal(13)),
} | {name: lambda plot=plot: plot(labels=LABELS) for name, (plot, _) in FIGURES.items()}


@pytest.mark.parametrize("name", sorted(CROWDED))
def test_texts_stay_within_the_figure_and_do_not_overlap(name):
    figure = drawn(CROWDED[name]())[0].figure
    boxes = text_boxes(figure)
    assert len(boxes) > 5
    assert overlaps(boxes) == []
    (low_x, low_y), (high_x, high_y) = figure.bbox.get_points()
    outside = [
        text
        for text, box in boxes
        if box.x0 < low_x - 1
        or box.x1 > high_x + 1
        or box.y0 < low_y - 1
        or box.y1 > high_y + 1
    ]
    assert outside == []


def test_overlaps_are_seen():
    figure, ax = plt.subplots()
    ax.text(0.5, 0.5, "first")
    ax.text(0.51, 0.5, "second")
    assert overlaps(text_boxes(figure)) == [("first", "second")]


def text_boxes(figure):
    """Visible texts of a figure, with their boxes in pixels."""
    figure.canvas.draw()
    hidden = {id(text) for ax in figure.findobj(Axes) for text in hidden_texts(ax)}
    return [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def hidden_texts(ax):
    """Texts of axes without a frame, and labels of ticks that are out of view."""
    if not ax.axison:
        yield from (ax.xaxis.label, ax.yaxis.label)
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        pad = 1e-9 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not ax.axison or not low - pad <= tick.get_loc() <= high + pad:
                yield from (tick.label1, tick.label2)


def overlaps(boxes):
    return [
        (a, b)
        for k, (a, first) in enumerate(boxes)
        for b, second in boxes[k + 1 :]
        if first.padded(-1).overlaps(second.padded(-1))
    ]


@pytest.mark.parametrize(
    "module",
    ["_curves", "_history", "_mode_path", "_pairs", "_predictive", "_spectrum"],
)
def test_examples_run_as_printed(module):
    module = importlib.import_module(f"numpyro_epi.plotting.{module}")
    needed = {
        "result": three(),
        "path": path(),
        "perturbation": perturbation(),
        "bands": bands(),
        "directions": directions(),
    }
    failed, attempted = doctest.testmod(module, extraglobs=needed)
    assert attempted > 1
    assert failed == 0


@pytest.mark.parametrize(
    "plot", [plot_pairs, plot_history, plot_predictive], ids=lambda plot: plot.__name__
)
def test_refuses_what_is_not_a_result(plot):
    with pytest.raises(TypeError, match="`EPIResult`, as `EPI.run` returns it"):
        plot({"a": 1.0})


@pytest.mark.ci
@pytest.mark.long
def test_draws_what_the_analyses_of_a_run_return():
    result, key = gaussian(), jax.random.key(0)
    at = {"z": result.draws.latents["z"].mean(axis=0)}
    found = sensitivity.directions(result, at)
    along = sensitivity.perturb(result, at, found.vectors[0], [-0.1, 0.0, 0.1], key)
    modes_found = sensitivity.find_modes(result, key, num_starts=8)
    modes_path = sensitivity.conditional_modes(result, "z[0]", [0.5, 1.0, 1.5])
    groups = sensitivity.group_by_mode(result, modes_path, key, num_per_group=5)
    changed = sensitivity.intervene(
        groups, [0.5, 1.0], key, argument="gain", result=result
    )
    labels = {"z": ("z", "mV"), "f": ("f", "Hz")}
    pairs = plot_pairs(result, modes=modes_found, directions=found, labels=labels)
    assert pairs[1, 0].get_xlabel() == "z[0] (mV)"
    assert len(plot_spectrum(found, labels=labels)) == 2
    (first, _) = plot_perturbation(along, result=result, labels=labels)
    assert first.get_xlabel() == "distance along the direction (mV)"
    assert plot_mode_path(modes_path, result, labels=labels).shape == (2, 2)
    (first, _) = plot_bands(changed, result=result, labels=labels)
    assert [one.get_label() for one in first.lines][1:] == list(changed.names)


@pytest.mark.ci
@pytest.mark.long
def test_draws_the_result_of_a_run():
    result = trained().result
    names = {"a[0]", "a[1]", "scope/b"}
    bottom = plot_pairs(result)[-1]
    assert {ax.get_xlabel() for ax in bottom} == names
    assert len(plot_history(result)) == 4
    assert len(plot_predictive(result)) == 5


@pytest.mark.parametrize(
    ("plot", "source"),
    [
        (plot_bands, "intervene"),
        (plot_mode_path, "conditional_modes"),
        (plot_perturbation, "perturb"),
        (plot_spectrum, "directions"),
    ],
)
def test_refuses_what_another_function_made(plot, source):
    with pytest.raises(TypeError, match=f"what `sensitivity.{source}` returns"):
        plot(modes())


# -- pairs ----------------------------------------------------------------------------


def test_pairs_show_draws_bounds_and_labels():
    axes = plot_pairs(three(), labels=LABELS, max_draws=300)
    assert [[ax is not None for ax in row] for row in axes] == np.tri(3).tolist()
    cloud = axes[2, 0].collections[0]
    draws = three().draws
    assert len(cloud.get_offsets()) == 300
    order = np.argsort(draws.log_density[:300])
    x, y = draws.latents["a"][order, 0], draws.latents["scope/b"][order]
    np.testing.assert_allclose(cloud.get_offsets(), np.stack([x, y], 1), rtol=1e-6)
    np.testing.assert_allclose(cloud.get_array(), draws.log_density[order])
    bounds = sorted(one.get_xdata()[0] for one in axes[1, 0].lines)
    assert bounds == [-2, 0, 0, 2]  # two upright; two level lines go from 0 to 1
    assert axes[1, 0].get_xlim() == pytest.approx((-2.2, 2.2))
    assert axes[2, 0].get_ylabel() == "b (nS)"
    assert axes[2, 1].get_xlabel() == "gain[1] (mV)"
    texts = [text.get_text() for text in axes[0, 0].figure.findobj(Text)]
    assert "300 of 500 draws\ngrey lines: bounds" in texts
    assert "log density (nats)" in texts


def test_pairs_mark_modes_points_and_directions():
    points = {"paper": {"a": [1.0, 1.0], "scope/b": 1.5}}
    axes = plot_pairs(three(), modes=modes(), points=points, directions=directions())
    ax = axes[1, 0]
    marks = {one.get_marker(): one.get_xydata() for one in ax.lines if one.get_ls()}
    np.testing.assert_allclose(marks["*"], [[0.2, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(marks["s"], [[-2.0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(marks["D"], [[0.5, -0.9]], rtol=1e-6)
    np.testing.assert_allclose(marks["o"], [[1.0, 1.0]], rtol=1e-6)
    # 1 / sqrt(16) along (0.6, 0.8); the other direction leaves this plane.
    (arrow,) = ax.texts
    np.testing.assert_allclose(arrow.xyann, (0.2, 0.2))
    np.testing.assert_allclose(arrow.xy, (0.2 + 0.25 * 0.6, 0.2 + 0.25 * 0.8))
    # 1 / sqrt(0.001) is longer than the panel, of which it keeps 45%.
    tips = [text.xy for text in axes[2, 0].texts]
    height = np.ptp(axes[2, 0].get_ylim())
    np.testing.assert_allclose(tips[1], (0.2, 1.0 + 0.45 * height))


def test_arrows_of_another_length_would_be_seen():
    ax = plot_pairs(three(), directions=directions(eigenvalues=[-4, -2, -1]))[1, 0]
    (arrow,) = ax.texts
    assert not np.allclose(arrow.xy, (0.2 + 0.25 * 0.6, 0.2 + 0.25 * 0.8))


def test_arrows_have_the_length_of_the_law_that_they_are_of():
    ax = plot_pairs(three(), directions=directions(of="tilted"))[1, 0]
    (arrow,) = ax.texts
    length = np.hypot(*(np.array(arrow.xy) - 0.2))
    tilted = -directions().tilted_eigenvalues[0]
    assert length == pytest.approx(tilted**-0.5)
    assert tilted**-0.5 != pytest.approx((-directions().eigenvalues[0]) ** -0.5)


def test_contours_lie_where_the_function_has_its_levels():
    pair = ("a[1]", "a[0]")  # the panel has a[0] on its abscissa
    contours = {pair: (lambda x, y: x + 2 * y, [-1.0, 0.0, 1.0], "levels")}
    axes = plot_pairs(three(), contours=contours)
    drawn_set = axes[1, 0].collections[-1]
    for level, segments in zip([-1.0, 0.0, 1.0], drawn_set.get_paths(), strict=True):
        a0, a1 = segments.vertices.T
        np.testing.assert_allclose(a1 + 2 * a0, level, atol=1e-6)
    assert handles(corner(axes)) == ["levels"]


def corner(axes):
    """The cell at the top right, which holds the key."""
    return axes[0, 0].figure.axes[axes.shape[0] - 1]


def test_single_axes_show_one_pair():
    _, ax = plt.subplots()
    axes = plot_pairs(three(), latents=["scope/b", "a[1]"], modes=modes(), ax=ax)
    assert axes.shape == (1, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("scope/b", "a[1]")
    assert "mode on a ridge" in handles(ax)


def test_one_latent_has_its_density():
    (ax,) = plot_pairs(line(), labels={"z": ("z", "mV")}, points={"z": 0.5}).ravel()
    z, density = max((one.get_xydata() for one in ax.lines), key=len).T
    np.testing.assert_allclose(
        density, np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), rtol=1e-5
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z (mV)", "density (1/mV)")
    area = sum(bar.get_height() * bar.get_width() for bar in ax.patches)
    assert area == pytest.approx(1.0)


def test_of_many_latents_the_most_structured_pairs_are_shown():
    axes = plot_pairs(normal(13))
    assert axes.shape == (9,)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("x[2]", "x[7]")
    assert "9 of 78 pairs of 13 latents" in axes[0].figure.get_suptitle()
    assert plot_pairs(normal(4), max_latents=4).shape == (4, 4)
    assert plot_pairs(normal(4), max_latents=3).shape == (6,)


def test_pairs_with_contours_are_among_the_chosen():
    contours = {("x[5]", "x[1]"): (np.add, [0.0])}
    axes = plot_pairs(normal(13), contours=contours)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("x[1]", "x[5]")


BAD_PAIRS = [
    ({"latents": "a"}, TypeError, "list of names as `latents`, got 'a'"),
    ({"latents": ["c"]}, ValueError, "as `latents`, got `c`"),
    ({"latents": []}, ValueError, "at least one name as `latents`"),
    ({"max_latents": 0}, ValueError, "as `max_latents`, got 0"),
    ({"max_draws": 2.5}, ValueError, "as `max_draws`, got 2.5"),
    ({"points": [1.0]}, TypeError, "as `points`"),
    ({"points": {"c": 1.0}}, ValueError, "got `c`"),
    ({"points": {"a": [1.0], "scope/b": 1.0}}, ValueError, "at `a`"),
    ({"modes": 3}, TypeError, "what `sensitivity.find_modes` returns as `modes`"),
    ({"directions": modes()}, TypeError, "has no `vectors`"),
    (
        {"directions": directions(coordinates="log")},
        ValueError,
        "constrained coordinates.*got 'log'",
    ),
    ({"directions": directions(names=("x",))}, ValueError, "`directions` of this res"),
    ({"contours": [1]}, TypeError, "as `contours`"),
    ({"contours": {("a[0]", "c"): (np.add, [0])}}, ValueError, "in `contours`, got"),
    ({"contours": {("a[0]", "a[1]"): [0]}}, TypeError, "in `contours` for"),
    (
        {"contours": {("a[0]", "a[1]"): (np.add, [9.0])}},
        ValueError,
        "Expected levels between -4 and 4",
    ),
    (
        {"contours": {("a[0]", "a[1]"): (lambda x, y: x * np.nan, [0])}},
        ValueError,
        "finite values in view, got none",
    ),
    (
        {"contours": {("a[0]", "a[1]"): (lambda x, y: 1.0, [0])}},
        ValueError,
        "the shape of its arguments",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_PAIRS)
def test_pairs_refuse_bad_input_and_leave_no_figure(options, error, message):
    with pytest.raises(error, match=message):
        plot_pairs(three(), **options)
    assert not plt.get_fignums()


# -- history --------------------------------------------------------------------------


def test_history_shows_tolerance_and_values():
    entropy, violation, multipliers, penalty = plot_history(three(), max_entropy=2.5)
    history = three().history
    curves = {one.get_label(): one.get_ydata() for one in entropy.lines}
    np.testing.assert_allclose(curves["entropy"], history.entropy)
    np.testing.assert_allclose(curves["maximum, 2.50"], 2.5)
    final = three().table.scaled_multipliers(three().multipliers)
    expected = history.entropy - history.violation @ final
    np.testing.assert_allclose(curves["corrected for violations"], expected)
    band = violation.patches[0]
    assert (band.get_y(), band.get_height()) == pytest.approx((-0.05, 0.1))
    assert handles(violation)[0] == "tolerance, 0.05"
    assert "variance of total" in handles(multipliers)
    assert penalty.get_yscale() == "log"
    assert penalty.get_xlabel() == "epoch"


def test_history_of_many_constraints_shows_the_largest():
    (ax,) = plot_history(normal(13), panels=["violation"])
    final = np.abs(normal(13).history.violation[-1])
    assert len(handles(ax)) == 9  # eight and the tolerance
    shown = [bars[0].get_ydata()[-1] for bars in ax.containers]
    np.testing.assert_allclose(sorted(np.abs(shown)), np.sort(final)[-8:])
    assert "8 of 26" in ax.get_title()


@pytest.mark.parametrize("panels", [["entropies"], [], "violations"])
def test_history_refuses_unknown_panels(panels):
    with pytest.raises(ValueError, match="`panels`"):
        plot_history(three(), panels=panels)


def test_history_refuses_panels_of_the_wrong_kind():
    with pytest.raises(TypeError, match="list of names as `panels`, got 3"):
        plot_history(three(), panels=3)


def test_history_refuses_a_maximum_that_is_no_number():
    with pytest.raises(TypeError, match="a number as `max_entropy`, got 'high'"):
        plot_history(three(), max_entropy="high")


# -- predictive -----------------------------------------------------------------------


def test_predictive_draws_targets_and_achieved_values():
    (ax,) = plot_predictive(three(), statistics=["total"], labels=LABELS)
    values = three().draws.statistics["total"]
    target, achieved = (bars.lines for bars in ax.containers[1:])
    for (centre, _, (bar,)), mean, sd in (
        (target, 0.5, 0.5),
        (achieved, values.mean(), values.std()),
    ):
        assert centre.get_xdata()[0] == pytest.approx(mean)
        ends = bar.get_segments()[0][:, 0]
        np.testing.assert_allclose(ends, [mean - sd, mean + sd])
    assert ax.get_xlabel() == "total current (nA)"
    assert handles(ax)[0] == "target: 0.50 $\\pm$ 0.50"
    area = sum(bar.get_height() * bar.get_width() for bar in ax.patches)
    assert area == pytest.approx(1.0)
    assert len(handles(ax)) == 2


def with_total(change):
    """`three` with another total of the first draws."""
    total = three().draws.statistics["total"].copy()
    total[: len(change)] = change
    statistics = three().draws.statistics | {"total": total}
    draws = three().draws._replace(statistics=statistics)
    return replace(three(), restarts=(replace(three().restarts[0], draws=draws),))


def test_predictive_counts_draws_that_it_does_not_show():
    result = with_total([1e3, -1e3, np.nan, np.inf, np.nan])
    total = plot_predictive(result, statistics=["total"])[0]
    assert total.get_xlim()[1] < 10
    assert handles(total)[2:] == ["(2 draws beyond the axis)", "(3 draws not finite)"]


def test_predictive_refuses_a_statistic_without_finite_values():
    with pytest.raises(ValueError, match="finite values of the statistic `total`"):
        plot_predictive(with_total(np.full(500, np.nan)))
    assert not plt.get_fignums()


def test_predictive_without_a_target_variance_has_no_target_bar():
    axes = plot_predictive(three(), statistics=["rows"])
    assert [ax.get_xlabel() for ax in axes][:2] == ["rows[0,0]", "rows[0,1]"]
    assert handles(axes[2])[0] == "target: 10.0"


def test_predictive_of_many_statistics_shows_the_largest_violations():
    axes = plot_predictive(normal(13))
    assert len(axes) == 12
    worst = np.abs(three().restarts[0].violation).max()
    assert worst > 0
    assert "12 of 13" in axes[0].figure.get_suptitle()
    violation = np.abs(normal(13).restarts[0].violation).reshape(2, 13).max(axis=0)
    assert axes[0].get_xlabel() == f"f[{np.argmax(violation)}]"


@pytest.mark.parametrize(
    ("statistics", "error"),
    [("total", TypeError), (["all"], ValueError), ([], ValueError)],
)
def test_predictive_refuses_unknown_statistics(statistics, error):
    with pytest.raises(error, match="`statistics`"):
        plot_predictive(three(), statistics=statistics)


# -- mode paths -----------------------------------------------------------------------


def test_path_lies_over_the_draws_and_shows_what_did_not_converge():
    axes = plot_mode_path(path(), three(), labels=LABELS)
    draws, dots = axes[1, 0].collections
    assert len(draws.get_offsets()) == 500
    np.testing.assert_allclose(dots.get_offsets(), path().points[:, :2])
    assert dots.get_facecolors()[-1].tolist() == [1, 1, 1, 1]
    assert len(np.unique(dots.get_facecolors(), axis=0)) == 5
    assert handles(corner(axes)) == ["conditional mode", "did not converge"]
    texts = [text.get_text() for text in axes[0, 0].figure.findobj(Text)]
    assert "gain[0] (mV), held" in texts


def test_path_without_a_result_has_no_draws():
    axes = plot_mode_path(path(), latents=["a[0]", "a[1]"])
    (dots,) = axes[1, 0].collections
    assert len(dots.get_offsets()) == 5
    low, high = axes[1, 0].get_xlim()
    assert low < -1 < 1 < high


def test_path_of_many_latents_shows_those_that_move_most():
    values = np.linspace(-1.0, 1.0, 5)
    points = values[:, None] * np.where(np.arange(20) % 4 == 3, 0.5, 0.01)
    points[:, 0] = values
    names = tuple(f"x[{k}]" for k in range(20))
    one = path(component="x[0]", points=points, names=names)
    axes = plot_mode_path(one, normal(20))
    shown = [ax.get_xlabel() for ax in axes[-1]]
    assert shown == ["x[0]", *(f"x[{k}]" for k in (3, 7, 11, 15, 19))]
    assert "6 of 20 latents" in axes[0, 0].figure.get_suptitle()
    assert plot_mode_path(one, latents=list(names[:13])).shape == (13, 13)


def test_path_refuses_bad_input():
    with pytest.raises(ValueError, match="at least two components as `latents`, got 1"):
        plot_mode_path(path(), latents=["a[0]"])
    with pytest.raises(ValueError, match="`path` of this result"):
        plot_mode_path(path(), line())
    with pytest.raises(ValueError, match="at least one value"):
        plot_mode_path(path(points=np.empty((0, 3))))


# -- curves ---------------------------------------------------------------------------


def test_perturbations_have_bands_and_targets():
    curves = {"sensitive": perturbation(), "robust": perturbation(0.1)}
    axes = plot_perturbation(curves, result=three(), labels=LABELS)
    total = axes[0]
    found = {one.get_label(): one.get_ydata() for one in total.lines}
    np.testing.assert_allclose(found["sensitive"], 0.5 + curves["sensitive"].deltas)
    np.testing.assert_allclose(found["target $\\pm$ sd"], 0.5)
    band = next(p for p in total.patches)
    assert (band.get_y(), band.get_height()) == pytest.approx((0.0, 1.0))
    low, high = total.collections[0].get_paths()[0].get_extents().intervaly
    np.testing.assert_allclose((low, high), (0.0 - 0.1, 1.0 + 0.1))  # 2 standard errors
    assert total.get_ylabel() == "total current (nA)"
    assert axes[4].get_ylabel() == "rate[1,1] (Hz)"
    legend = total.figure.legends[0]
    assert [t.get_text() for t in legend.get_texts()][1:] == list(curves)


def test_distances_have_the_unit_of_all_latents_that_move():
    units = {"a": ("gain", "mV"), "scope/b": ("b", "nS")}
    alike = plot_perturbation(perturbation(), labels=LABELS | units)
    assert alike[0].get_xlabel() == "distance along the direction (mV)"
    mixed = perturbation(direction=np.array([0.6, 0.0, 0.8]))
    for shown in (mixed, {"first": perturbation(), "second": mixed}):
        axes = plot_perturbation(shown, labels=LABELS | units)
        assert axes[0].get_xlabel() == "distance along the direction"


def test_perturbations_refuse_bad_input():
    with pytest.raises(ValueError, match="at least one perturbation"):
        plot_perturbation({})
    other = perturbation(
        statistics={"total": np.zeros(7)}, standard_errors={"total": np.zeros(7)}
    )
    with pytest.raises(ValueError, match="same statistics.*in 'second'"):
        plot_perturbation({"first": perturbation(), "second": other})
    with pytest.raises(ValueError, match="at least one statistic in `perturbations`"):
        plot_perturbation(perturbation(statistics={}))
    with pytest.raises(TypeError, match="as `perturbations\\['first'\\]`"):
        plot_perturbation({"first": bands()})
    with pytest.raises(TypeError, match="`EPIResult`"):
        plot_perturbation(perturbation(), result=3)


def test_bands_have_a_line_and_a_band_for_each_group():
    groups = ["regime 1", "regime 2"]
    (ax,) = plot_bands(bands(), groups=groups, labels=LABELS)
    lines = {one.get_label(): one.get_ydata() for one in ax.lines}
    np.testing.assert_allclose(lines["regime 2"], bands().mean["total"][1])
    low, high = ax.collections[1].get_paths()[0].get_extents().intervaly
    np.testing.assert_allclose((low, high), (-0.5 - 0.2, 0.5 + 0.2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("silencing", "total current (nA)")


def test_bands_know_their_groups_and_the_labels_of_latents():
    """One mapping serves all figures, also where it names what is not drawn."""
    labels = {"a": ("gain", "mV"), "scope/b": "b", "total": "total"}  # not gamma
    (ax,) = plot_bands(bands(), labels=labels)
    assert [one.get_label() for one in ax.lines] == ["group 0", "group 1"]
    with pytest.raises(ValueError, match="got `typo`"):
        plot_bands(bands(), labels=labels | {"typo": "t"})


@pytest.mark.parametrize("num", [2, 7, 9])
def test_groups_differ_in_colour_and_in_greyscale(num):
    (ax,) = plot_bands(bands(num))
    looks = {(one.get_marker(), str(one.get_linestyle())) for one in ax.lines}
    assert len({str(one.get_color()) for one in ax.lines}) == num
    assert len(looks) == num


@pytest.mark.parametrize("groups", [["one"], "ab"])
def test_bands_refuse_other_numbers_of_groups(groups):
    with pytest.raises(ValueError, match="Expected 2 names as `groups`"):
        plot_bands(bands(), groups=groups)


def test_bands_refuse_to_be_empty():
    with pytest.raises(ValueError, match="at least one statistic in `bands`"):
        plot_bands(bands(mean={}))


# -- spectra --------------------------------------------------------------------------


def test_spectrum_shows_both_curvatures_and_the_vectors():
    values, vectors = plot_spectrum(directions(), labels=LABELS)
    found = {one.get_label(): one.get_ydata() for one in values.lines}
    np.testing.assert_allclose(found["log q"], directions().eigenvalues)
    tilted = directions().tilted_eigenvalues
    np.testing.assert_allclose(found["tilted density"], tilted)
    assert values.get_yscale() == "symlog"
    names = [tick.get_text() for tick in vectors.get_yticklabels()]
    assert names == ["gain[0]", "gain[1]", "b"]
    # A direction to a column.
    table = np.asarray(vectors.images[0].get_array())
    np.testing.assert_allclose(table[:, 0], directions().vectors[0])
    assert {"0.60", "\N{MINUS SIGN}0.60"} <= {t.get_text() for t in vectors.texts}


def test_spectrum_of_several_points_shows_all_and_the_median():
    scales = np.array([1.0, 2.0, 4.0])[:, None]
    many = directions(
        eigenvalues=scales * directions().eigenvalues,
        tilted_eigenvalues=scales * directions().tilted_eigenvalues,
        vectors=np.stack([directions().vectors] * 3) * [[[1]], [[-1]], [[1]]],
    )
    values, vectors = plot_spectrum(many)
    medians = values.collections[0].get_segments()
    expected = 2 * directions().eigenvalues
    np.testing.assert_allclose([line[0, 1] for line in medians], expected)
    table = np.asarray(vectors.images[0].get_array())
    np.testing.assert_allclose(table.T, np.abs(directions().vectors))


def test_spectrum_without_the_tilted_density_does_not_name_it():
    nothing = np.full(3, np.nan)
    values, _ = plot_spectrum(directions(tilted_eigenvalues=nothing))
    (legend,) = values.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["log q"]
    legend = plot_spectrum(directions())[0].figure.legends[0]
    assert len(legend.get_texts()) == 2


def test_spectrum_refuses_other_shapes():
    with pytest.raises(ValueError, match="eigenvalues \\(..., 3\\)"):
        plot_spectrum(directions(eigenvalues=np.ones(2)))
