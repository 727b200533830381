# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The trainer: options and errors, one step, small runs. Accuracy is in test_truths."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import autoguide

import numpyro_epi as epi
from numpyro_epi._model.cost import Cost
from numpyro_epi._model.problem import Problem
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.guide import GuideFunctions
from numpyro_epi._train.options import Options
from numpyro_epi._train.pilot import choose_gradient
from numpyro_epi._train.plateau import is_met
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.solver import Solver
from numpyro_epi._train.state import Memory
from numpyro_epi._train.step import Objective
from numpyro_epi._train.verdict import verdict

SMALL = {
    "num_particles": 100,
    "num_epochs": 2,
    "num_steps": 20,
    "num_evaluation": 500,
    "warm_start_size": 500,
    "progress_bar": False,
}
# Compilation is most of the time of these tests, and it grows with the layers.
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(10,))
KEY = jax.random.key(0)


def gaussian():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    epi.emergent_property(z, mean=[0.5, -0.5], var=[0.25, 0.5])


def run(model=gaussian, key=KEY, **options):
    guide, optim = options.pop("guide", GUIDE), options.pop("optim", None)
    return epi.EPI(model, guide, optim, **{**SMALL, **options}).run(key)


# -- wrong input ----------------------------------------------------------------------


def two_sites_with_one_name():
    z = numpyro.sample("z", dist.Normal())
    epi.emergent_property(z, mean=0.0, name="twice")
    epi.emergent_property(z, mean=0.0, name="twice")


def negative_variance():
    z = numpyro.sample("z", dist.Normal())
    epi.emergent_property(z, mean=0.0, var=-1.0, name="hub")


def wrong_target_shape():
    z = numpyro.sample("z", dist.Normal())
    epi.emergent_property(z, mean=[0.0, 1.0], name="hub")


def without_property():
    numpyro.sample("z", dist.Normal())


def without_latents():
    epi.emergent_property(jnp.zeros(()), mean=0.0)


def discrete_latent():
    k = numpyro.sample("k", dist.Poisson(3.0))
    epi.emergent_property(k, mean=0.0)


def moving_support():
    a = numpyro.sample("a", dist.Uniform(0, 1))
    b = numpyro.sample("b", dist.Uniform(0, a))
    epi.emergent_property(b, mean=0.2)


def trainable_param():
    z = numpyro.sample("z", dist.Normal())
    epi.emergent_property(numpyro.param("w", 1.0) * z, mean=0.2)


def other_model():
    z = numpyro.sample("other", dist.Normal())
    epi.emergent_property(z, mean=0.0)


def without_reverse_density(model):
    return autoguide.AutoBNAFNormal(model)


@pytest.mark.core
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (two_sites_with_one_name, ValueError, "twice"),
        (negative_variance, ValueError, "hub"),
        (wrong_target_shape, ValueError, "hub"),
        (without_property, ValueError, "no emergent property"),
        (without_latents, ValueError, "no latents"),
        (discrete_latent, ValueError, "`k`"),
        (moving_support, ValueError, "`b`"),
        (trainable_param, ValueError, "`w`"),
    ],
)
def test_wrong_model_is_one_clear_error(model, error, message):
    with pytest.raises(error, match=message):
        run(model)


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particle": 10}, TypeError, "Unknown option `num_particle`"),
        ({"num_particles": 0}, ValueError, "num_particles"),
        ({"num_particles": 7}, ValueError, "even"),
        ({"num_epochs": 0}, ValueError, "num_epochs"),
        ({"num_steps": 1.5}, ValueError, "num_steps"),
        ({"num_restarts": True}, ValueError, "num_restarts"),
        ({"tolerance": -0.1}, ValueError, "tolerance"),
        ({"penalty_growth": 0.5}, TypeError, "no option any more.*`penalty`"),
        ({"max_penalty": 2.0}, TypeError, "no option any more.*`penalty`"),
        ({"warm_start_rounds": 3}, TypeError, "no option any more.*`warm_start_size`"),
        ({"warm_start": "yes"}, ValueError, "warm_start"),
        ({"stat_gradient": "magic"}, ValueError, "stat_gradient"),
        ({"on_invalid": "ignore"}, ValueError, "on_invalid"),
        ({"schedule": 3}, TypeError, "schedule"),
        ({"mesh": 3}, TypeError, "mesh"),
        ({"optim": "adam"}, TypeError, "optim"),
        ({"optim": optax.adam(1e-3), "learning_rate": 1e-2}, ValueError, "learning_"),
        ({"guide": 3}, TypeError, "guide"),
        ({"guide": autoguide.AutoDelta}, ValueError, "AutoDelta.*no entropy"),
        ({"key": 0}, TypeError, "rng_key"),
        ({"key": jax.random.split(KEY, 2)}, TypeError, "rng_key"),
    ],
)
def test_wrong_option_is_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"c0": 0.0}, "c0"), ({"beta": 1.0}, "beta"), ({"gamma": 1.0}, "gamma")],
)
def test_wrong_schedule_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        epi.PublishedSchedule(**arguments)


