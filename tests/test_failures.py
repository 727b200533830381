# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Simulations that fail, now and then or often: left out, told of, or refused."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import numpyro_epi as epi
from numpyro_epi._model.problem import Problem
from numpyro_epi._train import failures
from numpyro_epi._train.failures import Failures, exceeds, show_share
from numpyro_epi._train.gate import gated
from numpyro_epi._train.step import linearised, mask_invalid

KEY = jax.random.key(0)
SMALL = {
    "num_particles": 100,
    "num_epochs": 2,
    "num_steps": 20,
    "num_evaluation": 2000,
    "warm_start_size": 2000,
    "progress_bar": False,
}
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(10,))


def fails_for(share, mean=0.5, var=0.8, name="rate"):
    """A Gaussian of which the upper tail fails; derivatives there are NaN as well."""
    edge = norm.isf(share)

    def model():
        z = numpyro.sample("z", dist.Normal())
        epi.emergent_property(
            z + 0.0 * jnp.sqrt(edge - z), mean=mean, var=var, name=name
        )

    return model


def exact_entropy(share, mean=0.5, var=0.8):
    """Of the tilted prior restricted to where it can be simulated, by quadrature."""
    x = np.linspace(-8.0, norm.isf(share), 40_001)
    devs, lam = np.stack([x - mean, (x - mean) ** 2 - var]), np.zeros(2)
    for _ in range(100):  # Newton on the dual
        w = np.exp(-(x**2) / 2 - lam @ devs)
        w /= w.sum()
        centred = devs - (devs @ w)[:, None]
        lam += np.linalg.solve((centred * w) @ centred.T, devs @ w)
    inside = w > 0
    return -(w[inside] * np.log(w[inside] / (x[1] - x[0]))).sum()


# -- how many are too many ------------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "total", "expected"),
    [
        (0, 100, False),
        (100, 2000, False),  # 5%
        (125, 2000, False),  # 6.2%: 2.6 standard errors
        (130, 2000, True),  # 6.5%: 3.1
        (1000, 20_000, False),
        (1100, 20_000, True),  # 5.5%: 3.2
        (100, 100, True),
    ],
)
def test_a_share_is_beyond_five_percent_by_three_errors(num, total, expected):
    assert exceeds(num, total) == expected


def test_five_percent_is_not_refused_by_chance():
    """4,000 tries at 5%: three errors refuse about 0.13%, none (the twin) half."""
    counts = np.random.default_rng(0).binomial(2000, 0.05, 4000)
    assert np.mean([exceeds(n, 2000) for n in counts]) < 0.005
    assert np.mean(counts / 2000 > 0.05) > 0.4


def test_shares_are_told_from_zero():
    assert show_share(0, 2000) == "none of 2,000 draws invalid (below 0.15% with 95%)"
    assert show_share(1, 2000) == "1 of 2,000 draws invalid (0.05%)"


def note(found, num_failed, num):
    problem = Problem(fails_for(0.1), (), {}, KEY)
    is_valid = np.arange(num)[None] >= num_failed
    stats = np.where(is_valid, 1.0, np.nan)[..., None]
    u = np.full((1, num, 1), 3.5)
    return found.note(problem, problem.table, u, stats, is_valid)


def test_rare_failures_are_told_once():
    found = note(Failures("auto"), 1, 2000)  # few simulations: not yet
    with pytest.warns(RuntimeWarning, match=r"`rate`.*8 of 22,000.*z = 3\.5") as caught:
        found = note(found, 7, 20_000)
    found = note(found, 7, 20_000).tell()
    assert len(caught) == 1
    assert (found.num, found.num_seen) == (15, 42_000)


