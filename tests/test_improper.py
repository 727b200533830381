# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Improper priors: with data that make a law of them they run, else a sentence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.reparam import CircularReparam

import numpyro_epi as epi
from numpyro_epi._model.improper import EXPONENTS, falls_off
from numpyro_epi._model.problem import Problem

KEY = jax.random.key(0)
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2)
SMALL = {
    "num_epochs": 3,
    "num_steps": 100,
    "num_evaluation": 8000,
    "warm_start_size": 4000,
    "num_particles": 200,
    "progress_bar": False,
}
DATA = np.array([49.0, 50.0, 51.5])


def flat(name, support=constraints.real, shape=()):
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def mean_of(y, sd=1.0):
    m = flat("m")
    numpyro.sample("y", dist.Normal(m, sd), obs=y)
    epi.emergent_property(m, mean=50.5, var=0.2)


def scale_of(y):
    s = flat("s", constraints.positive)
    numpyro.sample("y", dist.Normal(0.0, s), obs=y)
    epi.emergent_property(jnp.log(s), mean=0.4)


def mean_and_scale(y):
    m, s = flat("m"), flat("s", constraints.positive)
    numpyro.sample("y", dist.Normal(m, s), obs=y)
    epi.emergent_property(m, mean=50.0)


def vector():
    m = flat("m", constraints.real_vector, (3,))
    numpyro.sample("y", dist.Normal(m, 1.0).to_event(1), obs=jnp.array([-30.0, 0, 70]))
    epi.emergent_property(m.sum(), mean=41.0)


def total_only():
    a, b = flat("a"), flat("b")
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=1.0)
    epi.emergent_property(a, mean=0.0)


def product_only():
    a, b = flat("a"), flat("b")
    numpyro.sample("y", dist.Normal(a * b, 1.0), obs=1.0)
    epi.emergent_property(a, mean=0.0)


def property_only():
    epi.emergent_property(flat("m"), mean=3.0, var=1.0)


def circular():
    with handlers.reparam(config={"angle": CircularReparam()}):
        angle = numpyro.sample("angle", dist.VonMises(0.3, 4.0))
    epi.emergent_property(jnp.cos(angle), mean=0.5)


def logit(y):
    m = flat("m")
    numpyro.sample("y", dist.Bernoulli(logits=m), obs=y)
    epi.emergent_property(m, mean=1.0)


def cauchy():
    m = flat("m")
    numpyro.sample("y", dist.Cauchy(m, 1.0), obs=3.0)
    epi.emergent_property(m, mean=2.0)


def bounded():
    m = flat("m")
    numpyro.sample("y", dist.Uniform(m - 1, m + 1), obs=jnp.array([0.3, 0.5]))
    epi.emergent_property(m, mean=0.4)


def simplex():
    m = flat("m", constraints.simplex, (3,))
    numpyro.sample("y", dist.Multinomial(10, m), obs=jnp.array([2, 3, 5]))
    epi.emergent_property(m[0], mean=0.3)


# -- is there a law? ------------------------------------------------------------------

slow = [pytest.mark.long]
REFUSED = {
    "property only": (property_only, (), "m", ()),
    "circular": (circular, (), "angle_unwrapped", ()),
    "all ones": (logit, (np.array([1, 1]),), "m", slow),
    "scale of one": (scale_of, (np.array([1.0]),), "s", slow),
    "sum": (total_only, (), "[ab]", slow),
    "product": (product_only, (), "[ab]", slow),
    "mean and scale of two": (mean_and_scale, (DATA[:2],), "m", slow),
}


def marked(table):
    return [pytest.param(k, id=k, marks=row[-1]) for k, row in table.items()]


@pytest.mark.parametrize("name", marked(REFUSED))
def test_without_a_law_the_site_is_named(name):
    model, args, site, _ = REFUSED[name]
    with pytest.raises(
        ValueError, match=f"make a law of the improper prior of `{site}`"
    ):
        Problem(model, args, {}, KEY)


@pytest.mark.parametrize("guide", [None, AutoMultivariateNormal])
@pytest.mark.parametrize("warm_start", [True, "auto", False])
def test_every_guide_gets_the_sentence(guide, warm_start):
    inference = epi.EPI(property_only, guide, warm_start=warm_start)
    with pytest.raises(ValueError, match="Give it a proper prior, such as a wide"):
        inference.run(KEY)


# Location and scale of the law in unconstrained coordinates: exact, or by quadrature.
PROPER = {
    "mean": (mean_of, (DATA,), 50.1667, 0.5774, ()),
    "far mean": (mean_of, (DATA * 200, 0.1), 10033.333, 0.05774, slow),
    "small mean": (mean_of, (DATA * 1e-5, 1e-6), 5.01667e-4, 5.774e-7, slow),
    "wide mean": (mean_of, (DATA, 1e6), 50.1667, 577350.0, slow),
    "scale": (scale_of, (DATA - 50,), 0.4955, 0.5, slow),
    "vector": (vector, (), [-30.0, 0.0, 70.0], [1.0] * 3, slow),
    "cauchy": (cauchy, (), 3.0, None, slow),
    "logit": (logit, (np.array([1, 1, 0]),), 0.95, None, slow),
    "bounded": (bounded, (), None, None, slow),
    "simplex": (simplex, (), None, None, slow),
    "mean and scale": (mean_and_scale, (DATA,), None, None, slow),
}


@pytest.mark.parametrize("name", marked(PROPER))
def test_a_run_starts_at_the_law_of_the_data(name):
    """Within half a standard deviation and a fifth of the scale, by a Gaussian fit."""
    model, args, loc, scale, _ = PROPER[name]
    problem = Problem(model, args, {}, KEY)
    start = problem.start
    assert np.isfinite(start.loc).all()
    if scale is not None:
        np.testing.assert_allclose(start.scale, scale, rtol=0.2)
    if loc is not None:
        assert (np.abs(start.loc - loc) < 0.5 * start.scale).all()
    again = Problem(model, args, {}, jax.random.key(9)).start
    np.testing.assert_array_equal(start.loc, again.loc)


