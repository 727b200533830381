# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The default guide: affine coupling layers, smooth and fast both ways."""

from ._affine import Affine
from ._bend import Bends
from ._coupling import ElementwiseMap
from .base import AutoFlow

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

    A model with a single latent coordinate has none to keep. Its flow is a chain of
    `2 * num_flows` smooth functions that bend once, each with an exact inverse. It fits
    truncated and bimodal densities; `hidden_dims` and `nonlinearity` play no part.

    Arguments, attributes and errors are those of `AutoFlow`.

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

    def _get_function(self) -> ElementwiseMap:
        if self.latent_dim == 1:
            return Bends(BENDS_PER_FLOW * self.num_flows)
        return Affine(MAX_LOG_SCALE)

    @property
    def _num_layers(self) -> int:
        return 1 if self.latent_dim == 1 else self.num_flows
