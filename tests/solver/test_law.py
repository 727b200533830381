# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The law stage finds laws that are known in closed form, and says how well."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_epi as epi
from numpyro_epi._math.dual import RIDGE
from numpyro_epi._math.importance import normalize_log_weights
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver import by_chains, population
from numpyro_epi._solver.by_chains import family_error
from numpyro_epi._solver.by_importance import draws_left
from numpyro_epi._solver.draws import Draws, Programs, Simulator
from numpyro_epi._solver.law import Standard
from numpyro_epi._solver.path import Position, largest_step, move_on, ridge_at
from numpyro_epi._solver.population import Population, noise_bias
from numpyro_epi._solver.proposal import LocalMixture
from numpyro_epi._solver.search import Search, Searcher

KEY = jax.random.key(0)


def simulator(model, num_repeats=1):
    problem = Problem(model, (), {}, KEY)
    return Simulator(Programs(problem), problem.table, num_repeats)


def search(programs, table, num_repeats=1, kind="hmc", key=KEY):
    searcher = Searcher(programs, Standard(0.05, 1.645, table.labels), lambda: kind)
    return searcher.run(Search(table, num_repeats, key)).law


def find(model, num_repeats=1, kind="hmc"):
    problem = Problem(model, (), {}, KEY)
    return search(Programs(problem), problem.table, num_repeats, kind)


def gaussian():
    """Prior N(0, 1) twice, of which one is to have mean 1 and variance 1/4."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    epi.emergent_property(z[0], mean=1.0, var=0.25)


# log Z is minus the divergence of the law from the prior.
GAUSSIAN = -0.5 * (0.25 + 1.0 - 1.0 - np.log(0.25))


def informative():
    """One latent, 1,000 wide, met by data; its mean is moved by two of its sds."""
    z = numpyro.sample("z", dist.Normal(0.0, 1000.0))
    numpyro.sample("x", dist.Normal(z, 1.0).expand([100]), obs=200.0 * jnp.ones(100))
    epi.emergent_property(z, mean=200.2, var=0.01)


def informative_log_normalizer():
    """Log Z = log of int p0 L exp(-lambda . T): posterior and law are Gaussian."""
    evidence = stats.multivariate_normal(
        np.zeros(100), np.eye(100) + 1e6 * np.ones((100, 100))
    ).logpdf(200.0 * np.ones(100))
    precision = 100.0 + 1e-6
    mean = 100.0 * 200.0 / precision
    ratio = 0.01 * precision
    divergence = 0.5 * (ratio + (200.2 - mean) ** 2 * precision - 1.0 - np.log(ratio))
    return evidence - divergence


def noisy():
    """A reading of z with noise: E[T | z] has the variance of the noise in it."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    reading = z + 0.5 * jax.random.normal(numpyro.prng_key())
    epi.emergent_property(reading, mean=0.6, var=0.5)


# The law of z is N(0.6, 0.25): the rest of the variance is noise.
NOISY = -0.5 * (0.25 + 0.36 - 1.0 - np.log(0.25))


def is_within(value, error, method):
    """Four errors, or as many as are as rare: those of chains are of eight groups."""
    rare = stats.norm.sf(4.0)
    limit = stats.t.isf(rare, by_chains.NUM_GROUPS - 1) if method == "chains" else 4.0
    return abs(value) < limit * error


def assert_is_law(law, log_normalizer):
    """All numbers within their errors: false alarms in one of 10,000."""
    assert law.reason == ""
    apart = law.log_normalizer - log_normalizer
    assert is_within(apart, law.log_normalizer_error, law.method)
    assert law.log_normalizer_error < 0.05
    assert (np.abs(law.violation) < 4 * law.violation_error + 0.02).all()


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "num_repeats", "exact"),
    [
        (gaussian, 1, GAUSSIAN),
        (informative, 1, informative_log_normalizer()),
        (noisy, 4, NOISY),
    ],
)
def test_importance_sampling_finds_the_law(model, num_repeats, exact):
    assert_is_law(find(model, num_repeats), exact)


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("kind", ["hmc", "walk"])
def test_chains_find_the_law(kind, monkeypatch):
    monkeypatch.setattr("numpyro_epi._solver.search.MAX_IMPORTANCE_LATENTS", 0)
    law = find(gaussian, kind=kind)
    assert law.method == "chains"
    assert law.lag < 4.0
    assert is_within(
        law.log_normalizer - GAUSSIAN, law.log_normalizer_error, law.method
    )
    assert (np.abs(law.violation) < 4 * law.violation_error + 0.02).all()