def test_draws_of_the_start_have_its_density():
    """Importance weights of draws average to the exact integral of the law.

    Of 4,000 draws, to 1%: their standard deviation is 0.8, so three standard errors
    are 0.04; a density that is off by its widening (1.5) misses by 0.4 nats.
    """
    problem = Problem(mean_of, (DATA,), {}, KEY)
    u = np.asarray(jax.vmap(problem.sample_prior)(jax.random.split(KEY, 4000)))
    log_p = -0.5 * 3 * np.square(u[:, 0] - DATA.mean())
    log_w = log_p - problem.log_start(u, np.zeros(4000))
    assert abs(np.log(np.exp(log_w).mean()) - 0.5 * np.log(2 * np.pi / 3)) < 0.04


def line(log_density, num=EXPONENTS.size):
    distances = 2.0 ** EXPONENTS[:num]
    return log_density(distances), np.ones(num, bool)


FALLS = {
    "gaussian": (lambda t: -0.5 * t**2, True),
    "exponential": (lambda t: -t, True),
    "cauchy": (lambda t: -np.log1p(t**2), True),
    "constant": (lambda t: 0 * t, False),
    "one over the distance": (lambda t: -np.log1p(t), False),
    "rising": (lambda t: t, False),
    "periodic": (lambda t: 4 * np.cos(t), False),
    "zero beyond": (lambda t: np.where(t < 3, 0.0, -np.inf), True),
    "unknown": (lambda t: np.nan * t, False),
    "unknown beyond": (lambda t: np.where(t < 3, 0.0, np.nan), False),
}


@pytest.mark.parametrize("name", FALLS)
def test_a_law_falls_faster_than_one_over_the_distance(name):
    log_density, expected = FALLS[name]
    assert falls_off(*line(log_density)) is expected


def test_where_latents_stand_still_the_line_ends():
    """A stick-breaking transform is flat beyond its precision: that says nothing."""
    values, moves = line(lambda t: -np.minimum(t, 80.0))
    assert not falls_off(values, moves)
    assert falls_off(values, 2.0**EXPONENTS < 100.0)


# -- the whole run --------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("guide", [GUIDE, AutoMultivariateNormal])
def test_a_mean_with_data_and_a_property(guide, capsys, tmp_path):
    """The law is Gaussian with the targets: tolerance 0.05 sds and 10% of the sd."""
    result = epi.EPI(mean_of, guide, **SMALL).run(KEY, DATA)
    draws = np.asarray(result.sample(KEY, 20_000)["m"], float)
    assert result.converged
    assert draws.mean() == pytest.approx(50.5, abs=0.05 * 0.45)
    assert draws.std() == pytest.approx(np.sqrt(0.2), rel=0.1)
    assert result.entropy == pytest.approx(0.5 * np.log(0.4 * np.pi * np.e), abs=0.1)
    assert result.divergence == pytest.approx(-result.entropy, abs=1e-4)
    result.print_summary()
    assert "no KL: the prior of `m` is improper" in capsys.readouterr().out
    assert "KL" not in repr(result)
    assert "a wide Gaussian stands in" in str(epi.EPI(mean_of).check(KEY, DATA))
    result.save(tmp_path / "m.npz")
    epi.EPIResult.load(tmp_path / "m.npz", mean_of, guide, model_args=(DATA,))


def tilted_scale(y):
    """Standard deviation of log s and entropy of s, for a mean of log s of 0.4."""
    u = np.linspace(-4.0, 6.0, 20_001)
    log_p = u - y.size * u - 0.5 * np.sum(y**2) * np.exp(-2 * u)
    low, high = -20.0, 20.0
    for _ in range(100):
        tilt = 0.5 * (low + high)
        p = np.exp(log_p - tilt * u - (log_p - tilt * u).max())
        p /= p.sum()
        low, high = (tilt, high) if p @ u > 0.4 else (low, tilt)
    density = p / (u[1] - u[0])
    sd = np.sqrt(p @ u**2 - (p @ u) ** 2)
    return sd, -p @ (np.log(density + 1e-300) - u)


@pytest.mark.long
def test_a_scale_with_data_and_a_property():
    """Against quadrature: tolerance 0.1 sds of log s, 10% of its sd, 0.1 nats.

    s itself has hardly a variance: its density falls like a cubic.
    """
    y = DATA - 50
    result = epi.EPI(scale_of, GUIDE, **SMALL).run(KEY, y)
    draws = np.log(np.asarray(result.sample(KEY, 20_000)["s"], float))
    sd, entropy = tilted_scale(y)
    assert result.converged
    assert draws.mean() == pytest.approx(0.4, abs=0.1 * sd)
    assert draws.std() == pytest.approx(sd, rel=0.1)
    assert result.entropy == pytest.approx(entropy, abs=0.1)


@pytest.mark.long
def test_a_vector_far_from_zero():
    """Gaussian with mean y + 1/3 in each element, unit covariance."""
    result = epi.EPI(vector, GUIDE, **SMALL).run(KEY)
    draws = np.asarray(result.sample(KEY, 20_000)["m"], float)
    assert result.converged
    exact = np.array([-30, 0, 70]) + 1 / 3
    np.testing.assert_allclose(draws.mean(0), exact, atol=0.1)
    np.testing.assert_allclose(draws.std(0), 1.0, rtol=0.1)
    assert result.entropy == pytest.approx(1.5 * np.log(2 * np.pi * np.e), abs=0.1)
