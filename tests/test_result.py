# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The distribution that a result is, and the report that it prints."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi import _assemble, _report
from numpyro_epi._math.constraints import ConstraintTable
from small_results import OPTIONS, shaken, trained

KEY = jax.random.key(1)


@pytest.fixture(scope="session")
def result():
    return trained().result


# -- density --------------------------------------------------------------------------


def interval():
    z = numpyro.sample("z", dist.Uniform(-3.0, 5.0))
    epi.emergent_property(z, mean=0.0)


def positive():
    z = numpyro.sample("z", dist.LogNormal(0.0, 0.5))
    epi.emergent_property(z, mean=1.0)


def both():
    x = numpyro.sample("x", dist.Uniform(0.0, 2.0))
    y = numpyro.sample("y", dist.LogNormal(0.0, 0.5))
    epi.emergent_property(x + y, mean=1.0)


def simplex():
    z = numpyro.sample("z", dist.Dirichlet(jnp.array([3.0, 4.0, 5.0])))
    epi.emergent_property(z[0], mean=0.2)


def line(low, high, num=4000):
    """Midpoints of cells on a line, and their size."""
    width = (high - low) / num
    return low + width * (np.arange(num) + 0.5), width


def plane(first, second):
    """Midpoints of cells in a plane, and their size."""
    (x, dx), (y, dy) = first, second
    x, y = np.meshgrid(x, y, indexing="ij")
    return x.ravel(), y.ravel(), dx * dy


def one_latent(cells):
    return {"z": cells[0]}, cells[1]


def two_latents(cells):
    return {"x": cells[0], "y": cells[1]}, cells[2]


def triangle(cells):
    """Simplexes by their first two coordinates: those are its measure."""
    x, y, size = cells
    inside = x + y < 1.0
    x, y = x[inside], y[inside]
    return {"z": np.stack([x, y, 1.0 - x - y], axis=-1)}, size


GRIDS = {
    interval: one_latent(line(-3.0, 5.0)),
    positive: one_latent(line(0.0, 60.0, 20_000)),
    both: two_latents(plane(line(0.0, 2.0, 200), line(0.0, 30.0, 1500))),
    simplex: triangle(plane(line(0.0, 1.0, 300), line(0.0, 1.0, 300))),
}
shaken_cached = cache(shaken)


@pytest.mark.core
@pytest.mark.parametrize("model", GRIDS, ids=lambda model: model.__name__)
def test_log_prob_integrates_to_one_and_is_the_density_of_sample(model):
    result = shaken_cached(model)
    latents, size = GRIDS[model]
    mass = np.exp(np.asarray(result.log_prob(latents), np.float64)) * size
    # Midpoint rules on smooth densities; the flow is in single precision.
    assert mass.sum() == pytest.approx(1.0, abs=3e-3)
    # Sample means against the grid's: 20,000 draws, five standard errors.
    for site, draws in result.sample(KEY, 20_000).items():
        draws = np.asarray(draws, np.float64).reshape(20_000, -1)
        points = latents[site].reshape(len(mass), -1)
        for power in (1, 2):
            exact = mass @ points**power
            error = (draws**power).std(axis=0) / np.sqrt(len(draws))
            gap = np.abs((draws**power).mean(axis=0) - exact)
            assert (gap < 5 * error + 3e-3 * np.abs(exact)).all()


@pytest.mark.core
def test_log_prob_takes_any_leading_axes_and_works_under_jit_and_vmap(result):
    draws = result.sample(KEY, 6)
    flat = result.log_prob(draws)
    assert flat.shape == (6,)
    tree_map = jax.tree.map
    grid = result.log_prob(tree_map(lambda x: x.reshape(2, 3, *x.shape[1:]), draws))
    np.testing.assert_allclose(grid, flat.reshape(2, 3), rtol=1e-5)
    one = result.log_prob(tree_map(lambda x: x[0], draws))
    assert one.shape == ()
    for fn in (jax.jit(result.log_prob), jax.vmap(result.log_prob)):
        np.testing.assert_allclose(fn(draws), flat, rtol=1e-5)


