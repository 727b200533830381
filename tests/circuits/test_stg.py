# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The stomatogastric subcircuit: equations, noise, frequencies, gradients, model."""

import functools
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random

from numpyro_epi.circuits import stg
from numpyro_epi.handlers import collect, noise

FOCUS = (6.107, 1.309)  # near-synchronous
SQRT_DT = math.sqrt(1000.0 / 25.0)  # makes sigma dt into sigma sqrt(dt), with dt in s


# The equations once more, in SI units, written from the paper and its code.


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def si_drift(v, n, h, g_el, g_syn, *, v7=-42.2e-3, phi=2.0, gap=(1, 4), flip=1.0):
    """Volts, seconds, siemens. The keywords are mistakes to make."""
    f1, f2, hub, s1, s2 = v
    g_ca = 1e-6 * np.array([1.9e-2, 1.9e-2, 1.7e-2, 8.5e-3, 8.5e-3])
    g_k = 1e-6 * np.array([3.9e-2, 3.9e-2, 1.9e-2, 1.5e-2, 1.5e-2])
    g_h = 1e-6 * np.array([2.5e-2, 2.5e-2, 8.0e-3, 1.0e-2, 1.0e-2])
    m_inf = 0.5 * (1 + np.tanh(v / 20e-3))
    n_inf = 0.5 * (1 + np.tanh(v / 15e-3))
    n_rate = phi * np.cosh(v / 30e-3)
    h_inf = 1 / (1 + np.exp((v + 78.3e-3) / 10.5e-3))
    tau_h = (272.0 + 1499.0 / (1 + np.exp((-v + v7) / 87.3e-3))) / 1000.0
    s = sigmoid((v + 25e-3) / 5e-3)
    elec = np.zeros(5)
    for other in gap:
        elec[other] = g_el * (v[other] - hub)
        elec[2] += flip * g_el * (hub - v[other])
    syn = np.zeros(5)
    syn[0], syn[1] = 5e-9 * s[1] * (f1 + 75e-3), 5e-9 * s[0] * (f2 + 75e-3)
    syn[3], syn[4] = 5e-9 * s[4] * (s1 + 75e-3), 5e-9 * s[3] * (s2 + 75e-3)
    syn[2] = g_syn * (s[0] + s[3]) * (hub + 75e-3)
    current = 1e-10 * (v + 40e-3) + g_ca * m_inf * (v - 100e-3)
    current += g_k * n * (v + 80e-3) + g_h * h * (v + 20e-3) + elec + syn
    return -current / 1e-9, n_rate * (n_inf - n), (h_inf - h) / tau_h


def random_states():
    rng = np.random.default_rng(0)
    return [
        (rng.uniform(-0.08, 0.06, 5), rng.uniform(size=5), rng.uniform(size=5))
        for _ in range(20)
    ]


def worst_difference(**mistakes):
    """Between the drift and the equations above, relative to the largest rate."""
    worst = 0.0
    with jax.enable_x64(new_val=True):
        rate = jax.jit(stg.drift)
        for v, n, h in random_states():
            exact = si_drift(v, n, h, 5e-9, 2e-9, **mistakes)
            found = rate(stg.STGState(*map(jnp.asarray, (1e3 * v, n, h))), 5.0, 2.0)
            # V/s is mV/ms; gates have 1/s against 1/ms.
            for x, y, unit in zip(found, exact, (1.0, 1e3, 1e3), strict=True):
                size = np.abs(y).max() + 1e-300
                worst = max(worst, np.abs(np.asarray(x) * unit - y).max() / size)
    return worst


@pytest.mark.core
def test_drift_is_that_of_the_paper():
    assert worst_difference() < 1e-10


MISTAKES = [{"v7": 42.2e-3}, {"phi": 0.002}, {"gap": (0, 4)}, {"flip": -1.0}]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_equations_is_seen(mistake):
    # Broken twins: the printed double minus, phi_N in 1/ms, a wrong pair, a wrong sign.
    assert worst_difference(**mistake) > 1e-2


