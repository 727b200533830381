# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Superior colliculus: connections, inputs, noise, accuracies, silencing, model.

Tests with random numbers state their false-alarm rate; keys are fixed, so that they
pass or fail for good.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from scipy import stats

from numpyro_epi.circuits import colliculus
from numpyro_epi.handlers import collect

# One setting of each regime that solves both tasks, one between, one that solves none.
SETTINGS = np.array(
    [
        [-0.75, -3.8, -1.3, -1.5],
        [0.75, -3.6, -1.6, -1.5],
        [-0.25, -3.3, -1.1, -1.1],
        [1.0, 2.0, -3.0, -1.0],
    ]
)
MODES = 0.5 * np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])


@functools.cache
def compiled(num_trials):
    """Accuracies for an array of connections."""

    def run(z, key, silencing, noise):
        constants = colliculus.PAPER._replace(noise=noise)
        return colliculus.accuracies(
            z, key, silencing=silencing, num_trials=num_trials, constants=constants
        )

    return jax.jit(run)


def accuracies(z, seed=0, silencing=0.0, noise=0.2, num_trials=4000):
    found = compiled(num_trials)(jnp.asarray(z), random.key(seed), silencing, noise)
    return np.asarray(found, np.float64)


# Connections


@pytest.mark.core
def test_eigenvectors_and_eigenvalues():
    z = np.array([1.0, -2.0, 3.5, 0.25])
    matrix = np.asarray(colliculus.weights(z))
    assert (matrix == matrix.T).all()
    found = np.asarray(colliculus.eigenvalues(z))
    np.testing.assert_allclose(MODES @ matrix @ MODES.T, np.diag(found), atol=1e-6)
    np.testing.assert_allclose(colliculus.from_eigenvalues(found), z, rtol=1e-6)
    np.testing.assert_allclose(
        found, [z.sum(), 1.0 - 2.0 - 3.75, 1 + 2 + 3.25, 1 + 2 - 3.25], rtol=1e-6
    )
    # Broken twin: A as printed has its rows in another order.
    printed = 0.25 * np.array(
        [[1, 1, 1, 1], [1, -1, -1, 1], [1, 1, -1, -1], [1, -1, 1, -1]]
    )
    assert np.abs(printed @ found - z).max() > 1.0
    # Directions in which one eigenvalue grows by two, and no other.
    steps = colliculus.from_eigenvalues(2 * np.eye(4))
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 1.0, rtol=1e-6)


@pytest.mark.core
def test_eigenvalues_of_the_regimes():
    # Means of accepted draws with sW in (-1, -.5) and in (.5, 1): lambda_task and
    # lambda_diag are positive, lambda_side is negative in the first regime only.
    first = colliculus.eigenvalues([-0.75, -3.8, -1.3, -1.5])
    second = colliculus.eigenvalues([0.75, -3.6, -1.6, -1.5])
    np.testing.assert_allclose(first, [-7.3, -1.8, 3.3, 2.8], atol=0.15)
    np.testing.assert_allclose(second, [-5.9, 0.2, 4.2, 4.4], atol=0.15)


# Inputs


@pytest.mark.core
def test_inputs_change_when_published():
    found = np.asarray(colliculus.inputs())
    assert found.shape == (75, 2, 4)
    pro, anti = found[:, 0], found[:, 1]
    for i in 0, 33, 49:
        np.testing.assert_allclose(pro[i], [1.85, 0.75, 1.85, 0.75])
        np.testing.assert_allclose(anti[i], [1.25, 1.35, 1.25, 1.35])
    # At 1.2 s there is neither rule nor choice nor light, however 50 * 0.024 rounds.
    for task in pro, anti:
        np.testing.assert_allclose(task[50], [1.25, 0.75, 1.25, 0.75])
        np.testing.assert_allclose(task[51], [2.0, 1.5, 1.5, 1.0])
        np.testing.assert_allclose(task[62], [2.0, 1.5, 1.5, 1.0])
        np.testing.assert_allclose(task[63], [1.5, 1.0, 1.5, 1.0])
        np.testing.assert_allclose(task[74], [1.5, 1.0, 1.5, 1.0])


# The scheme


@pytest.fixture(scope="module")
def traces():
    """Activity and drive of 20 trials with silencing, in double precision."""
    with jax.enable_x64(new_val=True):
        run = functools.partial(colliculus.paths, silencing=0.4, num_trials=20)
        return jax.tree.map(np.asarray, jax.jit(run)(SETTINGS[0], random.key(0)))