def test_gradient_of_log_prob_agrees_with_differences():
    result = shaken_cached(both)
    x, step = 0.7, 1e-2

    def density(x):
        return result.log_prob({"x": x, "y": 1.3})

    slope = jax.grad(density)(x)
    difference = float(density(x + step) - density(x - step)) / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-2, abs=1e-3)
    assert np.isfinite(jax.hessian(density)(x))


@pytest.mark.parametrize("value", [-3.1, 5.1, -3.0, 5.0, np.inf, np.nan])
def test_log_prob_outside_is_minus_infinity_with_zero_gradient(value):
    result = shaken_cached(interval)
    points = jnp.array([value, 1.0])
    log_prob = result.log_prob({"z": points})
    assert log_prob[0] == -np.inf
    assert np.isfinite(log_prob[1])
    slopes = jax.vmap(jax.grad(lambda z: result.log_prob({"z": z})))(points)
    assert slopes[0] == 0.0
    assert slopes[1] != 0.0
    assert np.isfinite(slopes[1])


def test_stored_density_is_that_of_log_prob(result):
    stored = result.draws
    np.testing.assert_allclose(
        result.log_prob(stored.latents), stored.log_density, atol=2e-3
    )


BAD_LATENTS = [
    ([1.0, 2.0], TypeError, "Expected latents as a mapping"),
    ({"a": np.zeros(2), "b": 1.0}, ValueError, "got `b`"),
    ({"a": np.zeros(2)}, ValueError, "got none at `scope/b`"),
    ({"a": np.zeros(3), "scope/b": 1.0}, ValueError, "at `a`, got"),
    ({"a": np.zeros(()), "scope/b": 1.0}, ValueError, "at `a`, got"),
    ({"a": np.zeros((5, 2)), "scope/b": np.ones(4)}, ValueError, "same leading axes"),
]


@pytest.mark.parametrize(("latents", "kind", "message"), BAD_LATENTS)
def test_log_prob_names_what_is_wrong_with_latents(result, latents, kind, message):
    with pytest.raises(kind, match=message):
        result.log_prob(latents)


# -- draws ----------------------------------------------------------------------------


@pytest.mark.core
def test_sample_has_the_shapes_of_the_sites_and_follows_its_key(result):
    draws = result.sample(KEY, 7)
    assert {k: v.shape for k, v in draws.items()} == {"a": (7, 2), "scope/b": (7,)}
    jax.tree.map(np.testing.assert_array_equal, draws, result.sample(KEY, 7))
    other = result.sample(jax.random.key(2), 7)
    assert not np.array_equal(draws["a"], other["a"])
    legacy = result.sample(jax.random.PRNGKey(1), 7)
    jax.tree.map(np.testing.assert_array_equal, draws, legacy)


BAD_CALLS = [
    ((0, 5), {}, TypeError, "Expected a random key"),
    ((jax.random.split(KEY), 5), {}, TypeError, "Expected a random key"),
    ((KEY, 0), {}, ValueError, "`num_samples`, got 0"),
    ((KEY, 2.0), {}, ValueError, "`num_samples`, got 2.0"),
    ((KEY, True), {}, ValueError, "`num_samples`, got True"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "message"), BAD_CALLS)
@pytest.mark.parametrize("method", ["sample", "predict"])
def test_draws_name_a_wrong_argument(result, method, args, kwargs, kind, message):
    with pytest.raises(kind, match=message):
        getattr(result, method)(*args, **kwargs)


def test_predict_names_a_wrong_batch_size(result):
    with pytest.raises(ValueError, match="`batch_size`, got 0"):
        result.predict(KEY, 5, batch_size=0)


def test_predict_simulates_each_draw_with_noise_of_its_own(result):
    found = result.predict(KEY, 400)
    assert {k: v.shape for k, v in found.items()} == {
        "a": (400, 2),
        "scope/b": (400,),
        "total": (400,),
        "rows": (400, 2, 2),
    }
    np.testing.assert_allclose(found["rows"][:, 0, 0], found["scope/b"], rtol=1e-6)
    np.testing.assert_allclose(found["rows"][:, 1, 1], 10 * found["a"][:, 1], rtol=1e-5)
    noise = found["total"] - found["a"].sum(axis=1)
    # Standard deviation 0.1 from 400 draws: standard error 0.0035.
    assert noise.std() == pytest.approx(0.1, abs=0.018)