def test_simulation_is_the_euler_method():
    v, n, h = (np.array(x) for x in stg.initial_state())
    y, exact = (v / 1000.0, n, h), [v]
    for _ in range(100):
        rate = si_drift(*y, 4.5e-9, 3e-9)
        y = tuple(x + 0.025 * dx for x, dx in zip(y, rate, strict=True))
        exact.append(1000.0 * y[0])
    with jax.enable_x64(new_val=True):
        short = stg.PAPER._replace(num_steps=100)
        found = stg.simulate(4.5, 3.0, constants=short)
    assert found.v.dtype == jnp.float64
    np.testing.assert_allclose(found.v, exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.h[-1], y[2], rtol=1e-5)


# Frequencies. One compiled function serves the paper and broken twins.


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def simulated(g_el, g_synA, rng_key, sigma):
    constants = stg.PAPER._replace(noise=sigma)
    return stg.hub_frequency(g_el, g_synA, rng_key, constants)


@functools.cache
def hub_frequencies(point, sigma=1.0):
    """400 simulations at one point."""
    g_el, g_synA = np.broadcast_to(np.float32(point)[:, None], (2, 400))
    return np.array(simulated(g_el, g_synA, random.split(random.key(0), 400), sigma))


# Points, and means and standard deviations that an independent implementation found.
# Its mean of 40 simulations has a standard error of sd / sqrt(40), ours of a third of
# that. False alarm of 5 standard errors: 6e-7. It was rounded, to three and to four
# digits. A standard deviation of 40 numbers from two clusters is good to a factor two.
VERIFIED = [((4.5, 3.0), 0.367, 0.037, 1e-3), (FOCUS, 0.5501, 0.0003, 1e-4)]


def agrees(found, mean, sd, rounding):
    error = np.sqrt(sd**2 / 40 + sd**2 / len(found))
    is_mean = abs(found.mean() - mean) < 5 * error + rounding
    return bool(is_mean and 0.5 * sd < found.std() < 2.0 * sd)


@pytest.mark.parametrize(("point", "mean", "sd", "rounding"), VERIFIED)
def test_hub_frequency_is_the_verified_one(point, mean, sd, rounding):
    assert agrees(hub_frequencies(point), mean, sd, rounding)


@pytest.mark.parametrize("sigma", [0.0, SQRT_DT])
@pytest.mark.parametrize(("point", "mean", "sd", "rounding"), VERIFIED)
def test_another_noise_is_seen(point, mean, sd, rounding, sigma):
    # Broken twins: no noise, and noise with the square root of the time step.
    assert not agrees(hub_frequencies(point, sigma), mean, sd, rounding)


# Hub frequency at g_el = 6.5 of one simulation each, rounded to 0.001 Hz.
PROFILE = {
    0.25: 0.610,
    0.5: 0.598,
    1.0: 0.562,
    1.5: 0.549,
    2.0: 0.522,
    2.5: 0.504,
    3.0: 0.377,
    3.5: 0.374,
}


@pytest.mark.parametrize("rule", ["as verified", "other capacitance"])
def test_profile_of_frequencies(rule):
    """Single simulations lie within 5 standard deviations of ours (50 each)."""
    g_synA = np.repeat(np.float32(list(PROFILE)), 50)
    keys = random.split(random.key(1), 400)
    g_el = np.full(400, 6.5, np.float32)
    if rule == "as verified":
        found = simulated(g_el, g_synA, keys, 1.0)
    else:  # The broken twin: more capacitance is the same as less of all conductances.
        found = simulated(1.1 * g_el, 1.1 * g_synA, keys, 1.0)
    found = np.array(found).reshape(-1, 50)
    gap = np.abs(found.mean(axis=1) - list(PROFILE.values()))
    is_close = gap < 5 * found.std(axis=1) + 5e-4
    assert is_close.all() == (rule == "as verified")


@pytest.mark.parametrize("point", [(4.0, 0.01), (8.0, 4.0)])
def test_corners_of_the_support(point):
    mean, tolerance = {(4.0, 0.01): (0.71, 0.1), (8.0, 4.0): (0.378, 0.002)}[point]
    found = hub_frequencies(point)
    assert np.isfinite(found).all()
    assert abs(found.mean() - mean) < tolerance