def kicks(traces):
    """What noise adds to the drive, in units of sigma dt / tau."""
    _, x, u = traces
    h = np.asarray(colliculus.inputs(), np.float64)[1:].transpose(1, 0, 2)[:, None]
    matrix = np.asarray(colliculus.weights(SETTINGS[0]))
    pace = 0.024 / 0.09
    drift = pace * (-u[..., :-1, :] + x[..., :-1, :] @ matrix.T + h)
    return (u[..., 1:, :] - u[..., :-1, :] - drift) / (pace * 0.2)


@pytest.mark.core
def test_drive_takes_published_steps(traces):
    # 11,840 standard normal numbers: 5 standard errors, false-alarm rate 6e-7 each.
    # Noise that scales with sqrt(dt) would be 6.5 times as strong.
    assert traces.drive.shape == (2, 20, 75, 4)
    xi = kicks(traces)

    def z_scores(xi):
        moments = [xi.mean(), (xi.var() - 1) / np.sqrt(2)]
        pairs = (xi[0] * xi[1], xi[:, ::2] * xi[:, 1::2], xi[..., 0] * xi[..., 2])
        moments += [pair.mean() * np.sqrt(pair.size / xi.size) for pair in pairs]
        lagged = xi[..., 1:, :] * xi[..., :-1, :]
        return np.sqrt(xi.size) * np.array([*moments, lagged.mean()])

    assert np.abs(z_scores(xi)).max() < 5
    assert stats.kstest(xi.ravel(), "norm").pvalue > 1e-4
    # Broken twin: the activity at the end of a step.
    late = traces._replace(activity=np.roll(traces.activity, -1, axis=2))
    assert np.abs(z_scores(kicks(late))).max() > 20


@pytest.mark.core
def test_activity_is_silenced_late_in_the_delay(traces):
    times, x, u = traces
    np.testing.assert_allclose(times, 0.024 * np.arange(75), rtol=1e-6)
    phi = 0.5 * np.tanh((u - 0.05) / 0.5) + 0.5
    ratio = (x / phi)[..., 1:, :]
    silenced = (np.arange(1, 75) >= 34) & (np.arange(1, 75) <= 50)
    np.testing.assert_allclose(ratio[..., silenced, :], 0.6, rtol=1e-9)
    np.testing.assert_allclose(ratio[..., ~silenced, :], 1.0, rtol=1e-9)


@pytest.mark.core
def test_start_is_the_published_one(traces):
    # 160 numbers: 5 standard errors in mean and standard deviation.
    _, x, u = traces
    start = x[..., 0, :]
    assert abs(start.mean() - 0.1) < 5 * 0.005 / np.sqrt(160)
    assert abs(start.std() - 0.005) < 5 * 0.005 / np.sqrt(320)
    unit = 0.5 * np.arctanh(2 * start - 1)
    np.testing.assert_allclose(u[..., 0, :], unit - 0.05, rtol=1e-12)
    # The inverse of the activation function would be this:
    np.testing.assert_allclose(colliculus.activation(unit + 0.05), start, rtol=1e-4)
    assert np.abs(colliculus.activation(u[..., 0, :]) / start - 1).min() > 0.1


def test_noise_free_dynamics():
    quiet = colliculus.PAPER._replace(noise=0.0, start_noise=0.0)
    times = 0.024 * np.arange(75)
    with jax.enable_x64(new_val=True):

        def scanned(refinement):
            constants = quiet._replace(dt=0.024 / refinement, num_steps=74 * refinement)
            options = {"silencing": 0.5, "num_trials": 1, "constants": constants}
            run = jax.jit(functools.partial(colliculus.paths, **options))
            found = np.asarray(run(SETTINGS[1], random.key(0)).activity)
            return found[:, 0, ::refinement].swapaxes(0, 1)

        @jax.jit
        def solved(dt0):
            return colliculus.noise_free(SETTINGS[1], times, silencing=0.5, dt0=dt0)

        fine = np.asarray(solved(0.004))
        assert np.abs(np.asarray(solved(0.012)) - fine).max() < 1e-5
        errors = [np.abs(scanned(r) - fine)[1:].max() for r in (4, 40)]
    # Published steps are coarse, and shorter ones converge to first order, except at
    # the moment at which silencing ends, where activity jumps.
    assert errors[0] < 0.1
    assert 5 < errors[0] / errors[1] < 20


# Accuracies


@pytest.mark.core
def test_soft_accuracy():
    margins = np.array([-0.1, -0.01, 0.0, 0.02])
    exact = 1 / (1 + np.exp(-100 * margins))
    np.testing.assert_allclose(colliculus.soft_accuracy(margins), exact, rtol=1e-5)
    softer = colliculus.soft_accuracy(margins, steepness=10.0)
    np.testing.assert_allclose(softer, 1 / (1 + np.exp(-10 * margins)), rtol=1e-5)