def test_predict_runs_no_more_than_a_batch_at_a_time(result):
    watched, sizes = replace(result), []

    def simulate(u, keys):
        sizes.append(len(u))
        return result._compiled_simulate(u, keys)

    vars(watched)["_compiled_simulate"] = simulate
    found = watched.predict(KEY, 50, batch_size=20)
    assert sizes == [17, 17, 17]
    whole = result.predict(KEY, 50)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, whole)


def half_invalid():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    epi.emergent_property(jnp.where(z > 0.0, z, jnp.nan), mean=1.0, name="root")


@pytest.mark.parametrize("on_invalid", ["auto", "mask", "raise"])
def test_predict_leaves_invalid_draws_out_if_they_are_masked(on_invalid):
    found = shaken(half_invalid, on_invalid=on_invalid).predict(KEY, 200)
    is_valid = np.isfinite(found["root"])
    assert len(found["z"]) == len(found["root"])
    if on_invalid != "raise":
        assert is_valid.all()
        assert 0 < len(is_valid) < 200
    else:
        assert len(is_valid) == 200
        np.testing.assert_array_equal(is_valid, found["z"] > 0.0)


# -- what is stored -------------------------------------------------------------------


def test_fields_of_a_result(result):
    num_steps = OPTIONS["num_epochs"] * OPTIONS["num_steps"]
    num_epochs = len(result.history.entropy)
    num_constraints = result.table.num_constraints
    assert len(result.losses) == num_epochs * OPTIONS["num_steps"] >= num_steps
    for name, value in result.history._asdict().items():
        assert value.shape in [(num_epochs,), (num_epochs, num_constraints)], name
        assert np.isfinite(value).all(), name
    shapes = {name: value.shape for name, value in result.multipliers.items()}
    assert shapes == {"total": (2,), "rows": (1, 2, 2)}
    assert len(result.draws.log_density) == OPTIONS["num_evaluation"]
    assert not result.converged
    assert result.multipliers_source == "guide"
    draws = result.draws
    gap = draws.log_density - draws.log_prior
    assert result.divergence == pytest.approx(gap.mean(), abs=1e-4)
    assert result.entropy == pytest.approx(-draws.log_density.mean(), abs=1e-4)
    assert result.restarts[result.best].score == max(r.score for r in result.restarts)


def test_params_serve_the_guide_with_numpyro_tools(result):
    draws = result.guide.sample_posterior(KEY, result.params, sample_shape=(4,))
    assert {k: v.shape for k, v in draws.items()} == {"a": (4, 2), "scope/b": (4,)}


def test_restarts_rank_by_convergence_then_by_score(result):
    restart = result.restarts[0]
    converged = epi.EPIStatus.CONVERGED
    ranked = [
        replace(restart, score=np.nan),
        replace(restart, score=1.0),
        replace(restart, score=2.0),
        replace(restart, status=converged, score=-1.0),
        replace(restart, status=converged, score=0.0),
    ]
    assert sorted(ranked, key=_assemble._rank) == ranked


def test_results_are_compared_as_objects(result):
    assert result == result  # noqa: PLR0124
    assert result != replace(result)
    assert len({result, *result.restarts}) == 1 + len(result.restarts)


# -- reports --------------------------------------------------------------------------


def test_repr_is_one_line(result):
    assert "\n" not in repr(result)
    assert repr(result).startswith("EPIResult(not converged, entropy=")


@pytest.mark.core
def test_summary_shows_constraints_distribution_restarts_and_cost(result, capsys):
    result.print_summary()
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    for label in ("total, mean", "total, variance", "rows[1, 0], mean"):
        (row,) = [line for line in lines if line.startswith(f"  {label} ")]
        i = result.table.statistic_labels.index(label.split(", m")[0].split(", v")[0])
        target = (result.table.var if "variance" in label else result.table.mean)[i]
        assert float(row[len(label) + 2 :].split()[0]) == pytest.approx(target)
    for part in ("entropy", "KL from the prior", "log likelihood", "simulations"):
        assert part in text
    assert "worst violation" in text
    assert f"{result.num_simulations:,}" in text


