# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The rank-2 network: eigenvalues, their gradients, noise, trajectories, model."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from scipy import optimize
from scipy.linalg import expm

from numpyro_epi.circuits import rnn
from numpyro_epi.handlers import collect, noise

SIZES = [1, 2, 3, 4, 5, 6, 10, 50, 250]

real_eigenvalue = jax.jit(rnn.real_eigenvalue)
symmetric_eigenvalue = jax.jit(rnn.symmetric_eigenvalue)


def networks(num_neurons, num=50, seed=0):
    """U and V, shape (num, N, 2), in double precision."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.0, 1.0, (2, num, num_neurons, 2))


def symmetric_reference(U, V):
    """Largest eigenvalue of the N x N matrix, from NumPy."""
    W = U @ np.swapaxes(V, -1, -2)
    return np.linalg.eigvalsh((W + np.swapaxes(W, -1, -2)) / 2)[..., -1]


def real_reference(U, V):
    """Largest real part of both eigenvalues of the 2 x 2 matrix, from NumPy."""
    return np.linalg.eigvals(np.swapaxes(V, -1, -2) @ U).real.max(axis=-1)


@pytest.mark.core
@pytest.mark.parametrize("num_neurons", SIZES)
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-10)])
def test_eigenvalues_are_those_of_numpy(num_neurons, x64, tolerance):
    with jax.enable_x64(x64):
        U, V = map(jnp.asarray, networks(num_neurons, 50 if num_neurons < 50 else 5))
        real, symmetric = real_eigenvalue(U, V), symmetric_eigenvalue(U, V)
        assert real.dtype == symmetric.dtype == U.dtype
    U, V = np.asarray(U, np.float64), np.asarray(V, np.float64)
    options = {"rtol": tolerance, "atol": tolerance * num_neurons}
    np.testing.assert_allclose(real, real_reference(U, V), **options)
    np.testing.assert_allclose(symmetric, symmetric_reference(U, V), **options)


@pytest.mark.parametrize("num_neurons", [5, 10, 50])
def test_real_eigenvalue_is_in_the_spectrum_of_the_network(num_neurons):
    U, V = networks(num_neurons)
    spectrum = np.linalg.eigvals(U @ np.swapaxes(V, -1, -2)).real.max(axis=-1)
    found = real_eigenvalue(U, V)
    # The other eigenvalues are zero, and the statistic is not: it may be negative.
    np.testing.assert_allclose(np.maximum(found, 0.0), spectrum, atol=1e-4)
    assert (found < 0).any()


@pytest.mark.parametrize("num_neurons", [1, 2])
def test_the_gram_problem_alone_fails_for_few_neurons(num_neurons):
    # A broken twin: beside the eigenvalues, it has zeros, which may be larger.
    U, V = networks(num_neurons)
    B = np.concatenate([U, V], axis=-1)
    swap = np.kron([[0.0, 0.5], [0.5, 0.0]], np.eye(2))
    found = np.linalg.eigvals(swap @ np.swapaxes(B, -1, -2) @ B).real.max(axis=-1)
    exact = symmetric_reference(U, V)
    assert (exact < -0.01).any()
    assert np.abs(found - exact).max() > 0.01


@pytest.mark.parametrize("num_neurons", [2, 3, 5, 50])
def test_gradients_are_central_differences(num_neurons):
    step, num = 1e-6, 4
    rng = np.random.default_rng(1)

    def statistics(z):
        return jnp.stack([rnn.real_eigenvalue(*z), rnn.symmetric_eigenvalue(*z)])

    with jax.enable_x64(new_val=True):
        z = jnp.asarray(np.stack(networks(num_neurons, num), axis=1))
        along = jnp.asarray(rng.normal(size=z.shape))
        batch = jax.jit(jax.vmap(statistics))
        exact = batch(z + step * along) - batch(z - step * along)
        exact = np.asarray(exact / (2 * step))
        slope = jax.vmap(lambda z, dz: jax.jvp(statistics, (z,), (dz,))[1])
        forward = np.asarray(jax.jit(slope)(z, along))
        reverse = jax.jit(jax.vmap(jax.jacrev(statistics)))(z)
    reverse = np.einsum("bsknr,bknr->bs", reverse, along)
    np.testing.assert_allclose(forward, exact, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-8, atol=1e-12)


def constant_vector(z):
    """A broken twin: first derivatives are right, and second ones are not."""
    S = (z[0] @ z[1].T + z[1] @ z[0].T) / 2
    w = jax.lax.stop_gradient(jnp.linalg.eigh(S)[1][:, -1])
    return w @ z[0] @ (z[1].T @ w)


@pytest.mark.parametrize("num_neurons", [3, 6])
@pytest.mark.parametrize("is_twin", [False, True])
def test_second_derivatives(num_neurons, is_twin):
    def eigenvalue(z):
        return constant_vector(z) if is_twin else rnn.symmetric_eigenvalue(*z)

    with jax.enable_x64(new_val=True):
        z = jnp.asarray(networks(num_neurons, 1)[:, 0])
        along = jnp.asarray(np.random.default_rng(2).normal(size=z.shape))
        slope = jax.jit(lambda z: jnp.vdot(jax.grad(eigenvalue)(z), along))
        exact = float(slope(z + 1e-5 * along) - slope(z - 1e-5 * along)) / 2e-5
        found = float(jax.jit(lambda z: jax.jvp(slope, (z,), (along,))[1])(z))
    assert (abs(found / exact - 1.0) < 1e-5) != is_twin


def special_networks(num_neurons):
    """Gram matrices without an inverse, eigenvalues without a gap, no weights."""
    U, V = networks(num_neurons, 1)[:, 0]
    plane = np.eye(num_neurons, 2)
    return {
        "no weights": (0 * U, 0 * V),
        "V is zero": (U, 0 * V),
        "symmetric": (U, U),
        "negative": (U, -U),
        "two lead": (plane, plane),
        "rank one": (U[:, :1] * [1, 1], V[:, :1] * [1, 1]),
        "antisymmetric": (plane, plane[:, ::-1] * [1, -1]),
    }


@pytest.mark.core
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("num_neurons", [3, 6])
def test_gradients_are_finite_everywhere(num_neurons, x64):
    both = jax.jit(
        jax.vmap(
            lambda U, V: (
                rnn.symmetric_eigenvalue(U, V),
                jax.grad(rnn.symmetric_eigenvalue, (0, 1))(U, V),
                jax.grad(rnn.real_eigenvalue, (0, 1))(U, V),
            )
        )
    )
    cases = special_networks(num_neurons)
    with jax.enable_x64(x64):
        U, V = (jnp.asarray(np.stack(x)) for x in zip(*cases.values(), strict=True))
        values, *gradients = both(U, V)
    exact = symmetric_reference(np.asarray(U), np.asarray(V))
    np.testing.assert_allclose(values, exact, atol=1e-9 if x64 else 1e-5)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        # A unit vector times weights cannot exceed the weights.
        assert np.abs(gradient).max() < 3.0


def test_plain_gram_roots_fail_there():
    # The broken twin of the test above.
    def naive(U, V):
        B = jnp.concatenate([U, V], -1)
        root = jnp.linalg.cholesky(B.T @ B)
        halves = jnp.concatenate([root[2:], root[:2]]) / 2.0
        return jnp.linalg.eigvalsh(root.T @ halves)[-1]

    slope = jax.jit(jax.grad(naive))
    for U, V in special_networks(6).values():
        gradient = slope(U, V)
        assert not np.isfinite(gradient).all()


def test_gradient_where_no_vector_leads_is_zero():
    # W = -U U' has no positive eigenvalue: the largest is zero, on all directions that
    # U does not reach, and stays zero.
    U, _ = networks(6, 1)[:, 0]
    gradient = jax.jit(jax.grad(rnn.symmetric_eigenvalue))(U, -U)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("transform", [jax.jit, lambda f: jax.jit(jax.vmap(f))])
@pytest.mark.parametrize("statistic", [rnn.real_eigenvalue, rnn.symmetric_eigenvalue])
def test_eigenvalues_under_transformations(statistic, transform):
    U, V = networks(7, 6)
    direct = np.stack([statistic(*z) for z in zip(U, V, strict=True)])
    np.testing.assert_allclose(transform(statistic)(U, V), direct, rtol=1e-5, atol=1e-6)
    for shape in ((), (2, 3), (0,)):
        batch = jax.ShapeDtypeStruct((*shape, 7, 2), jnp.float32)
        assert jax.eval_shape(statistic, batch, batch).shape == shape


# Standard normal numbers through two supports, N = 100: an independent implementation
# found these means of both eigenvalues (rounded to 0.1 and 0.01). Estimator: mean of
# 1,000 networks; 5 standard errors (6e-7) are added to the rounding.
WIDE = {"real": None, "symmetric": 21.9, "slope": 1.0}
NARROW = {"real": 1.07, "symmetric": 9.6, "slope": 0.5}


@pytest.mark.parametrize("case", [WIDE, NARROW])
def test_means_are_the_verified_ones(case):
    z = np.random.default_rng(3).normal(size=(2, 1000, 100, 2))
    U, V = rnn.add_noise(*np.tanh(case["slope"] * z), random.key(0))
    for name, rounding in (("real", 0.005), ("symmetric", 0.05)):
        if case[name] is not None:
            statistic = {"real": real_eigenvalue, "symmetric": symmetric_eigenvalue}
            found = np.asarray(statistic[name](U, V))
            error = 5 * found.std() / np.sqrt(1000) + rounding
            assert abs(found.mean() - case[name]) < error
            # The broken twin: weights over N.
            assert abs(found.mean() / 100 - case[name]) > error


@pytest.mark.parametrize("rng_impl", [None, "unsafe_rbg"])
def test_noise_has_its_size_and_is_independent(rng_impl):
    """Estimator: standard deviation of 40,000 numbers; 5 standard errors are 1.8%."""
    key = random.key(0, impl=rng_impl)
    U, V = networks(100, 100)
    noisy = jax.jit(jax.vmap(rnn.add_noise))(U, V, random.split(key, 100))
    change = np.stack([noisy[0] - U, noisy[1] - V])
    assert abs(change.std() / 0.01 - 1.0) < 5 / np.sqrt(2 * change.size)
    for first, second in ((change[0], change[1]), (change[:, :50], change[:, 50:])):
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(first.size)


# Activity


@pytest.mark.parametrize(("num_neurons", "tau"), [(2, 100.0), (10, 20.0)])
def test_trajectory_is_the_matrix_exponential(num_neurons, tau):
    U, V = networks(num_neurons, 1)[:, 0]
    start, times = np.linspace(-1.0, 1.0, num_neurons), np.array([0.0, 40.0, 300.0])
    trajectory = jax.jit(rnn.trajectory)
    drift = (U @ V.T - np.eye(num_neurons)) / tau
    exact = np.stack([expm(drift * t) @ start for t in times])
    with jax.enable_x64(new_val=True):
        found = trajectory(U, V, times, start, tau)
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)
        rate = rnn.drift(jnp.asarray(start), jnp.asarray(U), jnp.asarray(V), tau)
        np.testing.assert_allclose(rate, drift @ start, rtol=1e-10)


def test_solver_finds_the_trajectory():
    U, V = networks(10, 1)[:, 0]
    start, times = np.linspace(-1.0, 1.0, 10), np.array([0.0, 50.0, 200.0])
    exact = jax.jit(rnn.trajectory)(U, V, times, start)
    found = jax.jit(rnn.solve)(U, V, times, start)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
    euler = rnn.solve(U, V, times, start, solver=diffrax.Euler(), dt0=50.0)
    step = jnp.asarray(start) + 50.0 * rnn.drift(jnp.asarray(start), U, V)
    np.testing.assert_allclose(euler[1], step, rtol=1e-5, atol=1e-5)


def test_statistics_describe_the_activity():
    # At first the leading eigenvector w of the symmetric part grows at the rate
    # (eigenvalue - 1) / tau, faster than anything else; in the long run all decays.
    U = np.array([[3.0, 0.0], [0.0, 0.5], [0.2, 0.0], [0.0, 0.0], [0.0, 0.1]])
    V = np.array([[0.1, 0.0], [1.0, 0.0], [0.0, 1.0], [0.3, 0.0], [0.0, 0.5]])
    assert rnn.REGIMES[int(rnn.regime(U, V))] == "stable amplification"
    S = (U @ V.T + V @ U.T) / 2
    w = np.linalg.eigh(S)[1][:, -1]
    with jax.enable_x64(new_val=True):
        times = np.array([0.0, 0.01, 100.0, 5000.0, 5100.0])
        x = jax.jit(rnn.trajectory)(U, V, times, w)
        norms = np.linalg.norm(x, axis=1)
        rate = (np.log(norms[1]) - np.log(norms[0])) / 0.01
        exact = (symmetric_eigenvalue(U, V) - 1.0) / 100.0
        np.testing.assert_allclose(rate, exact, rtol=1e-3)
        growth = (real_eigenvalue(U, V) - 1.0) / 100.0
        rate = (np.log(norms[4]) - np.log(norms[3])) / 100.0
        np.testing.assert_allclose(rate, growth, rtol=1e-3)
    assert norms[2] > 1.1
    assert norms[3] < 1e-3


@pytest.mark.parametrize(
    ("u", "v", "name"),
    [
        (1.2, 1.0, "unstable"),
        (0.5, 1.0, "monotonic decay"),
        (-0.5, 1.0, "monotonic decay"),
    ],
)
def test_regimes(u, v, name):
    U, V = np.zeros((2, 4, 2))
    U[0, 0], V[0, 0] = u, v
    assert rnn.REGIMES[int(rnn.regime(U, V))] == name


# The model


def properties_of(model, *args, **kwargs):
    noisy = noise(model)
    collector = collect(noisy)
    seeded = numpyro.handlers.seed(collector, random.key(0))
    trace = numpyro.handlers.trace(seeded).get_trace(*args, **kwargs)
    return trace, collector.properties, noisy.is_noisy


def reweighted_entropy(num_neurons, num, target):
    """Entropy of the tilted prior, from prior draws: log volume minus the dual's value.

    The noise of the model is left out: at g = 0.01 it changes no digit.
    """
    U, V = networks(num_neurons, num)
    real = np.asarray(real_eigenvalue(U, V), float)
    symmetric = np.asarray(symmetric_eigenvalue(U, V), float)
    f = (np.stack([real, symmetric], axis=1) - target) / 0.25
    deviations = np.concatenate([f, f**2 - 1], axis=1)

    def log_mean(multipliers):
        exponent = -deviations @ multipliers
        weights = np.exp(exponent - exponent.max())
        gradient = -(weights[:, None] * deviations).sum(0) / weights.sum()
        return exponent.max() + np.log(weights.mean()), gradient

    dual = optimize.minimize(log_mean, np.zeros(4), jac=True, method="BFGS")
    assert np.abs(dual.jac).max() < 1e-3
    return dual.fun + 4 * num_neurons * np.log(2.0)


@pytest.mark.parametrize("num_neurons", [5, 10])
def test_maximum_is_that_of_the_reweighted_prior(num_neurons):
    """Between seeds the estimate varies by 0.0005 (N = 5) and 0.006 (N = 10)."""
    stated = dict(rnn.PAPER.max_entropy)[num_neurons]
    found = reweighted_entropy(num_neurons, 200_000, [0.5, 1.5])
    assert found == pytest.approx(stated, abs=0.03)
    # The twin, another target, has another maximum.
    assert abs(reweighted_entropy(num_neurons, 200_000, [0.4, 1.5]) - stated) > 0.1


@pytest.mark.core
@pytest.mark.parametrize("num_neurons", [2, 10])
def test_model_has_the_constants_of_the_paper(num_neurons):
    trace, properties, is_noisy = properties_of(rnn.model, num_neurons)
    assert is_noisy
    for name in ("U", "V"):
        support = trace[name]["fn"].support.base_constraint
        assert trace[name]["value"].shape == (num_neurons, 2)
        assert (support.lower_bound, support.upper_bound) == (-1.0, 1.0)
    assert list(properties) == ["real_eigenvalue", "symmetric_eigenvalue"]
    real, symmetric = properties.values()
    assert (float(real.mean), float(real.var)) == (0.5, 0.0625)
    assert (float(symmetric.mean), float(symmetric.var)) == (1.5, 0.0625)
    # With noise of 0.01 on each entry, near the values without it.
    U, V = trace["U"]["value"], trace["V"]["value"]
    np.testing.assert_allclose(symmetric.stat, rnn.symmetric_eigenvalue(U, V), atol=0.2)
    assert symmetric.stat != rnn.symmetric_eigenvalue(U, V)


def test_model_takes_other_targets_and_constants():
    constants = rnn.PAPER._replace(noise=0.0, shift=0.01, bound=2.0)
    trace, properties, is_noisy = properties_of(
        rnn.model, 5, (0.0, 2.0), None, constants, is_noisy=False
    )
    assert not is_noisy
    real, symmetric = properties.values()
    assert (float(real.mean), real.var) == (0.0, None)
    assert float(symmetric.mean) == 2.0
    U, V = trace["U"]["value"], trace["V"]["value"]
    assert trace["U"]["fn"].support.base_constraint.upper_bound == 2.0
    np.testing.assert_allclose(real.stat, rnn.real_eigenvalue(U, V) + 0.01, rtol=1e-6)
    assert symmetric.stat == rnn.symmetric_eigenvalue(U, V)


CONSTANTS = rnn.PAPER._replace
PAIR = np.ones((3, 2)), np.ones((3, 2))
ERRORS = [
    (lambda: rnn.real_eigenvalue("U", PAIR[1]), TypeError, "real numbers as `U`"),
    (
        lambda: rnn.real_eigenvalue(PAIR[0], np.ones((3, 3))),
        ValueError,
        r"\(\.\.\., N, 2\) as `V`, got \(3, 3\)",
    ),
    (
        lambda: rnn.symmetric_eigenvalue(PAIR[0], np.ones((4, 2))),
        ValueError,
        r"one shape, got \(3, 2\) and \(4, 2\)",
    ),
    (lambda: rnn.regime(np.ones(2), np.ones(2)), ValueError, "`U`"),
    (lambda: rnn.add_noise(*PAIR, 0), TypeError, "random key"),
    (
        lambda: rnn.trajectory(*PAIR, [0.0], np.ones(4)),
        ValueError,
        r"\(N,\) as `start`, got \(3, 2\) and \(4,\)",
    ),
    (
        lambda: rnn.trajectory(*PAIR, [0.0], np.ones(3), tau=0.0),
        ValueError,
        "positive .* `tau`",
    ),
    (lambda: rnn.model(1), ValueError, "at least 2 as `num_neurons`, got 1"),
    (lambda: rnn.model(2.0), TypeError, "integer .* as `num_neurons`, got 2.0"),
    (lambda: rnn.model(mean=0.5), ValueError, "two numbers as `mean`, of the leading"),
    (lambda: rnn.model(constants=None), TypeError, "`RNNConstants` as `constants`"),
    (
        lambda: rnn.model(constants=CONSTANTS(bound=-1.0)),
        ValueError,
        r"positive numbers as `constants\.bound`",
    ),
    (
        lambda: rnn.model(constants=CONSTANTS(noise=(1.0, 2.0))),
        ValueError,
        r"one number as `constants\.noise`, got shape \(2,\)",
    ),
]


@pytest.mark.core
@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_wrong_input_is_named(call, error, message):
    with (
        numpyro.handlers.seed(rng_seed=0),
        pytest.raises(error, match=message),
    ):
        call()


@pytest.mark.core
def test_constants_are_immutable():
    with pytest.raises(AttributeError):
        rnn.PAPER.noise = 2.0
