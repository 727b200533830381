# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The linear system: its eigenvalue, its gradients, its trajectories, its model."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.linalg import expm

from numpyro_epi.circuits import linear
from numpyro_epi.handlers import collect

RNG_MATRICES = np.random.default_rng(0).uniform(-10.0, 10.0, (1000, 2, 2))
FOCUS = np.array([[1.0, 3.0], [-3.0, 1.0]])  # oscillates
SADDLE = np.array([[1.0, 3.0], [3.0, -2.0]])  # does not
DEFECTIVE = np.array([[2.0, 1.0], [0.0, 2.0]])  # discriminant zero


def reference(matrix, tau=1.0):
    """Growth and frequency from the eigenvalues of NumPy, in double precision."""
    values = np.linalg.eigvals(np.asarray(matrix, np.float64) / tau)
    growth = values.real.max(axis=-1)
    return growth, np.abs(values.imag).max(axis=-1)


@pytest.mark.core
@pytest.mark.parametrize("tau", [1.0, 0.02])
@pytest.mark.parametrize(("x64", "rtol"), [(False, 1e-5), (True, 1e-10)])
def test_eigenvalue_is_that_of_numpy(tau, x64, rtol):
    with jax.enable_x64(x64):
        matrices = jnp.asarray(RNG_MATRICES)
        assert matrices.dtype == (jnp.float64 if x64 else jnp.float32)
        growth, frequency = linear.leading_eigenvalue(matrices, tau)
    assert growth.dtype == frequency.dtype == matrices.dtype
    matrices, frequency = np.asarray(matrices), np.asarray(frequency)
    exact = reference(matrices, tau)
    # Absolute, in units of the largest entry: growth and frequency pass through zero.
    np.testing.assert_allclose(growth, exact[0], atol=10 * rtol / tau, rtol=rtol)
    # The square root magnifies rounding of a small discriminant.
    diff = matrices[:, 0, 0] - matrices[:, 1, 1]
    far = np.abs(diff**2 / 4 + matrices[:, 0, 1] * matrices[:, 1, 0]) > 1e-2
    assert far.mean() > 0.99
    np.testing.assert_allclose(
        frequency[far], exact[1][far], atol=10 * rtol / tau, rtol=10 * rtol
    )


@pytest.mark.parametrize(
    "transform", [jax.vmap, jax.jit, lambda f: jax.jit(jax.vmap(f))]
)
def test_eigenvalue_under_transformations(transform):
    matrices = jnp.asarray(RNG_MATRICES[:50], jnp.float32)
    direct = linear.leading_eigenvalue(matrices)
    np.testing.assert_allclose(
        transform(linear.leading_eigenvalue)(matrices), direct, rtol=1e-5, atol=1e-5
    )
    assert linear.leading_eigenvalue(matrices[0])[0].shape == ()
    batched = linear.leading_eigenvalue(matrices.reshape(5, 10, 2, 2))
    assert batched[1].shape == (5, 10)


def test_gradients_are_central_differences():
    step = 1e-6
    with jax.enable_x64(new_val=True):
        matrices = jnp.asarray(RNG_MATRICES[:100])

        def statistics(matrix):
            return jnp.stack(linear.leading_eigenvalue(matrix, 0.5))

        exact = np.zeros((100, 2, 2, 2))
        for i in range(2):
            for j in range(2):
                shift = jnp.zeros((2, 2)).at[i, j].set(step)
                change = jax.vmap(statistics)(matrices + shift)
                change -= jax.vmap(statistics)(matrices - shift)
                exact[:, :, i, j] = change / (2 * step)
        forward = jax.vmap(jax.jacfwd(statistics))(matrices)
        reverse = jax.vmap(jax.jacrev(statistics))(matrices)
    np.testing.assert_allclose(reverse, exact, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)


@pytest.mark.core
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("matrix", [DEFECTIVE, np.eye(2), np.zeros((2, 2))])
def test_discriminant_zero(matrix, x64):
    with jax.enable_x64(x64):
        matrix = jnp.asarray(matrix)
        growth, frequency = linear.leading_eigenvalue(matrix)
        gradients = jax.jacrev(linear.leading_eigenvalue)(matrix)
        gradients += jax.jacfwd(linear.leading_eigenvalue)(matrix)
        assert growth == matrix[0, 0]
        assert frequency == 0.0
        assert np.isfinite(gradients).all()


def test_a_plain_square_root_fails_there():
    # The broken twin of the test above.
    def naive(matrix):
        disc = (matrix[0, 0] - matrix[1, 1]) ** 2 + 4 * matrix[0, 1] * matrix[1, 0]
        return jnp.where(disc > 0, jnp.sqrt(disc), 0.0)

    assert not np.isfinite(jax.grad(naive)(jnp.asarray(DEFECTIVE))).all()


def test_frequency_has_no_gradient_without_oscillation():
    gradient = jax.grad(lambda m: linear.leading_eigenvalue(m)[1])(jnp.asarray(SADDLE))
    assert (gradient == 0.0).all()


@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize("matrix", [FOCUS, SADDLE, DEFECTIVE, np.zeros((2, 2))])
def test_trajectory_is_the_matrix_exponential(matrix, tau):
    times, start = np.linspace(0.0, 2.0, 9), np.array([0.5, -1.5])
    exact = np.stack([expm(matrix * t / tau) @ start for t in times])
    with jax.enable_x64(new_val=True):
        found = linear.trajectory(matrix, times, start, tau)
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-12)
    assert linear.trajectory(np.stack([matrix] * 3), times).shape == (3, 9, 2)