def test_guide_of_another_model_is_refused():
    guide = epi.guides.AutoRealNVP(other_model)
    with pytest.raises(ValueError, match="built for another model"):
        run(guide=guide)


# -- invalid simulations --------------------------------------------------------------


def fails_above():
    z = numpyro.sample("z", dist.Normal())
    bad = z > 1.2816  # a tenth of the prior
    epi.emergent_property(jnp.where(bad, jnp.nan, z), mean=0.5, var=0.25, name="rate")


def test_invalid_statistic_is_a_named_error():
    with pytest.raises(epi.InvalidStatisticError, match="`rate`.*at z = ") as caught:
        run(fails_above)
    assert caught.value.site == "rate"
    assert 0.05 < caught.value.share < 0.15
    assert caught.value.example["z"] > 1.28


def gives_up(throw):
    """A tenth of the prior needs more steps than the solver may take."""

    def model():
        z = numpyro.sample("z", dist.Uniform(1.0, 100.0))
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -z * y),
            diffrax.Euler(),
            0.0,
            1.0,
            1.0 / jnp.where(z > 90.0, 40.0, 10.0),
            1.0,
            max_steps=16,
            throw=throw,
        )
        is_solved = found.result == diffrax.RESULTS.successful
        epi.emergent_property(jnp.where(is_solved, z, jnp.nan), mean=50.0, var=100.0)

    return model


def test_a_solver_that_gives_up_is_told_apart_from_errors_of_the_program():
    inference = epi.EPI(gives_up(throw=True), **SMALL)
    for call in (inference.check, inference.init, inference.run):
        with pytest.raises(RuntimeError, match="'The maximum.*`throw=False`") as caught:
            call(KEY)
        assert "equinox.filter_jit" not in str(caught.value)


@pytest.mark.ci
@pytest.mark.long
def test_the_way_out_for_a_solver_that_gives_up():
    with pytest.raises(epi.InvalidStatisticError):
        run(gives_up(throw=False))
    result = run(gives_up(throw=False), on_invalid="mask")
    assert np.isfinite(result.score)


def test_non_finite_gradient_is_skipped_and_counted():
    @jax.custom_jvp
    def poisoned(z):
        return z

    @poisoned.defjvp
    def _(primals, tangents):
        # The derivative is NaN wherever a draw exceeds 2: in most steps of 100.
        slope = jnp.where(primals[0] > 2.0, jnp.nan, 1.0)
        return primals[0], slope * tangents[0]

    def model():
        z = numpyro.sample("z", dist.Normal())
        epi.emergent_property(poisoned(z), mean=1.0, var=0.25)

    result = run(model, stat_gradient="reverse", warm_start=False)
    assert result.history.skipped.mean() > 0
    leaves = jax.tree.leaves(result.params)
    assert all(np.isfinite(leaf).all() for leaf in leaves)


# -- gradients of statistics ----------------------------------------------------------