@pytest.mark.parametrize("policy", ["mask", "auto"])
def test_no_warning_where_it_is_masked_or_nothing_fails(policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = note(Failures(policy), 3 if policy == "mask" else 0, 20_000).tell()
    assert found.num == (3 if policy == "mask" else 0)


def test_the_share_is_measured_where_the_run_now_draws(monkeypatch):
    """The twin, a share of all simulations, would go on for ever."""

    def drift():
        found = Failures("auto", has_told=True)
        for _ in range(10):
            found = note(found, 0, 10_000)
        for _ in range(2):
            found = note(found, 700, 10_000)
        return found

    with pytest.raises(epi.InvalidStatisticError, match=r"7\.00%.*at most 5%") as err:
        drift()
    assert err.value.share == pytest.approx(0.07)
    monkeypatch.setattr(failures, "WINDOW", 10**9)
    assert drift().num == 1400


def test_the_first_one_is_refused_if_asked_for():
    with pytest.raises(epi.InvalidStatisticError, match="`rate`"):
        note(Failures("raise"), 1, 20_000)


def test_where_all_fail_masking_is_no_way_out():
    for policy in ("auto", "mask", "raise"):
        with pytest.raises(epi.InvalidStatisticError, match="move the priors"):
            note(Failures(policy), 100, 100)


# -- gradients ------------------------------------------------------------------------


def poisoned(z):
    """Finite everywhere, without a derivative above 1.5."""
    return z + 0.0 * jnp.sqrt(jnp.maximum(1.5 - z, 0.0))


def simulators():
    """A Gaussian that fails above 2; and one whose derivative does above 1.5."""

    def model(bad_slope):
        z = numpyro.sample("z", dist.Normal())
        x = poisoned(z) if bad_slope else z
        epi.emergent_property(x**2 + 0.0 * jnp.sqrt(2.0 - z), mean=0.5)

    return [Problem(model, (flag,), {}, KEY).simulate for flag in (False, True)]


def slopes(simulate, places):
    """Derivative of the sum of the valid statistics at each place."""
    keys = jax.random.split(KEY, len(places))

    def total(u):
        sim, _ = mask_invalid(jax.vmap(simulate)(u, keys))
        return sim.stats.sum()

    return np.asarray(jax.grad(total)(places[:, None]))[:, 0]


MODES = {"reverse": gated, "forward": lambda f: linearised(f, 1)}


@pytest.mark.parametrize("mode", MODES)
def test_a_failure_does_not_poison_the_gradients_of_others(mode):
    plain, _ = simulators()
    places = jnp.array([-1.0, 0.5, 3.0])
    found = slopes(MODES[mode](plain), places)
    np.testing.assert_allclose(found, [-2.0, 1.0, 0.0], rtol=1e-5)
    # The twin: zero times a derivative that is not a number.
    assert np.isnan(slopes(plain, places)[2])


def test_a_missing_derivative_still_shows():
    _, bad = simulators()
    found = slopes(gated(bad), jnp.array([-1.0, 1.5, 3.0]))
    assert not np.isfinite(found[1])
    assert np.isfinite(found[[0, 2]]).all()


# -- runs -----------------------------------------------------------------------------


def run(model, key=KEY, **options):
    return epi.EPI(model, GUIDE, **{**SMALL, **options}).run(key)


@pytest.fixture(scope="module")
def rare():
    with pytest.warns(RuntimeWarning, match="left out") as caught:
        result = run(
            fails_for(0.01), warm_start=False, num_epochs=1, stat_gradient="score"
        )
    return result, [w for w in caught if "left out" in str(w.message)]


def test_rare_failures_are_left_out(rare, capsys):
    result, told = rare
    assert len(told) == 1
    assert result.masks_invalid
    assert result.num_invalid > 0
    assert result.history.skipped.max() == 0.0
    result.print_summary()
    assert f"{result.num_invalid:,} simulations failed" in capsys.readouterr().out
    found = result.predict(KEY, 5000)
    assert np.isfinite(found["rate"]).all()


def test_failures_are_in_files(rare, tmp_path):
    result, _ = rare
    result.save(tmp_path / "rare.npz")
    again = epi.EPIResult.load(tmp_path / "rare.npz", fails_for(0.01), GUIDE)
    assert again.num_invalid == result.num_invalid
    assert again.masks_invalid


def test_many_failures_are_refused_and_the_advice_works():
    with pytest.raises(epi.InvalidStatisticError, match='on_invalid="mask"') as caught:
        run(fails_for(0.1))
    assert 0.05 < caught.value.share < 0.15
    # The run itself is a slow test below.
    epi.EPI(fails_for(0.1), GUIDE, on_invalid="mask", **SMALL).init(KEY)


@pytest.mark.parametrize(
    ("share", "choice", "words"),
    [
        (1e-6, "reverse", "none of 2,000 draws invalid"),
        (0.02, "score", "left out, which"),
        (0.1, "score", "a run would stop"),
    ],
)
def test_check_tells_what_a_run_would_do(share, choice, words):
    report = epi.EPI(fails_for(share), GUIDE, **SMALL).check(KEY)
    assert report.gradient.choice == choice
    assert words in str(report)


def test_check_sees_a_likelihood_that_is_not_finite():
    def model():
        z = numpyro.sample("z", dist.Normal())
        numpyro.factor("data", jnp.log(0.5 - z))
        epi.emergent_property(z, mean=0.0)

    report = epi.EPI(model, GUIDE, **SMALL).check(KEY)
    assert report.invalid == pytest.approx(norm.sf(0.5), abs=0.04)  # four errors


# -- accuracy -------------------------------------------------------------------------

ACCURATE = {
    "num_epochs": 6,
    "num_steps": 100,
    "num_evaluation": 20_000,
    "progress_bar": False,
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("share", "policy"),
    [(1e-4, "auto"), (1e-3, "auto"), (0.01, "auto"), (0.04, "auto"), (0.5, "mask")],
)
def test_the_law_is_that_of_the_restricted_prior(share, policy):
    """Within 0.1 nat of the exact entropy, and moments met."""
    mean, var = (0.5, 0.8) if share < 0.5 else (-1.0, 0.4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The statistic `rate`")
        result = epi.EPI(
            fails_for(share, mean, var), on_invalid=policy, **ACCURATE
        ).run(KEY)
    assert result.converged
    assert abs(result.entropy - exact_entropy(share, mean, var)) < 0.1
    assert (result.draws.latents["z"] <= norm.isf(share)).all()
    assert result.history.skipped.max() == 0.0
