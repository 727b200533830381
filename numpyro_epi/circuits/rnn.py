# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""Rank-2 recurrent network: which connections amplify an input, and then let it decay?

The activity x of N neurons obeys

.. math:: \tau \dot x = -x + W x, \qquad W = U V^\top,

with N x 2 matrices U and V of small noise around the latents. It decays in the long run
if the leading eigenvalue of W has a real part below one, and some input is amplified at
first if the leading eigenvalue of the symmetric part of W is above one. Both together
are stable amplification. No 1/N scales the weights.

Both statistics cost O(N): they are eigenvalues of small matrices. Nothing is simulated.

References:
    Bittner et al., Interrogating theoretical models of neural computation with emergent
    property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 2 and Methods.
    Bondanelli and Ostojic, Coding with transient trajectories in recurrent neural
    networks, PLoS Computational Biology 2020, doi:10.1371/journal.pcbi.1007655.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.typing import ArrayLike

from numpyro_epi._checks import as_key
from numpyro_epi.primitives import emergent_property

from ._arguments import ascending, check_constants, count, pair, positive, vector
from ._integrate import solve_ode
from ._low_rank import (
    REGIMES,
    factors,
    real_eigenvalue,
    regime,
    symmetric_eigenvalue,
)
from ._noise import simulation_key

if TYPE_CHECKING:
    import diffrax

__all__ = [
    "LABELS",
    "PAPER",
    "REGIMES",
    "RNNConstants",
    "add_noise",
    "drift",
    "model",
    "real_eigenvalue",
    "regime",
    "solve",
    "symmetric_eigenvalue",
    "trajectory",
]


class RNNConstants(NamedTuple):
    """Constants of the paper.

    Attributes:
        tau: Time constant, ms.
        noise: g, standard deviation of the noise on each entry of U and V. The paper
            also has 0.1.
        bound: Each entry of U and V lies in [-bound, bound], dimensionless.
        mean: Wanted means of both eigenvalues.
        var: Their wanted variances.
        shift: Added to the leading eigenvalue. Zero is what the text says; its code
            adds 0.01 times the identity to W, which shifts it by 0.01.
        max_entropy: Pairs of N and the entropy of the maximum-entropy distribution,
            nats, for these constants.
    """

    tau: Any = 100.0
    noise: Any = 0.01
    bound: float = 1.0
    mean: tuple[float, float] = (0.5, 1.5)
    var: tuple[float, float] = (0.25**2, 0.25**2)
    shift: Any = 0.0
    max_entropy: tuple[tuple[int, float], ...] = ((2, -1.80), (5, 12.36), (10, 25.88))


PAPER = RNNConstants()

# Names and units of latents and statistics in figures, for `plotting`.
LABELS = {
    "U": ("U", ""),
    "V": ("V", ""),
    "real_eigenvalue": ("leading eigenvalue, real part", ""),
    "symmetric_eigenvalue": ("leading eigenvalue of the symmetric part", ""),
}

_PAIR = "of the leading eigenvalue and of that of the symmetric part"
_SHAPES: dict[str, tuple[int, ...]] = dict.fromkeys(
    ["tau", "noise", "bound", "shift"], ()
)


def add_noise(
    U: ArrayLike, V: ArrayLike, rng_key: jax.Array, noise: ArrayLike = PAPER.noise
) -> tuple[jax.Array, jax.Array]:
    """Add independent Gaussian noise to the entries of U and V.

    Args:
        U: Shape (..., N, 2), dimensionless.
        V: The same shape.
        rng_key: Key, used once.
        noise: Standard deviation g.

    Returns:
        U and V with noise.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes differ or do not end in 2.
    """
    U, V = factors(U, V)
    xi = random.normal(as_key(rng_key), (2, *U.shape), U.dtype)
    scale = jnp.asarray(noise, U.dtype)
    return U + scale * xi[0], V + scale * xi[1]


def drift(
    x: jax.Array, U: jax.Array, V: jax.Array, tau: float | jax.Array = PAPER.tau
) -> jax.Array:
    """Rate of change of the activity, (-x + U V' x) / tau.

    Args:
        x: Activity, shape (N,).
        U: Shape (N, 2), dimensionless.
        V: The same shape.
        tau: Time constant, ms.

    Returns:
        dx/dt, shape (N,), in units of x per ms.
    """
    return (U @ (V.T @ x) - x) / tau


def trajectory(
    U: ArrayLike,
    V: ArrayLike,
    times: ArrayLike,
    start: ArrayLike,
    tau: float | jax.Array = PAPER.tau,
) -> jax.Array:
    r"""Exact activity at given times, from a 4 x 4 matrix exponential.

    .. math:: x(t) = e^{-s} x(0) + U F(s) V^\top x(0), \qquad
        F(s) = e^{-s} \int_0^s e^{W^r \sigma} d\sigma, \qquad s = t / \tau.

    Args:
        U: Shape (N, 2), dimensionless.
        V: The same shape.
        times: Shape (T,), ms.
        start: x(0), shape (N,), in any unit.
        tau: Time constant, ms, positive.

    Returns:
        x(t), shape (T, N), in the unit of `start`.

    Raises:
        TypeError: If an argument does not consist of real numbers.
        ValueError: If a shape is wrong, or `tau` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> U, V = jnp.array([[4.0, 0], [0, 0]]), jnp.array([[0, 0], [1.0, 0]])
        >>> x = trajectory(U, V, times=[0.0, 100.0, 800.0], start=[0.0, 1.0])
        >>> [f"{norm:.2f}" for norm in jnp.linalg.norm(x, axis=1)]
        ['1.00', '1.52', '0.01']
    """
    U, V, start = _network(U, V, start)
    s = vector("times", times) / positive("tau", tau)
    zero, unit = jnp.zeros((2, 2), U.dtype), jnp.eye(2, dtype=U.dtype)
    # The upper right block of its exponential is F.
    block = jnp.block([[V.T @ U - unit, unit], [zero, -unit]])
    powers = jax.vmap(jax.scipy.linalg.expm)(s[:, None, None] * block)
    through = jnp.einsum("ni,tij,j->tn", U, powers[:, :2, 2:], V.T @ start)
    return jnp.exp(-s)[:, None] * start + through


