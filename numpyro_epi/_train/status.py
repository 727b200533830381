# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How a run ends: its status, the errors it raises, and targets out of reach."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable

# What to do where failures are many.
TOO_MANY = 'pass `on_invalid="mask"` to `EPI` if they are more than 5%'


class EPIStatus(StrEnum):
    """How a run ended.

    Attributes:
        CONVERGED: every constraint is shown to be met within the tolerance by draws of
            the guide.
        CORRECTED: not by these, but by the same draws weighted to the law, and by the
            law itself.
        LAW_ONLY: only by the law.
        NOT_CONVERGED: the epochs are used up and some constraint is not met.
        UNREACHABLE: the simulations show that a target cannot be met.
        INTERRUPTED: stopped from the keyboard or by a callback, before guide or law
            were shown to meet their targets; the result is what there was.
        BUDGET: stopped by a budget, likewise.
    """

    CONVERGED = "converged"
    CORRECTED = "corrected"
    LAW_ONLY = "law only"
    NOT_CONVERGED = "not converged"
    UNREACHABLE = "unreachable"
    INTERRUPTED = "interrupted"
    BUDGET = "budget"

    def __str__(self) -> str:
        return self.value


class InvalidStatisticError(RuntimeError):
    """Too many simulations returned NaN or infinite statistics.

    One is too many with `on_invalid="raise"`; more than 5% of them, by three standard
    errors, with "auto"; all of them with "mask".

    Attributes:
        site: name of the first offending statistic or "log likelihood".
        share: share of the simulations that failed.
        example: latents of one failed simulation, by site name.
    """

    def __init__(
        self, site: str, share: float, example: dict, *, limit: float = 0.0
    ) -> None:
        self.site = site
        self.share = share
        self.example = example
        allowed = f" (at most {limit:.0%} are left out)" if 0.0 < limit < 1.0 else ""
        fix = (
            'or pass `on_invalid="mask"` to restrict the prior to the latents that can '
            "be simulated."
        )
        if share == 1.0:
            fix = "or move the priors of the latents to where it can be simulated."
        super().__init__(
            f"The statistic `{site}` is not finite in {share:.2%} of the simulations"
            f"{allowed}, for instance at {show_latents(example)}. Make the simulator "
            f"return finite values there, {fix}"
        )


def show_latents(latents: dict) -> str:
    """Latents by site name, on one line."""
    return ", ".join(
        f"{name} = {np.array2string(np.asarray(v), precision=4)}"
        for name, v in latents.items()
    )


@contextmanager
def plain_solver_errors() -> Iterator[None]:
    """Say in plain words that a solver of diffrax, or a callback, stopped a whole run.

    Under `jax.jit` such errors of Equinox say little, in classes that are not public;
    those of callbacks hold the text of a stack trace.
    """
    try:
        yield
    except NotImplementedError as err:
        if "vmap_method" not in str(err):
            raise
        raise ValueError(
            "Expected a callback that can be called for a batch of draws, got a "
            "`jax.pure_callback` without `vmap_method`. Pass it "
            '`vmap_method="sequential"`, or "expand_dims" if the function takes arrays '
            "with a leading axis of draws."
        ) from err
    except RuntimeError as err:
        text = f"{type(err).__name__}: {err}".strip()
        # A solver of diffrax that gives up raises from a callback of its own.
        is_solver = "EquinoxRuntimeError" in text
        if "allback" in text and "Traceback" in text and not is_solver:
            raise RuntimeError(
                "A simulation ended in an error in its callback, and the run with it: "
                f"{text.splitlines()[-1].strip()!r}. Expected a function that can be "
                "called at any draw of the prior. Return NaN where it fails: such "
                f"draws are then left out ({TOO_MANY})."
            ) from err
        if not is_solver:
            raise
        first = str(err).strip().split("\n\n", maxsplit=1)[0].splitlines()[-1]
        reason = first.rsplit("RuntimeError: ", maxsplit=1)[-1].strip()
        raise RuntimeError(
            "A simulation ended in an error, and the run with it: "
            f"{reason!r}. Expected a model that can be simulated at any draw of "
            "the prior, or that returns NaN where it cannot. For a solver of diffrax: "
            "pass it `throw=False`, and make the statistic NaN where `solution.result` "
            "is not `diffrax.RESULTS.successful`: such draws are then left out "
            f"({TOO_MANY})."
        ) from err


def first_invalid_label(table: ConstraintTable, stats: np.ndarray) -> str:
    """Name of the first statistic that is not finite; stats of shape (S,)."""
    bad = np.flatnonzero(~np.isfinite(stats))
    return table.statistic_labels[bad[0]] if bad.size else "log likelihood"


class SeenRange(NamedTuple):
    """Smallest and largest value of each statistic in simulations so far, (S,)."""

    low: np.ndarray
    high: np.ndarray
    num_simulations: int = 0

    @classmethod
    def empty(cls, num_statistics: int) -> "SeenRange":
        """Of no simulation."""
        return cls(np.full(num_statistics, np.inf), np.full(num_statistics, -np.inf))

    def add(self, stats: np.ndarray) -> "SeenRange":
        """Take note of statistics of shape (n, S); rows with NaN are passed over."""
        num = self.num_simulations + len(stats)
        stats = stats[np.isfinite(stats).all(axis=1)]
        if not len(stats):
            return self._replace(num_simulations=num)
        low = np.minimum(self.low, stats.min(axis=0))
        return SeenRange(low, np.maximum(self.high, stats.max(axis=0)), num)

    def unreachable(self, table: ConstraintTable) -> str | None:
        """Explain the first target that no law on the seen range can have."""
        for i, label in enumerate(table.statistic_labels):
            mean, var = float(table.mean[i]), float(table.var[i])
            low, high = float(self.low[i]), float(self.high[i])
            seen = (
                f"[{low:.4g}, {high:.4g}] that it took in "
                f"{self.num_simulations:,} simulations"
            )
            if not low <= mean <= high:
                return (
                    f"The target mean {mean:.4g} of `{label}` lies outside the range "
                    f"{seen}. Move the target, or widen the support of the latents."
                )
            largest = (high - mean) * (mean - low)
            if var > largest:
                return (
                    f"The target variance {var:.4g} of `{label}` is impossible: with "
                    f"mean {mean:.4g} on the range {seen}, a variance is at most "
                    f"{largest:.4g}. Lower the target variance."
                )
        return None
