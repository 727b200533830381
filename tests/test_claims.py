# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the circuit examples measure, on distributions whose answer is known.

Each check has a twin that must fail it. Draws come from fixed keys; a bound is at least
five standard errors wide, so that another key fails it less than once in a million.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sensitivity_results import fitted_gaussian, gaussian

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import _claims
import _colliculus
import _colliculus_curves
import _colliculus_regimes
import _colliculus_regimes_lines
import _modes
import _stg
import _stg_sensitivity
import _v1
import colliculus
import rnn
import v1

sys.path.pop(0)


def stub(**latents):
    """A result with stored draws, and `sample` that returns them."""
    draws = SimpleNamespace(latents=latents)
    return SimpleNamespace(draws=draws, sample=lambda *_: latents)


# -- the table -------------------------------------------------------------------------


def solved(entropy, *, divergence=1.0, log_volume=3.0, violated=0.0, converged=True):
    return SimpleNamespace(
        entropy=log_volume - divergence,
        divergence=divergence,
        score=-divergence - violated + entropy - (log_volume - divergence),
        status="converged" if converged else "not converged",
        converged=converged,
    )


def test_entropy_claim_compares_the_corrected_entropy():
    # Entropy 2, of which 0.5 only because targets are missed.
    result = solved(2.0, violated=0.5)
    assert "1.50 nats, converged" in _claims.entropy_claim(result, "best", 1.5).ours
    assert _claims.entropy_claim(result, "best", 1.5).verdict == "holds"
    differs = _claims.entropy_claim(result, "best", 1.0).verdict
    assert differs == "differs: 0.50 nats less committed"
    assert "more committed" in _claims.entropy_claim(result, "best", 2.0).verdict


def test_an_entropy_without_the_property_shows_nothing():
    result = solved(2.0, converged=False)
    assert _claims.entropy_claim(result, "best", 2.0).verdict.startswith("not shown")


def test_table_keeps_every_word(capsys):
    row = _claims.Claim("a long claim " * 5, "1", "2", "how", _claims.verdict(1, ""))
    other = row._replace(verdict=_claims.verdict(0, "another number"))
    _claims.print_claims([row, other], converged=True)
    printed = capsys.readouterr().out
    assert printed.count("long") == 10
    assert "1 of 2 claims hold" in printed
    assert "has not converged" not in printed
    _claims.print_claims([row], converged=False)
    assert "has not converged" in capsys.readouterr().out


# -- modes -----------------------------------------------------------------------------


@pytest.mark.long
def test_modes_along_a_component_of_a_gaussian():
    result = gaussian()
    loc, covariance = fitted_gaussian(result)
    modes = _modes.modes_along(result, "z[0]", [1.0, 0.5], positive="-z[1]")
    assert list(modes) == [1.0, 0.5]
    slope = covariance[1, 0] / covariance[0, 0]
    curvatures = np.linalg.eigvalsh(-np.linalg.inv(covariance))
    for value, mode in modes.items():
        line = loc[1] + slope * (value - loc[0])
        np.testing.assert_allclose(mode.point, [value, line], atol=1e-3)
        assert abs(line - loc[1]) > 0.1  # not the joint mode
        np.testing.assert_allclose(mode.eigenvalues, curvatures, rtol=1e-3)
        assert (mode.directions[:, 1] < 0).all()


# -- stomatogastric circuit ------------------------------------------------------------


def test_elongation_of_an_ellipse():
    normal = jax.random.normal(jax.random.key(0), (2, 20_000))
    along, across = 0.8 * normal[0], 0.4 * normal[1]
    tilt = np.radians(20.0)
    long = _stg.elongation(
        stub(
            g_el=np.cos(tilt) * along - np.sin(tilt) * across,
            g_synA=np.sin(tilt) * along + np.cos(tilt) * across,
        ),
        None,
    )
    assert long.ratio == pytest.approx(2.0, abs=0.1)
    assert long.angle == pytest.approx(20.0, abs=2.0)


# -- recurrent networks ----------------------------------------------------------------


def test_regimes_are_those_of_the_eigenvalues():
    statistics = {
        "real_eigenvalue": np.array([0.5, 0.5, 1.2, 0.2]),
        "symmetric_eigenvalue": np.array([1.5, 0.8, 1.9, 1.1]),
    }
    np.testing.assert_allclose(rnn.regime_shares(statistics), [0.5, 0.25, 0.25])


def test_activity_of_a_network_that_amplifies_and_of_one_that_does_not():
    # W = w e1 e2': its symmetric part has the eigenvalue w / 2, and its own are zero.
    unit = jnp.zeros((2, 2, 2)).at[:, 0, 0].set(1.0)
    strengths = jnp.array([6.0, 1.0])[:, None, None]
    other = jnp.zeros((2, 2, 2)).at[:, 1, 0].set(1.0)
    result = stub(U=strengths * unit, V=other)
    norms = rnn.activity_norms(result, jax.random.key(0), noise=0.0, num_draws=2)
    np.testing.assert_allclose(norms[:, 0], 1.0, rtol=1e-5)
    assert norms[0].max() > 1.5
    assert norms[1].max() <= 1.001
    assert rnn.share_of_transients(norms) == 0.5