def solve(
    U: ArrayLike,
    V: ArrayLike,
    times: ArrayLike,
    start: ArrayLike,
    tau: float | jax.Array = PAPER.tau,
    *,
    solver: "diffrax.AbstractSolver | None" = None,
    dt0: ArrayLike | None = None,
    stepsize_controller: "diffrax.AbstractStepSizeController | None" = None,
    adjoint: "diffrax.AbstractAdjoint | None" = None,
    max_steps: int | None = 100_000,
) -> jax.Array:
    """The same activity as `trajectory`, by a solver of `diffrax`.

    Args:
        U: Shape (N, 2), dimensionless.
        V: The same shape.
        times: Shape (T,), ascending, at least zero, ms.
        start: x(0), shape (N,), in any unit.
        tau: Time constant, ms, positive.
        solver: Default `diffrax.Tsit5()`.
        dt0: First step, ms. Without a controller, the size of all steps.
        stepsize_controller: Default: constant steps if `dt0` is given, otherwise
            `diffrax.PIDController` with tolerances of 1e-5.
        adjoint: How to differentiate: default `diffrax.RecursiveCheckpointAdjoint()`
            for reverse mode, `diffrax.ForwardMode()` for forward mode.
        max_steps: More steps are an error.

    Returns:
        x(t), shape (T, N), in the unit of `start`.

    Raises:
        TypeError: If an argument does not consist of real numbers.
        ValueError: If a shape is wrong, or `tau` is not positive.
    """
    U, V, start = _network(U, V, start)
    tau = positive("tau", tau)
    return solve_ode(
        lambda x: drift(x, U, V, tau),
        start,
        ascending("times", times),
        solver=solver,
        dt0=dt0,
        stepsize_controller=stepsize_controller,
        adjoint=adjoint,
        max_steps=max_steps,
    )


def model(
    num_neurons: int = 2,
    mean: Any = PAPER.mean,
    var: Any = PAPER.var,
    constants: RNNConstants = PAPER,
    *,
    is_noisy: bool = True,
    rng_impl: str | None = None,
) -> jax.Array:
    """NumPyro model: a rank-2 network with stable amplification.

    Pass other targets through a run: `EPI(model).run(key, 10, mean=(0.0, 2.0))`.

    Args:
        num_neurons: N. The paper has 2, 5, 10, 25, 50, 100 and 250.
        mean: Wanted means of the real eigenvalue and of the symmetric eigenvalue.
        var: Wanted variances of both, or None to constrain the means only.
        constants: Of the network.
        is_noisy: Whether to add noise to U and V, once for each run of the model.
        rng_impl: Random generator of the noise: None for that of the seed, or the name
            of another one of JAX. `"unsafe_rbg"` may be faster: measure. With it the
            noise of a draw depends on its batch.

    Returns:
        Both eigenvalues, shape (2,). Sites: `U` and `V`, shape (N, 2), and the emergent
        properties `real_eigenvalue` and `symmetric_eigenvalue`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a target, a number or a constant is out of range.
        RuntimeError: If the model is noisy and nothing supplies a key.
    """
    count("num_neurons", num_neurons, least=2)
    check_constants(constants, RNNConstants, shapes=_SHAPES, above_zero={"bound"})
    means = pair("mean", mean, of=_PAIR)
    variances = (None, None) if var is None else pair("var", var, of=_PAIR)
    prior = dist.Uniform(-constants.bound, constants.bound)
    prior = prior.expand([num_neurons, 2]).to_event(2)
    U, V = numpyro.sample("U", prior), numpyro.sample("V", prior)
    if is_noisy:
        U, V = add_noise(U, V, simulation_key(rng_impl), constants.noise)
    real_part = real_eigenvalue(U, V) + constants.shift
    symmetric = symmetric_eigenvalue(U, V)
    emergent_property(real_part, means[0], variances[0], name="real_eigenvalue")
    emergent_property(symmetric, means[1], variances[1], name="symmetric_eigenvalue")
    return jnp.stack([real_part, symmetric])


def _network(U: Any, V: Any, start: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One network and the activity it starts with."""
    U, V = factors(U, V)
    start = vector("start", start).astype(U.dtype)
    if U.ndim != 2 or start.shape != U.shape[:1]:
        raise ValueError(
            f"Expected shapes (N, 2) as `U` and `V` and (N,) as `start`, got {U.shape} "
            f"and {start.shape}. Use `jax.vmap` for several networks."
        )
    return U, V, start
