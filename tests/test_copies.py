# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Targets that contradict each other: refused, moved or left alone, before training.

Draws near the law are made by hand where no run is needed to have them.
"""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._math.agreement import distance, nearest_targets
from numpyro_epi._train.agreement import Agreement
from numpyro_epi._train.simulations import Simulations

OPTIONS = {
    "num_particles": 100,
    "num_epochs": 2,
    "num_steps": 20,
    "num_evaluation": 500,
    "warm_start_size": 2000,
    "progress_bar": False,
}
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(8,))
KEY = jax.random.key(0)


def copies(mean=(1.0, 3.02), var=(0.25, 1.0)):
    z = numpyro.sample("z", dist.Normal(0, 1))
    epi.emergent_property(jnp.stack([z, 2 * z + 1]), mean=mean, var=var, name="s")


def rectified(prior=4.0, mean=0.6):
    """The rate is the drive in a pilot, but not where the targets lie."""
    z = numpyro.sample("z", dist.Normal(prior, 0.5))
    epi.emergent_property(jnp.maximum(z, 0.0), mean=mean, name="rate")
    epi.emergent_property(z, mean=0.3, var=1.0, name="drive")


def silent(mean=1.0):
    """Both are zero for nearly all draws of the prior."""
    z = numpyro.sample("z", dist.Normal(0, 1))
    rate = jnp.maximum(z - 4.0, 0.0)
    epi.emergent_property(jnp.stack([rate, 2 * rate]), mean=[mean, 4.0], name="rates")


def indicator(mean=0.4, var=0.3):
    z = numpyro.sample("z", dist.Normal(0, 1))
    epi.emergent_property(z > 0.5, mean=mean, var=var, name="above")


def shares(last=0.5):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    share = jax.nn.softmax(jnp.append(z, 0.0))
    for i, mean in enumerate([0.3, 0.3, last]):
        epi.emergent_property(share[i], mean=mean, name=f"share_{i}")


def noisy(kind="shared"):
    z = numpyro.sample("z", dist.Normal(0, 1))
    e = 0.3 * jax.random.normal(numpyro.prng_key(), (2,))
    stats = z + (e[jnp.zeros(2, int)] if kind == "shared" else e)
    epi.emergent_property(stats, mean=[0.0, 0.5], var=1.0, name="readings")


def fails(mean=(0.0, 1.6)):
    z = numpyro.sample("z", dist.Normal(0, 1))
    s = jnp.where(z > 1.0, jnp.nan, z)
    epi.emergent_property(jnp.stack([s, 2 * s + 1]), mean=mean, var=[0.25, 1.0])


def agreement(model, *args, **options):
    """What a run knows after its pilot."""
    inference = epi.EPI(model, GUIDE, **{**OPTIONS, **options})
    engine = inference._engine(KEY, args, {})
    simulations = Simulations.start(engine, KEY)
    simulations.pilot()
    return Agreement(engine, simulations)


def normal_draws(mean, sd, num=2000):
    return (mean + sd * np.random.default_rng(0).normal(size=(1, num, 1))).astype("f4")


# -- refused --------------------------------------------------------------------------

REFUSED = {
    "copies": (copies, ((1.0, 3.6),), {}, "`s[1]` = 2 `s[0]` + 1 in all"),
    "indicator": (indicator, (), {}, "`above` takes only the values 0 and 1 in all"),
    "shared noise": (noisy, (), {}, "`readings[1]` = `readings[0]` in all"),
    "failures": (
        fails,
        (),
        {"on_invalid": "mask"},
        "`emergent_property[1]` = 2 `emergent_property[0]` + 1 in all",
    ),
    "silent": (silent, (), {}, "`rates[1]` = 2 `rates[0]` in all"),
}


def law_of(name):
    return normal_draws(4.5, 0.5) if name == "silent" else normal_draws(0.3, 0.7)


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused_with_a_way_out_that_works(name):
    model, args, options, shown = REFUSED[name]
    found = agreement(model, *args, **options)
    with pytest.raises(epi.ContradictoryTargetsError) as raised:
        found.must_start_over(law_of(name))
    message = str(raised.value)
    assert shown in message
    assert str(raised.value.targets) in message
    call = message.split("use `")[1].split("`: the nearest")[0]
    fixed = eval(call, {"numpyro_epi": epi, "model": model})
    again = agreement(fixed, *args, **options)
    assert not again.must_start_over(law_of(name))
    assert again.findings.relations
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.warn()


def test_statistics_of_several_sites_are_all_named():
    found = agreement(shares)
    with pytest.raises(ValueError, match="Leave one of these") as raised:
        found.must_start_over(np.zeros((1, 2000, 2), "f4") + normal_draws(0, 1))
    for i in range(3):
        assert f"of `share_{i}`" in str(raised.value)
    assert set(raised.value.targets) == {"share_0", "share_1", "share_2"}


def test_leaving_one_out_is_a_way_out():
    def one():
        z = numpyro.sample("z", dist.Normal(0, 1))
        epi.emergent_property(z, mean=1.0, var=0.25, name="s")

    assert agreement(one).findings.is_settled


def test_a_run_refuses_before_training():
    args = (0.0, 1.6), (1.0, 4.0)
    inference = epi.EPI(copies, GUIDE, **OPTIONS, warm_start=False)
    with pytest.raises(epi.ContradictoryTargetsError, match=r"mean 0\.15 and variance"):
        inference.run(KEY, *args)
    assert not inference._engine(KEY, args, {})._scans  # no step was compiled


# -- not refused ----------------------------------------------------------------------


def test_rectified_pair_is_confirmed_before_it_is_refused():
    """Exact in 2,000 prior draws, and wrong near the law: the targets stay.

    Its broken twin believes the pilot.
    """
    found = agreement(rectified)
    twin = nearest_targets(found.findings.given, found.findings.relations)
    assert found.findings.relations
    assert distance(found.findings.given, twin) > 0.05  # the twin would refuse
    assert distance(found.simulations.table, twin) == 0.0  # the warm start goes there
    assert found.must_start_over(normal_draws(0.45, 1.0))
    assert found.findings.relations == ()
    assert found.simulations.table is found.findings.given
    assert not found.must_start_over(normal_draws(0.3, 1.0))


def test_draws_around_the_law_refute_what_its_draws_do_not():
    """No draw of this law is below zero, but a wider one would be."""
    found = agreement(rectified, 4.0, 1.5)
    assert found.findings.relations
    draws = normal_draws(0.0, 0.1)
    draws = 0.01 + (draws - draws.min()) / np.ptp(draws)
    assert found.must_start_over(draws)
    assert found.findings.relations == ()


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (silent, (2.0,)),
        (noisy, ("own",)),
        (indicator, (0.3, 0.21)),
        (indicator, (0.4, None)),  # the variance left out
    ],
)
def test_targets_that_agree_or_are_independent_stay(model, args):
    found = agreement(model, *args)
    assert not found.must_start_over(law_of(model.__name__))
    assert found.simulations.table is found.findings.given


def test_a_constant_statistic_is_left_to_the_end_of_the_run():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        epi.emergent_property(jnp.stack([z, 0 * z + 2]), mean=[0.0, 3.0], name="s")

    found = agreement(model)
    assert not found.must_start_over(normal_draws(0, 1))
    assert "s[1]" in found.simulations.ledger.seen.unreachable(found.findings.given)


def test_no_draws_are_looked_at_where_the_pilot_tells_all():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        epi.emergent_property(z, mean=0.5, var=0.5)

    found = agreement(model)
    assert found.findings.is_settled
    assert not found.must_start_over(normal_draws(0.5, 0.7))
    assert found.findings.stats.shape == (2000, 2)


# -- within the tolerance -------------------------------------------------------------


def test_targets_within_the_tolerance_are_moved_with_one_warning():
    found = agreement(copies)
    assert not found.must_start_over(normal_draws(1.0, 0.5))
    table = found.simulations.table
    np.testing.assert_allclose(table.mean, [1.005, 3.01], atol=1e-6)
    np.testing.assert_allclose(table.scale, [0.5, 1.0], rtol=1e-6)
    with pytest.warns(UserWarning, match="within the tolerance of 0.05") as caught:
        found.warn()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "mean 1.005 and variance 0.25 of `s[0]`" in message
    call = message.split("use `")[1].split("`.")[0]
    fixed = agreement(eval(call, {"numpyro_epi": epi, "model": copies}))
    assert fixed.simulations.table is fixed.findings.given


def test_a_smaller_tolerance_refuses():
    found = agreement(copies, tolerance=0.005)
    with pytest.raises(epi.ContradictoryTargetsError):
        found.must_start_over(normal_draws(1.0, 0.5))


# -- reports --------------------------------------------------------------------------


def test_check_prints_relations_and_nearest_targets():
    report = str(epi.EPI(copies, GUIDE, **OPTIONS).check(KEY))
    assert "in all of these simulations `s[1]` = 2 `s[0]` + 1" in report
    assert "mean 3.01 and variance 1.0 of `s[1]`" in report
    agreeing = epi.EPI(copies, GUIDE, **OPTIONS).check(KEY, (1.0, 3.0))
    assert len(agreeing.relations) == 1


@pytest.mark.long
def test_published_schedule_names_the_relation_at_the_end():
    options = {**OPTIONS, "schedule": epi.PublishedSchedule(c0=1.0), "num_steps": 50}
    result = epi.EPI(copies, GUIDE, **options).run(KEY, (1.0, 3.6))
    assert result.status is epi.EPIStatus.UNREACHABLE
    assert "`s[1]` = 2 `s[0]` + 1" in result.message


# -- end to end -----------------------------------------------------------------------

# Law N(m, 0.25) from the prior N(0, 1): its KL, and -1 and 1.5 as multipliers of the
# deviations of z from m = 1 and of its square. Violations of `SLOW` have errors of
# 0.01.
MEDIUM = partial(epi.guides.AutoRealNVP, num_flows=2)
SLOW = {
    "guide": MEDIUM,
    "num_epochs": 4,
    "num_steps": 100,
    "num_evaluation": 10_000,
    "warm_start_size": 4000,
    "progress_bar": False,
}


def gaussian_kl(mean, var):
    return 0.5 * (var + mean**2 - 1.0 - np.log(var))


def check_gaussian(result, mean, var):
    draws = result.sample(jax.random.key(1), 20_000)["z"]
    assert result.converged
    assert abs(float(draws.mean()) - mean) < 0.05 * np.sqrt(var)
    assert abs(float(draws.std()) / np.sqrt(var) - 1.0) < 0.05
    assert abs(result.divergence - gaussian_kl(mean, var)) < 0.1


@pytest.mark.long
def test_copies_that_agree_share_their_multipliers(capsys, tmp_path):
    result = epi.EPI(copies, **SLOW).run(KEY, (1.0, 3.0))
    check_gaussian(result, 1.0, 0.25)
    mean, var = result.multipliers["s"]
    np.testing.assert_allclose(mean, [-0.5, -0.25], atol=0.05)  # -1 = a + 2 b
    np.testing.assert_allclose(var, [0.75, 0.1875], atol=0.05)  # 1.5 = a + 4 b
    result.print_summary()
    shown = capsys.readouterr().out
    assert "in all draws `s[1]` = 2 `s[0]` + 1" in shown
    assert "belong to their sum" in shown
    prices = epi.diagnostics.shadow_price_diagnostic(result, jax.random.key(2))
    assert prices.relations == ("`s[1]` = 2 `s[0]` + 1",)
    np.testing.assert_allclose(prices.mean["s"], [-0.5, -0.25], atol=0.05)
    assert (prices.mean_error["s"] < 0.05).all()
    with pytest.raises(epi.ContradictoryTargetsError) as raised:
        epi.what_if(result, {"s": ([1.0, 3.1], None)}, jax.random.key(3))
    found = epi.what_if(result, raised.value.targets, jax.random.key(3))
    assert found.is_trusted
    assert abs(found.change + gaussian_kl(1.025, 0.25) - gaussian_kl(1.0, 0.25)) < 0.02


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Expected targets that agree:UserWarning")
def test_contradictions_within_the_tolerance_have_the_nearest_law(tmp_path):
    result = epi.EPI(copies, **SLOW).run(KEY)
    check_gaussian(result, 1.005, 0.25)
    np.testing.assert_allclose(result.table.mean, [1.005, 3.01], atol=1e-6)
    assert np.abs(result.multipliers["s"]).max() < 1.0  # not [200, -100]
    result.save(tmp_path / "copies.npz")
    again = epi.EPIResult.load(tmp_path / "copies.npz", copies, MEDIUM)
    np.testing.assert_array_equal(again.table.mean, result.table.mean)


@pytest.mark.long
@pytest.mark.parametrize("warm_start", ["auto", False])
def test_five_copies_converge(warm_start):
    """Without a warm start, five Newton steps for one would end 0.4 sds off."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        stats = jnp.stack([z, 2 * z, -z, z + 3, 10 * z])
        var = 0.25 * np.array([1, 4, 1, 1, 100])
        epi.emergent_property(stats, mean=[1.0, 2, -1, 4, 10], var=var, name="s")

    options = {**SLOW, "num_epochs": 6, "warm_start": warm_start}
    check_gaussian(epi.EPI(model, **options).run(KEY), 1.0, 0.25)


