# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the diagnostics promise, on results whose truth is known.

Most results here are not trained: a base with the exact law's own moments is a result
with a known gap, and a bound must hold whatever the guide.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro.infer import autoguide, init_to_value

import numpyro_epi as epi
from numpyro_epi import diagnostics
from numpyro_epi._math.convergence import adjusted_p_values
from quadrature import tilt_of
from zoo import ZOO

KEY = jax.random.key(0)
SMALL = {
    "num_particles": 200,
    "num_epochs": 2,
    "num_steps": 40,
    "num_evaluation": 4000,
    "warm_start_size": 4000,
    "progress_bar": False,
}
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(16,))


@cache
def trained(name, num_restarts=1):
    """A short run on a problem of the zoo."""
    options = {**SMALL, "num_restarts": num_restarts}
    return epi.EPI(ZOO[name].model, GUIDE, **options).run(KEY)


# -- the certificate ------------------------------------------------------------------

CHEAP = [name for name in ZOO if name not in ("linear", "product")]
FACTORS = (0.7, 1.0, 1.3)


@pytest.mark.long
@pytest.mark.parametrize("name", CHEAP)
def test_bound_holds_for_any_multipliers(name):
    """`bound >= maximum - 3 s.e.` for 3 multipliers and 20 keys, where s.e. <= 0.03.

    The exact log Z at perturbed multipliers is at least the maximum. At the exact ones
    a Gaussian estimate falls below by 3 s.e. in 0.13% of cases: two of 20 or more in
    2e-4 of tests. A bound of self-normalised flow draws alone fails at once.
    """
    problem, result = ZOO[name], trained(name)
    num_tested, num_failed = 0, 0
    for factor in FACTORS:
        multipliers = {k: factor * v for k, v in problem.multipliers.items()}
        exact = problem.log_normalizer(multipliers)
        assert exact > problem.maximum - 1e-6
        errors = []
        for seed in range(20):
            found = diagnostics.duality_gap_diagnostic(
                result, jax.random.key(seed), 6000, multipliers=multipliers
            )
            if found.bound_error > 0.03 or found.khat > 0.7:
                continue
            num_tested += 1
            slack = 3 * found.bound_error + found.noise_error
            num_failed += found.bound < problem.maximum - slack
            errors.append((found.bound - exact) / found.bound_error)
        if errors and not problem.is_noisy:
            # Standard errors are honest: mean z-scores lie within 5 / sqrt(20).
            assert abs(np.mean(errors)) < 5 / np.sqrt(len(errors))
    assert num_tested >= 20
    assert num_failed <= 1


@cache
def confined(name):
    """A Gaussian guide that starts on one of two modes, and cannot leave it."""
    model = ZOO[name].model

    def guide(model):
        at = {"z": jnp.array(STARTS[name])}
        return autoguide.AutoMultivariateNormal(
            model, init_loc_fn=init_to_value(values=at), init_scale=0.1
        )

    options = {**SMALL, "num_epochs": 10, "num_steps": 150, "warm_start": False}
    return epi.EPI(model, guide, optax.adam(1e-2), **options).run(KEY)


STARTS = {"equal_modes": [1.7, 1.0], "unequal_modes": [2.0, 0.0]}


@pytest.mark.long
@pytest.mark.parametrize("name", list(STARTS))
def test_lost_mode_shows_in_the_gap(name):
    """The kept mode has at most 0.8 of the mass: at least log(1 / 0.8) is lost."""
    problem, result = ZOO[name], confined(name)
    labels = problem.modes(result.draws.latents)
    assert min(labels.mean(), 1 - labels.mean()) < 0.001
    found = diagnostics.duality_gap_diagnostic(
        result, KEY, 20_000, multipliers=problem.multipliers
    )
    assert found.gap > 0.15
    assert found.bound > problem.maximum - 3 * found.bound_error
    # The blind twin: log Z from the guide's own draws, whose weights look perfect.
    draws = result.draws
    log_w = draws.log_prior - draws.log_density
    log_w = log_w + tilt_of(
        problem.expected_deviations(draws.latents), problem.multipliers
    )
    weights = np.exp(log_w - log_w.max())
    blind = log_w.max() + np.log(weights.mean())
    assert blind - found.objective < 0.15
    assert weights.sum() ** 2 / (weights**2).sum() > 0.5 * weights.size


@pytest.mark.long
def test_certificate_of_data_and_property():
    """The likelihood is part of bound and objective; 10,000 draws."""
    problem, result = ZOO["conditional"], trained("conditional")
    found = diagnostics.duality_gap_diagnostic(
        result, KEY, multipliers=problem.multipliers
    )
    assert abs(found.bound - problem.maximum) < 4 * found.bound_error
    assert 0.0 < found.bound_error < 0.1
    expected = np.hypot(found.bound_error, found.objective_error)
    assert found.gap_error == pytest.approx(expected)