def test_stored_and_added_up_frequencies_agree():
    def both(key):
        stored = stg.frequencies(stg.simulate(*FOCUS, key).v)
        return stored, stg.hub_frequency(*FOCUS, key)

    stored, added = jax.jit(both)(random.key(3))
    assert stored.shape == (5,)
    np.testing.assert_allclose(stored[2], added, atol=1e-5)
    # All five, as verified: 0.538, 0.5485, 0.5501, 0.551, 0.552.
    np.testing.assert_allclose(stored, [0.538, 0.5485, 0.5501, 0.551, 0.552], atol=4e-3)


def test_noise_kicks_once_per_step():
    """One step: sigma dt / C = 0.025 mV, in all voltages, in no gate.

    Estimator: standard deviation of 2,000 numbers, 5 standard errors (6e-7), 8%. The
    square root of dt would give six times as much.
    """
    short = stg.PAPER._replace(num_steps=1, discard=0, window=1)
    keys = random.split(random.key(0), 400)
    with jax.enable_x64(new_val=True):
        run = jax.jit(jax.vmap(lambda k: stg.simulate(4.5, 3.0, k, short)))
        noisy, free = run(keys), stg.simulate(4.5, 3.0, constants=short)
    kicks = np.asarray(noisy.v[:, 1] - free.v[1])
    assert abs(kicks.std() / 0.025 - 1.0) < 5 / np.sqrt(2 * kicks.size)
    assert abs(np.corrcoef(kicks.T) - np.eye(5)).max() < 5 / np.sqrt(400)
    for name in ("n", "h"):
        gates = getattr(noisy, name)
        exact = np.broadcast_to(getattr(free, name), gates.shape)
        np.testing.assert_allclose(gates, exact, rtol=1e-12)


def grid_entropy(num_simulations, num_points=41):
    """Maximum entropy from a grid, by Newton steps on the dual."""
    ends = stg.PAPER.g_el, stg.PAPER.g_syn_a
    axes = [np.linspace(*end, num_points, dtype=np.float32) for end in ends]
    g_el, g_synA = (x.ravel() for x in np.meshgrid(*axes, indexing="ij"))
    deviation = 0.0
    for seed in range(num_simulations):
        keys = random.split(random.key(100 + seed), g_el.size)
        f = (np.array(simulated(g_el, g_synA, keys, 1.0), float) - 0.55) / 0.025
        deviation = deviation + np.stack([f, (f**2 - 1.0) / np.sqrt(2)], axis=1)
    deviation /= num_simulations
    edge = np.where((np.arange(num_points) % (num_points - 1)) == 0, 0.5, 1.0)
    area = np.prod([end[1] - end[0] for end in ends]) / (num_points - 1) ** 2
    log_area = np.log(area * np.outer(edge, edge).ravel())

    def log_z(multipliers):
        log_weights = log_area - deviation @ multipliers
        top = log_weights.max()
        weights = np.exp(log_weights - top)
        return top + np.log(weights.sum()), weights / weights.sum()

    multipliers = np.zeros(2)
    for _ in range(30):
        value, weights = log_z(multipliers)
        violation = weights @ deviation
        centred = deviation - violation
        newton = np.linalg.solve((weights * centred.T) @ centred, violation)
        size = 1.0
        while log_z(multipliers + size * newton)[0] > value and size > 1e-6:
            size /= 2
        multipliers = multipliers + size * newton
    assert np.abs(violation).max() < 1e-6
    return value


@pytest.mark.long
def test_maximum_entropy():
    # 48 simulations at each of 1,681 points leave a bias of about 0.01.
    assert abs(grid_entropy(48) - stg.PAPER.max_entropy) < 0.02


@pytest.mark.long
def test_maximum_entropy_needs_many_simulations():
    # The broken twin of the test above.
    assert grid_entropy(3) > stg.PAPER.max_entropy + 0.05


# Accurate solutions


