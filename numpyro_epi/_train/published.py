# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The published algorithm as a rule of the epochs; see `PublishedSchedule`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.convergence import (
    published_p_values,
    welch_growth_probability,
)
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.options import PublishedSchedule
from numpyro_epi._train.simulations import Simulations
from numpyro_epi._train.state import GuideState
from numpyro_epi._train.status import EPIStatus
from numpyro_epi._typing import existing

# Estimates of the violation behind the convergence test and the test of growth.
NUM_ESTIMATES = 200


class Published(NamedTuple):
    """What the published schedule remembers from epoch to epoch; R restarts.

    In scaled units the raw penalty c becomes c * size^2 for a constraint whose unit is
    `size` raw units, so the compiled step is the same.

    Attributes:
        schedule: the constants.
        coefficient: the raw penalty c, shape (R,).
        norms: of the estimates of the violation after the last epoch, (R, estimates).
        p_values: of the convergence test after the last epoch, shape (R, K).
    """

    schedule: PublishedSchedule
    coefficient: np.ndarray
    norms: np.ndarray | None
    p_values: np.ndarray | None

    @classmethod
    def start(cls, schedule: PublishedSchedule, num_restarts: int) -> "Published":
        """Before the first epoch."""
        return cls(schedule, np.full(num_restarts, schedule.c0), None, None)

    def before(
        self, guide: GuideState, engine: Engine, simulations: Simulations
    ) -> GuideState:
        """A fresh optimiser, and the penalty of the next epoch."""
        penalty = self.coefficient[:, None] * simulations.table.raw_sizes**2
        return guide._replace(
            optim_state=engine.init_optim(guide.params),
            penalty=jnp.asarray(penalty, float),
        )

    def after(
        self, guide: GuideState, simulations: Simulations
    ) -> tuple["Published", GuideState]:
        """Multipliers, and whether the penalty grows, after an epoch."""
        schedule, sizes = self.schedule, simulations.table.raw_sizes
        num, num_restarts = simulations.options.num_particles, self.coefficient.size
        ev, _ = simulations.evaluate(guide.params, NUM_ESTIMATES * num)
        devs = simulations.deviations(ev.stats)
        devs = devs.reshape(num_restarts, NUM_ESTIMATES, num, -1)
        num_test = max(int(schedule.nu * num), 1)
        p_values = [published_p_values(x[:, :num_test].mean(axis=1)) for x in devs]
        change = np.asarray(guide.penalty) * devs[:, -1].mean(axis=1)
        guide = guide._replace(multipliers=guide.multipliers + jnp.asarray(change))
        uniforms = np.asarray(jax.vmap(jax.random.uniform)(simulations.next_keys()))
        norms = ((devs.mean(axis=2) * sizes) ** 2).sum(axis=-1)
        chances = [1.0] * num_restarts
        if self.norms is not None:
            before = schedule.gamma * self.norms
            chances = [
                welch_growth_probability(*pair)
                for pair in zip(norms, before, strict=True)
            ]
        grows = uniforms < np.array(chances)
        coefficient = np.where(grows, schedule.beta, 1.0) * self.coefficient
        return Published(schedule, coefficient, norms, np.stack(p_values)), guide

    @property
    def verdicts(self) -> tuple[tuple[EPIStatus, str], ...]:
        """Status and message of each restart; several constraints share the level."""
        p_values = existing(self.p_values)
        level = self.schedule.alpha / p_values.shape[1]
        return tuple(_verdict(float(p.min()), level) for p in p_values)

    @property
    def is_over(self) -> bool:
        """Whether all tests pass, and that is to end it."""
        passes = [status is EPIStatus.CONVERGED for status, _ in self.verdicts]
        return self.schedule.stop_early and all(passes)


def _verdict(worst: float, level: float) -> tuple[EPIStatus, str]:
    if worst > level:
        return EPIStatus.CONVERGED, (
            f"The published test passes: smallest p-value {worst:.3g} > {level:.3g}."
        )
    return EPIStatus.NOT_CONVERGED, (
        f"The published test fails: smallest p-value {worst:.3g} <= {level:.3g}."
    )