@pytest.mark.ci
@pytest.mark.long
def test_noise_is_averaged_and_its_error_stated():
    """32 simulations of each draw; with one, the bound would be 0.6 nats too large."""
    problem, result = ZOO["noisy"], trained("noisy")
    found = diagnostics.duality_gap_diagnostic(
        result, KEY, multipliers=problem.multipliers
    )
    assert 0.0 < found.noise_error < 0.1
    slack = 4 * found.bound_error + found.noise_error
    assert abs(found.bound - problem.maximum) < slack


# -- convergence ----------------------------------------------------------------------


def with_statistics(shift, seed, num=20_000):
    """A result whose stored statistic has a mean violation of `shift` scaled units."""
    result = trained("lognormal")
    (name,) = result.draws.statistics
    table = result.table
    noise = np.random.default_rng(seed).normal(size=num)
    values = table.mean[0] + table.scale[0] * (noise + shift)
    draws = result.draws._replace(statistics={name: values})
    return replace(result, restarts=(replace(result.restarts[0], draws=draws),), best=0)


def test_error_rates_of_the_equivalence_test():
    """At the tolerance at most 5% pass; of exact results nearly all; 300 samples each.

    The variance is exact, so the mean decides. Binomial bounds of 5% by 300: 29 or more
    in 3e-4 of tests. An exact mean fails at 20,000 draws in 4e-4 of cases.
    """
    passed = {
        shift: sum(
            diagnostics.convergence_diagnostic(with_statistics(shift, seed)).is_met[0]
            for seed in range(300)
        )
        for shift in (0.05, 0.06, 0.0)
    }
    assert passed[0.05] <= 28
    assert passed[0.06] <= 5
    assert passed[0.0] >= 295


def test_violation_that_few_draws_hide_is_not_converged():
    """1,000 draws cannot show a tolerance of 0.05: their standard error is 0.03."""
    found = diagnostics.convergence_diagnostic(with_statistics(0.0, 0, num=1000))
    assert not found.converged
    # The published test passes a violation four times the tolerance at 20 draws.
    wrong = with_statistics(0.2, 0)
    published = diagnostics.published_test_diagnostic(wrong, KEY, num_test=20)
    assert published.p_values[0] > 0.025
    assert not diagnostics.convergence_diagnostic(wrong).is_met[0]


def test_published_test_finds_what_it_can():
    assert not diagnostics.published_test_diagnostic(
        with_statistics(1.0, 0), KEY, num_test=100
    ).converged