def reference(z, num_trials, seed, silencing=0.0):
    """Accuracies of each trial, with NumPy, in the order of the published code."""
    rng, found = np.random.default_rng(seed), []
    s, v, h, d = z
    # LP, LA, RA, RP
    matrix = np.array([[s, v, d, h], [v, s, h, d], [d, h, s, v], [h, d, v, s]])
    for task in (0, 1):
        rule = 0.6 * np.array([[1, 0, 0, 1], [0, 1, 1, 0]][task])
        x = 0.1 + 0.005 * rng.normal(size=(num_trials, 4))
        u = 0.5 * np.arctanh(2 * x - 1) - 0.05
        for i in range(1, 75):
            t = round(0.024 * i, 6)
            drive = 0.75 + 0.5 * np.array([1, 0, 0, 1]) + rule * (t < 1.2)
            drive = drive + 0.25 * (t > 1.2)
            drive = drive + 0.5 * np.array([1, 1, 0, 0]) * (1.2 < t < 1.5)
            noise = 0.2 * rng.normal(size=x.shape)
            u = u + 0.024 / 0.09 * (-u + x @ matrix.T + drive + noise)
            x = 0.5 * np.tanh((u - 0.05) / 0.5) + 0.5
            x = x * (1 - silencing * (0.8 <= t <= 1.2))
        margin = (x[:, 0] - x[:, 3]) * (1 - 2 * task)
        found.append(1 / (1 + np.exp(-100 * margin)))
    return np.stack(found, axis=1)


@pytest.mark.core
@pytest.mark.parametrize("silencing", [0.0, 0.675])
def test_accuracies_are_those_of_numpy(silencing):
    # 4,000 trials on either side: 5 standard errors, about 0.05; false-alarm rate 6e-7
    # for each of eight numbers.
    found = accuracies(SETTINGS, silencing=silencing)
    for z, ours in zip(SETTINGS, found, strict=True):
        theirs = reference(z, 4000, seed=1, silencing=silencing)
        error = np.sqrt(theirs.var(axis=0) * 2 / 4000) + 1e-3
        assert (np.abs(ours - theirs.mean(axis=0)) < 5 * error).all()
    # Broken twin: another setting.
    assert np.abs(found - found[::-1]).max() > 0.2


@pytest.mark.core
def test_noise_does_not_scale_with_the_root_of_the_step():
    # The broken twin destroys the result: 0.54 and 0.51, as verified before.
    published = accuracies(SETTINGS)[:3]
    rescaled = accuracies(SETTINGS, noise=0.2 / np.sqrt(0.024))[:3]
    assert (published > 0.7).all()
    assert (rescaled < 0.65).all()


@pytest.mark.core
def test_accuracies_under_a_wide_law():
    # Mean deviation from 0.75 and its excess square at the start of published runs:
    # -0.237, -0.257, 0.055, 0.063. Standard errors of 500 draws are about 0.010 and
    # 0.004, and the published numbers have errors too: 0.05 and 0.02 are 4 of both.
    z = 5 * jnp.tanh(random.normal(random.key(2), (500, 4)))
    deviation = accuracies(z, num_trials=200) - 0.75
    np.testing.assert_allclose(deviation.mean(0), [-0.237, -0.257], atol=0.05)
    excess = (deviation**2).mean(0) - 0.075**2
    np.testing.assert_allclose(excess, [0.055, 0.063], atol=0.02)


@pytest.mark.core
def test_silencing_tells_the_regimes_apart():
    # Standard errors are 0.008 at most.
    errors = {g: 1 - accuracies(SETTINGS, silencing=g)[:2] for g in (0, 0.675, 0.85)}
    change = errors[0.675] - errors[0]
    assert np.abs(change[:, 0]).max() < 0.04  # Pro is unaffected
    assert change[0, 1] > 0.06  # Anti suffers in regime 1
    assert change[1, 1] < 0.04  # and not in regime 2
    # With strong silencing the animal does in the Anti task what it does in Pro.
    pro, anti = errors[0.85].T
    assert (anti > 0.7).all()
    assert np.abs(pro).max() < 0.3


def test_gradient_reaches_silencing_and_constants():
    with jax.enable_x64(new_val=True):

        @jax.jit
        def anti(parameters):
            silencing, threshold = parameters
            # A soft sigmoid, so that the derivative is far from zero.
            constants = colliculus.PAPER._replace(threshold=threshold, steepness=5.0)
            return colliculus.accuracies(
                jnp.asarray(SETTINGS[0]),
                random.key(0),
                silencing=silencing,
                num_trials=20,
                constants=constants,
            )[1]

        at, step = jnp.array([0.6, 0.05]), 1e-6
        sides = [(anti(at + s) - anti(at - s)) for s in step * np.eye(2)]
        exact = np.array(sides) / (2 * step)
        np.testing.assert_allclose(jax.jacfwd(anti)(at), exact, rtol=1e-4)


