# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law of a result: what its guide is a fast copy of."""

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from numpyro_epi._checks import as_count, as_key
from numpyro_epi._draws import EPIDraws
from numpyro_epi._math.importance import systematic_resample


@dataclass(frozen=True, eq=False)
class EPILaw:
    r"""The exact law p(z) = p0(z) L(z) exp(-lambda . E[T | z]) / Z, as weighted draws.

    It is the distribution of largest entropy (least divergence from the prior) with the
    property. What is claimed of it is found by draws that chose neither its multipliers
    nor the way to it.

    Attributes:
        method: "importance" for importance sampling alone, "chains" for particles that
            Markov chains have moved.
        draws: simulated draws, to be taken with `weights`; n of them. `log_density` is
            that of the law, in the constrained space.
        weights: of the draws, sum to one, shape (n,).
        multipliers: lambda of raw T by site, `(2, *shape)` or `(1, *shape)`.
        log_normalizer: log Z, nats.
        log_normalizer_error: its standard error, nats.
        entropy: differential entropy in the constrained space, nats.
        divergence: KL(p || p0), nats; for improper priors see `EPIResult.divergence`.
        violation: E[T] in scaled units, shape (K,).
        violation_error: standard errors of `violation`, shape (K,).
        noise_error: bias that the noise of averaged simulations may leave in it, scaled
            units, shape (K,).
        ess: effective number of the draws.
        khat: Pareto shape of the weights of the verdict; NaN of chains.
        lag: how far other chains, or their way back to the prior, lead from these, in
            standard errors; NaN of importance sampling.
        converged: whether fresh draws show that the law meets its targets, and the
            checks of its method are passed.
        reason: why not, in words; empty if so.

    Example:
        >>> import jax, numpyro, numpyro_epi as epi
        >>> import numpyro.distributions as dist
        >>> def model():
        ...     z = numpyro.sample("z", dist.Normal(0, 1))
        ...     epi.emergent_property(z, mean=1.0, var=0.25)
        >>> options = dict(num_epochs=1, num_steps=5, progress_bar=False)
        >>> result = epi.EPI(model, **options).run(jax.random.key(0))
        >>> result.law.converged, result.law.sample(jax.random.key(1), 5)["z"].shape
        (True, (5,))

    References:
        Bittner et al., Interrogating theoretical models of neural computation with
        emergent property inference, eLife 2021, doi:10.7554/eLife.56265, section on the
        exponential family; SMC and population Monte Carlo as in `numpyro_epi._solver`.
    """

    method: str
    draws: EPIDraws
    weights: np.ndarray
    multipliers: dict[str, np.ndarray]
    log_normalizer: float
    log_normalizer_error: float
    entropy: float
    divergence: float
    violation: np.ndarray
    violation_error: np.ndarray
    noise_error: np.ndarray
    ess: float
    khat: float
    lag: float
    reason: str

    @property
    def converged(self) -> bool:
        """Whether fresh draws show that it meets its targets, and its checks pass."""
        return not self.reason

    def sample(self, rng_key: Any, num_samples: int) -> dict[str, np.ndarray]:
        """Resample the stored draws by their weights; nothing is simulated.

        Args:
            rng_key: random key.
            num_samples: number of draws n. Of more than `ess` many are the same, and a
                warning says so.

        Returns:
            Latents, `{site: (n, *shape)}`.

        Raises:
            TypeError: if `rng_key` is not a key.
            ValueError: if `num_samples` is not a positive integer.
        """
        rows = self._rows(rng_key, num_samples)
        return {name: value[rows] for name, value in self.draws.latents.items()}

    def predict(self, rng_key: Any, num_samples: int) -> dict[str, np.ndarray]:
        """The same with the statistics of the simulation that each draw has had.

        Args:
            rng_key: random key.
            num_samples: number of draws n, as for `sample`.

        Returns:
            Latents and statistics, `{site: (n, *shape)}`.

        Raises:
            TypeError: if `rng_key` is not a key.
            ValueError: if `num_samples` is not a positive integer.
        """
        rows = self._rows(rng_key, num_samples)
        both = self.draws.latents | self.draws.statistics
        return {name: value[rows] for name, value in both.items()}

    def _rows(self, rng_key: Any, num_samples: int) -> np.ndarray:
        num = as_count("num_samples", num_samples)
        if num > self.ess:
            warnings.warn(
                f"{num:,} draws of the law were asked for, of which {self.ess:,.0f} "
                "effective ones are stored: some will be the same. Ask for fewer, or "
                "for draws of the guide (`EPIResult.sample`).",
                UserWarning,
                stacklevel=3,
            )
        keys = jax.random.split(as_key(rng_key))
        offset = float(jax.random.uniform(keys[0]))
        rows = systematic_resample(self.weights, num, offset)
        return np.asarray(jax.random.permutation(keys[1], rows))

    def __repr__(self) -> str:
        end = "converged" if self.converged else f"not converged: {self.reason}"
        return (
            f"EPILaw({self.method}, entropy={self.entropy:.3f} nats, log Z="
            f"{self.log_normalizer:.3f} +- {self.log_normalizer_error:.2g}, "
            f"{self.ess:,.0f} effective draws, {end})"
        )