# -- visual cortex ---------------------------------------------------------------------


def ring(radius, num_draws=20_000, key=0, silent=0.05):
    """Noise levels with sigma_E^2 + sigma_P^2 = radius^2, and any of S and V."""
    keys = jax.random.split(jax.random.key(key), 2)
    angle = np.pi / 2 * jax.random.uniform(keys[0], (num_draws,))
    others = silent * jax.random.uniform(keys[1], (num_draws, 2))
    pair = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return stub(sigma=np.asarray(jnp.concatenate([pair, others], axis=-1)))


def test_compensation_on_a_ring_is_complete():
    assert _v1.compensation(ring(0.03)).value == pytest.approx(-1.0, abs=1e-4)
    # Independent levels do not compensate.
    sigma = jax.random.uniform(jax.random.key(1), (20_000, 4))
    found = _v1.compensation(stub(sigma=sigma))
    assert abs(found.value) < 5 * found.error


def test_sums_move_where_they_should_and_are_equal_where_they_should():
    low, high = ring(0.02, key=0), ring(0.04, key=1)
    assert v1.sum_claim(low, high).verdict == "holds"
    assert v1.equal_claim(low, high).verdict == "holds"
    # The wrong order, and S and V that move by a fifth of their spread.
    assert v1.sum_claim(high, low).verdict.startswith("differs")
    assert v1.equal_claim(low, ring(0.04, key=1, silent=0.053)).verdict != "holds"


def test_few_draws_do_not_show_equality():
    low, high = ring(0.02, 500, key=0), ring(0.04, 500, key=1)
    assert v1.equal_claim(low, high).verdict.startswith("differs: not shown")


def test_mann_whitney_against_hand_counts():
    # All of three below all of three: U = 0, mean 4.5, variance 5.25.
    found = _v1.mann_whitney(np.array([1.0, 2, 3]), np.array([4.0, 5, 6]))
    assert found == pytest.approx(0.04953, abs=1e-4)
    assert _v1.mann_whitney(np.array([1.0, 4]), np.array([2.0, 3])) == 1.0


def test_only_p_is_paradoxical():
    found = _v1.own_responses()
    np.testing.assert_allclose(found, [3.5, -2.8, 0.62, 1.0], atol=0.06)


# -- superior colliculus ---------------------------------------------------------------

BINS = {1: (-2.0, -1.0), 2: (0.5, 1.0)}


def test_a_bend_changes_sign_and_a_line_does_not():
    uniform, noise = np.asarray(jax.random.uniform(jax.random.key(0), (2, 4000)))
    s = 3 * uniform - 2
    bent = np.stack([s, s, -np.abs(s) + 0.3 * noise, s], axis=-1)
    assert colliculus.changes_sign(_colliculus.bend(bent, BINS), 5) == "holds"
    line = np.stack([s, s, -s + 0.3 * noise, s], axis=-1)
    assert "differs" in colliculus.changes_sign(_colliculus.bend(line, BINS), 5)
    assert "not shown" in colliculus.changes_sign(_colliculus.bend(bent[:6], BINS), 5)


def test_corrected_matrix_holds_and_the_printed_one_does_not():
    z = np.asarray(jax.random.uniform(jax.random.key(0), (50, 4), minval=-5, maxval=5))
    true, back, printed = _colliculus.eigenmode_errors(z)
    assert max(true, back) < 1e-4
    assert printed > 1.0


def test_accepted_connections_have_the_accuracies():
    # A circuit from the middle of the distribution, and no connections at all.
    z = jnp.array([[0.75, -3.5, -1.6, -1.4], [0.0, 0.0, 0.0, 0.0]])
    assert _colliculus.keep(z, jax.random.key(0), size=2).tolist() == [True, False]


def test_slopes_are_taken_between_the_ends():
    distances = np.linspace(-0.25, 0.25, 11)
    mean = np.stack([0.7 + distances, 0.7 - distances**2], axis=-1)
    curves = _colliculus_curves.Curves(distances, {"x": mean}, {"x": 0.01 + 0 * mean})
    assert curves.slope("x", 0)[0] == pytest.approx(0.5)
    assert curves.slope("x", 1) == pytest.approx((0.0, 0.01 * 2**0.5))


@pytest.mark.parametrize(
    ("left", "right", "error", "word"),
    [
        (-0.1, -0.1, 0.01, "falls both ways"),
        (-0.1, 0.1, 0.01, "rises"),
        (0.1, -0.1, 0.01, "falls"),
        (0.1, 0.1, 0.01, "no clear sense"),
        (-0.1, 0.1, 0.05, "no clear sense"),  # the twin: within three errors
    ],
)
def test_what_a_line_does_is_said_only_beyond_its_errors(left, right, error, word):
    assert _colliculus_curves.kind([(left, error), (right, error)]) == word


def hill(peak, error=0.01):
    """Accuracies along a line, highest at `peak`; 0.7 in the middle."""
    x = np.linspace(-0.25, 0.25, 11)
    return x, 0.7 - 4 * ((x - peak) ** 2 - peak**2), np.full(11, error)


