# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Options of `EPI`: the one place of every default, and of its check."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jax.sharding import Mesh


def _check_count(name: str, value: Any, minimum: int = 1) -> None:
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < minimum:
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}, but got {value!r}. "
            f"Pass for instance `{name}={max(minimum, 10)}`."
        )


def _check_positive(name: str, value: Any, *, allow_zero: bool = False) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    is_good = number >= 0 if allow_zero else number > 0
    if not (is_good and np.isfinite(number)):
        kind = "non-negative" if allow_zero else "positive"
        raise ValueError(f"`{name}` must be a {kind} finite number, but got {value!r}.")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if not any(value is c or (isinstance(c, str) and value == c) for c in choices):
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"`{name}` must be one of {listed}, but got {value!r}.")


# Options of earlier versions, and what to do instead.
GONE = {
    "warm_start_rounds": "The search for the law ends by itself; `warm_start_size` "
    "makes it shorter",
    "penalty_growth": "The penalty stays what it is: pass `penalty`",
    "max_penalty": "The penalty stays what it is: pass `penalty`",
}


@dataclass(frozen=True)
class PublishedSchedule:
    """The augmented-Lagrangian schedule of the original paper, for reproduction.

    Constraints are not scaled, the penalty grows from `c0` by `beta` (with the
    probability of a Welch test that the violation norm did not fall below `gamma` times
    its previous value), Adam is reset at each epoch, there is neither a warm start nor
    parameter averaging, and convergence is the published test. The numbers of epochs,
    steps and particles are those of `EPI`.

    Attributes:
        c0: first penalty coefficient, positive.
        beta: penalty growth, greater than 1.
        gamma: required reduction of the violation norm per epoch, in (0, 1).
        nu: N_test is `nu` times the number of particles.
        alpha: significance level of the convergence test before Bonferroni correction.
        learning_rate: of Adam.
        stop_early: stop at the first epoch that passes the test.

    References:
        Bittner et al., Interrogating theoretical models of neural computation with
        emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Methods.
    """

    c0: float = 1e-3
    beta: float = 4.0
    gamma: float = 0.25
    nu: float = 0.1
    alpha: float = 0.05
    learning_rate: float = 1e-3
    stop_early: bool = False

    def __post_init__(self) -> None:
        for name in ("c0", "beta", "gamma", "nu", "alpha", "learning_rate"):
            _check_positive(name, getattr(self, name))
        if self.beta <= 1:
            raise ValueError(f"`beta` must be greater than 1, but got {self.beta!r}.")
        for name in ("gamma", "alpha"):
            if getattr(self, name) >= 1:
                raise ValueError(
                    f"`{name}` must be in (0, 1), but got {getattr(self, name)!r}."
                )


@dataclass(frozen=True)
class Options:
    """Settings of a run; see `EPI` for their meaning."""

    num_particles: int = 1000
    num_epochs: int = 30
    num_steps: int = 200
    num_restarts: int = 1
    num_evaluation: int = 20_000
    tolerance: float = 0.05
    gap_tolerance: float = 0.005
    z_score: float = 1.645
    learning_rate: float = 3e-3
    penalty: float = 1.0
    warm_start: str | bool = "auto"
    warm_start_size: int = 10_000
    anchor: float = 1.0
    stat_gradient: str = "auto"
    schedule: PublishedSchedule | None = None
    on_invalid: str = "auto"
    progress_bar: bool = True
    mesh: Any = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_steps", "num_restarts"):
            _check_count(name, getattr(self, name))
        _check_count("num_particles", self.num_particles, 4)
        _check_count("num_evaluation", self.num_evaluation, 100)
        _check_count("warm_start_size", self.warm_start_size, 100)
        if self.num_particles % 2:
            raise ValueError(
                "`num_particles` must be even, because the penalty gradient needs two "
                f"equal halves, but got {self.num_particles}."
            )
        for name in ("tolerance", "z_score", "learning_rate", "penalty"):
            _check_positive(name, getattr(self, name))
        _check_positive("anchor", self.anchor, allow_zero=True)
        _check_positive("gap_tolerance", self.gap_tolerance, allow_zero=True)
        _check_choice("warm_start", self.warm_start, ("auto", True, False))
        gradients = ("auto", "reverse", "forward", "score", "replay")
        _check_choice("stat_gradient", self.stat_gradient, gradients)
        _check_choice("on_invalid", self.on_invalid, ("auto", "raise", "mask"))
        _check_choice("progress_bar", self.progress_bar, (True, False))
        self._check_mesh()
        if self.schedule is not None and not isinstance(
            self.schedule, PublishedSchedule
        ):
            raise TypeError(
                "`schedule` must be None or a PublishedSchedule, but got "
                f"{type(self.schedule).__name__}."
            )

        if self.schedule is not None and self.stat_gradient == "replay":
            raise ValueError(
                "`stat_gradient='replay'` contradicts `schedule`: the published "
                "algorithm simulates at each step. Drop one of them."
            )
        if self.schedule is not None and self.warm_start is True:
            raise ValueError(
                "`warm_start=True` contradicts `schedule`: the published algorithm has "
                "no warm start. Drop one of them."
            )

    def _check_mesh(self) -> None:
        if self.mesh is None:
            return
        if not isinstance(self.mesh, Mesh):
            raise TypeError(
                "`mesh` must be None or a `jax.sharding.Mesh`, but got "
                f"{type(self.mesh).__name__}. Pass for instance "
                '`jax.make_mesh((jax.device_count(),), ("particles",))`.'
            )
        size = self.mesh.devices.shape[0]
        if self.num_particles % size:
            raise ValueError(
                f"`num_particles` must be a multiple of the {size} devices along the "
                f"first axis of `mesh`, but got {self.num_particles}."
            )

    @property
    def leaves_out(self) -> bool:
        """Whether the target is the prior restricted to latents that can be simulated.

        With "auto", as long as few fail.
        """
        return self.on_invalid != "raise"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(field.name for field in fields(cls))
