# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of change of variables, for every guide and several numbers of latents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from guides.tables import GUIDES, at_random, latents, quick_jit, untrained
from numpyro_epi.guides import AutoRealNVP
from numpyro_epi.guides._affine import Affine, DirectedAffine
from numpyro_epi.guides._coupling import partitions

CASES = [(name, num) for name in GUIDES for num in (1, 2, 3)]
CASES += [("real_nvp", 5), ("real_nvp, directed", 5)]
each_case = pytest.mark.parametrize(("name", "num"), CASES)


@functools.cache
def guide_and_params(name, num):
    guide = GUIDES[name](latents(num))
    # Without a network behind it, a parameter has less effect.
    return guide, at_random(guide, untrained(guide), scale=0.5 if num == 1 else 0.03)


class NoLogDet(Affine):
    """Broken twin: forgets how it changes volumes."""

    def forward(self, x, theta):
        return super().forward(x, theta)[0], jnp.zeros_like(x)


class WrongRankOne(DirectedAffine):
    """Broken twin: undoes the change along a direction as if it were a small one."""

    def inverse(self, y, theta):
        v, square, gain = self._split(theta)
        h = y - (gain * (v * y).sum(-1))[..., None] * v
        x, log_scale = Affine(self.max_log_scale).inverse(h, theta)
        return x, log_scale - jnp.log1p(gain * square)[..., None] / v.shape[-1]


class NoExactInverse(Affine):
    """Broken twin: undoes the shift after the scale."""

    def inverse(self, y, theta):
        log_scale, shift = self._split(theta)
        return y * jnp.exp(-log_scale) - shift, -log_scale


def broken_guide(function):
    class Broken(AutoRealNVP):
        def _get_function(self):
            return function()

    return Broken(latents(3), num_flows=3, hidden_dims=(8,))


def law_violations(guide, params):
    """Largest error of each law over 20 points."""

    @quick_jit
    def errors(params, x):
        posterior = guide.get_posterior(params)
        transform = guide.get_transform(params)
        y, parts = transform.call_with_intermediates(x)
        log_det = transform.log_abs_det_jacobian(x, y, parts)
        jacobians = jax.vmap(jax.jacfwd(transform))(x)
        back = transform.inv(y)
        density = guide.get_base_dist().log_prob(x) - log_det
        gaps = {
            "forward is call": transform(x) - y,
            "inverse of forward": back - x,
            "forward of inverse": transform(transform.inv(x)) - x,
            "log-det": jnp.linalg.slogdet(jacobians)[1] - log_det,
            "log-det again": transform.log_abs_det_jacobian(x, y) - log_det,
            "inverse log-det": transform.inv.log_abs_det_jacobian(y, x) + log_det,
            "density of a point": posterior.log_prob(y) - density,
        }
        return {law: jnp.abs(gap).max() for law, gap in gaps.items()}

    x = 2 * jax.random.normal(jax.random.key(2), (20, guide.latent_dim))
    return errors(params, x)


@each_case
@pytest.mark.core
def test_transforms_obey_the_laws(name, num):
    guide, params = guide_and_params(name, num)
    for law, error in law_violations(guide, params).items():
        assert error < 1e-4, law


@pytest.mark.parametrize(
    ("function", "laws"),
    [
        (NoLogDet, {"log-det", "density of a point"}),
        (NoExactInverse, {"inverse of forward", "forward of inverse"}),
        (WrongRankOne, {"inverse of forward", "forward of inverse"}),
    ],
)
def test_laws_flag_a_broken_transform(function, laws):
    guide = broken_guide(function)
    violations = law_violations(guide, at_random(guide, untrained(guide)))
    assert all(violations[law] > 0.01 for law in laws)


def importance_z(guide, params):
    """How many standard errors the mean of r/q, r a density, is from 1.

    Draws are from q = the guide, n = 20,000, and r is a Gaussian in the middle of them.
    The estimator is unbiased, with a standard error of 0.01 to 0.03 here. A test at 5
    has a false-alarm rate below 1e-6, and detects a bias of 0.3 in nearly every run.
    """

    @quick_jit
    def draw(params):
        posterior = guide.get_posterior(params)
        u, parts = posterior.sample_with_intermediates(jax.random.key(3), (20_000,))
        return u, posterior.log_prob(u, parts)

    u, log_q = (np.asarray(array, float) for array in draw(params))
    low, middle, high = np.quantile(u, [0.16, 0.5, 0.84], axis=0)
    log_r = stats.norm.logpdf(u, middle, 0.35 * (high - low)).sum(-1)
    ratio = np.exp(log_r - log_q)
    return (ratio.mean() - 1) / (ratio.std() / len(u) ** 0.5)


