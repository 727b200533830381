# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Maximum-entropy laws by quadrature, with NumPy in double precision.

The prior p0 times the likelihood L becomes a sum over weighted points. On it,

    log Z(lambda) = log sum_i w_i exp(-lambda . E[T | z_i])

is a convex function whose minimum is the largest objective -KL(q || p0) + E_q[log L]
under E_q[T] = 0, and whose minimiser is the multipliers. Nothing here uses the package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

Latents: TypeAlias = dict[str, np.ndarray]  # {site: (n, *shape)}
# {site: (n, 2, *stat.shape)}, or (n, 1, *stat.shape) for a mean without a variance.
Deviations: TypeAlias = dict[str, np.ndarray]
Multipliers: TypeAlias = Mapping[str, np.ndarray]  # the same without the first axis


class Rule(NamedTuple):
    """Nodes and weights of a quadrature, shape (n,)."""

    nodes: np.ndarray
    weights: np.ndarray


class Moments(NamedTuple):
    """E[g] and E[g^2] of a function g of the latents, given each point: (n,)."""

    first: np.ndarray
    second: np.ndarray


def panels(edges: np.ndarray, order: int) -> Rule:
    """Gauss-Legendre quadrature on each interval between neighbouring edges."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.asarray(edges, np.float64)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return Rule(
        (middle[:, None] + half[:, None] * nodes).ravel(),
        (half[:, None] * weights).ravel(),
    )


def product_rule(*rules: Rule) -> tuple[list[np.ndarray], np.ndarray]:
    """Coordinates and weights of the product of quadratures, flattened."""
    coordinates = np.meshgrid(*(rule.nodes for rule in rules), indexing="ij")
    weights = np.meshgrid(*(rule.weights for rule in rules), indexing="ij")
    return [x.ravel() for x in coordinates], np.prod(weights, axis=0).ravel()


def deviations(stat: np.ndarray, mean: object, var: object = None) -> np.ndarray:
    """T of a statistic (n, *shape): (n, 2, *shape), or (n, 1, *shape) without var."""
    first = stat - np.asarray(mean)
    if var is None:
        return first[:, None]
    return np.stack([first, first**2 - np.asarray(var)], axis=1)


def tilt_of(devs: Deviations, multipliers: Multipliers) -> np.ndarray:
    """-lambda . T at each point, shape (n,)."""
    rows = (d.reshape(len(d), -1) @ np.ravel(multipliers[s]) for s, d in devs.items())
    return -sum(rows)


@dataclass(frozen=True, eq=False)
class Measure:
    """The prior times the likelihood as weighted points.

    Attributes:
        log_weights: Logarithm of p0 L and of the volume of a point, shape (n,).
        deviations: E[T | z], over the noise.
        moments: Of functions of the latents, by name.
    """

    log_weights: np.ndarray
    deviations: Deviations
    moments: dict[str, Moments]

    @classmethod
    def at_points(
        cls,
        latents: Latents,
        log_weights: np.ndarray,
        expected_deviations: Callable[[Latents], Deviations],
        functions: Mapping[str, Callable[[Latents], np.ndarray]],
    ) -> "Measure":
        """Every point is a value of all latents."""
        values = {name: function(latents) for name, function in functions.items()}
        moments = {name: Moments(x, x**2) for name, x in values.items()}
        return cls(log_weights, expected_deviations(latents), moments)

    def log_normalizer(self, multipliers: Multipliers) -> float:
        """Log Z at any multipliers."""
        return float(_log_sum_exp(self._tilted(multipliers)))

    def mean_deviations(self, multipliers: Multipliers) -> dict[str, np.ndarray]:
        """E[T] under the law with these multipliers, shaped as they are."""
        p = self._probabilities(multipliers)
        return {name: np.tensordot(p, d, 1) for name, d in self.deviations.items()}

    def mean_and_variance(
        self, multipliers: Multipliers
    ) -> dict[str, tuple[float, float]]:
        """Of the functions, under the law with these multipliers."""
        p = self._probabilities(multipliers)
        pairs = {name: (p @ m.first, p @ m.second) for name, m in self.moments.items()}
        return {name: (float(a), float(b - a**2)) for name, (a, b) in pairs.items()}

    def solve(self) -> dict[str, np.ndarray]:
        """Multipliers that minimise log Z, by damped Newton steps."""
        devs = np.concatenate(
            [d.reshape(len(d), -1) for d in self.deviations.values()], axis=1
        )
        scale = np.abs(devs).T @ _normalized(self.log_weights)
        found = _minimise_log_normalizer(self.log_weights, devs / scale) / scale
        multipliers, start = {}, 0
        for name, d in self.deviations.items():
            size = d[0].size
            multipliers[name] = found[start : start + size].reshape(d.shape[1:])
            start += size
        return multipliers

    def _tilted(self, multipliers: Multipliers) -> np.ndarray:
        return self.log_weights + tilt_of(self.deviations, multipliers)

    def _probabilities(self, multipliers: Multipliers) -> np.ndarray:
        return _normalized(self._tilted(multipliers))


def _minimise_log_normalizer(log_weights: np.ndarray, devs: np.ndarray) -> np.ndarray:
    """Multipliers (K,) of deviations (n, K)."""
    lam = np.zeros(devs.shape[1])
    value = _log_sum_exp(log_weights)
    for _ in range(200):
        p = _normalized(log_weights - devs @ lam)
        mean = p @ devs
        cov = (devs.T * p) @ devs - np.outer(mean, mean)
        step = np.linalg.solve(cov, mean)
        decrease, size = mean @ step, 1.0
        if decrease < 1e-18:
            return lam
        while size > 1e-9:
            trial = _log_sum_exp(log_weights - devs @ (lam + size * step))
            if trial <= value - 0.1 * size * decrease + 1e-13:
                break
            size /= 2.0
        lam, value = lam + size * step, trial
    raise RuntimeError("Newton steps on the dual did not converge.")


def _log_sum_exp(x: np.ndarray) -> float:
    largest = x.max()
    return largest + np.log(np.exp(x - largest).sum())


def _normalized(log_weights: np.ndarray) -> np.ndarray:
    w = np.exp(log_weights - log_weights.max())
    return w / w.sum()
