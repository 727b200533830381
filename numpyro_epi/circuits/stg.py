# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Stomatogastric subcircuit: which conductances give its hub a frequency of 0.55 Hz?

Five neurons: a fast pair f1, f2, a slow pair s1, s2, and a hub between them. Each has a
voltage V and two gates N and H,

.. math:: C \dot V = -(h_{leak} + h_{Ca} + h_K + h_{hyp} + h_{elec} + h_{syn})
        + \sigma \xi, \qquad
    \dot N = \lambda_N (N_\infty - N), \qquad \dot H = (H_\infty - H) / \tau_h,

with the currents of `drift`. Latents are the strength of the electrical coupling
between hub and pairs, `g_el`, and that of the synapses onto the hub, `g_synA`.

Units are mV, ms, nS, pF, pA and Hz. Noise is a current that lasts one step: each step
kicks V by sigma xi dt / C, *without* a square root of dt, so that sigma means something
only together with dt. The step of 25 ms is coarse, and part of the definition of the
experiment: the limit of small steps differs by up to 0.15 Hz (`solve`).

References:
    Bittner et al., Interrogating theoretical models of neural computation with emergent
    property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 1 and Methods, "STG
    model". Wiring, start and phi_N are those of its code, as the text has none of them.
    Gutierrez, O'Leary and Marder, Multiple mechanisms switch an electrically coupled,
    synaptically inhibited neuron between competing rhythmic oscillators, Neuron 2013,
    doi:10.1016/j.neuron.2013.01.016.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_epi.primitives import emergent_property

from ._arguments import ascending, number, real
from ._integrate import scan_steps, solve_ode
from ._noise import simulation_key
from ._stg_neurons import (
    NEURONS,
    PAPER,
    STGConstants,
    STGState,
    check,
    drift,
    initial_state,
    prepare,
)
from .spectrum import dominant_frequency, fourier_table, soft_frequency

if TYPE_CHECKING:
    import diffrax

__all__ = [
    "LABELS",
    "NEURONS",
    "PAPER",
    "STGConstants",
    "STGState",
    "drift",
    "frequencies",
    "hub_frequency",
    "initial_state",
    "model",
    "simulate",
    "solve",
]

_HUB = NEURONS.index("hub")

# Names and units of latents and statistics in figures, for `plotting`.
LABELS = {
    "g_el": (r"$g_\mathrm{el}$", "nS"),
    "g_synA": (r"$g_\mathrm{synA}$", "nS"),
    "hub_frequency": ("hub frequency", "Hz"),
}


def simulate(
    g_el: ArrayLike,
    g_synA: ArrayLike,
    rng_key: jax.Array | None = None,
    constants: STGConstants = PAPER,
) -> STGState:
    r"""Simulate the circuit by the Euler method and keep the whole trajectory.

    .. math:: V_{t+1} = V_t + dt \, \dot V_t + \sigma \xi_t \, dt / C

    with the noise-free rate of `drift` and standard normal :math:`\xi`; N and H have no
    noise.

    Args:
        g_el: Electrical coupling, nS, usually 4 to 8.
        g_synA: Strength of the synapses onto the hub, nS, usually 0.01 to 4.
        rng_key: Key of the noise. None leaves the noise out.
        constants: Of the circuit.

    Returns:
        V (mV), N and H at the times 0, dt, ..., T dt, each of shape (T + 1, 5).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a conductance is not one number, or a constant is out of range.

    Notes:
        Safe under `jit`, `vmap` and `grad` with respect to conductances and constants.
        Memory grows with T; `hub_frequency` needs no trajectory.

    Example:
        >>> trajectory = simulate(6.107, 1.309, jax.random.key(0))
        >>> trajectory.v.shape
        (301, 5)
        >>> [f"{x:.2f}" for x in frequencies(trajectory.v)]
        ['0.54', '0.55', '0.55', '0.55', '0.55']
    """
    state, step, options = prepare(g_el, g_synA, rng_key, constants)

    def record(state: STGState, index: jax.Array, noise: Any) -> tuple:
        state = step(state, noise)
        return state, state

    _, states = scan_steps(record, state, constants.num_steps, **options)
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), state, states)


def hub_frequency(
    g_el: ArrayLike,
    g_synA: ArrayLike,
    rng_key: jax.Array | None = None,
    constants: STGConstants = PAPER,
) -> jax.Array:
    """Soft dominant frequency of the hub, the statistic of the paper.

    The same as `frequencies(simulate(...).v)` at the hub, without a trajectory: Fourier
    sums are added up on the way.

    Args:
        g_el: Electrical coupling, nS, usually 4 to 8.
        g_synA: Strength of the synapses onto the hub, nS, usually 0.01 to 4.
        rng_key: Key of the noise. None leaves the noise out.
        constants: Of the circuit and of the statistic.

    Returns:
        Frequency, Hz, a scalar between 0 and 1.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a conductance is not one number, or a constant is out of range.

    Notes:
        Safe under `jit`, `vmap` and `grad` with respect to conductances and constants.
        In forward mode memory does not grow with T.

        A hub that never exceeds 0 mV counts as 0.5 Hz, the middle of the grid. Parts of
        the support are bistable: noise decides between two rhythms there, the frequency
        jumps with the conductances, and its gradient misses the jump.

    Example:
        >>> round(float(hub_frequency(6.107, 1.309, jax.random.key(0))), 2)
        0.55
    """
    state, step, options = prepare(g_el, g_synA, rng_key, constants)
    weights = fourier_table(
        constants.num_steps + 1,
        constants.dt,
        constants.frequencies,
        discard=constants.discard,
        window=constants.window,
    )
    table = jnp.asarray(weights, state.v.dtype)

    def add(state: STGState, row: jax.Array, sums: jax.Array) -> jax.Array:
        return sums + row * jax.nn.relu(state.v[_HUB])

    def advance(carry: tuple, index: jax.Array, noise: Any) -> tuple:
        state, sums = carry
        return (step(state, noise), add(state, table[index], sums)), None

    carry = state, jnp.zeros(table.shape[1:], table.dtype)
    carry, _ = scan_steps(advance, carry, constants.num_steps, **options)
    state, sums = carry
    sums = add(state, table[-1], sums)
    return soft_frequency(sums, constants.frequencies, constants.sharpness)