def engine_of(model, **options):
    problem = Problem(model, (), {}, KEY)
    guide = GuideFunctions(GUIDE, problem, KEY)
    return Engine(problem, guide, Options(**{**SMALL, **options}), None)


def slow_decay():
    z = numpyro.sample("z", dist.Uniform(0, 3))

    def step(x, _):
        return x - 0.01 * z * x, None

    x, _ = jax.lax.scan(step, 1.0, None, length=100)
    epi.emergent_property(x, mean=0.3, var=0.01)


def counted():
    z = numpyro.sample("z", dist.Uniform(0, 10))
    epi.emergent_property(jnp.floor(z), mean=4.0, var=1.0)


def very_slow_decay():
    z = numpyro.sample("z", dist.Uniform(0, 3))
    x, _ = jax.lax.scan(
        lambda x, _: (x - 1e-5 * z * x, None), 1.0, None, length=100_000
    )
    epi.emergent_property(x, mean=0.3, var=0.01)


@pytest.mark.parametrize(
    ("model", "choice"),
    [
        (gaussian, "reverse"),
        (slow_decay, "forward"),
        (counted, "score"),
        (very_slow_decay, "replay"),
    ],
)
def test_gradient_is_chosen_by_the_pilot(model, choice):
    engine = engine_of(model)
    u = engine.chunks.prior_draws(KEY[None], 1000)[0]
    found = choose_gradient(
        engine.problem,
        engine.pilot,
        u,
        engine.problem.table.targets,
        KEY,
        requested="auto",
        can_score=True,
        can_replay=True,
    )
    assert found.choice == choice


def test_operations_are_counted_in_loops_and_products():
    def once(x):
        return x * x + x  # two operations for each of three numbers

    def loop(x):
        return jax.lax.scan(lambda c, _: (once(c), None), x, None, length=50)[0]

    x = jnp.ones(3)
    assert Cost.of(once, x).num_operations == 6
    assert Cost.of(loop, x).num_operations == 50 * 6
    product = Cost.of(lambda a: a @ a, jnp.ones((4, 4)))
    assert product.num_operations == 2 * 4 * 16
    assert not product.has_loop
    assert Cost.of(loop, x).has_loop

    # Its largest array is inside of the loop.
    def squares(c, _):
        return jnp.outer(c, c).sum(0), None

    inside = Cost.of(lambda x: jax.lax.scan(squares, x, None, 5)[0], x)
    assert inside.largest_array == 9 * x.dtype.itemsize
    assert Cost.of(once, x).largest_array == 3 * x.dtype.itemsize


@pytest.mark.parametrize(
    ("num_trials", "expected"), [(1, 100), (10_000, 25), (10**7, 16)]
)
def test_simulations_run_in_batches_that_fit_the_cache(num_trials, expected):
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        x = z + jax.random.normal(numpyro.prng_key(), (num_trials,))
        epi.emergent_property(x.mean(), mean=0.5, var=0.5)

    estimator = epi.EPI(model, **SMALL)
    engine = estimator._engine(KEY, (), {})
    assert engine.chunks.batch_size == expected


def moved_memory(engine, one, *, weighted=True):
    """Fresh draws of a guide that is not the state's, with their statistics."""
    moved = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(3), x.shape), one.params
    )
    u, log_q = engine.guide.sample(moved, jax.random.key(4), 400_000)
    if not weighted:
        log_q = engine.guide.log_prob(one.params, u)
    keys = jax.random.split(jax.random.key(5), len(u))
    sim = jax.jit(jax.vmap(engine.problem.simulate))(u, keys)
    return Memory(u, log_q, sim.log_prior, sim.log_likelihood, sim.stats)