@pytest.mark.long
def test_a_sum_that_agrees_has_the_law_of_its_parts():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        epi.emergent_property(z, mean=[0.5, -0.5], var=0.5, name="parts")
        epi.emergent_property(z.sum(), mean=0.0, name="total")

    result = epi.EPI(model, **SLOW).run(KEY)
    assert result.converged
    assert abs(result.divergence - 2 * gaussian_kl(0.5, 0.5)) < 0.1


@pytest.mark.long
def test_rectified_statistics_have_a_law_of_their_own():
    """Truth by quadrature, at the multipliers of the run: the tilt of the prior."""
    result = epi.EPI(rectified, **SLOW).run(KEY, 2.0)
    assert result.converged
    z = np.linspace(-8.0, 10.0, 20_001)
    lam = {name: value.ravel() for name, value in result.multipliers.items()}
    log_p = -0.5 * ((z - 2.0) / 0.5) ** 2 - lam["rate"][0] * np.maximum(z, 0)
    log_p -= lam["drive"][0] * z + lam["drive"][1] * (z - 0.3) ** 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    assert abs(p @ z - 0.3) < 0.1
    assert abs(p @ np.maximum(z, 0.0) - 0.6) < 0.05
    assert abs(p @ (z - 0.3) ** 2 - 1.0) < 0.15
