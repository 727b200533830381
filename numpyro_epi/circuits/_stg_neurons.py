# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The five neurons of the stomatogastric subcircuit: constants and equations.

What is done with them is told in `numpyro_epi.circuits.stg`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_epi._checks import as_key, is_traced

from ._arguments import check_constants, check_interval, count, number


class STGConstants(NamedTuple):
    """Constants of the paper. Five numbers are those of f1, f2, hub, s1, s2.

    Every field above `dt` may also be an array that JAX traces: take a gradient with
    respect to it, or give it a prior.

    Attributes:
        capacitance: C, pF.
        g_leak: Conductance of the leak, nS.
        g_ca: Of calcium, nS, five numbers.
        g_k: Of potassium, nS, five numbers.
        g_h: Of the hyperpolarisation-activated current, nS, five numbers.
        g_syn_b: Of the synapses between f1 and f2, and between s1 and s2, nS.
        v_leak: Reversal potential of the leak, mV.
        v_ca: Of calcium, mV.
        v_k: Of potassium, mV.
        v_hyp: Of the hyperpolarisation-activated current, mV.
        v_syn: Of the synapses, mV.
        v1: Half activation of calcium, mV.
        v2: Slope of that, mV.
        v3: Half activation of potassium, mV.
        v4: Slope of that, mV.
        v5: Minus the half inactivation of H, mV.
        v6: Slope of that, mV.
        v7: Minus the voltage at which the time constant of H is halfway, mV.
        v8: Slope of that, mV.
        v9: Slope of the synapses, mV.
        v_th: Their half activation, mV.
        phi_n: Rate of N at v3, 1/ms.
        tau_h_least: Least time constant of H, ms.
        tau_h_range: What it adds at most, ms.
        noise: Standard deviation sigma of the noise current, pA.
        start_v: V at time zero, mV, five numbers.
        start_n: N at time zero, five numbers in [0, 1].
        start_h: H at time zero, five numbers in [0, 1].
        dt: Time step, ms.
        num_steps: T, number of steps.
        discard: Samples at the start that the statistic ignores.
        window: Samples in its moving average.
        frequency_step: Spacing of its frequency grid, which starts at zero, Hz.
        num_frequencies: Size of the grid.
        sharpness: beta of its softmax, 1/mV. That of the code; the text has 0.1, which
            changes the frequency by 0.001 Hz near the target.
        g_el: Lower and upper end of the support of `g_el`, nS.
        g_syn_a: Lower and upper end of the support of `g_synA`, nS.
        mean: Wanted mean of the hub frequency, Hz.
        var: Its wanted variance, Hz^2.
        max_entropy: Entropy of the maximum-entropy distribution, nats, to 0.005, from a
            grid of 81 x 81 points with 128 simulations each. With few simulations, luck
            looks like entropy: three give 1.47.
    """

    capacitance: Any = 1000.0
    g_leak: Any = 0.1
    g_ca: Any = (19.0, 19.0, 17.0, 8.5, 8.5)
    g_k: Any = (39.0, 39.0, 19.0, 15.0, 15.0)
    g_h: Any = (25.0, 25.0, 8.0, 10.0, 10.0)
    g_syn_b: Any = 5.0
    v_leak: Any = -40.0
    v_ca: Any = 100.0
    v_k: Any = -80.0
    v_hyp: Any = -20.0
    v_syn: Any = -75.0
    v1: Any = 0.0
    v2: Any = 20.0
    v3: Any = 0.0
    v4: Any = 15.0
    v5: Any = 78.3
    v6: Any = 10.5
    v7: Any = -42.2
    v8: Any = 87.3
    v9: Any = 5.0
    v_th: Any = -25.0
    phi_n: Any = 0.002
    tau_h_least: Any = 272.0
    tau_h_range: Any = 1499.0
    noise: Any = 1.0
    start_v: Any = (-41.69771, -43.19491, 8.83992, -68.79824, 30.48103)
    start_n: Any = (0.00151316, 0.19784773, 0.56514935, 0.12214069, 0.35290397)
    start_h: Any = (0.08614699, 0.04938177, 0.05568701, 0.07007949, 0.05790969)
    dt: float = 25.0
    num_steps: int = 300
    discard: int = 20
    window: int = 20
    frequency_step: float = 0.01
    num_frequencies: int = 101
    sharpness: float = 0.5
    g_el: tuple[float, float] = (4.0, 8.0)
    g_syn_a: tuple[float, float] = (0.01, 4.0)
    mean: float = 0.55
    var: float = 0.025**2
    max_entropy: float = 1.375

    @property
    def times(self) -> np.ndarray:
        """Times of the T + 1 samples of a simulation, ms."""
        return self.dt * np.arange(self.num_steps + 1)

    @property
    def frequencies(self) -> np.ndarray:
        """Frequencies at which the statistic looks, Hz."""
        return self.frequency_step * np.arange(self.num_frequencies)