def test_trajectory_of_a_stiff_matrix_is_finite():
    # cosh(99 t) overflows, but the activity decays.
    stiff = np.diag([-1.0, -199.0])
    found = linear.trajectory(stiff, [0.0, 5.0], (1.0, 1.0))
    np.testing.assert_allclose(found[-1], [math.exp(-5.0), 0.0], rtol=1e-4, atol=1e-30)


def test_statistics_describe_the_trajectory():
    growth, frequency = linear.leading_eigenvalue(FOCUS)
    period = 2 * math.pi / frequency
    first, last = linear.trajectory(FOCUS, jnp.stack([0.0, period]))
    np.testing.assert_allclose(last, jnp.exp(growth * period) * first, rtol=1e-4)


def test_contours_have_their_level():
    levels, abscissae = np.array([-0.5, 0.25]), np.linspace(-9.0, -1.0, 5)
    a22 = linear.growth_contours(levels, abscissae, tau=0.5)
    assert a22.shape == (2, 5)
    matrix = np.stack(np.broadcast_arrays(abscissae, 10.0, -20.0, a22), axis=-1)
    growth, _ = linear.leading_eigenvalue(matrix.reshape(2, 5, 2, 2), tau=0.5)
    np.testing.assert_allclose(
        growth, np.broadcast_to(levels[:, None], (2, 5)), rtol=1e-4
    )

    levels = np.array([5.0, 7.0])
    a21 = linear.frequency_contours(levels, abscissae, tau=0.5, diagonal_product=-4.0)
    assert a21.shape == (2, 5)
    matrix = np.stack(np.broadcast_arrays(2.0, abscissae, a21, -2.0), axis=-1)
    growth, frequency = linear.leading_eigenvalue(matrix.reshape(2, 5, 2, 2), tau=0.5)
    np.testing.assert_allclose(frequency, np.tile(levels[:, None], 5), rtol=1e-5)
    np.testing.assert_allclose(growth, 0.0, atol=1e-6)


# The model


def properties_of(model, **kwargs):
    collector = collect(numpyro.handlers.seed(model, jax.random.key(0)))
    trace = numpyro.handlers.trace(collector).get_trace(**kwargs)
    return trace, collector.properties


@pytest.mark.core
def test_model_has_the_constants_of_the_paper():
    trace, properties = properties_of(linear.model)
    support = trace["a"]["fn"].support.base_constraint
    assert trace["a"]["value"].shape == (4,)
    assert (support.lower_bound, support.upper_bound) == (-10.0, 10.0)
    assert list(properties) == ["growth", "frequency"]
    growth, frequency = properties["growth"], properties["frequency"]
    assert (float(growth.mean), float(growth.var)) == (0.0, 0.0625)
    assert float(frequency.mean) == 2 * math.pi
    assert float(frequency.var) == pytest.approx(0.39478, rel=2e-5)
    assert linear.PAPER.tau == 1.0
    assert linear.PAPER.start == (math.sqrt(2) / 2, -math.sqrt(2) / 2)
    exact = linear.leading_eigenvalue(trace["a"]["value"].reshape(2, 2))
    assert (growth.stat, frequency.stat) == exact


def test_constants_are_immutable():
    with pytest.raises(AttributeError):
        linear.PAPER.tau = 2.0


def test_model_takes_other_targets():
    other = {"mean": jnp.array([1.0, 12.0]), "var": None, "bound": 5.0, "tau": 0.5}
    trace, properties = properties_of(linear.model, **other)
    assert properties["frequency"].mean == 12.0
    assert properties["frequency"].var is None
    assert trace["a"]["fn"].support.base_constraint.upper_bound == 5.0
    exact = linear.leading_eigenvalue(trace["a"]["value"].reshape(2, 2), 0.5)
    assert properties["growth"].stat == exact[0]


ERRORS = [
    (
        lambda: linear.leading_eigenvalue(np.zeros(4)),
        ValueError,
        r"`matrix`, got \(4,\)",
    ),
    (
        lambda: linear.leading_eigenvalue(np.zeros((2, 3))),
        ValueError,
        r"\(\.\.\., 2, 2\)",
    ),
    (
        lambda: linear.leading_eigenvalue(1j * FOCUS),
        TypeError,
        "real numbers as `matrix`",
    ),
    (lambda: linear.leading_eigenvalue("A"), TypeError, "real numbers as `matrix`"),
    (lambda: linear.leading_eigenvalue(FOCUS, 0.0), ValueError, "positive .* `tau`"),
    (lambda: linear.trajectory(FOCUS, np.zeros((2, 2))), ValueError, "`times`"),
    (
        lambda: linear.trajectory(FOCUS, [0.0], np.zeros(3)),
        ValueError,
        "two .* `start`",
    ),
    (lambda: linear.model(mean=1.0), ValueError, "two numbers as `mean`"),
    (lambda: linear.model(var=(1.0, 2.0, 3.0)), ValueError, "two numbers as `var`"),
    (lambda: linear.model(bound=-1.0), ValueError, "positive number as `bound`"),
]


@pytest.mark.core
@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.core
def test_docstring_example():
    failed, attempted = doctest.testmod(linear)
    assert (failed, attempted) == (0, 2)
