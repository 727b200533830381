# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Problems whose answer is known, with default options."""

from math import e, log, pi

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi

pytestmark = pytest.mark.long


def run(model, seed=0, **options):
    inference = epi.EPI(model, progress_bar=False, **options)
    return inference.run(jax.random.key(seed))


@pytest.mark.ci
def test_gaussian_is_recovered():
    """100,000 draws: standard errors 0.003 sd of the mean and 0.2% of the sd."""
    mean, sd = np.array([0.5, -1.0]), np.array([0.5, 0.7])

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        epi.emergent_property(z, mean=mean, var=sd**2)

    result = run(model)
    draws = np.asarray(result.sample(jax.random.key(1), 100_000)["z"])
    assert result.converged
    assert (np.abs(draws.mean(0) - mean) < 0.02 * sd).all()
    assert (np.abs(draws.std(0) / sd - 1.0) < 0.02).all()
    exact = np.sum(0.5 * np.log(2 * pi * e * sd**2))
    log_q = np.asarray(result.log_prob({"z": draws}))
    assert abs(-log_q.mean() - exact) < 0.02


def count(z):
    return jnp.floor(z)


@pytest.mark.ci
def test_count_without_gradient_is_solved():
    """Maximum entropy: weights of ten cells, constant within each."""

    def model():
        z = numpyro.sample("z", dist.Uniform(0, 10))
        epi.emergent_property(count(z), mean=4.0, var=1.0)

    result = run(model)
    # The discrete law on 0..9 with mean 4 and variance 1, by quadrature of a Gaussian
    # exponential family: its entropy is that of the density on unit cells.
    cells = np.arange(10)
    weights = np.exp(-((cells - 4.0) ** 2) / 2.0)
    weights /= weights.sum()
    largest = -(weights * np.log(weights)).sum()
    assert result.converged
    assert result.gradient.choice == "score"
    assert largest - 0.1 < result.entropy < largest + 0.03


def test_lognormal_prior():
    def model():
        z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
        epi.emergent_property(z, mean=3.0, var=0.5)

    result = run(model)
    assert result.converged
    assert (result.draws.latents["z"] > 0).all()
    best = result.restarts[result.best]
    assert abs(best.log_normalizer - result.score) < 0.03


def test_simplex_latent():
    def model():
        w = numpyro.sample("w", dist.Dirichlet(np.ones(3)))
        epi.emergent_property(w[0], mean=0.5, var=0.01)

    result = run(model)
    assert result.converged
    np.testing.assert_allclose(result.draws.latents["w"].sum(-1), 1.0, atol=1e-5)


@pytest.mark.ci
def test_masked_failures_give_the_truncated_law():
    """z ~ N(0, 1) on z < 1.2816 with mean 0.5 and variance 0.25: by quadrature."""

    def model():
        z = numpyro.sample("z", dist.Normal())
        epi.emergent_property(jnp.where(z < 1.2816, z, jnp.nan), mean=0.5, var=0.25)

    result = run(model, on_invalid="mask")
    grid = np.linspace(-6, 1.2816, 20_001)
    low = result.multipliers["emergent_property"][:, ...]
    devs = np.stack([grid - 0.5, (grid - 0.5) ** 2 - 0.25])
    # Newton on the dual of the truncated prior.
    lam, base = np.zeros(2), np.exp(-(grid**2) / 2)
    for _ in range(50):
        w = base * np.exp(-lam @ devs)
        w /= w.sum()
        mean = devs @ w
        centred = devs - mean[:, None]
        lam += np.linalg.solve((centred * w) @ centred.T, mean)
    exact = -(w * np.log(w / (grid[1] - grid[0]))).sum()
    draws = result.draws.latents["z"]
    assert result.converged
    assert (draws < 1.2816).all()
    assert abs(result.entropy - exact) < 0.05
    np.testing.assert_allclose(low, lam, rtol=0.1)
    assert result.restarts[0].invalid < 0.05


def test_units_do_not_matter():
    """Exactly, if units differ by powers of two, which rounds nothing.

    Otherwise rounding grows in training, as in every chaotic system; the law stays.
    """

    def model(first, second, power=2):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        for stat, unit, mean in ((z[0], first, 0.5), (z[0] + z[1], second, -0.5)):
            epi.emergent_property(
                unit * stat, mean=mean * unit, var=0.25 * unit**power, name=str(mean)
            )

    inference = epi.EPI(model, progress_bar=False)

    def run(*args):
        result = inference.run(jax.random.key(0), *args)
        return result, result.sample(jax.random.key(1), 5000)["z"]

    plain, draws = run(1.0, 1.0)
    exact = run(2.0**24, 2.0**-30)[1]
    np.testing.assert_array_equal(exact, draws)
    rounded, others = run(1e7, 1e-9)
    assert abs(rounded.entropy - plain.entropy) < 5e-3
    assert float(jnp.abs(others - draws).mean() / draws.std()) < 0.02
    # The broken twin: a variance is not in the unit of its mean.
    wrong = run(2.0, 1.0, 1)[1]
    assert float(jnp.abs(wrong - draws).mean() / draws.std()) > 0.05


@pytest.mark.ci
def test_data_and_property_together():
    """y = z1 + z2 + noise observed, and a property of z1 - z2: they factorise."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(z.sum(), 0.5), obs=1.0)
        epi.emergent_property(z[0] - z[1], mean=1.0, var=0.1)

    result = run(model)
    draws = np.asarray(result.sample(jax.random.key(1), 100_000)["z"])
    total, gap = draws.sum(1), draws[:, 0] - draws[:, 1]
    variance = 1.0 / (1.0 / 2.0 + 1.0 / 0.25)
    assert result.converged
    assert abs(total.mean() - variance / 0.25) < 0.03
    assert abs(total.var() / variance - 1.0) < 0.05
    assert abs(gap.mean() - 1.0) < 0.02
    assert abs(gap.var() / 0.1 - 1.0) < 0.07


@pytest.mark.parametrize("seed", [3])
def test_linear_system_reaches_both_modes(seed):
    """Maximum 7.0416 nats, multipliers (8.00, 1.195): specification of the model."""
    result = run(epi.circuits.linear.model, seed)
    corrected = result.score + 4 * log(20.0)
    share = (result.draws.latents["a"][:, 1] > 0).mean()
    second = [result.multipliers[name][1] for name in ("growth", "frequency")]
    assert result.converged
    assert 6.85 < corrected < 7.05
    assert 0.35 < share < 0.65
    np.testing.assert_allclose(second, [8.00, 1.195], rtol=0.05)


def test_targets_far_from_the_prior():
    """Six prior sds away in each of eight dimensions; the exact law is a Gaussian."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
        epi.emergent_property(z, mean=6.0, var=0.25)

    result = run(model)
    exact = 8 * 0.5 * log(2 * pi * e * 0.25)
    assert result.converged
    assert abs(result.entropy - exact) < 0.1
