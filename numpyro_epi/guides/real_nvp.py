# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The default guide: affine coupling layers, smooth and fast both ways."""

from typing import Any

from .._typing import Model
from ._affine import Affine, DirectedAffine
from ._bend import Bends
from ._checks import check_switch
from ._coupling import CouplingMap
from .base import AutoFlow

# From so many latent coordinates on, layers scale along a direction by default; with
# it, more than so many layers gain next to nothing.
DIRECTED_LATENTS, MAX_DIRECTED_FLOWS = 16, 8
BENDS_PER_FLOW = 2
# Of one layer: it scales by up to 7.4, and layers multiply.
MAX_LOG_SCALE = 2.0


class AutoRealNVP(AutoFlow):
    r"""A flow of affine couplings (RealNVP): the default guide.

    Each layer, after a learned linear map of all coordinates (if `mixing`), keeps some
    of them, a, and shifts and scales the others, b, by functions of a:

    .. math:: y_a = x_a, \qquad y_b = x_b \odot \exp(s(x_a)) + t(x_a),
        \qquad \log |\det dy/dx| = \sum s(x_a),

    with s softly capped at 2 in absolute value. Without a cap, training at a high
    learning rate overflows; and networks reach it beyond the draws that they were
    fitted to, so that a high one sends a few draws in ten thousand far off. With a
    smooth nonlinearity, as by default, the density has derivatives of all orders, which
    the Hessians of sensitivity analysis need.

    With many latents, a property of sums of products, such as an eigenvalue of a
    product of matrices, ties the moved coordinates along a direction that depends on
    the kept ones. No scale of single coordinates can follow it, so each layer then
    scales along a vector v(x_a) too (if `directed`), by up to 7.4:

    .. math:: y_b \leftarrow y_b + \frac{e^{\alpha(x_a)} - 1}{1 + |v|^2}\, v\,
        (v^\top y_b).

    The functions s, t, v and :math:`\alpha` of such a layer are a network and, added to
    it, a linear map of :math:`x_a`: a network passes on no more numbers than it has
    units, and where b follows a, as along the columns of matrices, each coordinate
    takes one.

    A model with a single latent coordinate has none to keep. Its flow is a chain of
    `2 * num_flows` smooth functions that bend once, each with an exact inverse. It fits
    truncated and bimodal densities; `hidden_dims`, `nonlinearity` and `directed` play
    no part.

    Args:
        model: See `AutoFlow`.
        directed: Whether layers also scale along a direction, and are linear functions
            too of what they keep; by default, from 16 latent coordinates on. Then the
            default of `num_flows` is at most 8, and that of `mixing` is False.
        **options: See `AutoFlow`.

    Raises:
        ValueError: If an option is out of range, and as `AutoFlow`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro_epi.guides import AutoRealNVP
        >>> def model():
        ...     rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        ...     share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(rate * share, 0.1), obs=1.0)
        >>> guide = AutoRealNVP(model, num_flows=2, hidden_dims=(10,))
        >>> svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO(num_particles=50))
        >>> result = svi.run(jax.random.key(0), 10, progress_bar=False)
        >>> key = jax.random.key(1)
        >>> draws = guide.sample_posterior(key, result.params, sample_shape=(5,))
        >>> {name: value.shape for name, value in draws.items()}
        {'rate': (5,), 'share': (5,)}

    References:
        Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, 2017,
        arXiv:1605.08803, equations 7 and 8.
    """

    def __init__(
        self, model: Model, *, directed: bool | None = None, **options: Any
    ) -> None:
        check_switch("directed", directed)
        self._directed = directed
        super().__init__(model, **options)

    @property
    def directed(self) -> bool:
        """Whether layers scale along a direction; by default, it depends on D."""
        if self.latent_dim == 1:
            return False
        if self._directed is not None:
            return self._directed
        return self.latent_dim >= DIRECTED_LATENTS

    @property
    def _default_num_flows(self) -> int:
        default = super()._default_num_flows
        return min(default, MAX_DIRECTED_FLOWS) if self.directed else default

    @property
    def _default_mixing(self) -> bool:
        return super()._default_mixing and not self.directed

    @property
    def _is_linear_too(self) -> bool:
        return self.directed

    def _get_function(self) -> CouplingMap:
        if self.latent_dim == 1:
            return Bends(BENDS_PER_FLOW * self.num_flows)
        if self.directed:
            return DirectedAffine(MAX_LOG_SCALE)
        return Affine(MAX_LOG_SCALE)

    @property
    def _num_layers(self) -> int:
        return 1 if self.latent_dim == 1 else self.num_flows