def test_adjusted_p_values_are_those_of_holm():
    found = adjusted_p_values(np.array([0.01, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(found, [0.04, 0.09, 0.09, 0.5])


# -- restarts -------------------------------------------------------------------------


@pytest.mark.long
def test_restart_without_a_mode_is_named():
    """Restart 1 keeps its draws with a positive coordinate only, and their density."""
    result = trained("equal_modes", num_restarts=2)
    found = diagnostics.restart_diagnostic(result)
    assert found.divergence.shape == (2, 2)
    np.testing.assert_allclose(np.diag(found.divergence), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.diag(found.outside), 0.001, atol=1e-3)
    assert found.missing == ()
    assert found.r_hat["z"].shape == (2,)
    assert (found.r_hat["z"] < 1.05).all()


@pytest.mark.ci
@pytest.mark.long
def test_narrow_restart_lacks_what_the_other_has():
    result = trained("equal_modes", num_restarts=2)
    # The second restart's base is shrunk: its first mixing layer is scaled down.
    narrow = narrowed(result)
    found = diagnostics.restart_diagnostic(narrow)
    assert (0, 1) in found.missing
    assert (1, 0) not in found.missing
    assert found.divergence[0, 1] > 1.0


def narrowed(result):
    """Both restarts trained, the second confined to the mode of positive z."""
    engine = result._engine
    params = jax.tree.map(lambda x: x[1], result.state.average)
    u = np.asarray(result.restarts[0].draws.latents["z"])
    kept = u[u.sum(-1) > 0]
    rows = kept[np.arange(4000) % len(kept)].astype(np.float32)
    start = jax.tree.map(lambda x: x[None], params)
    # The base has a component on each mode, of which a fit does not change the weight.
    start = engine.reweigh(start, rows[None])
    params = engine.fit(start, rows[None], rows[None, :1000], KEY[None], 60, 0.0)[0]
    draws, log_q, _ = engine.chunks.draws(params, KEY[None], 2000)
    average = jax.tree.map(
        lambda a, b: jnp.stack([a[0], b[0]]), result.state.average, params
    )
    second = result.restarts[1]
    second = replace(
        second,
        draws=second.draws._replace(latents={"z": draws[0]}, log_density=log_q[0]),
    )
    return replace(
        result,
        restarts=(result.restarts[0], second),
        state=result.state._replace(average=average),
    )


@pytest.mark.ci
@pytest.mark.long
def test_summary_names_the_restart_that_lacks_a_part(capsys):
    result = trained("equal_modes", num_restarts=2)
    whole = diagnostics.restart_diagnostic(result)
    result.print_summary(restarts=whole)
    assert "no restart lacks a part" in capsys.readouterr().out
    narrow = diagnostics.restart_diagnostic(narrowed(result))
    result.print_summary(restarts=narrow)
    text = capsys.readouterr().out
    assert "restart 1 lacks a part that restart 0 has" in text
    assert "largest r-hat between restarts" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.ci
@pytest.mark.long
def test_one_restart_has_nothing_to_compare():
    with pytest.raises(ValueError, match="num_restarts"):
        diagnostics.restart_diagnostic(trained("gaussian"))


# -- prices ---------------------------------------------------------------------------

PRICED = ["gaussian", "exponential", "lognormal", "gamma"]


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("name", PRICED)
def test_prices_are_the_multipliers_with_honest_errors(name):
    """Within 4.5 standard errors of the exact ones: 1e-5 for each of nine prices."""
    problem = ZOO[name]
    found = diagnostics.shadow_price_diagnostic(trained(name), KEY, 20_000)
    assert found.khat < 0.7
    for site, exact in problem.multipliers.items():
        gap = np.abs(found.mean[site] - exact[0])
        assert (gap < 4.5 * found.mean_error[site] + 1e-3).all()
        if len(exact) == 2:
            gap = np.abs(found.var[site] - exact[1])
            assert (gap < 4.5 * found.var_error[site] + 1e-3).all()


def test_price_is_the_slope_of_the_maximum():
    """Against exact maxima of a Gaussian with targets moved by 1%."""
    result, table = trained("gaussian"), trained("gaussian").table
    found = diagnostics.shadow_price_diagnostic(result, KEY, 40_000)

    def maximum(mean, var):
        return -0.5 * np.sum(var + mean**2 - 1.0 - np.log(var))

    for i in range(2):
        step = np.zeros(2)
        step[i] = 0.01
        slope = maximum(table.mean + step, table.var) - maximum(
            table.mean - step, table.var
        )
        gap = abs(found.mean["level"][i] - slope / 0.02)
        assert gap < 4.5 * found.mean_error["level"][i]


def test_what_if_answers_nearby_targets_and_refuses_far_ones():
    """Exact: a Gaussian with mean 0.6 and variance 0.3 in the first latent."""
    result = trained("gaussian")
    targets = {"level": ([0.6, -1.0], [0.3, 0.49])}
    found = diagnostics.what_if(result, targets, KEY)
    mean, var = np.array([0.6, -1.0]), np.array([0.3, 0.49])
    exact = -0.5 * np.sum(var + mean**2 - 1.0 - np.log(var))
    assert found.is_trusted
    assert found.objective == pytest.approx(exact, abs=0.03)
    z = found.latents["z"]
    np.testing.assert_allclose(z.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(z.var(0), var, atol=0.03)
    np.testing.assert_allclose(
        found.multipliers["level"],
        [-mean, 0.5 * (1 / var - 1)],
        atol=0.05,
    )
    far = diagnostics.what_if(result, {"level": ([9.0, -1.0],)}, KEY)
    assert not far.is_trusted


def test_same_targets_change_nothing():
    result = trained("gaussian")
    found = epi.what_if(result, {"level": (result.table.mean,)}, KEY)
    assert found.change == pytest.approx(0.0, abs=1e-9)


def test_fine_tuning_of_a_gaussian():
    """KL of the exact law 1.0448; the guide of a short run lies within 0.1."""
    found = diagnostics.fine_tuning_diagnostic(trained("gaussian"))
    assert found.divergence == pytest.approx(-ZOO["gaussian"].maximum, abs=0.1)
    assert found.share == pytest.approx(np.exp(-found.divergence))


# -- wrong input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: diagnostics.duality_gap_diagnostic(r, 0), TypeError, "rng_key"),
        (
            lambda r: diagnostics.duality_gap_diagnostic(r, KEY, 10),
            ValueError,
            "num_samples",
        ),
        (
            lambda r: diagnostics.duality_gap_diagnostic(
                r, KEY, multipliers={"other": 1.0}
            ),
            ValueError,
            "multipliers",
        ),
        (
            lambda r: diagnostics.duality_gap_diagnostic(
                r, KEY, multipliers={"level": np.ones(2)}
            ),
            ValueError,
            "level",
        ),
        (lambda r: diagnostics.what_if(r, {"x": (1.0,)}, KEY), ValueError, "`x`"),
        (
            lambda r: diagnostics.what_if(r, {"level": (0.5, -1.0)}, KEY),
            ValueError,
            "positive",
        ),
        (
            lambda r: diagnostics.what_if(r, {"level": (np.ones(3),)}, KEY),
            ValueError,
            "broadcast",
        ),
        (
            lambda r: diagnostics.convergence_diagnostic(r, tolerance=-1.0),
            ValueError,
            "tolerance",
        ),
        (
            lambda r: diagnostics.published_test_diagnostic(r, KEY, alpha=2.0),
            ValueError,
            "alpha",
        ),
    ],
)
def test_wrong_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call(trained("gaussian"))
