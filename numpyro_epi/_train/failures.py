# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Failed simulations of one run: are they left out, told of, or the end of it?"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._model.problem import Problem
from numpyro_epi._train.status import (
    InvalidStatisticError,
    first_invalid_label,
    show_latents,
)

# With "auto": the largest share of failures that is left out, and by how many standard
# errors a share has to exceed it.
MAX_INVALID, INVALID_Z_SCORE = 0.05, 3.0
# What share of failures a policy leaves out.
LIMITS = {"raise": 0.0, "auto": MAX_INVALID, "mask": 1.0}
# Latest simulations among which the share is measured: where the run now draws.
WINDOW = 20_000
# Simulations that a run has made before it tells of rare failures among them.
TELL_AFTER = 10_000


class Failures(NamedTuple):
    """Failures so far.

    Attributes:
        policy: the option `on_invalid`.
        num: simulations that failed.
        num_seen: simulations.
        latest: failures and simulations of the latest batches.
        first: what was not finite in the first failure, and its latents.
        has_told: whether there was a warning.
    """

    policy: str
    num: int = 0
    num_seen: int = 0
    latest: tuple[tuple[int, int], ...] = ()
    first: tuple[str, dict] | None = None
    has_told: bool = False

    def note(
        self,
        problem: Problem,
        table: ConstraintTable,
        u: np.ndarray,
        stats: np.ndarray,
        is_valid: np.ndarray,
    ) -> "Failures":
        """Take note of simulations of draws u; raise if the policy says so."""
        failed = int((~is_valid).sum())
        first = self.first
        if failed and first is None:
            first = _describe(problem, table, u, stats, is_valid)
        new = self._replace(
            num=self.num + failed,
            num_seen=self.num_seen + is_valid.size,
            latest=self._slide(failed, is_valid.size),
            first=first,
        )
        if failed and (new._is_over_limit or not is_valid.any()):
            label, example = _describe(problem, table, u, stats, is_valid)
            # Where all fail, or none may, these simulations count; else the latest.
            num, total = failed, is_valid.size
            if self.policy == "auto" and num < total:
                num, total = new.share
            raise InvalidStatisticError(
                label, num / total, example, limit=LIMITS[self.policy]
            )
        return new.tell() if new.num_seen >= TELL_AFTER else new

    @property
    def _is_over_limit(self) -> bool:
        if self.policy == "auto":
            return exceeds(*self.share)
        return self.policy == "raise"

    @property
    def share(self) -> tuple[int, int]:
        """Failures among the latest simulations, and how many these are."""
        return sum(f for f, _ in self.latest), sum(n for _, n in self.latest)

    def _slide(self, failed: int, num: int) -> tuple[tuple[int, int], ...]:
        latest = (*self.latest, (failed, num))
        while sum(n for _, n in latest[1:]) >= WINDOW:
            latest = latest[1:]
        return latest

    def tell(self) -> "Failures":
        """Warn once that failures are left out."""
        if self.policy != "auto" or self.first is None or self.has_told:
            return self
        label, example = self.first
        warnings.warn(
            f"The statistic `{label}` is not finite in {self.num:,} of "
            f"{self.num_seen:,} simulations ({self.num / self.num_seen:.2%}), for "
            f"instance at {show_latents(example)}. They are left out: the law is that "
            "of the prior restricted to latents that can be simulated. Pass "
            "`on_invalid='mask'` to accept that without a warning, or "
            "`on_invalid='raise'` to stop there.",
            RuntimeWarning,
            stacklevel=5,
        )
        return self._replace(has_told=True)


def _describe(
    problem: Problem,
    table: ConstraintTable,
    u: np.ndarray,
    stats: np.ndarray,
    is_valid: np.ndarray,
) -> tuple[str, dict]:
    """Name of what is not finite in the first failure, and its latents."""
    where = tuple(np.argwhere(~is_valid)[0])
    latents, _ = problem.constrain(jnp.asarray(u[where]))
    return first_invalid_label(table, stats[where]), jax.tree.map(np.asarray, latents)


def exceeds(num: int, total: int) -> bool:
    """Whether a share of failures is beyond `MAX_INVALID`, and not by chance."""
    error = np.sqrt(MAX_INVALID * (1.0 - MAX_INVALID) / total)
    return num / total > MAX_INVALID + INVALID_Z_SCORE * error


def show_share(num: int, total: int) -> str:
    """A share of failures in words that tell it from zero, or say that they cannot."""
    if num == 0:
        # No failure in n draws: with 95%, their share is below 3 / n.
        return f"none of {total:,} draws invalid (below {3.0 / total:.2%} with 95%)"
    return f"{num:,} of {total:,} draws invalid ({num / total:.2%})"