# The model


def properties_of(**kwargs):
    collector = collect(numpyro.handlers.seed(colliculus.model, random.key(0)))
    trace = numpyro.handlers.trace(collector).get_trace(**kwargs)
    return trace, collector.properties


@pytest.mark.core
def test_model_has_the_constants_of_the_paper():
    found = {}
    # Nothing is simulated.
    jax.eval_shape(lambda: found.update(all=properties_of()))
    trace, properties = found["all"]
    support = trace["z"]["fn"].support.base_constraint
    assert trace["z"]["value"].shape == (4,)
    assert (support.lower_bound, support.upper_bound) == (-5.0, 5.0)
    assert list(properties) == ["pro_accuracy", "anti_accuracy"]
    for target in properties.values():
        assert (float(target.mean), float(target.var)) == (0.75, 0.075**2)
    constants = colliculus.PAPER
    assert (constants.threshold, constants.slope) == (0.05, 0.5)
    assert (constants.tau, constants.dt, constants.num_steps) == (0.09, 0.024, 74)
    assert (constants.noise, constants.num_trials) == (0.2, 200)


@pytest.mark.core
def test_model_takes_other_targets_and_interventions():
    found = {}

    @functools.partial(jax.jit, static_argnames="rng_impl")
    def stat(silencing=0.0, rng_impl=None):
        options = {"silencing": silencing, "rng_impl": rng_impl, "num_trials": 4}
        options |= {"mean": (0.9, 0.6), "var": None}
        found.update(properties_of(**options)[1])
        return found["anti_accuracy"].stat

    default = stat()
    assert 0.0 <= default <= 1.0
    assert found["pro_accuracy"].mean == 0.9
    assert found["anti_accuracy"].mean == 0.6
    assert found["anti_accuracy"].var is None
    assert stat(silencing=0.9) != default
    assert stat(rng_impl="unsafe_rbg") != default


def test_constants_are_immutable():
    with pytest.raises(AttributeError):
        colliculus.PAPER.tau = 2.0


def replaced(**constants):
    return lambda: colliculus.inputs(colliculus.PAPER._replace(**constants))


def traced_end():
    def run(end):
        return colliculus.inputs(colliculus.PAPER._replace(rule_end=end))

    return jax.jit(run)(1.0)


def run(z=(0.0,) * 4, key=None, **options):
    key = random.key(0) if key is None else key
    return lambda: colliculus.accuracies(z, key, num_trials=2, **options)


ERRORS = [
    (run(np.zeros(5)), ValueError, r"\(\.\.\., 4\) as `z`, got \(5,\).*sW, vW, hW, dW"),
    (run("z"), TypeError, "real numbers as `z`"),
    (run(silencing=1.5), ValueError, r"\[0, 1\] as `silencing`, got 1.5"),
    (run(silencing=[0.1, 0.2]), ValueError, "one number as `silencing`"),
    (run(constants=None), TypeError, "`ColliculusConstants` as `constants`, got None"),
    (replaced(tau=-1.0), ValueError, r"\(0, inf\) as `constants.tau`, got -1.0"),
    (replaced(slope="b"), TypeError, "`constants.slope`"),
    (replaced(noise=-0.1), ValueError, r"\[0, inf\) as `constants.noise`"),
    (replaced(start=1.0), ValueError, r"\(0, 1\) as `constants.start`, got 1.0"),
    (replaced(light_input=[0.1]), ValueError, "one number as `constants.light_input`"),
    (replaced(num_steps=0), ValueError, "at least 1 as `constants.num_steps`"),
    (traced_end, TypeError, "`constants.rule_end`, got a traced one"),
    (lambda: colliculus.eigenvalues(1.0), ValueError, r"`z`, got \(\)"),
    (
        lambda: colliculus.from_eigenvalues(np.ones(3)),
        ValueError,
        "all, side, task, diag",
    ),
    (lambda: colliculus.soft_accuracy(0.1, -1.0), ValueError, "`steepness`, got -1.0"),
    (
        lambda: colliculus.noise_free(np.zeros((2, 4)), [1.0]),
        ValueError,
        r"\(4,\) as `z`, got \(2, 4\)",
    ),
    (lambda: colliculus.noise_free(np.zeros(4), [-1.0]), ValueError, "`times`"),
    (lambda: colliculus.model(mean=0.75), ValueError, "two numbers as `mean`"),
    (lambda: properties_of(var=(1.0,)), ValueError, "two numbers as `var`"),
    (lambda: properties_of(rng_impl=3), ValueError, "`rng_impl`, got 3"),
]


@pytest.mark.core
@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
