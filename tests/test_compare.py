# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""EPI's draws are those of NUTS and SVI on the tilted model, and only of that one.

Two-sample Kolmogorov-Smirnov tests, one for each latent, with a false-alarm rate of
`ALARM` for all latents of a model together (Bonferroni). A trained flow is not exact,
so enough draws would reject any flow. By Pinsker's inequality a flow that lacks `LACK`
nats is wrong by at most sqrt(LACK / 2) = 0.07 about any probability, and by far less
about most. `NUM_DRAWS` on either side reject from a distance of 0.09 on: they cannot
see such a flow, and they do see a multiplier of the wrong sign.
"""

import importlib.util
from functools import cache
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi

ALARM = 1e-3
NUM_DRAWS = 1000
LACK = 0.01

PATH = Path(__file__).resolve().parents[1] / "examples/compare_nuts_svi.py"
SPEC = importlib.util.spec_from_file_location("compare_nuts_svi", PATH)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)

EPI_KEY, SAMPLE_KEY, OTHER_KEY, GRID_KEY = jax.random.split(jax.random.key(3), 4)
DETERMINISTIC = sorted(k for k, p in example.PROBLEMS.items() if not p.is_noisy)
NOISY = example.PROBLEMS["noisy"].model


# -- the test of the tests -------------------------------------------------------------


def ks_p_value(x, y):
    """Asymptotic p-value with Stephens' correction for small samples.

    With D the largest distance of the two distribution functions, N = n m / (n + m) and
    t = (sqrt(N) + 0.12 + 0.11 / sqrt(N)) D: p = 2 sum_k (-1)^(k - 1) exp(-2 k^2 t^2).
    """
    points = np.concatenate([x, y])
    shares = [
        np.searchsorted(np.sort(z), points, side="right") / len(z) for z in (x, y)
    ]
    distance = np.abs(shares[0] - shares[1]).max()
    root = np.sqrt(len(x) * len(y) / (len(x) + len(y)))
    t = (root + 0.12 + 0.11 / root) * distance
    if t < 0.2:
        return 1.0  # to 12 digits; the series does not converge at 0
    k = np.arange(1, 101)
    return float(2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * (k * t) ** 2)))


def test_ks_has_its_false_alarm_rate_and_power():
    rng = np.random.default_rng(0)
    same = [ks_p_value(*rng.standard_normal((2, NUM_DRAWS))) for _ in range(2000)]
    # Shares of 2,000 have a standard error of 0.005.
    assert 0.03 < np.mean(np.array(same) < 0.05) < 0.065
    assert abs(np.mean(same) - 0.5) < 0.03
    x, y = rng.standard_normal((2, NUM_DRAWS))
    assert ks_p_value(x, y + 0.3) < ALARM
    assert ks_p_value(x, x) == 1.0


def test_ks_matches_tabled_quantiles():
    """The 5% and 0.1% points of Kolmogorov's distribution are 1.3581 and 1.9495."""
    num = 10_000
    x = np.arange(num) / num
    root = np.sqrt(num / 2)
    for t, p in {1.3581: 0.05, 1.9495: 0.001}.items():
        distance = t / (root + 0.12 + 0.11 / root)  # that of a sample shifted by it
        assert ks_p_value(x, x + distance) == pytest.approx(p, rel=0.05)


# -- EPI against the tilted model ------------------------------------------------------


@cache
def result_of(name):
    """EPI with default options, trained once."""
    model = example.PROBLEMS[name].model
    return epi.EPI(model, progress_bar=False).run(EPI_KEY)


@cache
def draws_of(name):
    return example.draw_from_result(result_of(name), SAMPLE_KEY, NUM_DRAWS)


def tilted(name, *, broken=False):
    """The model tilted by EPI's multipliers, or with the wrong sign of the first."""
    sign = np.array([-1.0 if broken else 1.0, 1.0])
    multipliers = {k: sign * x for k, x in result_of(name).multipliers.items()}
    return epi.handlers.tilt(example.PROBLEMS[name].model, multipliers)


def independent(draws):
    """At most `NUM_DRAWS` of the draws, so far apart that they are about independent.

    Chains follow each other in the arrays.
    """
    size = next(iter(draws.latents.values())).size
    num = min(int(draws.ess), NUM_DRAWS)
    assert num >= NUM_DRAWS // 2, "too few effective draws for the power that is wanted"
    rows = np.linspace(0, size - 1, num).round().astype(int)
    return {site: x[rows] for site, x in draws.latents.items()}


def agree(name, others):
    """Whether no latent is rejected."""
    latents = draws_of(name).latents
    assert set(latents) == set(others)
    p_values = {site: ks_p_value(latents[site], others[site]) for site in others}
    return min(p_values.values()) > ALARM / len(p_values)


def nuts(model):
    draws = example.draw_by_nuts(model, OTHER_KEY, 16_000, num_warmup=300)
    return independent(draws)


def svi(model):
    guide = epi.guides.AutoRealNVP
    return example.draw_by_svi(model, guide, OTHER_KEY, NUM_DRAWS).latents


@pytest.mark.long
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_nuts_on_the_tilted_model_agrees(name):
    assert result_of(name).converged
    assert agree(name, nuts(tilted(name)))


@pytest.mark.long
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_nuts_with_a_wrong_sign_is_rejected(name):
    assert not agree(name, nuts(tilted(name, broken=True)))


@pytest.mark.long
def test_svi_on_the_noisy_tilted_model_agrees():
    assert result_of("noisy").converged
    assert agree("noisy", svi(tilted("noisy")))


@pytest.mark.long
def test_svi_with_a_wrong_sign_is_rejected():
    assert not agree("noisy", svi(tilted("noisy", broken=True)))


def test_nuts_refuses_the_noisy_tilted_model():
    multipliers = {"rate": np.array([-1.8, 1.9])}
    model = epi.handlers.tilt(NOISY, multipliers)
    with pytest.raises(RuntimeError, match=r"simulation noise.*MCMC.*SVI"):
        example.draw_by_nuts(model, OTHER_KEY, 4, num_warmup=1)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(example.PROBLEMS))
def test_flow_lacks_little(name):
    """What the power of the tests above relies on, by sums over a grid."""
    problem, model = example.PROBLEMS[name], tilted(name)
    exact = example.solve_exactly(problem, model, GRID_KEY)
    draws = example.draw_from_result(result_of(name), SAMPLE_KEY, 50_000)
    assert example.shortfall(exact, model, draws, OTHER_KEY) < LACK


def test_grid_of_a_tilted_normal():
    """Sums over the grid against the closed form: a Normal of mean 3 and sd 0.5."""

    def model():
        z = numpyro.sample("z", dist.Normal())
        epi.emergent_property(z, mean=3.0, var=0.25, name="level")

    # exp(-z^2 / 2) exp(3 (z - 3) - 1.5 (z - 3)^2) is Normal(3, 0.5) but for a factor.
    fn = epi.handlers.tilt(model, {"level": np.array([-3.0, 1.5])})
    problem = example.Problem(model, {"z": (-2.0, 8.0)})
    exact = example.solve_exactly(problem, fn, GRID_KEY)
    assert exact.mean_and_sd("z") == pytest.approx((3.0, 0.5), abs=1e-4)
    assert exact.entropy == pytest.approx(0.5 * np.log(2 * np.pi * np.e / 4), abs=1e-4)
    # log Z = log E[exp(-lambda . T)] = log(0.5) - 9/2 + 3/8
    wanted = np.log(0.5) - 4.5 + 0.375
    assert exact.log_normalizer == pytest.approx(wanted, abs=1e-3)