PAPER = STGConstants()

NEURONS = ("f1", "f2", "hub", "s1", "s2")

_FIVE = {"g_ca", "g_k", "g_h", "start_v", "start_n", "start_h"}
_PAIRS = {"g_el", "g_syn_a"}
_COUNTS = {"num_steps": 1, "discard": 0, "window": 1, "num_frequencies": 2}
_SHAPES: dict[str, tuple[int, ...]] = {
    name: (5,) if name in _FIVE else (2,) if name in _PAIRS else ()
    for name in STGConstants._fields
    if name not in _COUNTS
}
_SLOPES = {"v2", "v4", "v6", "v8", "v9"}
_POSITIVE = _SLOPES | {"capacitance", "phi_n", "tau_h_least"}
_POSITIVE |= {"dt", "frequency_step", "sharpness"}


class STGState(NamedTuple):
    """State of the circuit, or a trajectory with a leading axis of time.

    Attributes:
        v: Voltage, mV, shape (..., 5): f1, f2, hub, s1, s2.
        n: Open fraction of the potassium gate, shape (..., 5).
        h: Open fraction of the hyperpolarisation-activated gate, shape (..., 5).
    """

    v: jax.Array
    n: jax.Array
    h: jax.Array


def drift(
    state: STGState,
    g_el: ArrayLike,
    g_synA: ArrayLike,
    constants: STGConstants = PAPER,
) -> STGState:
    r"""Rate of change of the state, without noise.

    With the activations :math:`M_\infty(V) = (1 + \tanh((V - v_1) / v_2)) / 2` and
    :math:`S(V) = 1 / (1 + e^{(v_{th} - V) / v_9})`, which is instantaneous,

    .. math::
        h_{leak} &= g_{leak} (V - V_{leak}) &
        h_{Ca} &= g_{Ca} M_\infty (V - V_{Ca}) \\
        h_K &= g_K N (V - V_K) &
        h_{hyp} &= g_h H (V - V_{hyp}) \\
        h_{elec} &= g_{el} L V &
        h_{syn} &= (G \, S(V)) (V - V_{syn}).

    L is the Laplacian of the couplings of the hub with f2 and s2. G has `g_syn_b` from
    f1 to f2, s1 to s2 and back, and `g_synA` from f1 and s1 to the hub. Gates:

    .. math::
        N_\infty &= (1 + \tanh((V - v_3) / v_4)) / 2 &
        \lambda_N &= \phi_N \cosh((V - v_3) / 2 v_4) \\
        H_\infty &= 1 / (1 + e^{(V + v_5) / v_6}) &
        \tau_h &= 272 + 1499 / (1 + e^{(v_7 - V) / v_8}).

    Args:
        state: V, N and H, each of shape (5,).
        g_el: Electrical coupling, nS, usually 4 to 8.
        g_synA: Strength of the synapses onto the hub, nS, usually 0.01 to 4.
        constants: Of the circuit. They are not checked here.

    Returns:
        dV/dt in mV/ms, dN/dt and dH/dt in 1/ms, each of shape (5,).

    Notes:
        Safe under `jit`, `vmap` and `grad` with respect to everything.

    Example:
        >>> rate = drift(initial_state(), g_el=4.5, g_synA=3.0)
        >>> [f"{x:.2f}" for x in rate.v]
        ['0.08', '0.01', '-0.02', '-0.01', '-0.15']
    """
    v, n, h = state
    c = _as_arrays(constants, v.dtype)
    m_inf = 0.5 * (1.0 + jnp.tanh((v - c.v1) / c.v2))
    n_inf = 0.5 * (1.0 + jnp.tanh((v - c.v3) / c.v4))
    n_rate = c.phi_n * jnp.cosh((v - c.v3) / (2.0 * c.v4))
    h_inf = jax.nn.sigmoid(-(v + c.v5) / c.v6)
    tau_h = c.tau_h_least + c.tau_h_range * jax.nn.sigmoid((v - c.v7) / c.v8)
    s_f1, s_f2, _, s_s1, s_s2 = jax.nn.sigmoid((v - c.v_th) / c.v9)
    _, v_f2, v_hub, _, v_s2 = v
    zero = jnp.zeros_like(v_hub)
    electrical = g_el * jnp.stack(
        [zero, v_f2 - v_hub, 2.0 * v_hub - v_f2 - v_s2, zero, v_s2 - v_hub]
    )
    g_syn = jnp.stack(
        [
            c.g_syn_b * s_f2,
            c.g_syn_b * s_f1,
            g_synA * (s_f1 + s_s1),
            c.g_syn_b * s_s2,
            c.g_syn_b * s_s1,
        ]
    )
    current = (
        c.g_leak * (v - c.v_leak)
        + c.g_ca * m_inf * (v - c.v_ca)
        + c.g_k * n * (v - c.v_k)
        + c.g_h * h * (v - c.v_hyp)
        + electrical
        + g_syn * (v - c.v_syn)
    )
    return STGState(-current / c.capacitance, n_rate * (n_inf - n), (h_inf - h) / tau_h)