def test_euler_of_the_solver_is_the_simulation():
    with jax.enable_x64(new_val=True):
        short = stg.PAPER._replace(num_steps=60)
        simulated = stg.simulate(4.5, 3.0, constants=short)
        euler = {"solver": diffrax.Euler(), "dt0": 25.0}
        solved = jax.jit(lambda: stg.solve(4.5, 3.0, short.times, **euler))()
    for x, y in zip(simulated, solved, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def test_accurate_solution_has_the_verified_frequency():
    # An independent Runge-Kutta method with steps of 0.5 ms found 0.336 Hz.
    solved = jax.jit(stg.solve)(4.5, 3.0, stg.PAPER.times)
    assert abs(stg.frequencies(solved.v)[2] - 0.336) < 1e-3
    # The coarse steps of the paper differ: 0.348 Hz.
    assert abs(hub_frequencies((4.5, 3.0), 0.0)[0] - 0.348) < 1e-3


# Gradients, types, memory


def test_gradients_are_central_differences():
    step, points = 1e-6, np.array([[*FOCUS, 1.0], [5.0, 1.0, 1.0], [7.5, 0.7, 1.0]])

    def statistic(z, sharpness=0.5):
        constants = stg.PAPER._replace(
            g_ca=z[2] * jnp.asarray(stg.PAPER.g_ca), sharpness=sharpness
        )
        return stg.hub_frequency(z[0], z[1], None, constants)

    with jax.enable_x64(new_val=True):
        shifts = step * np.concatenate([np.eye(3), -np.eye(3)])
        shifted = jnp.asarray(points[:, None] + shifts)
        values = jax.jit(jax.vmap(jax.vmap(statistic)))(shifted)
        exact = np.asarray(values[:, :3] - values[:, 3:]) / (2 * step)
        reverse = np.asarray(jax.jit(jax.vmap(jax.grad(statistic)))(points))
        forward = jax.jit(jax.vmap(jax.jacfwd(statistic), in_axes=(0, None)))
        other, forward = np.asarray(forward(points, 0.1)), forward(points, 0.5)
    assert np.abs(exact).min() > 1e-4
    np.testing.assert_allclose(forward, exact, rtol=1e-4)
    np.testing.assert_allclose(reverse, forward, rtol=1e-8)
    # The broken twin: the gradient of the statistic with another softmax.
    assert (np.abs(other / exact - 1.0).max(axis=1) > 1e-3).all()


def temporary_bytes(fn, num_steps):
    constants = stg.PAPER._replace(num_steps=num_steps)

    def slope(z, tangent, key):
        return jax.jvp(lambda z: fn(z[0], z[1], key, constants), (z,), (tangent,))

    args = jnp.ones((50, 2)), jnp.ones((50, 2)), random.split(random.key(0), 50)
    compiled = jax.jit(jax.vmap(slope)).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_forward_mode_does_not_grow_with_time():
    short, long = (temporary_bytes(stg.hub_frequency, n) for n in (100, 400))
    assert long < 1.1 * short


def test_memory_of_trajectories_grows():
    # The broken twin of the test above.
    def stored(g_el, g_synA, key, constants):
        trajectory = stg.simulate(g_el, g_synA, None, constants)
        return stg.frequencies(trajectory.v, constants)

    short, long = (temporary_bytes(stored, n) for n in (100, 400))
    assert long > 1.5 * short


@pytest.mark.core
@pytest.mark.parametrize("x64", [False, True])
def test_types_follow_the_conductances(x64):
    short = stg.PAPER._replace(num_steps=60)
    with jax.enable_x64(x64):
        for dtype in (jnp.float32, jnp.float64)[: 1 + x64]:
            z = jnp.asarray(FOCUS, dtype)
            key = random.key(0)
            frequency = jax.eval_shape(stg.hub_frequency, z[0], z[1], key)
            states = jax.eval_shape(lambda z, key: stg.simulate(*z, key, short), z, key)
            assert frequency.dtype == dtype
            assert {x.dtype for x in states} == {jnp.dtype(dtype)}
            assert {x.shape for x in states} == {(61, 5)}


# The model


def properties_of(model, *args, **kwargs):
    noisy = noise(model)
    collector = collect(noisy)
    seeded = numpyro.handlers.seed(collector, random.key(0))
    trace = numpyro.handlers.trace(seeded).get_trace(*args, **kwargs)
    return trace, collector.properties, noisy.is_noisy


SHORT = stg.PAPER._replace(num_steps=120)


@pytest.mark.core
def test_model_has_the_constants_of_the_paper():
    trace, properties, is_noisy = properties_of(stg.model)
    assert is_noisy
    assert list(properties) == ["hub_frequency"]
    hub = properties["hub_frequency"]
    assert (float(hub.mean), float(hub.var)) == (0.55, 0.025**2)
    for name, ends in {"g_el": (4.0, 8.0), "g_synA": (0.01, 4.0)}.items():
        support = trace[name]["fn"].support
        assert (support.lower_bound, support.upper_bound) == ends
    assert 0.3 < hub.stat < 0.76


def test_model_takes_other_targets_and_constants():
    other = SHORT._replace(g_el=(5.0, 6.0))
    trace, properties, is_noisy = properties_of(
        stg.model, 0.4, None, other, is_noisy=False
    )
    hub = properties["hub_frequency"]
    assert not is_noisy
    assert (float(hub.mean), hub.var) == (0.4, None)
    assert trace["g_el"]["fn"].support.upper_bound == 6.0
    exact = stg.hub_frequency(
        trace["g_el"]["value"], trace["g_synA"]["value"], constants=other
    )
    np.testing.assert_allclose(hub.stat, exact, rtol=1e-4)


def test_model_may_use_another_generator():
    def run(key):
        condition = {"g_el": 4.5, "g_synA": 3.0}
        model = numpyro.handlers.condition(stg.model, condition)
        return numpyro.handlers.seed(model, key)(constants=SHORT, rng_impl="unsafe_rbg")

    keys = random.split(random.key(0), 20)
    batch = jax.jit(jax.vmap(run))(keys)
    assert len(np.unique(batch)) == 20


CONSTANTS = stg.PAPER._replace
ERRORS = [
    (lambda: stg.hub_frequency("x", 1.0), TypeError, "real numbers as `g_el`"),
    (lambda: stg.simulate(4.0, [1.0]), ValueError, "one number as `g_synA`.*jax.vmap"),
    (lambda: stg.simulate(4.0, 1.0, 3), TypeError, "random key"),
    (lambda: stg.frequencies(np.ones(301)), ValueError, r"\(\.\.\., T, n\) as `v`"),
    (lambda: stg.solve(4.0, 1.0, [2.0, 1.0]), ValueError, "ascending .* `times`"),
    (lambda: stg.solve(4.0, 1.0, [0.0]), ValueError, "not all zero, as `times`"),
    (lambda: stg.solve(4.0, 1.0, [-1.0, 1.0]), ValueError, "at least zero"),
    (lambda: stg.simulate(4.0, 1.0, None, {}), TypeError, "`STGConstants` as `const"),
    (
        lambda: stg.model(constants=CONSTANTS(g_ca=(1.0, 2.0))),
        ValueError,
        r"5 numbers as `constants\.g_ca`, got shape \(2,\).*_replace",
    ),
    (
        lambda: stg.model(constants=CONSTANTS(capacitance=0.0)),
        ValueError,
        r"positive numbers as `constants\.capacitance`, got 0\.0",
    ),
    (
        lambda: stg.model(constants=CONSTANTS(v_k="low")),
        TypeError,
        r"real numbers as `constants\.v_k`",
    ),
    (
        lambda: stg.model(constants=CONSTANTS(num_steps=300.0)),
        TypeError,
        r"integer of at least 1 as `constants\.num_steps`, got 300\.0",
    ),
    (
        lambda: stg.model(constants=CONSTANTS(g_el=(8.0, 4.0))),
        ValueError,
        r"`constants\.g_el`",
    ),
    (
        lambda: stg.hub_frequency(4.0, 1.0, None, CONSTANTS(num_steps=30)),
        ValueError,
        "Take a longer signal",
    ),
    (
        lambda: jax.jit(stg.hub_frequency)(4.0, 1.0, None, stg.PAPER),
        TypeError,
        r"`constants\.num_steps`, got a traced value.*`jit`",
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
        stg.PAPER.capacitance = 2.0
    assert stg.PAPER.times[-1] == 7500.0
    assert stg.PAPER.frequencies[-1] == 1.0
