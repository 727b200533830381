# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws in several pieces are told from draws in one, and a base follows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from guides.tables import GUIDES, latents, untrained
from numpyro_epi.guides._distributions import StandardLogistic
from numpyro_epi.guides._islands import MIN_DRAWS, find_islands
from numpyro_epi.guides._mixture import LOG_ZERO, Components, MixtureBase, reweigh

# Seeds of each shape, and draws of each seed.
SEEDS, NUM = range(5), 2000


def gaussian(dim):
    return lambda rng: rng.normal(size=(NUM, dim))


def blobs(centres, shares):
    def draw(rng):
        which = rng.choice(len(centres), size=NUM, p=shares)
        return np.asarray(centres, float)[which] + rng.normal(
            size=(NUM, len(centres[0]))
        )

    return draw


def ring(rng):
    angle = rng.uniform(0, 2 * np.pi, NUM)
    radius = 1 + 0.05 * rng.normal(size=NUM)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def rings(rng):
    shift = rng.choice([-2.0, 2.0], size=(NUM, 1))
    return ring(rng) + shift * np.array([1.0, 0.0])


def banana(rng):
    x = 2 * rng.normal(size=NUM)
    return np.stack([x, x**2 + 0.1 * rng.normal(size=NUM)], axis=1)


def funnel(rng):
    scale = np.exp(1.5 * rng.normal(size=NUM))
    return np.stack([np.log(scale), scale * rng.normal(size=NUM)], axis=1)


# Draws of a generator, and the number of their pieces.
SHAPES = {
    "gaussian, 2": (gaussian(2), 1),
    "gaussian, 5": (gaussian(5), 1),
    "gaussian, 12": (gaussian(12), 1),
    "logit of a uniform box": (lambda rng: rng.logistic(size=(NUM, 3)), 1),
    "corner": (lambda rng: rng.exponential(size=(NUM, 3)), 1),
    "heavy tails": (lambda rng: rng.standard_cauchy((NUM, 2)), 1),
    "ring": (ring, 1),
    "banana": (banana, 1),
    "funnel": (funnel, 1),
    "overlap": (blobs([[-2, 0], [2, 0]], [0.5, 0.5]), 1),
    "two": (blobs([[-5, 0], [5, 0]], [0.2, 0.8]), 2),
    "two in five dimensions": (blobs([[-8, *[0] * 4], [8, *[0] * 4]], [0.5, 0.5]), 2),
    "four": (blobs([[-6, -6], [-6, 6], [6, -6], [6, 6]], [0.1, 0.2, 0.3, 0.4]), 4),
    "two rings": (rings, 2),
}


