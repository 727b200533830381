# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Distributions of vectors of unconstrained coordinates, from which flows start.

Their draws are finite, and so are their densities at draws: a number that rounds to the
edge of its support in the model's own coordinates stays inside in these.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import betaln, gammaln
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from .._sites import unconstrain


class StandardLogistic(dist.Distribution):
    """Logit of a uniform number, whose draws stay within +-17 in single precision.

    NumPyro's `Logistic` draws -87 about once in eight million numbers.
    """

    support = constraints.real_vector

    def __init__(self, size: int) -> None:
        super().__init__(event_shape=(size,))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        dtype = jnp.result_type(float)
        smallest = jnp.finfo(dtype).eps / 2
        shape = self.shape(sample_shape)
        return jax.scipy.special.logit(
            jax.random.uniform(key, shape, dtype, smallest, 1.0)
        )

    def from_uniform(self, uniforms: jax.Array, key: jax.Array) -> jax.Array:
        """Quantiles at numbers in (0, 1), shape (..., d). The key is not used."""
        del key
        return jax.scipy.special.logit(uniforms)

    def log_prob(self, value: jax.Array) -> jax.Array:
        return (jax.nn.log_sigmoid(value) + jax.nn.log_sigmoid(-value)).sum(-1)


class StandardNormal(dist.Distribution):
    """Independent standard normal numbers."""

    support = constraints.real_vector

    def __init__(self, size: int) -> None:
        super().__init__(event_shape=(size,))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.normal(key, self.shape(sample_shape))

    def from_uniform(self, uniforms: jax.Array, key: jax.Array) -> jax.Array:
        """Quantiles at numbers in (0, 1), shape (..., d). The key is not used."""
        del key
        return jax.scipy.special.ndtri(uniforms)

    def log_prob(self, value: jax.Array) -> jax.Array:
        return jax.scipy.stats.norm.logpdf(value).sum(-1)


class LogitBeta(dist.Distribution):
    """Logit of beta numbers, drawn in log space: exact where the beta rounds to 0 or 1.

    Args:
        a: Concentration at one, shape (d,).
        b: Concentration at zero, shape (d,).
    """

    support = constraints.real_vector
    pytree_data_fields = ("a", "b")

    def __init__(self, a: ArrayLike, b: ArrayLike) -> None:
        self.a, self.b = a, b
        super().__init__(event_shape=jnp.shape(a))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        keys = jax.random.split(key)
        shape = self.shape(sample_shape)
        logits = jax.random.loggamma(keys[0], self.a, shape) - jax.random.loggamma(
            keys[1], self.b, shape
        )
        return _representable(logits)

    def log_prob(self, value: jax.Array) -> jax.Array:
        sigmoids = jax.nn.log_sigmoid(value), jax.nn.log_sigmoid(-value)
        return (
            self.a * sigmoids[0] + self.b * sigmoids[1] - betaln(self.a, self.b)
        ).sum(-1)


class LogGamma(dist.Distribution):
    """Log of gamma numbers of unit rate, drawn in log space.

    Args:
        concentration: Shape (d,).
    """

    support = constraints.real_vector
    pytree_data_fields = ("concentration",)

    def __init__(self, concentration: ArrayLike) -> None:
        self.concentration = concentration
        super().__init__(event_shape=jnp.shape(concentration))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        shape = self.shape(sample_shape)
        return _representable(jax.random.loggamma(key, self.concentration, shape))

    def log_prob(self, value: jax.Array) -> jax.Array:
        log_norm = gammaln(self.concentration)
        return (self.concentration * value - jnp.exp(value) - log_norm).sum(-1)


class Unconstrained(dist.Distribution):
    r"""Any prior, mapped to standardised unconstrained coordinates.

    .. math:: \log q(e) = \log p(T(u)) + \log |\det dT/du| + \sum_i \log s_i,
        \qquad u = m + s e

    Args:
        prior: p, of the shape of the value of its site.
        loc: m, shape (d,).
        scale: s, shape (d,).
    """

    support = constraints.real_vector
    pytree_data_fields = ("prior", "loc", "scale")

    def __init__(
        self, prior: dist.Distribution, loc: ArrayLike, scale: ArrayLike
    ) -> None:
        self.prior, self.loc, self.scale = prior, loc, scale
        super().__init__(event_shape=jnp.shape(loc))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        draws = self.prior.sample(key, sample_shape)
        u = unconstrain(self.prior.support, draws, len(self.prior.shape()))
        return (u - self.loc) / self.scale

    def log_prob(self, value: jax.Array) -> jax.Array:
        transform = dist.biject_to(self.prior.support)
        batch_shape = jnp.shape(value)[:-1]
        shape = transform.inverse_shape(self.prior.shape())
        u = (self.loc + self.scale * value).reshape(batch_shape + shape)
        x = transform(u)
        terms = self.prior.log_prob(x), transform.log_abs_det_jacobian(u, x)
        totals = (t.reshape(*batch_shape, -1).sum(-1) for t in terms)
        return sum(totals) + jnp.log(self.scale).sum()


class Concatenated(dist.Distribution):
    """Independent vectors, one after the other.

    Args:
        parts: Distributions of vectors.
    """

    support = constraints.real_vector
    pytree_data_fields = ("parts",)

    def __init__(self, parts: tuple[dist.Distribution, ...]) -> None:
        self.parts = parts
        super().__init__(event_shape=(sum(part.event_shape[0] for part in parts),))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        keys = jax.random.split(key, len(self.parts))
        draws = [
            p.sample(k, sample_shape) for p, k in zip(self.parts, keys, strict=True)
        ]
        return jnp.concatenate(draws, axis=-1)

    def from_uniform(self, uniforms: jax.Array, key: jax.Array) -> jax.Array:
        """Quantiles of the parts that have them; the others are drawn with the key."""
        stops = np.cumsum([part.event_shape[0] for part in self.parts])[:-1]
        keys = jax.random.split(key, len(self.parts))
        pieces = jnp.split(uniforms, stops, axis=-1)
        draws = [
            part.from_uniform(piece, k)
            if hasattr(part, "from_uniform")
            else part.sample(k, uniforms.shape[:-1])
            for part, piece, k in zip(self.parts, pieces, keys, strict=True)
        ]
        return jnp.concatenate(draws, axis=-1)

    def log_prob(self, value: jax.Array) -> jax.Array:
        stops = np.cumsum([part.event_shape[0] for part in self.parts])[:-1]
        values = jnp.split(value, stops, axis=-1)
        parts = zip(self.parts, values, strict=True)
        return sum(part.log_prob(piece) for part, piece in parts)


def _representable(u: jax.Array) -> jax.Array:
    """Keep exp(u) and exp(-u) within the range of floating point numbers."""
    limit = 0.9 * np.log(jnp.finfo(u.dtype).max)
    return jnp.clip(u, -limit, limit)
