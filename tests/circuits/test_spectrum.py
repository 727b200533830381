# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The dominant frequency of a signal: its formula, its gradient, its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi.circuits import spectrum

DT, GRID, SHARPNESS = 25.0, 0.01 * np.arange(101), 0.5
OPTIONS = {"discard": 20, "window": 20}
# Rectified signals of the length of an STG simulation, in mV.
SIGNALS = np.maximum(0.0, np.random.default_rng(0).normal(0.0, 20.0, (20, 301)))


def magnitudes(signal, *, discard=20, window=20, is_centred=True):
    """The spec, word by word, in double precision."""
    smooth = np.convolve(signal[discard:], np.ones(window) / window, mode="valid")
    if is_centred:
        smooth = smooth - smooth.mean()
    n = np.arange(len(smooth))
    waves = np.exp(-2j * np.pi * GRID[:, None] * n * DT / 1000.0)
    return np.abs(waves @ smooth)


def reference(signal, **options):
    size = SHARPNESS * magnitudes(signal, **options)
    weights = np.exp(size - size.max())
    return (weights / weights.sum()) @ GRID


def found(signals):
    return spectrum.dominant_frequency(
        signals, DT, GRID, sharpness=SHARPNESS, **OPTIONS
    )


@pytest.mark.core
@pytest.mark.parametrize(("x64", "atol"), [(False, 1e-4), (True, 1e-10)])
def test_frequency_is_that_of_the_formula(x64, atol):
    exact = [reference(signal) for signal in SIGNALS]
    with jax.enable_x64(x64):
        signals = jnp.asarray(SIGNALS)
        frequency = found(signals)
    assert frequency.dtype == signals.dtype
    np.testing.assert_allclose(frequency, exact, atol=atol)


@pytest.mark.parametrize("mutation", [{"window": 1}, {"discard": 0}])
def test_formula_tells_a_missing_step(mutation):
    # Broken twins of the test above.
    exact = np.array([reference(signal, **mutation) for signal in SIGNALS])
    assert np.abs(found(SIGNALS) - exact).max() > 1e-2


def test_formula_tells_a_missing_mean():
    # The same; needs signals of which the mean has the largest magnitude.
    signals = SIGNALS + 10.0
    exact = np.array([reference(s, is_centred=False) for s in signals])
    assert np.abs(found(signals) - exact).max() > 1e-2
    exact = [reference(signal) for signal in signals]
    np.testing.assert_allclose(found(signals), exact, atol=1e-3)


def test_table_gives_the_fourier_sums():
    table = spectrum.fourier_table(301, DT, GRID, **OPTIONS)
    assert table.shape == (301, 2, 101)
    assert (table[:20] == 0.0).all()
    sums = np.tensordot(SIGNALS, table, axes=1)
    exact = np.stack([magnitudes(signal) for signal in SIGNALS])
    np.testing.assert_allclose(np.hypot(*np.moveaxis(sums, 1, 0)), exact, atol=1e-9)


@pytest.mark.parametrize("frequency", [0.3, 0.55, 0.9])
def test_frequency_of_a_sine(frequency):
    # 30 s, so that the resolution is 0.03 Hz; the softmax then sits on one grid point.
    times = 0.025 * np.arange(1200)
    signal = 20.0 * np.sin(2 * np.pi * frequency * times + 1.0)
    assert abs(found(signal) - frequency) < 0.005


def test_silence_is_the_mean_of_the_grid_and_has_a_gradient():
    silent = jnp.zeros(301)
    assert abs(found(silent) - 0.5) < 1e-6
    assert (jax.jit(jax.grad(found))(silent) == 0.0).all()


def test_a_plain_square_root_fails_there():
    # The broken twin of the test above.
    gradient = jax.grad(lambda x: jnp.sqrt(x**2 + x**2).sum())(jnp.zeros(3))
    assert not np.isfinite(gradient).any()


def test_gradients_are_central_differences():
    with jax.enable_x64(new_val=True):
        signal, step = jnp.asarray(SIGNALS[0]), 1e-5
        reverse = jax.jit(jax.grad(found))(signal)
        forward = jax.jit(jax.jacfwd(found))(signal)
        shifts = step * np.eye(301)[::7]
        exact = np.asarray(found(signal + shifts) - found(signal - shifts)) / (2 * step)
    np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-14)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(reverse[::7], exact, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("transform", [jax.jit, lambda f: jax.jit(jax.vmap(f))])
def test_frequency_under_transformations(transform):
    signals = jnp.asarray(SIGNALS)
    np.testing.assert_allclose(transform(found)(signals), found(signals), atol=1e-4)
    assert found(SIGNALS.reshape(4, 5, 301)).shape == (4, 5)


def frequency_of(signal=SIGNALS, dt=DT, grid=GRID, sharpness=1.0, **options):
    return spectrum.dominant_frequency(signal, dt, grid, sharpness=sharpness, **options)


ERRORS = [
    (lambda: frequency_of("x"), TypeError, "real numbers as `signal`"),
    (lambda: frequency_of(1j * SIGNALS), TypeError, "real numbers as `signal`"),
    (lambda: frequency_of(1.0), ValueError, r"\(\.\.\., T\) as `signal`"),
    (lambda: frequency_of(np.ones(30), **OPTIONS), ValueError, "Take a longer signal"),
    (lambda: frequency_of(dt=0.0), ValueError, "positive numbers as `dt`"),
    (lambda: frequency_of(grid=0.5), ValueError, "vector as `frequencies`"),
    (lambda: frequency_of(grid=[np.nan]), ValueError, "finite numbers as `freq"),
    (lambda: frequency_of(sharpness=0.0), ValueError, "positive .* `sharpness`"),
    (lambda: frequency_of(window=0), ValueError, "at least 1 as `window`"),
    (lambda: frequency_of(window=2.0), TypeError, "integer .* as `window`, got 2.0"),
    (lambda: frequency_of(discard=True), TypeError, "integer .* as `discard`"),
    (
        lambda: spectrum.soft_frequency(np.ones((2, 3)), [1.0, 2.0], 1.0),
        ValueError,
        r"\(\.\.\., 2, 2\) as `sums`",
    ),
]


@pytest.mark.core
@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
