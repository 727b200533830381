# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law of a model, and what it takes for it to be one."""

from typing import NamedTuple

import numpy as np

from numpyro_epi._solver.draws import Draws

# Violation and effective draws of a law that is not trusted, but may start a guide.
MAX_MISS, MIN_USABLE = 0.5, 100.0
# Standard errors by which two populations of chains may differ, in any number.
MAX_LAG = 4.0


class Law(NamedTuple):
    """The exact law p0 L exp(-lambda . E[T | z]) / Z as weighted draws.

    Attributes:
        method: "importance" or "chains".
        draws: of the verdict, simulated.
        weights: of the draws, sum to one, shape (n,).
        multipliers: lambda, scaled units, shape (K,).
        log_normalizer: log Z, nats.
        log_normalizer_error: its standard error.
        violation: E[T], scaled units, shape (K,).
        violation_error: its standard errors, shape (K,).
        noise_error: bias that the noise of averaged simulations leaves, shape (K,).
        ess: effective number of draws.
        khat: Pareto shape of the weights; NaN of chains.
        lag: how far a second population, or its way back to the prior, is from the
            first, in standard errors; NaN of importance sampling.
        reason: why it is not trusted, in words; empty if it is.
        pool: the draws of the verdict, and those that chose the multipliers.
        pool_weights: of these, sum to one.
        is_at_the_targets: whether the multipliers are those of the targets, so that it
            is a law, if not a trusted one.
    """

    method: str
    draws: Draws
    weights: np.ndarray
    multipliers: np.ndarray
    log_normalizer: float
    log_normalizer_error: float
    violation: np.ndarray
    violation_error: np.ndarray
    noise_error: np.ndarray
    ess: float
    khat: float
    lag: float
    reason: str
    pool: Draws
    pool_weights: np.ndarray
    is_at_the_targets: bool

    @property
    def converged(self) -> bool:
        """Whether fresh draws show that the law meets its targets."""
        return not self.reason

    def in_units(self, units: np.ndarray) -> "Law":
        """The same where T is measured in others: it is times `units`, shape (K,)."""
        return self._replace(
            draws=self.draws.in_units(units),
            pool=self.pool.in_units(units),
            multipliers=self.multipliers / units,
            violation=self.violation * units,
            violation_error=self.violation_error * units,
            noise_error=self.noise_error * units,
        )

    @property
    def is_usable(self) -> bool:
        """Whether it may be trusted enough for a guide to start from."""
        if self.converged:
            return True
        is_near = bool((np.abs(self.violation) <= MAX_MISS).all())
        is_sound = self.ess >= MIN_USABLE and not self.lag > MAX_LAG
        return self.is_at_the_targets and is_near and is_sound


class Standard(NamedTuple):
    """What the verdict asks for.

    Attributes:
        tolerance: largest harmless violation, scaled units.
        z_score: standard errors added to a violation before it is compared.
        labels: of the constraints, for messages.
    """

    tolerance: float
    z_score: float
    labels: tuple[str, ...]

    def bounds(
        self, violation: np.ndarray, error: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Violations that are not ruled out, shape (K,)."""
        return np.abs(violation) + self.z_score * error + bias

    def is_met(
        self, violation: np.ndarray, error: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> bool:
        """Whether all constraints are shown to be met."""
        return bool((self.bounds(violation, error, bias) <= self.tolerance).all())

    def is_missed(self, violation: np.ndarray, error: np.ndarray) -> bool:
        """Whether one is shown to be missed."""
        low = np.abs(violation) - self.z_score * error
        return bool((low > self.tolerance).any())

    def reason(
        self, violation: np.ndarray, error: np.ndarray, bias: np.ndarray | float = 0.0
    ) -> str:
        """Why they are not, in words; empty if they are."""
        if self.is_met(violation, error, bias):
            return ""
        worst = int(np.argmax(self.bounds(violation, error, bias)))
        return (
            f"its {self.labels[worst]} is off by {violation[worst]:+.3g} +- "
            f"{error[worst]:.2g} scaled units (tolerance {self.tolerance:g})"
        )
