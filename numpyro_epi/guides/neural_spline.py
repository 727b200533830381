# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A more flexible guide: couplings along monotone splines."""

from typing import Any

from .._typing import Model
from ._checks import check_count
from ._coupling import CouplingMap
from ._rational_quadratic import RationalQuadratic
from .base import AutoFlow


class AutoNeuralSpline(AutoFlow):
    r"""A flow of rational-quadratic spline couplings (neural spline flow).

    Each layer keeps some coordinates, a, and moves the others, b, along splines with
    knots that are functions of them, followed by shift and scale as in `AutoRealNVP`:

    .. math:: y_a = x_a, \qquad
        y_b = g(x_b; \theta(x_a)) \odot \exp(s(x_a)) + t(x_a).

    The spline g increases, is a ratio of quadratics in each of `num_bins` bins of
    [-`bound`, `bound`], and the identity outside. It makes sharp edges and several
    modes in one layer, and costs several times as much as an affine layer. Its
    second derivative jumps at the knots, so the density has kinks there: prefer
    `AutoRealNVP` for Hessians.

    A model with a single latent coordinate has splines with learned knots.

    Args:
        model: See `AutoFlow`.
        num_bins: Bins of each spline, at least 2.
        bound: Where splines end, in units of the standard base. The default holds all
            but 1e-4 of a standard logistic.
        **options: See `AutoFlow`.

    Raises:
        ValueError: If an option is out of range, and as `AutoFlow`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.handlers import seed
        >>> from numpyro_epi.guides import AutoNeuralSpline
        >>> def model():
        ...     numpyro.sample("a", dist.Uniform(-10, 10).expand([4]).to_event(1))
        >>> guide = AutoNeuralSpline(model, num_flows=4, num_bins=5)
        >>> draw = seed(guide, jax.random.key(0))()
        >>> draw["a"].shape, guide.base_kind
        ((4,), 'prior')

    References:
        Durkan, Bekasov, Murray and Papamakarios, Neural spline flows, 2019,
        arXiv:1906.04032, equations 4 to 8.
    """

    def __init__(
        self, model: Model, *, num_bins: int = 8, bound: float = 10.0, **options: Any
    ) -> None:
        check_count("num_bins", num_bins, minimum=2)
        if not bound > 0:
            raise ValueError(
                f"Expected a positive number as `bound`, got {bound}. Splines reach "
                "from -bound to bound."
            )
        self.num_bins = num_bins
        self.bound = float(bound)
        super().__init__(model, **options)

    def _get_function(self) -> CouplingMap:
        return RationalQuadratic(self.num_bins, self.bound)
