# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A monotone spline with linear tails, any shape of one number, exact both ways."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._affine import Affine, cap
from ._coupling import Pair

# Soft caps on the logits of widths and heights, and on the logarithms of slopes: bins
# differ by factors up to exp(4). Without, an inverse in single precision loses digits.
MAX_LOGIT = 2.0
MAX_LOG_SLOPE = 3.0


class Bin(NamedTuple):
    """The bin that a number falls into. All of the shape of the number.

    Attributes:
        x: Left edge.
        width: Of the bin.
        y: Image of the left edge.
        height: Of the bin's image.
        left: Slope at the left edge.
        right: Slope at the right edge.
    """

    x: jax.Array
    width: jax.Array
    y: jax.Array
    height: jax.Array
    left: jax.Array
    right: jax.Array


@dataclass(frozen=True)
class RationalQuadratic:
    r"""A spline of rational quadratics on [-B, B], then shift and scale.

    In the bin k that x falls into, with slope :math:`s = h_k / w_k` of its diagonal,
    slopes d at its knots and :math:`\xi = (x - x_k) / w_k`,

    .. math:: f(x) = y_k + h_k \frac{s \xi^2 + d_k \xi (1 - \xi)}
        {s + (d_{k+1} + d_k - 2 s) \xi (1 - \xi)}.

    Outside of [-B, B], f is the identity. Shift and scale move what the spline cannot
    reach. Theta holds logits of the widths and of the heights, log-slopes at inner
    knots, log-scale and shift, all but the last softly capped. The first derivative
    is continuous, the second is not.

    Args:
        num_bins: Number of bins.
        bound: B.

    References:
        Durkan, Bekasov, Murray and Papamakarios, Neural spline flows, 2019,
        arXiv:1906.04032, equations 4 to 8.
    """

    num_bins: int = 8
    bound: float = 10.0

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins - 1 + Affine.num_parameters

    @property
    def steps(self) -> tuple[float, ...]:
        # If half of the logits rise by t and half fall, the knot between moves by B t.
        logits = (1.0 / self.bound,) * (2 * self.num_bins)
        return logits + (1.0,) * (self.num_bins - 1) + Affine.steps

    def forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        spline, affine = self._split(theta)
        y, log_slope = self._forward(x, spline)
        y, log_scale = Affine().forward(y, affine)
        return y, log_slope + log_scale

    def inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        spline, affine = self._split(theta)
        y, log_scale = Affine().inverse(y, affine)
        x, log_slope = self._inverse(y, spline)
        return x, log_slope + log_scale

    def _split(self, theta: jax.Array) -> Pair:
        return theta[..., : -Affine.num_parameters], theta[
            ..., -Affine.num_parameters :
        ]

    def _forward(self, x: jax.Array, theta: jax.Array) -> Pair:
        inside = jnp.clip(x, -self.bound, self.bound)
        at = self._find_bin(inside, theta, axis=0)
        share = (inside - at.x) / at.width
        slope, rest = _slope_and_rest(at)
        y = at.y + at.height * (slope * share**2 + at.left * share * (1 - share)) / (
            slope + rest * share * (1 - share)
        )
        is_inside = jnp.abs(x) < self.bound
        return (
            jnp.where(is_inside, y, x),
            jnp.where(is_inside, _log_slope(at, share), 0.0),
        )

    def _inverse(self, y: jax.Array, theta: jax.Array) -> Pair:
        inside = jnp.clip(y, -self.bound, self.bound)
        at = self._find_bin(inside, theta, axis=1)
        slope, rest = _slope_and_rest(at)
        up = inside - at.y
        a = at.height * (slope - at.left) + up * rest
        b = at.height * at.left - up * rest
        c = -slope * up
        # The form of the root that does not cancel, and that allows a = 0.
        share = 2 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0)))
        is_inside = jnp.abs(y) < self.bound
        return (
            jnp.where(is_inside, at.x + share * at.width, y),
            jnp.where(is_inside, -_log_slope(at, share), 0.0),
        )

    def _find_bin(self, value: jax.Array, theta: jax.Array, axis: int) -> Bin:
        """The bin that holds a value of x (axis 0) or of y (axis 1)."""
        k = self.num_bins
        widths, x = self._knots(theta[..., :k])
        heights, y = self._knots(theta[..., k : 2 * k])
        slopes = jnp.exp(cap(theta[..., 2 * k :], MAX_LOG_SLOPE))
        edge = jnp.ones_like(slopes[..., :1])
        left = jnp.concatenate([edge, slopes], axis=-1)
        right = jnp.concatenate([slopes, edge], axis=-1)
        # A sum over bins, all zero but one: vectorised, where a gather would not be.
        is_beyond = value[..., None] >= (x, y)[axis][..., 1:]
        not_before = jnp.concatenate([jnp.ones_like(is_beyond[..., :1]), is_beyond], -1)
        not_after = jnp.concatenate([~is_beyond, jnp.ones_like(is_beyond[..., :1])], -1)
        is_here = not_before & not_after
        columns = x, widths, y, heights, left, right
        return Bin(*(jnp.where(is_here, column, 0.0).sum(-1) for column in columns))

    def _knots(self, logits: jax.Array) -> Pair:
        """Sizes of the bins, and their left edges."""
        sizes = 2 * self.bound * jax.nn.softmax(cap(logits, MAX_LOGIT))
        starts = jnp.cumsum(sizes, axis=-1) - sizes - self.bound
        return sizes, starts


def _slope_and_rest(at: Bin) -> Pair:
    slope = at.height / at.width
    return slope, at.left + at.right - 2 * slope


def _log_slope(at: Bin, share: jax.Array) -> jax.Array:
    slope, rest = _slope_and_rest(at)
    other = 1 - share
    numerator = at.right * share**2 + 2 * slope * share * other + at.left * other**2
    denominator = slope + rest * share * other
    return 2 * jnp.log(slope) + jnp.log(numerator) - 2 * jnp.log(denominator)