def gradient_of(engine, kind, num_keys=1, memory=None):
    """Mean gradient of one step over keys, and its standard error."""
    state = engine.init_state(KEY[None], engine.problem.table.targets)
    one = jax.tree.map(lambda x: x[0], state._replace(targets=()))
    one = one._replace(
        targets=state.targets, multipliers=one.multipliers + jnp.array([0.5, 0.3])
    )
    if memory is not None:
        one = one._replace(memory=memory(engine, one))
    objective = Objective(
        engine.problem,
        engine.guide,
        num_particles=engine.options.num_particles,
        stat_gradient=kind,
        masks_invalid=False,
    )
    grad = jax.jit(jax.grad(objective, has_aux=True))
    keys = jax.random.split(jax.random.key(7), num_keys)
    grads = [grad(one.params, one, key)[0] for key in keys]
    flat = np.stack(
        [np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in grads]
    )
    return flat.mean(0), flat.std(0) / np.sqrt(num_keys)


def test_forward_and_reverse_mode_agree():
    engine = engine_of(slow_decay)
    reverse, _ = gradient_of(engine, "reverse")
    forward, _ = gradient_of(engine, "forward")
    assert np.abs(reverse).max() > 0.01
    np.testing.assert_allclose(forward, reverse, atol=1e-4)


def test_score_gradient_has_the_mean_of_the_pathwise_one():
    """300 keys; five standard errors of the difference: false alarm 6e-7 per entry."""
    engine = engine_of(slow_decay)
    pathwise, first = gradient_of(engine, "reverse", 300)
    score, second = gradient_of(engine, "score", 300)
    error = np.sqrt(first**2 + second**2) + 1e-6
    assert (np.abs(score - pathwise) < 5 * error).all()
    assert (np.abs(score + pathwise) > 5 * error).any()  # the test can see a sign


def test_replayed_draws_give_the_gradient_of_fresh_ones():
    """300 keys; five standard errors: false alarm 6e-7 per entry, weights or not."""
    engine = engine_of(slow_decay)
    fresh, first = gradient_of(engine, "score", 300)
    replayed, second = gradient_of(engine, "replay", 300, moved_memory)
    unweighted, third = gradient_of(
        engine, "replay", 300, lambda *args: moved_memory(*args, weighted=False)
    )
    # The memory is finite: its own error is that of 400,000 draws.
    error = np.sqrt(first**2 + second**2 + 1e-7)
    assert (np.abs(replayed - fresh) < 5 * error).all()
    assert (np.abs(unweighted - fresh) > 5 * np.sqrt(first**2 + third**2)).any()


@pytest.mark.long
def test_replayed_simulations_solve_a_slow_simulator():
    """x = exp(-z): the law is a tilt of the uniform one, its entropy by quadrature."""
    result = epi.EPI(very_slow_decay, progress_bar=False).run(KEY)
    z = np.linspace(0, 3, 20_001)
    x = np.exp(-z)
    devs = np.stack([x - 0.3, (x - 0.3) ** 2 - 0.01])
    lam = np.zeros(2)
    for _ in range(100):
        weight = np.exp(-lam @ devs)
        weight /= weight.sum()
        mean = devs @ weight
        lam += np.linalg.solve(np.cov(devs, aweights=weight), mean)
    exact = -(weight * np.log(weight / (z[1] - z[0]))).sum()
    assert result.gradient.choice == "replay"
    assert result.converged
    assert exact - 0.05 < result.score + np.log(3.0) < exact + 0.02
    assert result.num_simulations < 300_000


def test_the_published_algorithm_has_nothing_to_replay():
    with pytest.raises(ValueError, match="stat_gradient"):
        epi.EPI(gaussian, stat_gradient="replay", schedule=epi.PublishedSchedule())


# -- runs -----------------------------------------------------------------------------


def same_params(first, second):
    pairs = zip(
        jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True
    )
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.ci
@pytest.mark.long
def test_same_key_same_result_with_and_without_bar(capsys):
    silent, shown = run(), run(progress_bar=True)
    assert same_params(silent, shown)
    assert not same_params(silent, run(key=jax.random.key(1)))
    shown_text = capsys.readouterr().err
    stages = ("pilot", "simulations", "law", "first fit", "guide", "entropy")
    places = [shown_text.find(stage) for stage in stages]
    assert places == sorted(places)
    assert places[0] >= 0