@pytest.mark.parametrize(("name", "num"), [c for c in CASES if c[1] in (1, 3)])
def test_draws_have_the_density(name, num):
    assert abs(importance_z(*guide_and_params(name, num))) < 5


def test_draws_without_log_det_fail_the_test_of_densities():
    guide = broken_guide(NoLogDet)
    assert abs(importance_z(guide, at_random(guide, untrained(guide)))) > 5


def density_at(guide, params, u):
    log_q = quick_jit(lambda u: guide.get_posterior(params).log_prob(u))(u)
    return np.exp(np.asarray(log_q, float))


@pytest.mark.parametrize("name", GUIDES)
def test_density_integrates_to_one(name):
    guide, params = guide_and_params(name, 1)
    grid = np.linspace(-60, 60, 24_001)
    density = density_at(guide, params, jnp.asarray(grid)[:, None])
    assert integrate.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)

    guide, params = guide_and_params(name, 2)
    grid = np.linspace(-40, 40, 1_001)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1)
    density = density_at(guide, params, points)
    mass = integrate.trapezoid(integrate.trapezoid(density, grid), grid)
    assert mass == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("num", range(1, 10))
def test_three_layers_in_a_row_move_every_coordinate(num):
    layers = partitions(num, 12)
    for kept, moved in layers:
        assert sorted(kept + moved) == list(range(num))
    for i in range(len(layers) - 2):
        moved = {index for _, moved in layers[i : i + 3] for index in moved}
        assert moved == set(range(num))
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        assert set(first[1] + second[1]) == set(range(num))


@pytest.mark.parametrize(
    ("name", "num"), [("real_nvp", 1), ("real_nvp", 2), ("neural_spline", 1)]
)
def test_density_has_finite_derivatives_of_both_modes(name, num):
    guide, params = guide_and_params(name, num)

    def log_q(u):
        return guide.get_posterior(params).log_prob(u)

    @quick_jit
    def derivatives(u):
        return jax.grad(log_q)(u), jax.jacfwd(log_q)(u), jax.hessian(log_q)(u)

    backward, forward, hessian = derivatives(jnp.linspace(0.1, 1, num))
    np.testing.assert_allclose(backward, forward, rtol=1e-4, atol=1e-5)
    assert np.isfinite(hessian).all()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-4)


@pytest.mark.parametrize("name", GUIDES)
def test_far_points_and_large_parameters_stay_finite(name):
    guide = GUIDES[name](latents(3))
    params = at_random(guide, untrained(guide), scale=30.0)

    def log_q(params, u):
        return guide.get_posterior(params).log_prob(u)

    value_and_grads = quick_jit(jax.value_and_grad(log_q, (0, 1)))
    for size in (0.0, 1.0, 1e3):
        value, grads = value_and_grads(params, jnp.full(3, size))
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", GUIDES)
def test_restarts_train_together_by_vmap(name):
    guide, _ = guide_and_params(name, 2)
    restarts = [at_random(guide, untrained(guide, seed=i), seed=i) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *restarts)

    def draw(params, key):
        return guide.get_posterior(params).sample(key, (4,))

    keys = jax.random.split(jax.random.key(0), 3)
    together = quick_jit(jax.vmap(draw))(stacked, keys)
    alone = [
        quick_jit(draw)(params, key) for params, key in zip(restarts, keys, strict=True)
    ]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)


@pytest.mark.parametrize(("directed", "rank"), [(True, 8), (False, 1)])
def test_a_directed_layer_passes_on_all_that_it_keeps(directed, rank):
    # A network passes on as many numbers as it has units: here, one.
    options = {"num_flows": 1, "hidden_dims": (1,), "mixing": False}
    guide = AutoRealNVP(latents(16), directed=directed, **options)
    params = at_random(guide, untrained(guide), scale=0.3)
    kept, moved = guide._get_partitions()[0]
    x = 0.3 * jnp.arange(16.0) - 2.0
    slopes = quick_jit(jax.jacfwd(guide.get_transform(params).parts[0]))(x)
    block = np.asarray(slopes)[np.ix_(moved, kept)]
    assert np.linalg.matrix_rank(block, tol=1e-3 * np.abs(block).max()) == rank