def narrow():
    """30 latents, whose sum is asked for three sds away in a fifth of its width."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
    epi.emergent_property(z.sum() / jnp.sqrt(30.0), mean=3.0, var=0.05)


NARROW = -0.5 * (0.05 + 9.0 - 1.0 - np.log(0.05))


@pytest.mark.ci
@pytest.mark.long
def test_chains_tell_log_z_within_their_errors():
    """Five keys; errors of four groups: one of them may be beyond 3, none beyond 6."""
    made, ratios = Programs(Problem(narrow, (), {}, KEY)), []
    for key in range(5):
        law = search(made, made.problem.table, key=jax.random.key(key))
        assert abs(law.log_normalizer - NARROW) < 0.25
        ratios.append(abs(law.log_normalizer - NARROW) / law.log_normalizer_error)
    assert np.sort(ratios)[-2] < 3
    assert max(ratios) < 6


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("goes_back", [True, False])
def test_chains_that_lag_are_not_trusted(goes_back, monkeypatch):
    """One leap a move, in long steps; the twin, without the way back, trusts it."""
    monkeypatch.setattr(by_chains, "_halved", lambda path: path)
    monkeypatch.setattr("numpyro_epi._solver.moves.NUM_LEAPFROG", 1)
    monkeypatch.setattr("numpyro_epi._solver.particles.BLOCK", 1)
    monkeypatch.setattr(by_chains, "REPEATS", (1, 1))
    if not goes_back:
        both = by_chains.Retrace.log_normalizers.fget
        there = property(lambda self: both(self)[[0, 0]])
        monkeypatch.setattr(by_chains.Retrace, "log_normalizers", there)
    law = find(narrow)
    assert ("lag" in law.reason) == goes_back
    assert law.converged == (not goes_back)


# -- parts ----------------------------------------------------------------------------


def test_a_local_mixture_has_the_density_of_its_draws():
    """E_q[p / q] = 1 for a density p inside; four standard errors."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, 2)) @ np.array([[1.0, 0.9], [0.0, 0.1]])
    rows = rng.integers(0, 300, 200)
    mixture = LocalMixture.fit(centres[rows])
    u = mixture.sample(rng, 20_000)
    log_q = mixture.log_prob(u)
    cov = np.cov(centres.T) / 4
    ratio = np.exp(stats.multivariate_normal([0, 0], cov).logpdf(u) - log_q)
    error = ratio.std() / np.sqrt(ratio.size)
    assert error < 0.05
    assert abs(ratio.mean() - 1.0) < 4 * error


@pytest.mark.parametrize("dim", [1, 2, 5, 12])
def test_a_local_mixture_is_one_of_multivariate_t(dim):
    """In any units, about any offset; SciPy's density is the truth."""
    rng = np.random.default_rng(dim)
    scale = np.logspace(-6, 6, dim)
    shape = rng.normal(size=(60, dim)) * scale
    mixture = LocalMixture.fit(1e3 * scale + shape)
    u = 1e3 * scale + 3.0 * scale * rng.normal(size=(500, dim))
    covs = mixture.factors @ np.swapaxes(mixture.factors, 1, 2)
    expected = sum(
        w
        * stats.multivariate_t(loc / scale, cov / np.outer(scale, scale), df=5).pdf(
            u / scale
        )
        for w, loc, cov in zip(mixture.weights, mixture.centres, covs, strict=True)
    )
    found = mixture.log_prob(u) + np.log(scale).sum()
    np.testing.assert_allclose(found, np.log(expected), rtol=0, atol=1e-6)


def test_a_local_mixture_has_a_least_density():
    """Beyond it lie only draws of the prior, which have a density of their own."""
    mixture = LocalMixture.fit(np.random.default_rng(0).normal(size=(100, 12)))
    assert np.isfinite(mixture.log_prob(np.full((1, 12), 1e30))).all()


def test_repeated_centres_weigh_more():
    near = np.linspace(-0.5, 0.5, 20)[:, None]
    centres = np.concatenate([np.repeat(near, 3, axis=0), 10.0 + near])
    rng = np.random.default_rng(0)
    u = LocalMixture.fit(centres).sample(rng, 4000)
    assert np.mean(np.abs(u) < 5) == pytest.approx(0.75, abs=0.01)


