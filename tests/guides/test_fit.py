# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Flows learn: posteriors in closed form, and shapes in one dimension."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO

from guides.tables import single
from numpyro_epi.guides import AutoNeuralSpline, AutoRealNVP

KINDS = {
    "real_nvp": lambda model: AutoRealNVP(model, num_flows=4, hidden_dims=(16,)),
    "neural_spline": lambda model: AutoNeuralSpline(
        model, num_flows=2, hidden_dims=(16,)
    ),
}


def train(model, guide, num_steps, learning_rate=1e-2):
    """Parameters after SVI, with a learning rate that falls to zero."""
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True)
    svi = SVI(model, guide, optax.adam(schedule), elbo)

    @jax.jit
    def run(key):
        state = svi.init(key)
        update = lambda state, _: svi.update(state)  # noqa: E731
        state, losses = jax.lax.scan(update, state, length=num_steps)
        return svi.get_params(state), losses

    params, losses = run(jax.random.key(0))
    assert np.isfinite(losses).all()
    return params


@pytest.mark.parametrize("name", KINDS)
def test_svi_finds_a_gaussian_posterior(name):
    # Prior N(0, 1) of x and y, and x + y = 2 observed with sd 0.5: the posterior has
    # mean 2 / (2 + 0.25) = 8/9 each, variance 1 - 4/9 and correlation -0.8.
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(z.sum(), 0.5), obs=2.0)

    guide = KINDS[name](model)
    params = train(model, guide, 500)

    @jax.jit
    def draw(key):
        z = guide.sample_posterior(key, params, sample_shape=(20_000,))["z"]
        return z, guide.get_posterior(params).log_prob(z)

    z, log_q = (np.asarray(array, float) for array in draw(jax.random.key(1)))
    # Standard errors of 20,000 draws are 0.005; the rest is for an ELBO not at its end.
    np.testing.assert_allclose(z.mean(0), 8 / 9, atol=0.05)
    np.testing.assert_allclose(z.var(0), 5 / 9, rtol=0.08)
    assert np.corrcoef(z.T)[0, 1] == pytest.approx(-0.8, abs=0.03)

    exact = dist.MultivariateNormal(
        jnp.full(2, 8 / 9), jnp.array([[5.0, -4.0], [-4.0, 5.0]]) / 9
    )
    divergence = (log_q - exact.log_prob(z)).mean()
    assert 0 < divergence < 0.02


def tilted(log_factor, prior):
    def model():
        numpyro.factor("tilt", log_factor(numpyro.sample("z", prior)))

    return model


def divergence_on_grid(guide, params, log_target, grid):
    """KL(q || p) of densities on an unconstrained grid; p need not be normalised."""
    log_prob = jax.jit(guide.get_posterior(params).log_prob)
    log_q = np.asarray(log_prob(grid[:, None]), float)
    log_p = np.asarray(log_target(grid), float)
    step = grid[1] - grid[0]
    log_p -= np.log(np.exp(log_p).sum() * step)
    q = np.exp(log_q)
    assert q.sum() * step == pytest.approx(1, abs=1e-3)
    return (q * (log_q - log_p)).sum() * step, (q * (grid > 0)).sum() * step


@pytest.mark.parametrize("name", KINDS)
def test_one_latent_learns_a_truncated_exponential(name):
    # Maximum entropy on [0, 1] with a given mean: density proportional to exp(-10 x).
    model = tilted(lambda x: -10 * x, dist.Uniform(0.0, 1.0))
    guide = KINDS[name](model)
    params = train(model, guide, 500, learning_rate=0.02)

    def log_target(u):
        return jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u) - 10 * jax.nn.sigmoid(u)

    grid = jnp.linspace(-15, 12, 5_000)
    divergence, _ = divergence_on_grid(guide, params, log_target, grid)
    assert 0 <= divergence < 0.01


@pytest.mark.parametrize("name", KINDS)
def test_one_latent_learns_two_modes_of_equal_mass(name):
    def log_target(z):
        return jnp.logaddexp(-0.5 * (z - 3) ** 2, -0.5 * (z + 3) ** 2)

    prior = dist.Normal(0.0, 4.0)
    model = tilted(lambda z: log_target(z) - prior.log_prob(z), prior)
    guide = KINDS[name](model)
    params = train(model, guide, 1_000, learning_rate=0.02)
    grid = jnp.linspace(-15, 15, 5_000)
    divergence, share = divergence_on_grid(guide, params, log_target, grid)
    # A flow that lost a mode would be at log 2 = 0.69, a Gaussian at 0.4 or more.
    assert 0 <= divergence < 0.06
    assert share == pytest.approx(0.5, abs=0.08)


X64 = """
    from guides import test_laws

    for name, num in (("real_nvp", 3), ("neural_spline", 1)):
        guide, params = test_laws.guide_and_params(name, num)
        for law, error in test_laws.law_violations(guide, params).items():
            assert error.dtype == "float64", (name, num)
            assert error < 1e-10, (name, num, law, error)
    print("right")
"""


@pytest.mark.ci
@pytest.mark.long
def test_laws_hold_to_double_precision(request):
    root = request.config.rootpath
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(X64)],
        check=False,
        env={"JAX_ENABLE_X64": "1", "PYTHONPATH": f"{root}:{root / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == "right", out.stderr


def test_validation_of_arguments_does_not_stop_training():
    with numpyro.validation_enabled():
        model = single(lambda: dist.Uniform(0.0, 1.0))
        guide = AutoRealNVP(model, num_flows=2)
        params = train(model, guide, 3)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(params))
