# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Problems whose exact solution is known, from NumPy quadrature alone.

`ZOO` maps names to problems. The model of each is written once in JAX, for the package,
and once in NumPy, for the truth. The file is long because it is a table: a problem is a
model and the numbers to judge it by, and no problem needs to read another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from numpyro_epi import circuits, emergent_property
from quadrature import (
    Deviations,
    Latents,
    Measure,
    Moments,
    Multipliers,
    deviations,
    panels,
    product_rule,
)

# Nats that training may lack: where one smooth bump is asked for, and where a ring or
# separate modes are, which a continuous map of a bump can only approach.
TOLERANCES = {"easy": 0.1, "hard": 0.15}


@dataclass(frozen=True, eq=False)
class Problem:
    """A model with emergent properties, and its exact solution.

    Attributes:
        name: Key in `ZOO`.
        model: NumPyro program.
        draw_prior: Latents from the prior, `draw_prior(rng, n)`.
        log_prior: log p0 of latents, shape (n,).
        expected_deviations: E[T | z] of latents.
        functions: Functions of the latents, each to shape (n,), with known moments.
        integrate: Independent factors of p0 L as weighted points, given the problem and
            the number of nodes per panel. Factors share no emergent property.
        log_likelihood: log L of latents, shape (n,), or zero without data.
        error: Bound on the error of `maximum`, nats.
        topology: "hard" for a ring or separate modes.
        is_noisy: Whether statistics vary between simulations of the same latents.
        modes: Label of latents, 0 or 1, for a problem with two separate modes.
    """

    name: str
    model: Callable[[], Any]
    draw_prior: Callable[[np.random.Generator, int], Latents]
    log_prior: Callable[[Latents], np.ndarray]
    expected_deviations: Callable[[Latents], Deviations]
    functions: Mapping[str, Callable[[Latents], np.ndarray]]
    integrate: Callable[["Problem", int], tuple[Measure, ...]]
    log_likelihood: Callable[[Latents], np.ndarray | float] = lambda latents: 0.0
    error: float = 1e-6
    topology: Literal["easy", "hard"] = "easy"
    is_noisy: bool = False
    modes: Callable[[Latents], np.ndarray] | None = None

    def log_joint(self, latents: Latents) -> np.ndarray:
        """Log p0 + log L, shape (n,)."""
        return self.log_prior(latents) + self.log_likelihood(latents)

    @property
    def tolerance(self) -> float:
        """Nats that training may lack."""
        return TOLERANCES[self.topology]

    def measures(self, order: int = 10) -> tuple[Measure, ...]:
        """Factors of p0 L, by quadrature with `order` nodes per panel."""
        return self.integrate(self, order)

    def at_order(self, order: int) -> "Problem":
        """The same problem, solved with another number of nodes per panel."""
        return replace(self, integrate=lambda _, __: self.measures(order))

    @cached_property
    def _measures(self) -> tuple[Measure, ...]:
        return self.measures()

    @cached_property
    def multipliers(self) -> dict[str, np.ndarray]:
        """Of raw T in p0 exp(-lambda . T), `{site: (2, *shape)}` or `(1, *shape)`."""
        return {k: v for part in self._measures for k, v in part.solve().items()}

    @cached_property
    def maximum(self) -> float:
        """Largest -KL(q || p0) + E_q[log L] with the property, nats.

        T is centred on the targets, so it equals log Z at the exact multipliers.
        """
        return self.log_normalizer(self.multipliers)

    def log_normalizer(self, multipliers: Multipliers) -> float:
        """Log E_p0[L exp(-lambda . E[T | z])], nats: a bound on every feasible q."""
        return sum(part.log_normalizer(multipliers) for part in self._measures)

    def mean_deviations(self, multipliers: Multipliers) -> dict[str, np.ndarray]:
        """E[T] under the law with these multipliers: zero at the solution."""
        parts = (part.mean_deviations(multipliers) for part in self._measures)
        return {site: value for part in parts for site, value in part.items()}

    @cached_property
    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and variance of each of `functions` under the exact law."""
        parts = (part.mean_and_variance(self.multipliers) for part in self._measures)
        return {name: value for part in parts for name, value in part.items()}

    @property
    def mode_masses(self) -> tuple[float, float]:
        """Exact masses of the modes with labels 0 and 1."""
        mass = self.moments["mode"][0]
        return 1.0 - mass, mass

    @property
    def observables(self) -> dict[str, Callable[[Latents], np.ndarray]]:
        """`functions`, and the label of the mode where there are modes."""
        extra = {} if self.modes is None else {"mode": self.modes}
        return {**self.functions, **extra}


def at_points(
    points: Callable[[int], tuple[Latents, np.ndarray]],
) -> Callable[[Problem, int], tuple[Measure, ...]]:
    """Quadrature over all latents at once, from their nodes and volumes."""

    def integrate(problem: Problem, order: int) -> tuple[Measure, ...]:
        latents, volumes = points(order)
        log_weights = problem.log_joint(latents) + np.log(volumes)
        return (
            Measure.at_points(
                latents, log_weights, problem.expected_deviations, problem.observables
            ),
        )

    return integrate


def normal(x: np.ndarray, mean: Any = 0.0, sd: Any = 1.0) -> np.ndarray:
    """Log density, element by element."""
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def entry(site: str, index: int) -> Callable[[Latents], np.ndarray]:
    """One element of a vector of latents."""
    return lambda latents: latents[site][:, index]


def plane(x: np.ndarray, y: np.ndarray) -> Latents:
    return {"z": np.stack([x, y], axis=-1)}


def draw_plane(rng: np.random.Generator, n: int) -> Latents:
    return {"z": rng.standard_normal((n, 2))}


def log_plane(latents: Latents) -> np.ndarray:
    return normal(latents["z"]).sum(-1)


FIRST_AND_SECOND = {"first": entry("z", 0), "second": entry("z", 1)}
LINE = {"z": lambda latents: latents["z"]}


# -- a Gaussian: means and variances of two Normal latents -----------------------------

GAUSSIAN_MEAN, GAUSSIAN_VAR = (0.5, -1.0), (0.25, 0.49)


def gaussian_model():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    emergent_property(z, mean=GAUSSIAN_MEAN, var=GAUSSIAN_VAR, name="level")


def gaussian_points(order):
    axis = panels(np.linspace(-8.0, 8.0, 17), order)
    coordinates, volumes = product_rule(axis, axis)
    return plane(*coordinates), volumes


GAUSSIAN = Problem(
    name="gaussian",
    model=gaussian_model,
    draw_prior=draw_plane,
    log_prior=log_plane,
    expected_deviations=lambda latents: {
        "level": deviations(latents["z"], GAUSSIAN_MEAN, GAUSSIAN_VAR)
    },
    functions=FIRST_AND_SECOND,
    integrate=at_points(gaussian_points),
)


# -- a truncated exponential: the mean on an interval ----------------------------------

INTERVAL, INTERVAL_MEAN = 10.0, 2.0


def interval_model():
    z = numpyro.sample("z", dist.Uniform(0.0, INTERVAL))
    emergent_property(z, mean=INTERVAL_MEAN, name="level")


def interval_points(order):
    rule = panels(np.linspace(0.0, INTERVAL, 21), order)
    return {"z": rule.nodes}, rule.weights


EXPONENTIAL = Problem(
    name="exponential",
    model=interval_model,
    draw_prior=lambda rng, n: {"z": rng.uniform(0.0, INTERVAL, n)},
    log_prior=lambda latents: np.full(len(latents["z"]), -np.log(INTERVAL)),
    expected_deviations=lambda latents: {
        "level": deviations(latents["z"], INTERVAL_MEAN)
    },
    functions=LINE,
    integrate=at_points(interval_points),
)


# -- a ring: radius 2, width 0.15 ------------------------------------------------------

RADIUS, RADIUS_VAR = 2.0, 0.15**2


def ring_model():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    radius = jnp.sqrt(z[0] ** 2 + z[1] ** 2)
    emergent_property(radius, mean=RADIUS, var=RADIUS_VAR, name="radius")


def ring_measure(problem, order):
    """The radius r has the density r exp(-r^2 / 2), and E[z_i^2 | r] = r^2 / 2."""
    r, weights = panels(np.linspace(0.0, 10.0, 81), order)
    coordinate = Moments(np.zeros_like(r), r**2 / 2)
    return (
        Measure(
            np.log(weights * r) - r**2 / 2,
            {"radius": deviations(r, RADIUS, RADIUS_VAR)},
            {"first": coordinate, "second": coordinate, "radius": Moments(r, r**2)},
        ),
    )


RING = Problem(
    name="ring",
    model=ring_model,
    draw_prior=draw_plane,
    log_prior=log_plane,
    expected_deviations=lambda latents: {
        "radius": deviations(np.hypot(*latents["z"].T), RADIUS, RADIUS_VAR)
    },
    functions={
        **FIRST_AND_SECOND,
        "radius": lambda latents: np.hypot(*latents["z"].T),
    },
    integrate=ring_measure,
    topology="hard",
)


# -- two equal modes: 4 apart along a diagonal, 13 standard deviations -----------------

SQUARE_MEAN, SQUARE_VAR = 4.0, 1.2**2
ACROSS_MEAN, ACROSS_VAR = 0.5, 0.3**2


def equal_model():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    along, across = (z[0] + z[1]) / jnp.sqrt(2.0), (z[0] - z[1]) / jnp.sqrt(2.0)
    emergent_property(along**2, mean=SQUARE_MEAN, var=SQUARE_VAR, name="square")
    emergent_property(across, mean=ACROSS_MEAN, var=ACROSS_VAR, name="across")


def along(latents):
    return latents["z"].sum(-1) / np.sqrt(2.0)


def across(latents):
    return (latents["z"][:, 0] - latents["z"][:, 1]) / np.sqrt(2.0)


def equal_measures(problem, order):
    """Both diagonals are independent standard Normals."""
    x, weights = panels(np.linspace(-10.0, 10.0, 81), order)
    log_weights = normal(x) + np.log(weights)
    label = (x > 0).astype(float)
    return (
        Measure(
            log_weights,
            {"square": deviations(x**2, SQUARE_MEAN, SQUARE_VAR)},
            {"along": Moments(x, x**2), "mode": Moments(label, label)},
        ),
        Measure(
            log_weights,
            {"across": deviations(x, ACROSS_MEAN, ACROSS_VAR)},
            {"across": Moments(x, x**2)},
        ),
    )


EQUAL_MODES = Problem(
    name="equal_modes",
    model=equal_model,
    draw_prior=draw_plane,
    log_prior=log_plane,
    expected_deviations=lambda latents: {
        "square": deviations(along(latents) ** 2, SQUARE_MEAN, SQUARE_VAR),
        "across": deviations(across(latents), ACROSS_MEAN, ACROSS_VAR),
    },
    functions={"along": along, "across": across},
    integrate=equal_measures,
    topology="hard",
    modes=lambda latents: (along(latents) > 0).astype(int),
)


# -- modes of mass 1:4 from a shifted prior: 5.6 apart, 13 standard deviations ---------

# Gives the mode on the right the mass 0.8000.
PRIOR_MEAN = 0.4462
GAP_VAR = 0.3**2


def unequal_model():
    z = numpyro.sample("z", dist.Normal(np.array([PRIOR_MEAN, 0.0]), 1.0).to_event(1))
    emergent_property(z[0] ** 2, mean=SQUARE_MEAN, var=SQUARE_VAR, name="square")
    emergent_property(z[1] - z[0], mean=0.0, var=GAP_VAR, name="gap")


def unequal_points(order):
    """Nodes in z[0] and in the gap."""
    first = panels(np.linspace(-8.0, 8.0, 33), order)
    near, far = np.linspace(-1.5, 1.5, 9), np.linspace(1.5, 17.0, 9)
    gap = panels(np.concatenate([-far[:0:-1], near, far[1:]]), order)
    (x, d), volumes = product_rule(first, gap)
    return plane(x, x + d), volumes


def unequal_deviations(latents):
    first, second = latents["z"].T
    return {
        "square": deviations(first**2, SQUARE_MEAN, SQUARE_VAR),
        "gap": deviations(second - first, 0.0, GAP_VAR),
    }


UNEQUAL_MODES = Problem(
    name="unequal_modes",
    model=unequal_model,
    draw_prior=lambda rng, n: {
        "z": rng.standard_normal((n, 2)) + np.array([PRIOR_MEAN, 0.0])
    },
    log_prior=lambda latents: normal(latents["z"], np.array([PRIOR_MEAN, 0.0])).sum(-1),
    expected_deviations=unequal_deviations,
    functions=FIRST_AND_SECOND,
    integrate=at_points(unequal_points),
    topology="hard",
    modes=lambda latents: (latents["z"][:, 0] > 0).astype(int),
)


# -- modes of mass 1:4 from their widths: sd 0.2 at -1 and 0.8 at 4 --------------------

STEEP, WIDE = -2.5, 10.0  # bounds of z; the statistic spans [0, 10] on either side
SLOPED_MEAN, SLOPED_VAR = 4.0, 0.8**2


def widths_model():
    z = numpyro.sample("z", dist.Uniform(STEEP, WIDE))
    sloped = jnp.where(z > 0, z, -4.0 * z)
    emergent_property(sloped, mean=SLOPED_MEAN, var=SLOPED_VAR, name="sloped")


def widths_points(order):
    edges = [np.linspace(STEEP, 0.0, 21)[:-1], np.linspace(0.0, WIDE, 21)]
    rule = panels(np.concatenate(edges), order)
    return {"z": rule.nodes}, rule.weights


UNEQUAL_WIDTHS = Problem(
    name="unequal_widths",
    model=widths_model,
    draw_prior=lambda rng, n: {"z": rng.uniform(STEEP, WIDE, n)},
    log_prior=lambda latents: np.full(len(latents["z"]), -np.log(WIDE - STEEP)),
    expected_deviations=lambda latents: {
        "sloped": deviations(
            np.maximum(latents["z"], -4.0 * latents["z"]), SLOPED_MEAN, SLOPED_VAR
        )
    },
    functions=LINE,
    integrate=at_points(widths_points),
    topology="hard",
    modes=lambda latents: (latents["z"] > 0).astype(int),
)


# -- a banana: z[1] = -z[0]^2, width 0.2 -----------------------------------------------

BANANA_SD, BANANA_VAR = 3.0, 0.2**2


def banana_model():
    scale = np.array([1.0, BANANA_SD])
    z = numpyro.sample("z", dist.Normal(0.0, scale).to_event(1))
    emergent_property(z[1] + z[0] ** 2, mean=0.0, var=BANANA_VAR, name="bend")


def banana_points(order):
    """Nodes in z[0] and in the statistic."""
    first = panels(np.linspace(-8.0, 8.0, 17), order)
    edges = [np.linspace(-24.0, -1.0, 12)[:-1], np.linspace(-1.0, 1.0, 9)]
    bend = panels(np.concatenate([*edges, np.linspace(1.0, 89.0, 45)[1:]]), order)
    (x, f), volumes = product_rule(first, bend)
    return plane(x, f - x**2), volumes


BANANA = Problem(
    name="banana",
    model=banana_model,
    draw_prior=lambda rng, n: {
        "z": rng.standard_normal((n, 2)) * np.array([1.0, BANANA_SD])
    },
    log_prior=lambda latents: normal(latents["z"], 0.0, [1.0, BANANA_SD]).sum(-1),
    expected_deviations=lambda latents: {
        "bend": deviations(
            latents["z"][:, 1] + latents["z"][:, 0] ** 2, 0.0, BANANA_VAR
        )
    },
    functions=FIRST_AND_SECOND,
    integrate=at_points(banana_points),
)


# -- positive latents: LogNormal and Gamma ---------------------------------------------

LOGNORMAL_MEAN, LOGNORMAL_VAR = 3.0, 0.5


def lognormal_model():
    z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
    emergent_property(z, mean=LOGNORMAL_MEAN, var=LOGNORMAL_VAR, name="level")


def positive_points(low, high):
    """Nodes in log z, between bounds."""

    def points(order):
        u, weights = panels(np.linspace(low, high, 65), order)
        return {"z": np.exp(u)}, weights * np.exp(u)

    return points


LOGNORMAL = Problem(
    name="lognormal",
    model=lognormal_model,
    draw_prior=lambda rng, n: {"z": np.exp(rng.standard_normal(n))},
    log_prior=lambda latents: normal(np.log(latents["z"])) - np.log(latents["z"]),
    expected_deviations=lambda latents: {
        "level": deviations(latents["z"], LOGNORMAL_MEAN, LOGNORMAL_VAR)
    },
    functions=LINE,
    integrate=at_points(positive_points(-8.0, 8.0)),
)

# The prior is Gamma(2, 1). Targets are those of Gamma(5, 2), which is the solution:
# 5 / 2, and digamma(5) - log 2 with digamma(5) = 25 / 12 - Euler's constant.
GAMMA_MEAN = 2.5
GAMMA_LOG_MEAN = 25 / 12 - np.euler_gamma - np.log(2.0)


def gamma_model():
    z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
    emergent_property(z, mean=GAMMA_MEAN, name="level")
    emergent_property(jnp.log(z), mean=GAMMA_LOG_MEAN, name="log_level")


GAMMA = Problem(
    name="gamma",
    model=gamma_model,
    draw_prior=lambda rng, n: {"z": rng.gamma(2.0, 1.0, n)},
    log_prior=lambda latents: np.log(latents["z"]) - latents["z"],
    expected_deviations=lambda latents: {
        "level": deviations(latents["z"], GAMMA_MEAN),
        "log_level": deviations(np.log(latents["z"]), GAMMA_LOG_MEAN),
    },
    functions={**LINE, "log": lambda latents: np.log(latents["z"])},
    integrate=at_points(positive_points(-16.0, 5.0)),
)


# -- a noisy statistic: half of the variance is noise ----------------------------------

NOISY_MEAN, NOISY_VAR, NOISE_SD = 2.0, 0.5, 0.5


def noisy_model():
    z = numpyro.sample("z", dist.Normal(0, 1))
    noise = NOISE_SD * jax.random.normal(numpyro.prng_key())
    emergent_property(
        jnp.exp(0.5 * z) + noise, mean=NOISY_MEAN, var=NOISY_VAR, name="rate"
    )


def noisy_points(order):
    rule = panels(np.linspace(-8.0, 8.0, 65), order)
    return {"z": rule.nodes}, rule.weights


NOISY = Problem(
    name="noisy",
    model=noisy_model,
    draw_prior=lambda rng, n: {"z": rng.standard_normal(n)},
    log_prior=lambda latents: normal(latents["z"]),
    # The noise adds its variance to the second moment, whatever z.
    expected_deviations=lambda latents: {
        "rate": deviations(
            np.exp(0.5 * latents["z"]), NOISY_MEAN, NOISY_VAR - NOISE_SD**2
        )
    },
    functions={**LINE, "rate": lambda latents: np.exp(0.5 * latents["z"])},
    integrate=at_points(noisy_points),
    is_noisy=True,
)


# -- a count: no gradient --------------------------------------------------------------

NUM_CELLS, COUNT_MEAN, COUNT_VAR = 10, 4.0, 1.0


def count_model():
    z = numpyro.sample("z", dist.Uniform(0.0, float(NUM_CELLS)))
    emergent_property(jnp.floor(z), mean=COUNT_MEAN, var=COUNT_VAR, name="count")


def count_points(order):
    rule = panels(np.arange(NUM_CELLS + 1), order)
    return {"z": rule.nodes}, rule.weights


COUNT = Problem(
    name="count",
    model=count_model,
    draw_prior=lambda rng, n: {"z": rng.uniform(0.0, NUM_CELLS, n)},
    log_prior=lambda latents: np.full(len(latents["z"]), -np.log(NUM_CELLS)),
    expected_deviations=lambda latents: {
        "count": deviations(np.floor(latents["z"]), COUNT_MEAN, COUNT_VAR)
    },
    functions={**LINE, "count": lambda latents: np.floor(latents["z"])},
    integrate=at_points(count_points),
)


# -- data and a property: a linear Gaussian model --------------------------------------

LOADINGS = np.array([[1.0, 1.0], [1.0, -0.5], [0.0, 1.0]])
DATA, DATA_SD = np.array([1.0, 0.5, -0.5]), 0.5
CONTRAST_MEAN, CONTRAST_VAR = 1.5, 0.1


def conditional_model():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    centre = jnp.asarray(LOADINGS) @ z
    numpyro.sample("y", dist.Normal(centre, DATA_SD).to_event(1), obs=DATA)
    emergent_property(
        z[0] - z[1], mean=CONTRAST_MEAN, var=CONTRAST_VAR, name="contrast"
    )


def conditional_log_likelihood(latents):
    return normal(DATA, latents["z"] @ LOADINGS.T, DATA_SD).sum(-1)


CONDITIONAL = Problem(
    name="conditional",
    model=conditional_model,
    draw_prior=draw_plane,
    log_prior=log_plane,
    log_likelihood=conditional_log_likelihood,
    expected_deviations=lambda latents: {
        "contrast": deviations(
            latents["z"][:, 0] - latents["z"][:, 1], CONTRAST_MEAN, CONTRAST_VAR
        )
    },
    functions=FIRST_AND_SECOND,
    integrate=at_points(gaussian_points),
)


# -- the linear system: growth 0 and 1 Hz ----------------------------------------------

BOUND = circuits.linear.PAPER.bound
GROWTH_MEAN, FREQUENCY_MEAN = circuits.linear.PAPER.mean
GROWTH_VAR, FREQUENCY_VAR = circuits.linear.PAPER.var


def linear_deviations(latents):
    """From the eigenvalues of each matrix."""
    eigenvalues = np.linalg.eigvals(latents["a"].reshape(-1, 2, 2))
    growth, frequency = eigenvalues.real.max(-1), eigenvalues.imag.max(-1)
    return {
        "growth": deviations(growth, GROWTH_MEAN, GROWTH_VAR),
        "frequency": deviations(frequency, FREQUENCY_MEAN, FREQUENCY_VAR),
    }


def linear_measure(problem, order):
    """Over the trace s, the difference d = a11 - a22, and the product p = a12 a21.

    With uniform entries, (s, d) is uniform on the diamond |s| + |d| <= 2 B, and p has
    the density log(B^2 / |p|) / 2 B^2. The eigenvalues are (s +- sqrt(d^2 + 4 p)) / 2.
    """
    pieces = [_oscillating(order), _not_oscillating(order)]
    s, d, p, weights, growth, frequency = (
        np.concatenate(columns) for columns in zip(*pieces, strict=True)
    )
    log_ratio = np.log(BOUND**2 / np.abs(p))
    # (s, d) has the density 1 / 8 B^2, and d stands for itself and for -d.
    density = log_ratio / (2 * BOUND**2) / (4 * BOUND**2)
    zero, half = np.zeros_like(s), np.full_like(s, 0.5)
    diagonal = Moments(zero, (s**2 + d**2) / 4)
    # Given p, log |a12| is uniform between log(|p| / B) and log B.
    other = Moments(zero, (BOUND**2 - p**2 / BOUND**2) / (2 * log_ratio))
    return (
        Measure(
            np.log(weights * density),
            {
                "growth": deviations(growth, GROWTH_MEAN, GROWTH_VAR),
                "frequency": deviations(frequency, FREQUENCY_MEAN, FREQUENCY_VAR),
            },
            {
                "a11": diagonal,
                "a12": other,
                "a21": other,
                "a22": diagonal,
                "product": Moments(p, p**2),
                "mode": Moments(half, half),  # the sign of a12 is free
            },
        ),
    )


def _oscillating(order):
    """Where p = -(f^2 + d^2 / 4), with f the frequency; the growth is s / 2."""
    trace = panels([-1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0], order)
    angle = panels(np.linspace(0.0, np.pi / 2, 4), order)
    share = panels(np.linspace(0.0, 1.0, 9), order)
    (t, x, y), weights = product_rule(trace, angle, share)
    d, f = 2 * BOUND * np.sin(x), BOUND * np.cos(x) * y
    s, p = (2 * BOUND - d) * t, -(f**2 + d**2 / 4)
    # ds dd dp = (ds/dt) (dd/dx) (dp/df) (df/dy) dt dx dy
    jacobian = (2 * BOUND - d) * 2 * BOUND * np.cos(x) * 2 * f * BOUND * np.cos(x)
    return s, d, p, weights * jacobian, s / 2, f


def _not_oscillating(order):
    """Where p = h^2 - d^2 / 4 with h >= 0; the growth is s / 2 + h, the frequency 0."""
    trace = panels(np.linspace(-1.0, 1.0, 13), order)
    angle = panels(np.linspace(0.0, np.pi / 2, 4), order)
    # Nodes are dense where p = 0, at h = d / 2: the density of p is infinite there.
    side = panels(np.linspace(-1.0, 1.0, 7), order)
    (t, x, y), weights = product_rule(trace, angle, side)
    d = 2 * BOUND * np.sin(x)
    reach = np.where(y < 0, d / 2, np.sqrt(BOUND**2 + d**2 / 4) - d / 2)
    s, h = (2 * BOUND - d) * t, d / 2 + reach * y**3
    p = reach * y**3 * (d + reach * y**3)
    jacobian = (2 * BOUND - d) * 2 * BOUND * np.cos(x) * 2 * h * reach * 3 * y**2
    return s, d, p, weights * jacobian, s / 2 + h, np.zeros_like(s)


LINEAR = Problem(
    name="linear",
    model=circuits.linear.model,
    draw_prior=lambda rng, n: {"a": rng.uniform(-BOUND, BOUND, (n, 4))},
    log_prior=lambda latents: np.full(len(latents["a"]), -4 * np.log(2 * BOUND)),
    expected_deviations=linear_deviations,
    functions={
        "a11": entry("a", 0),
        "a12": entry("a", 1),
        "a21": entry("a", 2),
        "a22": entry("a", 3),
        "product": lambda latents: latents["a"][:, 1] * latents["a"][:, 2],
    },
    integrate=linear_measure,
    error=1e-5,
    topology="hard",
    modes=lambda latents: (latents["a"][:, 1] > 0).astype(int),
)


# -- independent problems in one model: six latents ------------------------------------


def product(name: str, factors: tuple[Problem, ...]) -> Problem:
    """All factors in one model, each in the scope of its name."""

    def inside(latents: Latents, factor: Problem) -> Latents:
        prefix = f"{factor.name}/"
        chosen = {k: x for k, x in latents.items() if k.startswith(prefix)}
        return {site.removeprefix(prefix): x for site, x in chosen.items()}

    def outside(values: Mapping[str, Any], factor: Problem) -> dict[str, Any]:
        return {f"{factor.name}/{key}": value for key, value in values.items()}

    def model():
        for factor in factors:
            numpyro.handlers.scope(factor.model, prefix=factor.name)()

    def draw_prior(rng, n):
        draws = (outside(factor.draw_prior(rng, n), factor) for factor in factors)
        return {site: x for part in draws for site, x in part.items()}

    def expected_deviations(latents):
        parts = (
            outside(factor.expected_deviations(inside(latents, factor)), factor)
            for factor in factors
        )
        return {site: x for part in parts for site, x in part.items()}

    def integrate(problem, order):
        return tuple(
            Measure(
                part.log_weights,
                outside(part.deviations, factor),
                outside(part.moments, factor),
            )
            for factor in factors
            for part in factor.measures(order)
        )

    def lifted(function, factor):
        return lambda latents: function(inside(latents, factor))

    def total(functions):
        return lambda latents: sum(function(latents) for function in functions)

    return Problem(
        name=name,
        model=model,
        draw_prior=draw_prior,
        log_prior=total([lifted(p.log_prior, p) for p in factors]),
        log_likelihood=total([lifted(p.log_likelihood, p) for p in factors]),
        expected_deviations=expected_deviations,
        functions={
            f"{factor.name}/{key}": lifted(function, factor)
            for factor in factors
            for key, function in factor.functions.items()
        },
        integrate=integrate,
    )


PRODUCT = product("product", (GAUSSIAN, BANANA, LOGNORMAL, EXPONENTIAL))


# -- nine modes: three peaks along each axis, 14 standard deviations apart -----------

NUM_PEAKS = 3
PEAK_MEAN = 0.9
REACH = NUM_PEAKS * np.pi


def nine_model():
    z = numpyro.sample("z", dist.Uniform(-REACH, REACH).expand([2]).to_event(1))
    for name, x in zip(FIRST_AND_SECOND, z, strict=True):
        emergent_property(jnp.cos(x), mean=PEAK_MEAN, name=name)


def wave(x):
    return deviations(np.cos(x), PEAK_MEAN)


def is_central(latents):
    return (np.abs(latents["z"][:, 0]) < np.pi).astype(int)


def nine_measures(problem, order):
    """Both coordinates are independent: von Mises densities, three times."""
    x, weights = panels(np.linspace(-REACH, REACH, 241), order)
    label = (np.abs(x) < np.pi).astype(float)
    modes = {"mode": Moments(label, label)}, {}
    return tuple(
        Measure(
            np.log(weights) - np.log(2 * REACH),
            {name: wave(x)},
            {name: Moments(x, x**2), **mode},
        )
        for name, mode in zip(FIRST_AND_SECOND, modes, strict=True)
    )


NINE_MODES = Problem(
    name="nine_modes",
    model=nine_model,
    draw_prior=lambda rng, n: {"z": rng.uniform(-REACH, REACH, (n, 2))},
    log_prior=lambda latents: np.full(len(latents["z"]), -2 * np.log(2 * REACH)),
    expected_deviations=lambda latents: {
        name: wave(function(latents)) for name, function in FIRST_AND_SECOND.items()
    },
    functions=FIRST_AND_SECOND,
    integrate=nine_measures,
    topology="hard",
    modes=is_central,
)


ZOO = {
    problem.name: problem
    for problem in (
        GAUSSIAN,
        EXPONENTIAL,
        RING,
        EQUAL_MODES,
        UNEQUAL_MODES,
        UNEQUAL_WIDTHS,
        BANANA,
        LOGNORMAL,
        GAMMA,
        NOISY,
        COUNT,
        CONDITIONAL,
        LINEAR,
        PRODUCT,
        NINE_MODES,
    )
}
