# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law of a result: its draws, its numbers, and what follows from it."""

from functools import cache, partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi import diagnostics
from numpyro_epi._draws import EPIDraws
from numpyro_epi.law import EPILaw

KEY = jax.random.key(0)
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(8,))
SMALL = {"num_particles": 100, "num_epochs": 1, "num_steps": 5}
SMALL |= {"num_evaluation": 2000, "progress_bar": False}


def gaussian():
    """Prior N(0, 2^2) twice; the law is N(1, 0.5^2), N(-1, 0.5^2) in units of two."""
    z = numpyro.sample("z", dist.Normal(0, 2).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[1.0, -1.0], var=[0.25, 0.25])


ENTROPY = np.log(2 * np.pi * np.e * 0.25)
DIVERGENCE = 2 * 0.5 * (0.25 / 4 + 1.0 / 4 - 1.0 - np.log(0.25 / 4))


@cache
def trained():
    return epi.EPI(gaussian, GUIDE, **SMALL).run(KEY)


def test_its_numbers_are_those_of_the_closed_form():
    """Within four standard errors, whatever the guide is."""
    law = trained().law
    assert law.converged
    assert trained().law_reason == ""
    assert law.method == "importance"
    assert law.log_normalizer_error < 0.02
    bound = 4 * law.log_normalizer_error + 0.02
    assert abs(law.log_normalizer + DIVERGENCE) < bound
    assert abs(law.divergence - DIVERGENCE) < bound
    assert abs(law.entropy - ENTROPY) < bound
    assert (np.abs(law.violation) < 0.05).all()
    # Tilt of N(0, 4) to N(1, 1/4): exp(-a x - b (x - 1)^2).
    (lam,) = law.multipliers.values()
    np.testing.assert_allclose(lam[1], (1 / 0.25 - 1 / 4) / 2, rtol=0.1)


def test_its_draws_have_its_moments_and_its_density():
    law = trained().law
    assert law.weights.sum() == pytest.approx(1.0)
    z = law.draws.latents["z"]
    mean = law.weights @ z
    np.testing.assert_allclose(mean, [1.0, -1.0], atol=0.04)
    np.testing.assert_allclose(law.weights @ (z - mean) ** 2, 0.25, atol=0.03)
    exact = dist.Normal(np.array([1.0, -1.0]), 0.5).log_prob(z).sum(-1)
    assert law.weights @ np.abs(law.draws.log_density - exact) < 0.1
    prior = dist.Normal(0.0, 2.0).log_prob(z).sum(-1)
    np.testing.assert_allclose(law.draws.log_prior, prior, rtol=1e-4, atol=1e-3)
    (stats,) = law.draws.statistics.values()
    np.testing.assert_allclose(stats, z, rtol=1e-5, atol=1e-5)


def test_samples_are_resampled_and_not_simulated():
    law = trained().law
    found = law.sample(KEY, 1000)["z"]
    assert found.shape == (1000, 2)
    np.testing.assert_allclose(found.mean(axis=0), [1.0, -1.0], atol=0.08)
    both = law.predict(KEY, 1000)
    np.testing.assert_array_equal(both["z"], found)
    assert len(both) == 2
    assert not np.array_equal(law.sample(jax.random.key(1), 1000)["z"], found)


def test_corrected_draws_name_their_replacement():
    with pytest.raises(AttributeError, match="Use `result.law.sample"):
        diagnostics.corrected_draws  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        diagnostics.other  # noqa: B018
    assert len(trained().law.sample(KEY, 10)["z"]) == 10


def test_more_draws_than_are_effective_are_warned_of():
    law = trained().law
    with pytest.warns(UserWarning, match="effective ones are stored"):
        assert len(law.sample(KEY, int(law.ess) + 1)["z"]) == int(law.ess) + 1
    assert len(trained().sample(KEY, int(law.ess) + 1)["z"]) == int(law.ess) + 1


@pytest.mark.parametrize(
    ("args", "error"),
    [((0, 10), TypeError), ((KEY, 0), ValueError), ((KEY, 1.5), ValueError)],
)
def test_bad_arguments_are_named(args, error):
    with pytest.raises(error, match="rng_key|num_samples"):
        trained().law.sample(*args)


@pytest.mark.ci
@pytest.mark.long
def test_a_poor_guide_is_corrected_or_left_and_the_summary_says_so(capsys):
    """Five steps from an untrained guide: the law is met, the guide not."""
    options = {**SMALL, "warm_start_size": 5000}
    inference = epi.EPI(gaussian, epi.guides.AutoRealNVP, **options)
    from numpyro_epi._train import approach, steer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approach, "MAX_MISFIT", -np.inf)  # the fitted guide is left
        patch.setattr(steer, "MAX_WAITS", 0)  # and led nowhere
        result = inference.run(KEY)
    assert result.status in (epi.EPIStatus.CORRECTED, epi.EPIStatus.LAW_ONLY)
    assert not result.converged
    assert result.law.converged
    assert "result.law.sample" in result.message
    result.print_summary()
    assert "entropy of the exact law" in capsys.readouterr().out
    data = epi.to_arviz(result)
    mean = np.asarray(data["posterior"]["z"]).mean(axis=(0, 1))
    np.testing.assert_allclose(mean, [1.0, -1.0], atol=0.08)
    assert "exact law" in data["posterior"].attrs["draws"]
    sds = [
        np.asarray(found["posterior"]["z"]).std()
        for found in (data, epi.to_arviz(result, draws="guide"))
    ]
    assert sds[1] > sds[0] + 0.1


def test_what_is_asked_of_arviz_is_checked():
    with pytest.raises(ValueError, match='"auto", "guide" or "law"'):
        epi.to_arviz(trained(), draws="flow")
    result = epi.EPI(gaussian, GUIDE, **SMALL, warm_start=False).run(KEY)
    assert result.law is None
    assert "warm_start" in result.law_reason
    with pytest.raises(ValueError, match='`warm_start` is False.*draws="guide"'):
        epi.to_arviz(result, draws="law")
    epi.to_arviz(result, draws="guide")


def test_a_file_keeps_it(tmp_path):
    trained().save(tmp_path / "a.npz")
    loaded = epi.EPIResult.load(tmp_path / "a.npz", gaussian, GUIDE)
    for name in EPILaw.__dataclass_fields__:
        old, new = (getattr(r.law, name) for r in (trained(), loaded))
        if isinstance(old, EPIDraws):
            old, new = old._asdict(), new._asdict()
        jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.ci
@pytest.mark.long
def test_where_there_is_no_law_it_says_why():
    """A mean outside of what the statistic can be."""

    def model():
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        epi.emergent_property(z, mean=2.0, var=0.01)

    result = epi.EPI(model, GUIDE, **SMALL).run(KEY)
    assert result.law is None
    assert "before the targets" in result.law_reason
    assert result.status is not epi.EPIStatus.CONVERGED
