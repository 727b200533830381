# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

r"""A mixture as the base of a flow: the standard one, and Gaussian components.

A flow is continuous: from a base of one piece it cannot reach a law of several without
bridges between them, and training removes bridges by giving pieces up. A mixture of
Gaussians as base has the pieces from the start (Izmailov, Kirichenko, Finzi and Wilson,
Semi-supervised learning with normalizing flows, ICML 2020, arXiv:1912.13025, equation
2; Stimper, Schölkopf and Hernández-Lobato, Resampling base distributions of normalizing
flows, AISTATS 2022, arXiv:2110.15828, section 2.2):

.. math:: q(e) = w_0 q_0(e) + \sum_k w_k N(e; m_k, L_k L_k^\top).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp, ndtri
from numpyro.distributions import constraints

# Log of a weight of zero: a finite number, so that averages of it are numbers.
LOG_ZERO = -1e4
# Of the variances of a component, so that draws on a line have a density.
MIN_VARIANCE = 1e-6


class Components(NamedTuple):
    """Gaussian components of a base, which training does not change.

    Attributes:
        log_weights: Of the standard base, and of each component, shape (K + 1,).
        locs: Shape (K, D).
        factors: Lower Cholesky factors of the covariances, shape (K, D, D).
        inverses: Of `factors`, shape (K, D, D).
    """

    log_weights: jax.Array
    locs: jax.Array
    factors: jax.Array
    inverses: jax.Array

    @classmethod
    def none(cls, num: int, dim: int) -> "Components":
        """Components without weight: the base is the standard one."""
        log_weights = np.append(0.0, np.full(num, LOG_ZERO))
        unit = np.broadcast_to(np.eye(dim), (num, dim, dim))
        return cls.of(log_weights, np.zeros((num, dim)), unit, unit)

    @classmethod
    def on_islands(
        cls, draws: np.ndarray, counts: np.ndarray, islands: np.ndarray
    ) -> "Components":
        """A component on each island of draws, and none of the standard base.

        Args:
            draws: Standard coordinates, distinct, shape (n, D).
            counts: How often each draw was drawn, shape (n,).
            islands: Of each draw, from zero up, shape (n,).
        """
        dim = draws.shape[1]
        locs, factors = [], []
        for k in range(islands.max() + 1):
            part = islands == k
            locs.append(np.average(draws[part], axis=0, weights=counts[part]))
            cov = np.cov(draws[part].T, fweights=counts[part]).reshape(dim, dim)
            least = MIN_VARIANCE * np.diag(np.maximum(np.diag(cov), MIN_VARIANCE))
            factors.append(np.linalg.cholesky(cov + least))
        shares = np.bincount(islands, weights=counts)
        log_weights = np.append(LOG_ZERO, np.log(shares / shares.sum()))
        inverses = np.linalg.inv(np.stack(factors))
        return cls.of(log_weights, np.stack(locs), np.stack(factors), inverses)

    @classmethod
    def of(cls, *arrays: np.ndarray) -> "Components":
        """Of arrays in the precision of JAX."""
        return cls(*(jnp.asarray(x, float) for x in arrays))

    @property
    def num(self) -> int:
        """How many there are, those without weight included: K."""
        return self.locs.shape[-2]

    def padded(self, num: int) -> "Components":
        """The same base, with components without weight up to a number."""
        extra = Components.none(num - self.num, self.locs.shape[-1])
        log_weights = [self.log_weights, extra.log_weights[1:]]
        others = zip(self[1:], extra[1:], strict=True)
        return Components(jnp.concatenate(log_weights), *map(jnp.concatenate, others))


class MixtureBase(dist.Distribution):
    """A standard base, and Gaussian components.

    Args:
        standard: The standard base.
        components: The others.
    """

    support = constraints.real_vector
    pytree_data_fields = ("standard", "components")

    def __init__(self, standard: dist.Distribution, components: Components) -> None:
        self.standard, self.components = standard, components
        super().__init__(event_shape=standard.event_shape)

    def log_terms(self, value: jax.Array) -> jax.Array:
        """Log of weight times density of each part, shape (..., K + 1)."""
        gaussians = self.components
        x = jnp.einsum(
            "kij,...kj->...ki", gaussians.inverses, value[..., None, :] - gaussians.locs
        )
        diagonal = jnp.diagonal(gaussians.inverses, axis1=-2, axis2=-1)
        normal = jax.scipy.stats.norm.logpdf(x).sum(-1) + jnp.log(diagonal).sum(-1)
        first = self.standard.log_prob(value)[..., None]
        return gaussians.log_weights + jnp.concatenate([first, normal], axis=-1)

    def log_prob(self, value: jax.Array) -> jax.Array:
        return logsumexp(self.log_terms(value), axis=-1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        keys = jax.random.split(key, 3)
        which = jax.random.categorical(
            keys[0], self.components.log_weights, shape=sample_shape
        )
        noise = jax.random.normal(keys[1], self.shape(sample_shape))
        return self._place(which, noise, self.standard.sample(keys[2], sample_shape))

    def from_uniform(self, uniforms: jax.Array, key: jax.Array) -> jax.Array:
        """Draws from numbers in (0, 1), shape (n, d): even in each part, and over them.

        The two halves of them are independent if those of `uniforms` are.
        """
        keys = jax.random.split(key, 3)
        half = uniforms.shape[0] // 2
        edges = jnp.cumsum(jnp.exp(self.components.log_weights))
        parts = []
        for k, n in zip(keys[:2], (half, uniforms.shape[0] - half), strict=True):
            offset, order = jax.random.split(k)
            even = (jnp.arange(n) + jax.random.uniform(offset)) / n
            parts.append(jax.random.permutation(order, even))
        which = jnp.searchsorted(edges, jnp.concatenate(parts) * edges[-1])
        which = jnp.minimum(which, self.components.num)
        if hasattr(self.standard, "from_uniform"):
            first = self.standard.from_uniform(uniforms, keys[2])
        else:
            first = self.standard.sample(keys[2], uniforms.shape[:1])
        return self._place(which, ndtri(uniforms), first)

    def _place(self, which: jax.Array, noise: jax.Array, first: jax.Array) -> jax.Array:
        k = jnp.maximum(which - 1, 0)
        gaussian = self.components.locs[k] + jnp.einsum(
            "...ij,...j->...i", self.components.factors[k], noise
        )
        return jnp.where(which[..., None] == 0, first, gaussian)


def reweigh(base: MixtureBase, value: jax.Array) -> Components:
    """Weights that are the shares of draws in the parts, one step of EM.

    Args:
        base: With the weights as they are.
        value: Draws in its coordinates, shape (n, D).
    """
    shares = jax.nn.softmax(base.log_terms(value), axis=-1).mean(axis=0)
    log_weights = jnp.maximum(jnp.log(shares), LOG_ZERO)
    return base.components._replace(log_weights=log_weights)