def draws(x):
    """Draws of a standard Gaussian with T = ((x - 1), ((x - 1)^2 - 1) / sqrt 2)."""
    first = x - 1.0
    devs = np.stack([first, (first**2 - 1.0) / np.sqrt(2.0)], axis=1)
    return made_of(x, -0.5 * x**2, np.zeros((1, x.size)), devs[None])


def made_of(x, log_prior, log_likelihoods, repeats):
    valid = np.ones(x.size, bool)
    return Draws(x[:, None], log_prior, log_prior, log_likelihoods, repeats, valid)


def test_the_path_ends_at_the_multipliers_of_the_targets():
    x = np.random.default_rng(0).normal(size=20_000)
    found = draws(x)
    position = Position(1.0, 1.0, np.zeros(2))
    there = move_on(position, found, found.log_prior, 1000.0)
    assert there.is_at_the_law
    # The law is N(1, 1): exp(-lambda . T) is exp(x - 1 / 2) up to a constant.
    np.testing.assert_allclose(there.multipliers, [-1.0, 0.0], atol=0.05)
    near = move_on(position, found, found.log_prior, 15_000.0)
    assert 0.0 < near.distance < 1.0
    # On the way E[T] is the multipliers times a number that falls to zero.
    log_w = found.log_density(1.0, near.multipliers) - found.log_prior
    moments = normalize_log_weights(log_w) @ found.deviations
    wanted = ridge_at(near.distance) * near.multipliers
    np.testing.assert_allclose(moments, wanted, atol=1e-3)


def test_ridges_fall_from_infinity_to_almost_none():
    values = [ridge_at(d) for d in (1.0, 1.0 - 1e-15, 0.9, 0.5, 0.1, 0.0)]
    assert values[0] == np.inf
    assert values[1] > 1e20
    assert (np.diff(values[1:]) < 0).all()
    assert values[-1] == RIDGE


def test_a_search_that_stalls_draws_twice_as_many_until_it_gives_up(monkeypatch):
    monkeypatch.setattr(population, "move_on", lambda position, *_: position)
    made = simulator(gaussian)
    made_of_them, spent = population.Population(made, 100), []
    state = made_of_them.init(KEY)
    while not state.is_stalled:
        state = made_of_them.advance(state)
        spent.append(made.num_simulations)
    np.testing.assert_array_equal(np.diff([100, *spent]), [200, 400, 800, 0])


def test_a_budget_is_that_of_one_population():
    """Chains, and searches of other restarts, leave it whole."""
    made = simulator(gaussian)
    one = Population(made, 200)
    first, second = one.init(KEY), one.init(KEY)
    assert draws_left(one, second, 1000) == 20_000 - 200
    assert draws_left(one, first, 1000) == 20_000 - 400


def test_arrived_multipliers_are_solved_again():
    """Those of the step that arrived may be of few draws: off by a tenth, once."""
    found = draws(np.random.default_rng(0).normal(size=20_000))
    off = Position(1.0, 0.0, np.array([-0.9, 0.1]))
    there = move_on(off, found, found.log_prior, 0.0)
    np.testing.assert_allclose(there.multipliers, [-1.0, 0.0], atol=0.05)


@pytest.mark.parametrize("edge", [1e-9, 0.3, 0.99, 2.0])
def test_the_largest_step_is_near_the_edge(edge):
    step = largest_step(lambda step: step <= edge, 1.0)
    assert 0.9 * min(edge, 1.0) <= step <= min(edge, 1.0)


def test_no_step_is_no_progress():
    assert largest_step(lambda step: False, 1.0) == 0.0


