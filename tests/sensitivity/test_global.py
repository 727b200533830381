# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Global measures against a Gaussian, for which all have closed forms."""

import warnings

import jax
import numpy as np
import pytest

from numpyro_epi import sensitivity
from numpyro_epi.sensitivity import _active, _information
from numpyro_epi.sensitivity._density import log_q_near
from sensitivity_results import fitted_gaussian, gaussian, sites

KEY = jax.random.key(0)


def closed_forms(result):
    """KL of each marginal to N(0, 1), and mutual information with the other."""
    loc, covariance = fitted_gaussian(result)
    var = np.diag(covariance)
    alone = 0.5 * (var + loc**2 - 1.0 - np.log(var))
    mutual = 0.5 * np.log(var * np.diag(np.linalg.inv(covariance)))
    return alone, mutual


def test_information_of_a_gaussian():
    """20,000 draws alone and 500 given the others, each to 5 standard errors."""
    result = gaussian()
    alone, mutual = closed_forms(result)
    assert (mutual > 0.1).all()
    found = sensitivity.information(result, KEY)
    assert (np.abs(found.alone - alone) < 5 * found.alone_error).all()
    assert (found.alone_error < 0.05).all()
    error = np.abs(found.given_others - alone - mutual)
    assert (error < 5 * found.given_others_error).all()
    assert (found.given_others_error < 0.1).all()
    assert found.joint == pytest.approx(result.divergence, abs=0.1)
    # Together, two components cost what one costs alone and the other given it.
    chain = found.alone + found.given_others[::-1]
    slack = 5 * np.hypot(found.alone_error, found.given_others_error[::-1])
    assert (np.abs(chain - found.joint) < slack + 0.05).all()


@pytest.mark.long
def test_information_of_several_sites_is_finite():
    found = sensitivity.information(sites(), KEY, num_draws=1000, num_conditional=20)
    for values in found[:4]:
        assert values.shape == (5,)
        assert np.isfinite(values).all()


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.2)])
def test_neighbour_estimator_is_right_for_gaussians(shift, scale):
    """20 replicates of 2,000 draws: the mean to 5 standard errors and a bias of 0.01.

    Without the sample sizes, log(m / (n - 1)), it is off by log 2 where m = 2 n.
    """
    rng = np.random.default_rng(0)
    found = np.array(
        [
            _information.neighbour_divergence(
                shift + scale * rng.normal(size=2000), rng.normal(size=4000)
            )
            for _ in range(20)
        ]
    )
    exact = 0.5 * (scale**2 + shift**2 - 1.0) - np.log(scale)
    assert abs(found.mean() - exact) < 5 * found.std(ddof=1) / np.sqrt(20) + 0.01


def test_trapezoid_rule_integrates_in_logarithms():
    grid = np.linspace(-8.0, 8.0, 400)[None].repeat(2, 0)
    log_density = -0.5 * grid**2 + np.array([[0.0], [-2000.0]])
    found = _information._log_integral(log_density, grid)
    exact = 0.5 * np.log(2 * np.pi) + np.array([0.0, -2000.0])
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_correlations_of_a_gaussian():
    """2,000 draws: to 5 standard errors."""
    result = gaussian()
    _, covariance = fitted_gaussian(result)
    size = np.sqrt(np.diag(covariance))
    exact = covariance / np.outer(size, size)
    found = sensitivity.correlations(result)
    assert (np.abs(found.matrix - exact) <= 5 * found.error + 1e-9).all()
    # Of two components, nothing else is given.
    np.testing.assert_allclose(found.partial, found.matrix, atol=1e-9)
    spearman = 6 / np.pi * np.arcsin(exact / 2)
    assert np.abs(found.rank - spearman).max() < 0.08
    # Without units, ranks are those of any monotone function.
    assert found.names == ("z[0]", "z[1]")


def test_active_subspace_of_a_gaussian_is_its_precision():
    """2,000 draws: entries of E[g g^T] to 5 standard errors, at most sqrt(3 / n)."""
    result = gaussian()
    precision = np.linalg.inv(fitted_gaussian(result)[1])
    found = sensitivity.active_subspace(result)
    slack = 5 * np.sqrt(3 / 2000) * np.max(precision)
    assert np.abs(found.matrix - precision).max() < slack
    values, vectors = np.linalg.eigh(precision)
    assert np.abs(found.eigenvalues - values[::-1]).max() < slack
    assert abs(found.vectors[0] @ vectors[:, 1]) > 0.99
    rebuilt = found.vectors.T @ np.diag(found.eigenvalues) @ found.vectors
    np.testing.assert_allclose(rebuilt, found.matrix, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, None), (1e3, "makes up"), (np.inf, "1 of 2,000 draws")]
)
def test_a_draw_at_the_edge_does_not_decide_in_silence(size, expected, monkeypatch):
    def steep_at_one(*args):
        found = log_q_near(*args)
        scale = np.ones((len(found.gradient), 1))
        scale[7] = size
        return found._replace(gradient=found.gradient * scale)

    monkeypatch.setattr(_active, "log_q_near", steep_at_one)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if size == np.inf:
            with pytest.raises(ValueError, match=expected):
                sensitivity.active_subspace(gaussian())
        else:
            sensitivity.active_subspace(gaussian())
    messages = [str(w.message) for w in caught if "unconstrained" in str(w.message)]
    assert len(messages) == (size == 1e3)
    assert all(expected in message for message in messages)


def test_advice_is_never_what_was_done():
    steep = np.ones((1000, 2))
    steep[0] = 1e3
    with pytest.warns(RuntimeWarning, match='Use `coordinates="unconstrained"`'):
        _active._check_gradient(steep, "constrained")
    with pytest.warns(RuntimeWarning, match="lowest log density"):
        _active._check_gradient(steep, "unconstrained")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least 1000 as `num_draws`, got 10"):
        sensitivity.information(gaussian(), KEY, num_draws=10)
    with pytest.raises(ValueError, match="at least 2 as `num_draws`, got 0"):
        sensitivity.active_subspace(gaussian(), num_draws=0)
    with pytest.raises(ValueError, match="`coordinates`, got 'polar'"):
        sensitivity.active_subspace(gaussian(), coordinates="polar")
    with pytest.raises(TypeError, match="`EPIResult` as `result`"):
        sensitivity.correlations(None)