@pytest.mark.ci
@pytest.mark.long
def test_model_arguments_reach_the_model():
    def model(shift, *, spread):
        z = numpyro.sample("z", dist.Normal(shift, spread))
        epi.emergent_property(z, mean=3.0, var=0.04)

    inference = epi.EPI(model, **SMALL)
    result = inference.run(KEY, 3.0, spread=0.2)
    assert abs(result.draws.latents["z"].mean() - 3.0) < 0.1
    other = inference.run(KEY, 2.5, spread=0.4)
    assert other.divergence > result.divergence


@pytest.mark.ci
@pytest.mark.long
def test_restarts_are_all_kept_and_the_best_is_returned():
    result = run(num_restarts=3, num_epochs=3, num_steps=50)
    assert len(result.restarts) == 3
    ranks = [(r.status is epi.EPIStatus.CONVERGED, r.score) for r in result.restarts]
    assert ranks[result.best] == max(ranks)
    draws = [r.draws.latents["z"] for r in result.restarts]
    assert not np.array_equal(draws[0], draws[1])


@pytest.mark.parametrize(
    "guide",
    [
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
        pytest.param(
            partial(epi.guides.AutoNeuralSpline, num_flows=1, hidden_dims=(10,)),
            marks=[pytest.mark.ci, pytest.mark.long],
        ),
    ],
)
def test_continuous_guides_can_be_passed(guide):
    result = run(guide=guide, num_epochs=1)
    assert np.isfinite(result.entropy)
    density = result.log_prob(result.sample(KEY, 7))
    assert density.shape == (7,)
    assert np.isfinite(density).all()


def test_guide_without_density_says_which_has_one():
    result = run(guide=autoguide.AutoBNAFNormal, num_epochs=1)
    with pytest.raises(NotImplementedError, match="AutoRealNVP"):
        result.log_prob(result.sample(KEY, 3))


@pytest.mark.ci
@pytest.mark.long
@pytest.mark.parametrize("optim", [optax.adam(1e-3), numpyro.optim.Adam(1e-3)])
def test_optimisers_of_optax_and_numpyro(optim):
    assert np.isfinite(run(optim=optim, num_epochs=1).losses).all()


def test_published_schedule_runs_and_grows_its_penalty():
    schedule = epi.PublishedSchedule(c0=1e-2, beta=4.0)
    result = run(schedule=schedule, num_epochs=3)
    raw_growth = result.history.penalty[1] / result.history.penalty[0]
    np.testing.assert_allclose(raw_growth, 4.0, rtol=1e-4)
    assert "published test" in result.message


def test_interrupt_returns_the_result_so_far(monkeypatch):
    original = Progress.run_epoch

    def run_epoch(self, engine, state, stat_gradient):
        if int(state.num_steps[0]) > 0:
            raise KeyboardInterrupt
        return original(self, engine, state, stat_gradient)

    monkeypatch.setattr(Progress, "run_epoch", run_epoch)
    result = run(num_epochs=3)
    assert result.status is epi.EPIStatus.INTERRUPTED
    assert len(result.history.entropy) == 1


@pytest.mark.parametrize("stage", ["_advance_law", "_fit_first", "_judge"])
def test_an_interrupt_leaves_a_result_in_every_stage(stage, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Solver, stage, stop)
    result = run(num_epochs=1)
    assert result.status in (epi.EPIStatus.INTERRUPTED, epi.EPIStatus.CONVERGED)
    if result.status is epi.EPIStatus.INTERRUPTED:
        assert "from the keyboard" in result.message
    assert np.isfinite(result.entropy)
    assert (result.law is None) == (stage == "_advance_law")


def test_an_interrupt_before_there_are_draws_is_not_caught(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulations, "pilot", stop)
    with pytest.raises(KeyboardInterrupt):
        run(num_epochs=3)


