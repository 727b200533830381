# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Data that tell a lot beside a property: what NUTS finds on the tilted model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_epi as epi
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.draws import Programs
from numpyro_epi._solver.law import Standard
from numpyro_epi._solver.search import Search, Searcher

# Of means in standard deviations, and of standard deviations as a share.
SHIFT, STRETCH = 0.15, 0.15


def narrow():
    """20 data of a mean whose prior is 1,000 wide; its square is asked for by mean."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1000.0))
    numpyro.sample("y", dist.Normal(mu, 0.5), obs=np.linspace(2.0, 4.0, 20))
    epi.emergent_property(mu, mean=3.02, name="mu_mean")


def find(model):
    problem = Problem(model, (), {}, jax.random.key(0))
    table = problem.table.with_scale(prior(problem))
    standard = Standard(0.05, 2.0, table.labels)
    searcher = Searcher(Programs(problem), standard, lambda: "hmc")
    found = searcher.run(Search(table, 1, jax.random.key(0)))
    return found.law, found.table


def prior(problem):
    u = jax.vmap(problem.sample_prior)(jax.random.split(jax.random.key(1), 1000))
    keys = jax.random.split(jax.random.key(2), 1000)
    return np.asarray(jax.vmap(problem.simulate)(u, keys).stats)


def test_a_mean_is_measured_in_the_spread_of_its_law():
    """A Normal law: sd 0.5 / sqrt(20), whatever its mean; 4,000 draws, 2% noise."""
    law, table = find(narrow)
    sd = 0.5 / np.sqrt(20)
    assert law.converged, law.reason
    assert table.scale == pytest.approx(sd, rel=0.1)
    # exp(-lambda (mu - 3.02)) moves the mean by -lambda sd^2, from 3 to 3.02.
    assert law.multipliers[0] * sd == pytest.approx(-0.02, abs=0.004)
    u = law.draws.u[:, 0]
    mean = law.weights @ u
    assert mean == pytest.approx(3.02, abs=0.1 * sd)
    assert np.sqrt(law.weights @ (u - mean) ** 2) == pytest.approx(sd, rel=0.1)


def test_other_units_change_nothing_but_units():
    law, _ = find(narrow)
    units = np.array([4.0])
    other = law.in_units(units)
    np.testing.assert_allclose(other.violation, 4 * law.violation)
    for temperature in (0.5, 1.0):
        np.testing.assert_allclose(
            other.draws.log_density(temperature, other.multipliers),
            law.draws.log_density(temperature, law.multipliers),
            rtol=1e-12,
        )


# -- whole runs -----------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.7 * RNG.normal(size=400)
IS_ONE = (RNG.logistic(size=400) < X @ np.array([1.0, -2.0, 0.5])).astype(int)
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def regression():
    w = numpyro.sample("w", dist.Normal(0, 1000).expand([3]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(1000))
    numpyro.sample("y", dist.Normal(X @ w, sd), obs=Y)
    epi.emergent_property(w[0] + w[1], mean=-0.95, var=0.04**2, name="sum")


def logistic(mean=-1.0, var=0.15**2):
    w = numpyro.sample("w", dist.Normal(0, 100).expand([3]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ w), obs=IS_ONE)
    epi.emergent_property(w[0] + w[1], mean=mean, var=var, name="sum")


def schools():
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    base = numpyro.sample("base", dist.Normal(0, 1).expand([8]).to_event(1))
    effects = mu + tau * base
    numpyro.sample("y", dist.Normal(effects, ERRORS), obs=EFFECTS)
    epi.emergent_property(effects[0] - effects[2], mean=3.0, var=9.0, name="contrast")


def populations(start, rates):
    """Prey and predators in 20 years, by Runge and Kutta, shape (20, 2)."""

    def slope(x):
        birth, eaten, death, growth = rates
        gains = birth - eaten * x[1], growth * x[0] - death
        return jnp.stack(gains) * x

    def step(x, _):
        a = slope(x)
        b = slope(x + 0.05 * a)
        c = slope(x + 0.05 * b)
        d = slope(x + 0.1 * c)
        return x + 0.1 / 6 * (a + 2 * b + 2 * c + d), None

    def year(x, _):
        return jax.lax.scan(step, x, None, length=10)[0], x

    return jax.lax.scan(year, start, None, length=20)[1]


SEEN = np.exp(
    np.log(populations(jnp.array([30.0, 5.0]), jnp.array([0.55, 0.028, 0.8, 0.024])))
    + 0.2 * RNG.normal(size=(20, 2))
)


def predator_prey():
    """40 data, 8 latents."""
    start = numpyro.sample("start", dist.LogNormal(jnp.log(10.0), 1).expand([2]))
    middle = jnp.array([1.0, 0.05, 1.0, 0.05])
    prior = dist.TruncatedNormal(middle, middle / jnp.array([2, 1, 2, 1]), low=0.0)
    rates = numpyro.sample("rates", prior)
    noise = numpyro.sample("noise", dist.LogNormal(-1, 1).expand([2]))
    x = jnp.log(jnp.clip(populations(start, rates), 1e-3, 1e6))
    numpyro.sample("seen", dist.LogNormal(x, noise), obs=SEEN)
    epi.emergent_property(rates[2] / rates[3], mean=36.0, var=1.0, name="balance")


MODELS = {
    "regression": regression,
    "logistic": logistic,
    "schools": schools,
    "predator_prey": predator_prey,
}


def nuts(model, num=4000):
    """Draws of NUTS: means within 0.02 to 0.05 sd."""
    kernel = NUTS(model, target_accept_prob=0.9)
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=num, progress_bar=False)
    mcmc.run(jax.random.key(1))
    return mcmc.get_samples()


def differences(draws, exact):
    """Of means in standard deviations, and of standard deviations as shares."""
    shifts, stretches = [], []
    for name, value in draws.items():
        value, true = np.asarray(value), np.asarray(exact[name])
        sd = true.std(axis=0)
        shifts.append(np.abs(value.mean(axis=0) - true.mean(axis=0)) / sd)
        stretches.append(np.abs(value.std(axis=0) / sd - 1))
    return max(np.max(x) for x in shifts), max(np.max(x) for x in stretches)


def both(result):
    """Draws of the law, and of the guide where it is said to be good."""
    found = [result.law.sample(jax.random.key(2), int(min(result.law.ess, 4000)))]
    if result.converged:
        found.append(result.sample(jax.random.key(3), 20_000))
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.ci if name == "regression" else ())
        for name in MODELS
    ],
)
def test_informative_data_give_what_nuts_does_on_the_tilted_model(name):
    result = epi.EPI(MODELS[name], progress_bar=False).run(jax.random.key(0))
    assert str(result.status) in ("converged", "corrected"), result.message
    assert result.law.converged, result.law.reason
    exact = nuts(epi.handlers.tilt(MODELS[name], result.law.multipliers))
    for draws in both(result):
        shift, stretch = differences(draws, exact)
        assert shift < SHIFT
        assert stretch < STRETCH


@pytest.mark.long
def test_the_posterior_is_the_law_of_its_own_moments():
    """Its twin, other moments, is another law."""
    exact = nuts(epi.handlers.tilt(logistic, {"sum": np.zeros(2)}), 10_000)
    total = np.asarray(exact["w"][:, :2]).sum(axis=1)
    inference = epi.EPI(logistic, progress_bar=False)
    for shift, is_same in ((0.0, True), (0.5, False)):
        mean = float(total.mean() + shift * total.std())
        result = inference.run(jax.random.key(0), mean, float(total.var()))
        assert result.converged, result.message
        assert result.law.converged, result.law.reason
        for draws in both(result):
            assert (max(differences(draws, exact)) < SHIFT) == is_same