def test_summary_without_restarts_data_or_failures_leaves_their_lines_out(result):
    restart = result._best
    draws = restart.draws._replace(log_likelihood=0 * restart.draws.log_likelihood)
    text = _report.summary(
        replace(result, restarts=(replace(restart, draws=draws),), best=0)
    )
    for part in ("worst violation", "log likelihood", "cannot be simulated", "skipped"):
        assert part not in text


def test_summary_shows_failures_and_the_estimated_maximum(result):
    skipped = np.full_like(result.history.skipped, 0.25)
    restart = replace(
        result._best,
        invalid=0.125,
        log_normalizer=1.5,
        dual_ess=2000.0,
        multipliers_source="dual",
        history=result.history._replace(skipped=skipped),
    )
    text = _report.summary(replace(result, restarts=(restart,), best=0))
    for part in ("12.50%", "25.00%", "2,000 effective draws", "those of the law"):
        assert part in text


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_summary_says_which_variance_is_more_than_the_mean_alone_leaves(result, sign):
    """Of Gaussians of variance 1 without the factor exp(-lambda f^2)."""
    var = np.array([0.5, 1.0, 2.0])
    table = ConstraintTable.from_targets({"z": ((3,), 0.0, var)})
    exact = (1.0 / var - 1.0) / 2.0
    restart = replace(
        result._best,
        violation=np.zeros(6),
        violation_error=np.ones(6),
        p_values=np.ones(6),
        multipliers={"z": np.stack([np.zeros(3), sign * exact])},
        draws=result.draws._replace(statistics={"z": np.zeros((500, 3))}),
    )
    text = _report.summary(replace(result, table=table, restarts=(restart,), best=0))
    lines = [line for line in text.splitlines() if "mean alone" in line]
    expected = "z[2]: its mean alone leaves a variance of about 1; the target, 2,"
    twin = "z[0]: its mean alone leaves a variance of about 0.33; the target, 0.5,"
    assert len(lines) == 1
    assert (expected if sign > 0 else twin) in lines[0]


@pytest.mark.parametrize("gap", [0.4, 2.3])
def test_a_large_gap_is_pointed_out(result, gap):
    best = result.restarts[result.best]
    restart = replace(best, log_normalizer=best.score + gap, dual_ess=1000.0)
    text = _report.summary(replace(result, restarts=(restart,), best=0))
    assert ("A gap of 2.3 nats is large" in text) == (gap > 1)


def many_constraints(result, num_sites):
    """A result with long names and large numbers at many sites."""
    names = [
        f"a_very_long_name_of_a_statistic_{'x' * 90}_{i}" for i in range(num_sites)
    ]
    mean = np.linspace(-1e9, 1e9, num_sites)
    table = ConstraintTable.from_targets(
        {n: ((), m, 1e-9) for n, m in zip(names, mean, strict=True)}
    )
    rng = np.random.default_rng(0)
    num = table.num_constraints
    restart = replace(
        result._best,
        message=f"The mean of {names[0]} is off.",
        violation=1e5 * rng.normal(size=num),
        violation_error=1e-3 * rng.uniform(size=num),
        p_values=rng.uniform(size=num),
        multipliers={name: 1e7 * rng.normal(size=(2,)) for name in names},
        draws=result.draws._replace(
            statistics={name: 1e9 * rng.normal(size=500) for name in names}
        ),
    )
    return replace(result, table=table, restarts=(restart,) * 2, best=0)


@pytest.mark.parametrize("num_sites", [1, 3, 60])
def test_summary_fits_into_100_columns(result, num_sites):
    text = _report.summary(many_constraints(result, num_sites))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if ", mean " in line or ", variance " in line]
    assert len(rows) == min(2 * num_sites, 40)
    assert ("80 constraints with smaller violations" in text) == (num_sites == 60)
    # The end of a long name, which tells the rows apart, is kept.
    assert len({row[:34] for row in rows}) == len(rows)
