# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian to start from where the prior has no draws.

It is fitted to the law of prior and data, without the emergent property, by variational
inference: not at the mode, which in a hierarchical model is no typical place. Draws of
it, made wider, stand in for those of the prior.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random, vmap

from numpyro_epi._model.derivatives import exists

LogDensity = Callable[[jax.Array], jax.Array]

# Steps of the fit, draws of each, and its learning rate in units of the spread.
NUM_STEPS, NUM_DRAWS, RATE = 2000, 32, 0.05
# Steps of a fit that goes on from this one.
NUM_LATER_STEPS = 1000
# Draws that judge the fit, and the share of them that must have a finite density.
NUM_LAST_DRAWS, MIN_SHARE = 2000, 0.99
# Spread of the Gaussian before the fit, relative to that along single coordinates.
FIRST_SPREAD = 0.5
# Coordinates beyond which their correlations are not fitted.
MAX_CORRELATED = 128
# How much wider than the fit its draws are: weights of draws want heavy tails.
WIDER = 1.5


class Start(NamedTuple):
    """A Gaussian over the unconstrained coordinates u.

    Attributes:
        loc: Its mean, shape (D,).
        factor: Lower triangular square root of its covariance, shape (D, D).
    """

    loc: np.ndarray
    factor: np.ndarray

    @property
    def scale(self) -> np.ndarray:
        """Standard deviations, shape (D,)."""
        return np.sqrt(np.square(self.factor).sum(axis=1))

    def sample(self, rng_key: jax.Array) -> jax.Array:
        """One wide draw u, shape (D,)."""
        noise = random.normal(rng_key, self.loc.shape)
        return jnp.asarray(self.loc) + WIDER * jnp.asarray(self.factor) @ noise

    def log_prob(self, u: np.ndarray) -> np.ndarray:
        """Log density of wide draws u, shape (..., D)."""
        flat = (np.asarray(u, np.float64) - self.loc).reshape(-1, self.loc.size)
        e = np.linalg.solve(WIDER * self.factor.astype(np.float64), flat.T).T
        log_det = np.log(WIDER * np.abs(np.diag(self.factor))).sum()
        value = -0.5 * np.square(e).sum(axis=1) - log_det
        value -= 0.5 * self.loc.size * np.log(2.0 * np.pi)
        return value.reshape(np.shape(u)[:-1])

    def ordered(self, columns: list[int]) -> "Start":
        """The same with the coordinates in another order."""
        covariance = self.factor @ self.factor.T
        factor = np.linalg.cholesky(covariance[np.ix_(columns, columns)])
        return Start(self.loc[columns], factor)


def fit_gaussian(log_density: LogDensity, loc: np.ndarray, spread: np.ndarray) -> Start:
    """Fit a Gaussian by gradient steps on its evidence lower bound.

    Args:
        log_density: of u, shape (D,); up to a constant.
        loc: where to begin, shape (D,).
        spread: of each coordinate there.

    Returns:
        The fit; where the density has no gradient, or the fit fails, the Gaussian that
        it began with.
    """
    loc, spread = np.asarray(loc, np.float64), np.asarray(spread, np.float64)
    begin = Start(loc, np.diag(FIRST_SPREAD * spread))
    if not has_gradient(log_density, loc):
        return begin
    fit = jax.jit(partial(fit_elbo, log_density, num_steps=NUM_STEPS))(
        jnp.asarray(loc, float), jnp.asarray(begin.factor, float)
    )
    mean, factor, _, share = (np.asarray(x, np.float64) for x in fit)
    is_finite = np.isfinite(mean).all() and np.isfinite(factor).all()
    return Start(mean, factor) if is_finite and share > MIN_SHARE else begin


def has_gradient(log_density: LogDensity, u: np.ndarray) -> bool:
    """Whether JAX differentiates a density in reverse mode."""
    return exists(jax.grad(log_density), jnp.asarray(u, float))


def fit_elbo(
    log_density: LogDensity,
    loc: jax.Array,
    factor: jax.Array,
    num_steps: int = NUM_LATER_STEPS,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Fit from a Gaussian on, in units of its standard deviations.

    Returns:
        Mean (D,) and factor (D, D) of the fit, its lower bound of the log of the
        integral, and the share of its draws whose density is a finite number.
    """
    dim = loc.size
    spread = jnp.sqrt(jnp.square(factor).sum(axis=1))
    first = factor / spread[:, None]
    below = jnp.asarray(np.tri(dim, k=-1) * (dim <= MAX_CORRELATED))
    rate = optax.cosine_decay_schedule(RATE, num_steps)
    optim = optax.chain(optax.clip_by_global_norm(10.0 * dim**0.5), optax.adam(rate))

    def factor_of(params: Any) -> jax.Array:
        return params["below"] * below + jnp.diag(jnp.exp(params["log_scale"]))

    def values_of(params: Any, noise: jax.Array) -> jax.Array:
        u = params["mean"] + noise @ factor_of(params).T
        return vmap(log_density)(loc + spread * u)

    def loss(params: Any, noise: jax.Array) -> jax.Array:
        values = values_of(params, noise)
        mean = jnp.where(jnp.isfinite(values), values, 0.0).mean()
        return -mean - params["log_scale"].sum()

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        half = random.normal(key, (NUM_DRAWS // 2, dim))
        grad = jax.grad(loss)(params, jnp.concatenate([half, -half]))
        change, new_state = optim.update(grad, state, params)
        new = optax.apply_updates(params, change), new_state
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(grad)]
        is_finite = jnp.stack(finite).all()
        return jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, carry), None

    params = {
        "mean": jnp.zeros(dim),
        "below": first * below,
        "log_scale": jnp.log(jnp.diag(first)),
    }
    key, last = random.split(random.key(1))
    keys = random.split(key, num_steps)
    (params, _), _ = lax.scan(step, (params, optim.init(params)), keys)
    noise = random.normal(last, (NUM_LAST_DRAWS, dim))
    values = values_of(params, noise)
    is_good = jnp.isfinite(values)
    terms = values + 0.5 * jnp.square(noise).sum(axis=1)
    bound = jnp.where(is_good, terms, 0.0).sum() / jnp.maximum(is_good.sum(), 1)
    bound += params["log_scale"].sum() + jnp.log(spread).sum()
    bound += 0.5 * dim * jnp.log(2.0 * jnp.pi)
    mean = loc + spread * params["mean"]
    return mean, spread[:, None] * factor_of(params), bound, is_good.mean()
