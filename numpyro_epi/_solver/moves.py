# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Markov moves that leave a tilted law as it is, for all particles at once.

Hamiltonian Monte Carlo (Neal, MCMC using Hamiltonian dynamics, 2011) where log density
and statistics have a gradient, else a random walk (Metropolis). Both are whitened by
the particles themselves and tune their step by the acceptance of the moves before.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random, vmap
from numpyro.infer.hmc_util import velocity_verlet

from numpyro_epi._math.constraints import Targets, deviations
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.devices import Devices

# Leapfrog steps of a move, and how far their size is jittered against resonances.
NUM_LEAPFROG = 8
JITTER = 0.4
# Wanted acceptance (HMC: Beskos et al., 2013; random walk: Roberts et al., 1997).
ACCEPTANCE = {"hmc": 0.8, "walk": 0.25}
# Of the logarithm of the step size, for each move.
STEP_RATE = 0.5
# Particles for each latent from which on a full covariance whitens.
FULL_COVARIANCE = 20


class Tilt(NamedTuple):
    """The law that moves leave as it is: p0 L^temperature exp(-multipliers . T)."""

    temperature: jax.Array
    multipliers: jax.Array
    targets: Targets


def whitening(u: np.ndarray) -> np.ndarray:
    """A matrix A with A A' about the covariance of draws u, shape (n, D).

    Of few particles in many dimensions only the variances: a full covariance would be
    mostly noise, and moves along it lag.
    """
    num, dim = u.shape
    sd = np.maximum(u.std(axis=0), 1e-6)
    if num < FULL_COVARIANCE * dim:
        return np.diag(sd)
    standard = (u - u.mean(axis=0)) / sd
    correlation = standard.T @ standard / num + 1e-6 * np.eye(dim)
    return sd[:, None] * np.linalg.cholesky(correlation)


def make_moves(
    problem: Problem, kind: str, devices: Devices, *, forward: bool = False
) -> tuple[Callable, int]:
    """Compile moves of all particles.

    Args:
        problem: the model.
        kind: "hmc" or "walk".
        devices: that share the particles.
        forward: whether derivatives are taken in forward mode.

    Returns:
        A function of (u (n, D), key, tilt, whitening (D, D), its inverse, step size,
        number of moves) that gives moved u, the step size and the mean acceptance; and
        how often a move runs the model.
    """

    def potential(x: jax.Array, scale: jax.Array, tilt: Tilt) -> jax.Array:
        sim = problem.simulate(scale @ x, random.key(0))
        devs = deviations(sim.stats, tilt.targets, problem.table.has_var)
        log_p = sim.log_prior - tilt.multipliers @ devs
        # Not 0 * log L: that of the prior may be infinite.
        log_p += jnp.where(
            tilt.temperature > 0, tilt.temperature * sim.log_likelihood, 0.0
        )
        return jnp.where(jnp.isfinite(log_p), -log_p, jnp.inf)

    def hmc(x, key, scale, tilt, size):  # noqa: ANN001, ANN202
        keys = random.split(key, 3)
        init, update = velocity_verlet(
            lambda x: potential(x, scale, tilt),
            lambda _, r: 0.5 * jnp.sum(r**2),
            forward_mode_differentiation=forward,
        )
        size *= 1.0 + JITTER * random.uniform(keys[0], (), minval=-1.0, maxval=1.0)
        start = init(x, random.normal(keys[1], x.shape))
        state = start._replace(z_grad=jnp.nan_to_num(start.z_grad))

        def leap(state, _):  # noqa: ANN001, ANN202
            state = update(size, None, state)
            return state._replace(z_grad=jnp.nan_to_num(state.z_grad)), None

        end, _ = lax.scan(leap, state, None, length=NUM_LEAPFROG)
        energy = [s.potential_energy + 0.5 * jnp.sum(s.r**2) for s in (start, end)]
        return _accept(keys[2], x, end.z, energy[0] - energy[1])

    def walk(x, key, scale, tilt, size):  # noqa: ANN001, ANN202
        keys = random.split(key)
        new = x + size * random.normal(keys[0], x.shape)
        gain = potential(x, scale, tilt) - potential(new, scale, tilt)
        return _accept(keys[1], x, new, gain)

    move = {"hmc": hmc, "walk": walk}[kind]
    wanted = ACCEPTANCE[kind]

    @jax.jit
    def run(u, key, tilt, scale, inverse, size, num_moves):  # noqa: ANN001, ANN202
        def body(i, carry):  # noqa: ANN001, ANN202
            x, size, total = carry
            keys = devices.spread(random.split(random.fold_in(key, i), x.shape[0]))
            x, accepted = vmap(move, in_axes=(0, 0, None, None, None))(
                x, keys, scale, tilt, size
            )
            share = accepted.mean()
            size *= jnp.exp(STEP_RATE * (share - wanted))
            return x, size, total + share

        x, size, total = lax.fori_loop(
            0, num_moves, body, (devices.spread(u @ inverse.T), size, jnp.zeros(()))
        )
        return devices.spread(x @ scale.T), size, total / num_moves

    return run, {"hmc": NUM_LEAPFROG + 1, "walk": 2}[kind]


def _accept(
    key: jax.Array, old: jax.Array, new: jax.Array, log_ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Metropolis: the next point and the acceptance probability."""
    probability = jnp.exp(jnp.minimum(jnp.nan_to_num(log_ratio, nan=-jnp.inf), 0.0))
    accepted = random.uniform(key) < probability
    return jnp.where(accepted, new, old), probability