@pytest.mark.parametrize(("peak", "word"), [(0.0, "falls both ways"), (0.5, "rises")])
def test_ends_of_curves_and_of_lines_agree(peak, word):
    x, mean, error = hill(peak)
    curves = _colliculus_curves.Curves(
        x, {"v1": np.stack([0 * mean, mean], -1)}, {"v1": np.stack([error, error], -1)}
    )
    line = _colliculus_regimes_lines.Line(x, mean, error)
    assert _colliculus_curves.kind(curves.ends("v1", 1)) == word
    np.testing.assert_allclose(curves.ends("v1", 1), line.ends)
    assert line.rise[0] == pytest.approx(mean[-1] - mean[0])


def test_largest_drop_is_that_to_a_later_point():
    x, mean, error = hill(0.0)
    up = _colliculus_regimes_lines.Line(x, np.sort(mean), error)
    down = _colliculus_regimes_lines.Line(x, np.sort(mean)[::-1], error)
    assert up.drop <= 0.0
    wanted = np.ptp(mean) / (0.01 * 2**0.5)
    assert down.drop == pytest.approx(wanted)


def silencing(rise):
    """Accuracies of 200 draws, of which silencing takes `rise` in the Anti task."""
    rng = np.random.default_rng(0)
    before = 0.75 + 0.05 * rng.normal(size=(200, 2))
    after = np.stack([before[:, 0], before[:, 1] - rise], axis=-1)
    return _colliculus.Silencing(
        np.array([0.0, 0.85]), {"all": np.stack([before, after])}
    )


def test_rise_of_the_error_is_that_of_the_task():
    found = silencing(rise=0.5)
    assert found.rise(0.85, 1) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))
    assert found.rise(0.85, 0)[0] == pytest.approx(0.0)
    assert silencing(rise=0.0).rise(0.85, 1)[0] == pytest.approx(0.0)


def silenced(flipped):
    """Two groups, one of each regime: Anti accuracy is one minus Pro, or a constant."""
    rng = np.random.default_rng(1)
    pro = 0.75 + 0.1 * rng.normal(size=(2, 300, 1))
    anti = 1 - pro if flipped else 0.25 + 0.1 * rng.normal(size=pro.shape)
    draws = {
        _colliculus_regimes.NONE: np.concatenate([pro, 0 * pro + 0.75], axis=-1),
        0.85: np.concatenate([pro, anti], axis=-1),
    }
    return _colliculus_regimes.Silenced(
        np.array([-0.75, 0.75]), None, draws, {"task": 1 - anti[..., 0]}
    )


def test_flipped_trials_are_seen():
    r, _, gap = silenced(flipped=True).flip(0.85, 1)
    assert r == pytest.approx(-1.0)
    assert gap == pytest.approx(0.0, abs=1e-12)
    r, error, gap = silenced(flipped=False).flip(0.85, 1)
    assert abs(r) < 5 * error
    assert gap > 0.05


def test_correlation_of_an_eigenvalue_with_the_error():
    values, errors = silenced(flipped=True).correlation("task", 0.85)
    np.testing.assert_allclose(values, 1.0)
    assert values.shape == np.shape(errors) == (2,)


# -- sensitivity of the stomatogastric circuit -----------------------------------------


def look(vector, slopes):
    """A look at a place whose sensitive direction is `vector`."""
    across = np.array([-vector[1], vector[0]])
    directions = SimpleNamespace(vectors=np.stack([vector, across]))
    tests = [SimpleNamespace(slope=[s], slope_error=[0.1]) for s in slopes]
    lines = [SimpleNamespace(deltas=np.array(d)) for d in ([-0.3, 0.3], [-0.1, 0.2])]
    return _stg_sensitivity.Look(directions, np.zeros(2), tests, lines)


def test_angle_ratio_and_reach_of_a_look():
    tilted = np.radians(20)
    found = look([-np.sin(tilted), np.cos(tilted)], slopes=[3.0, -0.2])
    assert found.angle == pytest.approx(20)
    assert found.ratio == pytest.approx(15)
    assert found.reach == pytest.approx(0.2)
    assert found.slopes == [(3.0, 0.1), (-0.2, 0.1)]
    assert look([1.0, 0.0], slopes=[0.2, 3.0]).angle == pytest.approx(90)


@pytest.mark.parametrize(("place", "num"), [("middle", 13), ("face", 7), ("corner", 7)])
def test_distances_stay_in_the_support(place, num):
    low, high = _stg.LOW, _stg.HIGH
    point = {"middle": (low + high) / 2, "face": low.copy(), "corner": high - 1e-4}[
        place
    ]
    if place == "face":
        point = np.array([low[0] + 1e-4, (low[1] + high[1]) / 2])
    vector = np.array([0.8, 0.6]) if place != "corner" else np.array([0.8, -0.6])
    deltas = _stg_sensitivity.distances(point, vector)
    z = point + deltas[:, None] * vector
    assert ((z > low) & (z < high)).all()
    assert len(deltas) >= num