def initial_state(constants: STGConstants = PAPER, dtype: Any = float) -> STGState:
    """State at time zero.

    Args:
        constants: With `start_v`, `start_n` and `start_h`.
        dtype: Of the arrays.

    Returns:
        V in mV, N and H, each of shape (5,).
    """
    values = (constants.start_v, constants.start_n, constants.start_h)
    return STGState(*(jnp.asarray(x, dtype) for x in values))


def _as_arrays(constants: STGConstants, dtype: Any) -> STGConstants:
    """The same constants as arrays of one type."""
    return STGConstants._make(jnp.asarray(x, dtype) for x in constants)


def check(constants: STGConstants) -> None:
    """Refuse constants of wrong type, shape or sign, by name."""
    check_constants(constants, STGConstants, shapes=_SHAPES, above_zero=_POSITIVE)
    for name in _PAIRS:
        check_interval(f"constants.{name}", getattr(constants, name))
    for name, least in _COUNTS.items():
        count(f"constants.{name}", getattr(constants, name), least=least)
    if is_traced((constants.dt, constants.frequency_step)):
        raise TypeError(
            "Expected numbers as `constants.dt` and `constants.frequency_step`, got a "
            "traced value. Keep them out of the arguments of `jit`."
        )


def prepare(
    g_el: ArrayLike,
    g_synA: ArrayLike,
    rng_key: jax.Array | None,
    constants: STGConstants,
) -> tuple:
    """Initial state, one Euler step of it, and the noise options of `scan_steps`."""
    check(constants)
    g_el, g_synA = number("g_el", g_el), number("g_synA", g_synA)
    dtype = jnp.result_type(g_el, g_synA)
    c = _as_arrays(constants, dtype)
    kick = c.noise * c.dt / c.capacitance

    def step(state: STGState, noise: jax.Array | None) -> STGState:
        rate = drift(state, g_el, g_synA, c)
        state = jax.tree.map(lambda x, dx: x + c.dt * dx, state, rate)
        return state if noise is None else state._replace(v=state.v + kick * noise)

    options = {
        "rng_key": None if rng_key is None else as_key(rng_key),
        "noise_shape": (len(NEURONS),),
        "dtype": dtype,
    }
    return initial_state(constants, dtype), step, options