def frequencies(v: ArrayLike, constants: STGConstants = PAPER) -> jax.Array:
    """Soft dominant frequencies of stored voltages: of all that is above 0 mV.

    Args:
        v: Voltages every `constants.dt`, mV, shape (..., T, n) for n neurons.
        constants: Of the statistic: `dt`, `discard`, `window`, `frequency_step`,
            `num_frequencies`, `sharpness`.

    Returns:
        Frequencies, Hz, shape (..., n).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a shape or a constant is wrong, or T too short.
    """
    check(constants)
    v = real("v", v)
    if v.ndim < 2:
        raise ValueError(f"Expected shape (..., T, n) as `v`, got {v.shape}.")
    return dominant_frequency(
        jax.nn.relu(jnp.swapaxes(v, -1, -2)),
        constants.dt,
        constants.frequencies,
        sharpness=constants.sharpness,
        discard=constants.discard,
        window=constants.window,
    )


def solve(
    g_el: ArrayLike,
    g_synA: ArrayLike,
    times: ArrayLike,
    constants: STGConstants = PAPER,
    *,
    solver: "diffrax.AbstractSolver | None" = None,
    dt0: ArrayLike | None = None,
    stepsize_controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    max_steps: int | None = 100_000,
) -> STGState:
    """Solve the circuit without noise by `diffrax`, as accurately as you like.

    Args:
        g_el: Electrical coupling, nS.
        g_synA: Strength of the synapses onto the hub, nS.
        times: When to look, shape (T,), ascending, ms.
        constants: Of the circuit; `dt` and `num_steps` play no part.
        solver: Default `diffrax.Tsit5()`. `diffrax.Euler()` with `dt0` = 25.0 is the
            scheme of the paper.
        dt0: First step, ms. Without a controller, the size of all steps.
        stepsize_controller: Default: constant steps if `dt0` is given, otherwise
            `diffrax.PIDController` with tolerances of 1e-5.
        adjoint: How to differentiate: default `diffrax.RecursiveCheckpointAdjoint()`
            for reverse mode, `diffrax.ForwardMode()` for forward mode.
        max_steps: More steps are an error.

    Returns:
        V (mV), N and H at `times`, each of shape (T, 5).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a shape or a constant is wrong.

    Example:
        >>> solution = solve(4.5, 3.0, PAPER.times)
        >>> round(float(frequencies(solution.v)[2]), 2)
        0.34
    """
    state, _, _ = prepare(g_el, g_synA, None, constants)
    coupling = number("g_el", g_el), number("g_synA", g_synA)
    return solve_ode(
        lambda y: drift(y, *coupling, constants),
        state,
        ascending("times", times),
        solver=solver,
        dt0=dt0,
        stepsize_controller=stepsize_controller,
        adjoint=adjoint,
        max_steps=max_steps,
    )


def model(
    mean: Any = PAPER.mean,
    var: Any = PAPER.var,
    constants: STGConstants = PAPER,
    *,
    is_noisy: bool = True,
    rng_impl: str | None = None,
) -> jax.Array:
    """NumPyro model: a hub with a frequency of 0.55 Hz, give or take 0.025 Hz.

    Pass other targets through a run: `EPI(model).run(key, mean=0.4)`.

    Args:
        mean: Wanted mean of the hub frequency, Hz.
        var: Its wanted variance, Hz^2, or None to constrain the mean only.
        constants: Of the circuit; `g_el` and `g_syn_a` are the uniform priors, nS.
        is_noisy: Whether to simulate with noise, once for each run of the model.
        rng_impl: Random generator of the noise: None for that of the seed, or the name
            of another one of JAX. `"unsafe_rbg"` may be faster: measure. With it the
            noise of a draw depends on its batch.

    Returns:
        The hub frequency, Hz. Sites: `g_el` and `g_synA` (nS, scalars) and the emergent
        property `hub_frequency`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a target or a constant is out of range.
        RuntimeError: If the model is noisy and nothing supplies a key.
    """
    check(constants)
    g_el = numpyro.sample("g_el", dist.Uniform(*constants.g_el))
    g_synA = numpyro.sample("g_synA", dist.Uniform(*constants.g_syn_a))
    rng_key = simulation_key(rng_impl) if is_noisy else None
    frequency = hub_frequency(g_el, g_synA, rng_key, constants)
    return emergent_property(frequency, mean, var, name="hub_frequency")