def test_unreachable_mean_is_named():
    def model():
        z = numpyro.sample("z", dist.Uniform(-3, 3).expand([2]).to_event(1))
        epi.emergent_property(5 * jnp.tanh(z.sum()), mean=20.0, var=1.0, name="bounded")

    result = run(model, num_epochs=6)
    assert result.status is epi.EPIStatus.UNREACHABLE
    assert not result.converged
    assert "`bounded`" in result.message
    assert np.isfinite(result.entropy)
    assert len(result.history.entropy) <= 4


@pytest.mark.ci
@pytest.mark.long
def test_unreachable_variance_is_named():
    def model():
        z = numpyro.sample("z", dist.Uniform(0, 1))
        epi.emergent_property(z, mean=0.5, var=0.3, name="share")  # at most 0.25

    result = run(model, num_epochs=4)
    assert result.status is epi.EPIStatus.UNREACHABLE
    assert "variance" in result.message


def test_check_reports_before_training(capsys):
    report = epi.EPI(fails_above, on_invalid="mask", **SMALL).check(KEY)
    print(report)
    shown = capsys.readouterr().out
    assert 0.05 < report.invalid < 0.15
    assert not report.is_noisy
    assert report.seconds_per_1000 > 0
    assert "rate" in shown


@pytest.mark.ci
@pytest.mark.long
def test_noise_is_noticed_and_never_guided():
    def model():
        z = numpyro.sample("z", dist.Normal())
        spikes = numpyro.sample(
            "spikes", dist.Poisson(jnp.exp(z)), infer={"noise": True}
        )
        epi.emergent_property(spikes, mean=2.0, var=3.0)

    result = run(model)
    assert result.is_noisy
    assert set(result.draws.latents) == {"z"}


@pytest.mark.ci
@pytest.mark.long
def test_second_run_compiles_nothing_new():
    """A trace calls the model; a second run, and its longer twin's epochs, must not."""
    calls = []

    def model():
        calls.append(1)
        gaussian()

    # Of a search that is long enough chains are not needed, with either key.
    options = {**SMALL, "warm_start_size": 10_000}
    inference = epi.EPI(model, GUIDE, **options)
    inference.run(jax.random.key(0))
    after_first = len(calls)
    inference.run(jax.random.key(1))
    assert len(calls) == after_first
    calls.clear()
    epi.EPI(model, GUIDE, **{**options, "num_epochs": 4}).run(jax.random.key(0))
    assert len(calls) == after_first


def test_restart_without_valid_draws_has_no_score():
    def fails():
        z = numpyro.sample("z", dist.Normal())
        epi.emergent_property(jnp.where(z < 0.0, z, jnp.nan), mean=-0.5)

    inference = epi.EPI(fails, on_invalid="mask", **SMALL)
    simulations = Simulations.start(inference._engine(KEY, (), {}), KEY)
    simulations.pilot()
    u = np.ones((1, 4, 1), np.float32)
    zeros = np.zeros((1, 4), np.float32)
    stats = np.full((1, 4, 1), np.nan, np.float32)
    (scores,) = simulations.scores(Evaluation(u, zeros, zeros, zeros, zeros, stats))
    assert scores.invalid == 1.0
    assert not is_met(scores, inference.options).any()
    status, message = verdict(simulations, scores)
    assert status is epi.EPIStatus.NOT_CONVERGED
    assert "None of the draws" in message


@pytest.mark.parametrize(
    ("violation", "advice"), [(0.04, "num_evaluation"), (0.06, "num_epochs")]
)
def test_verdict_tells_a_miss_from_a_lack_of_draws(violation, advice):
    inference = epi.EPI(gaussian, GUIDE, **SMALL)
    simulations = Simulations.start(inference._engine(KEY, (), {}), KEY)
    simulations.pilot()
    off, errors = np.array([0.0, violation, 0.0, 0.0]), np.full(4, 0.02)
    scores = Scores(0.0, 0.0, 0.0, off, errors, 0.0, np.ones(4))
    status, message = verdict(simulations, scores)
    assert status is epi.EPIStatus.NOT_CONVERGED
    assert f"off by +{violation} +- 0.02" in message
    assert advice in message