def readings(sd, num_latents=16):
    """Many latents, and a reading of one of them with noise."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([num_latents]).to_event(1))
        reading = z[0] + sd * jax.random.normal(numpyro.prng_key())
        epi.emergent_property(reading, mean=1.0, var=0.25)

    return model


@pytest.mark.ci
@pytest.mark.long
def test_chains_move_under_one_draw_of_small_noise():
    """Noise of 1% of the prior; importance sampling averages over one of half of it."""
    law = find(readings(0.01), num_repeats=2)
    assert law.method == "chains"
    assert_is_law(law, GAUSSIAN)
    assert find(readings(0.5), num_repeats=2).method == "importance"


@pytest.mark.parametrize(("noise", "is_quiet"), [(0.1, True), (0.5, False)])
@pytest.mark.parametrize("in_likelihood", [False, True])
def test_quiet_noise_is_small_beside_the_spread_of_draws(
    in_likelihood, noise, is_quiet
):
    rng = np.random.default_rng(0)
    x, none = rng.normal(size=4000), np.zeros((2, 4000))
    noises = noise * rng.normal(size=(2, 4000))
    log_lik, values = (noises, none) if in_likelihood else (none, noises)
    found = made_of(x, -0.5 * x**2, log_lik, (x + values)[..., None])
    assert found.is_quiet == is_quiet
    # Half of the variance of lambda times the noise, with lambda = 2.
    exact = 0.0 if in_likelihood else 2.0 * noise**2
    cost = found._replace(log_likelihoods=none).noise_cost(np.array([2.0]))
    assert cost == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("in_likelihood", [False, True])
def test_noise_of_averages_is_taken_off(in_likelihood):
    """Densities of averages have the mean of those of expectations; without, not.

    Noise of variance 1.44 in the exponent, of T or of log L: 8 of them, 20,000 draws:
    standard error 0.004; half the variance of the average is 0.09.
    """
    rng = np.random.default_rng(0)
    noise = 1.2 * rng.normal(size=(8, 20_000))
    none = np.zeros(20_000)
    log_lik, devs = (noise, 0 * noise) if in_likelihood else (0 * noise, noise)
    found = made_of(none, none, log_lik, devs[..., None])
    lam = np.ones(1)
    with_it = np.log(np.exp(found.log_density(1.0, lam)).mean())
    without = np.log(np.exp(noise.mean(axis=0)).mean())
    assert abs(with_it) < 0.015
    assert without > 0.07


def test_moments_are_those_of_expectations():
    """T and log L share noise, which weights by averages would prefer.

    E[T | z] is zero everywhere: so is E[T] under any weights.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 50_000))
    none = np.zeros(50_000)
    found = made_of(none, none, 0.7 * noise, noise[..., None])
    lam = np.array([-0.5])
    log_p = found.log_density(1.0, lam)
    weights = normalize_log_weights(log_p)
    assert abs(weights @ (found.deviations + found.noise_shift(1.0, lam))[:, 0]) < 0.03
    assert weights @ found.deviations[:, 0] > 0.1


def test_bias_by_noise_shows_in_halves():
    """The exponent has skewed noise, of which the second order leaves k / 6 m^2."""
    rng = np.random.default_rng(0)
    num = 400_000
    z = rng.normal(size=num)
    noise = rng.exponential(size=(16, num)) - 1.0
    values = (z + noise)[..., None]
    found = made_of(z, -0.5 * z**2, np.zeros((16, num)), values)
    lam = np.array([-1.0])
    bias = noise_bias(found, found.log_prior, lam)
    exact = 1.0  # the mean of z under its density tilted by exp(z)
    weights = normalize_log_weights(found.log_density(1.0, lam) - found.log_prior)
    miss = weights @ (found.deviations + found.noise_shift(1.0, lam))[:, 0] - exact
    assert abs(miss) > 0.003
    assert 0.5 < bias[0] / miss < 2.0


def test_families_share_their_errors():
    """A hundred families of ten equal draws: the error of a hundred draws."""
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(100, 1)), 10, axis=0)
    error = family_error(values, np.repeat(np.arange(100), 10))
    assert error[0] == pytest.approx(values.std() / 10, rel=1e-6)
    twin = family_error(values, np.arange(1000))
    assert twin[0] < 0.4 * error[0]


@pytest.mark.ci
@pytest.mark.long
def test_what_cannot_be_reached_stalls():
    def model():
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        epi.emergent_property(z, mean=2.0)

    problem = Problem(model, (), {}, KEY)
    table = problem.table.with_scale(np.linspace(0, 1, 100)[:, None])
    population = Population(Simulator(Programs(problem), table), 2000)
    state = population.init(KEY)
    while not (state.is_done or state.is_stalled):
        state = population.advance(state)
    assert state.is_stalled
    assert state.position.distance > 0.1
    weights = normalize_log_weights(state.log_weights)
    assert np.isfinite(weights).all()
    found = search(Programs(problem), table, kind="walk")
    assert "before the targets" in found.reason
    assert not found.is_at_the_targets