@pytest.mark.parametrize(("draw", "expected"), SHAPES.values(), ids=SHAPES)
def test_pieces_are_counted(draw, expected):
    found = [find_islands(draw(np.random.default_rng(seed))) for seed in SEEDS]
    assert [labels.max() + 1 for labels in found] == [expected] * len(SEEDS)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_pieces_do_not_depend_on_units(scale):
    draws = SHAPES["four"][0](np.random.default_rng(0))
    labels = find_islands(draws * np.array([scale, 1.0]))
    expected = 2 * (draws[:, 0] > 0) + (draws[:, 1] > 0)
    pairs = set(zip(labels.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == 4


def test_a_stray_draw_belongs_to_the_nearest_piece():
    draws = SHAPES["two"][0](np.random.default_rng(0))
    labels = find_islands(np.concatenate([draws, [[-2.0, 0.0], [2.0, 0.0]]]))
    assert labels[-2] == labels[draws[:, 0].argmin()]
    assert labels[-1] == labels[draws[:, 0].argmax()]


def test_few_draws_are_one_piece():
    draws = SHAPES["two"][0](np.random.default_rng(0))[: MIN_DRAWS - 1]
    assert find_islands(draws).max() == 0


# -- the base --------------------------------------------------------------------------


def mixture(share=0.2):
    """Three components beside a logistic base of some share, and two of no weight."""
    rng = np.random.default_rng(1)
    weights = np.append(share, (1 - share) * np.array([0.5, 0.3, 0.2]))
    factors = np.tril(rng.normal(size=(3, 2, 2))) * 0.2 + np.eye(2) * 0.5
    locs = np.array([[-4.0, 0.0], [4.0, 1.0], [0.0, 5.0]])
    found = Components.of(np.log(weights), locs, factors, np.linalg.inv(factors))
    return MixtureBase(StandardLogistic(2), found.padded(5))


def log_density(x):
    """The same by SciPy."""
    base = mixture()
    weights = np.exp(np.asarray(base.components.log_weights, float))
    total = weights[0] * stats.logistic.pdf(x).prod(-1)
    for k in range(3):
        factor = np.asarray(base.components.factors[k], float)
        law = stats.multivariate_normal(base.components.locs[k], factor @ factor.T)
        total = total + weights[k + 1] * law.pdf(x)
    return np.log(total)


def test_density_is_that_of_the_mixture():
    x = 3 * np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(mixture().log_prob(x), log_density(x), rtol=1e-4)


@pytest.mark.parametrize("kind", ["at random", "evenly"])
def test_draws_have_the_density(kind):
    """Moments of 20,000 draws, within 5 standard errors: false alarms below 1e-5."""
    key, num = jax.random.key(0), 20_000
    base = mixture()
    if kind == "evenly":
        x = base.from_uniform(jax.random.uniform(jax.random.key(1), (num, 2)), key)
    else:
        x = base.sample(key, (num,))
    x = np.asarray(x, float)
    weights = np.exp(np.asarray(base.components.log_weights[:4], float))
    locs = np.concatenate([[[0.0, 0.0]], base.components.locs[:3]])
    covs = [np.eye(2) * np.pi**2 / 3]
    covs += [f @ f.T for f in np.asarray(base.components.factors[:3], float)]
    second = sum(
        w * (c + np.outer(m, m)) for w, c, m in zip(weights, covs, locs, strict=True)
    )
    found = np.concatenate([x, x**2, x[:, :1] * x[:, 1:]], axis=1)
    expected = np.array([*(weights @ locs), second[0, 0], second[1, 1], second[0, 1]])
    errors = found.std(axis=0) / np.sqrt(num)
    assert (np.abs(found.mean(axis=0) - expected) < 5 * errors).all()
    wrong = expected + np.array([0.5, 0, 0, 0, 0])
    assert not (np.abs(found.mean(axis=0) - wrong) < 5 * errors).all()


def test_even_draws_have_the_shares_of_the_weights_in_each_half():
    base = mixture(share=0.0 + 1e-9)
    x = base.from_uniform(
        jax.random.uniform(jax.random.key(1), (1000, 2)), jax.random.key(0)
    )
    nearest = np.argmin(
        np.linalg.norm(x[:, None] - np.asarray(base.components.locs[:3]), axis=-1),
        axis=1,
    )
    for half in (nearest[:500], nearest[500:]):
        shares = np.bincount(half, minlength=3) / 500
        np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.005)


def test_components_without_weight_leave_the_base_as_it_is():
    base = StandardLogistic(3)
    wide = MixtureBase(base, Components.none(4, 3))
    x = 5 * np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_array_equal(wide.log_prob(x), base.log_prob(x))


def test_weights_follow_draws():
    base = mixture()
    x = base.sample(jax.random.key(0), (20_000,))
    # Those without weight lie in the middle of others, and stay out of it.
    log_weights = jnp.where(jnp.arange(6) < 4, jnp.log(0.25), LOG_ZERO)
    even = base.components._replace(log_weights=log_weights)
    for _ in range(50):
        even = reweigh(MixtureBase(base.standard, even), x)
    shares = np.exp(np.asarray(even.log_weights))
    np.testing.assert_allclose(shares[:3], [0.2, 0.4, 0.24], atol=0.03)


# -- guides ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDES)
def test_a_flow_on_islands_starts_with_all_of_them(name):
    guide = GUIDES[name](latents(2))
    params = untrained(guide)
    draws = SHAPES["four"][0](np.random.default_rng(0)) / 3
    islands = guide.components.find_islands(draws)
    found = guide.components.on_islands(draws, np.ones(NUM, int), islands)
    assert found.num == 4
    params = guide.components.set(params, found)
    found = np.asarray(guide.get_posterior(params).sample(jax.random.key(0), (4000,)))
    quadrants = 2 * (found[:, 0] > 0) + (found[:, 1] > 0)
    shares = np.bincount(quadrants, minlength=4) / 4000
    # Errors of the shares of 2,000 and of 4,000 draws: 5 of them are 0.07.
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.07)
    assert np.abs(found).min(axis=1).min() > 0.2  # nothing between them


@pytest.mark.parametrize(("num", "is_on"), [(1, True), (13, True), (2, False)])
def test_a_base_without_components(num, is_on):
    """One latent, many, or on request."""
    guide = GUIDES["real_nvp"](latents(num), multimodal=is_on)
    untrained(guide)
    rng = np.random.default_rng(0)
    draws = 0.1 * rng.normal(size=(NUM, num)) + rng.choice([-2, 2], size=(NUM, 1))
    assert num > 12 or find_islands(draws).max() == 1
    assert not guide.components.find_islands(draws).any()
