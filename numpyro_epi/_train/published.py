# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The published algorithm, for reproduction and comparison; see `PublishedSchedule`."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.convergence import (
    published_p_values,
    welch_growth_probability,
)
from numpyro_epi._train.progress import Progress
from numpyro_epi._train.status import EPIStatus

if TYPE_CHECKING:
    from numpyro_epi._train.runner import Runner

# Estimates of the violation behind the convergence test and the test of growth.
NUM_ESTIMATES = 200


def train_published(
    runner: "Runner", stat_gradient: str, progress: Progress
) -> list | None:
    """Epochs of the published schedule.

    In scaled units the raw penalty c becomes c * size^2 for a constraint whose unit is
    `size` raw units, so the compiled step is the same.
    """
    schedule = runner.options.schedule
    if schedule is None:
        raise RuntimeError("The published schedule was called without one.")
    sizes = runner.simulations.table.raw_sizes
    coefficient = np.full(runner.num_restarts, schedule.c0)
    previous: list[np.ndarray | None] = [None] * runner.num_restarts
    p_values: list[np.ndarray] = []
    for _ in range(runner.options.num_epochs):
        runner.state = runner.state._replace(
            optim_state=runner.engine.init_optim(runner.state.params),
            penalty=jnp.asarray(coefficient[:, None] * sizes**2, float),
        )
        runner.run_epoch(stat_gradient, progress)
        num = runner.options.num_particles
        ev, _ = runner.simulations.evaluate(runner.state.params, NUM_ESTIMATES * num)
        devs = runner.simulations.deviations(ev.stats)
        devs = devs.reshape(runner.num_restarts, NUM_ESTIMATES, num, -1)
        num_test = max(int(schedule.nu * num), 1)
        p_values = [
            published_p_values(devs[r, :, :num_test].mean(axis=1))
            for r in range(runner.num_restarts)
        ]
        violation = devs[:, -1].mean(axis=1)
        penalty = np.asarray(runner.state.penalty)
        runner.state = runner.state._replace(
            multipliers=runner.state.multipliers + jnp.asarray(penalty * violation)
        )
        uniforms = np.asarray(
            jax.vmap(jax.random.uniform)(runner.simulations.next_keys())
        )
        for r in range(runner.num_restarts):
            norms = ((devs[r].mean(axis=1) * sizes) ** 2).sum(axis=-1)
            before = previous[r]
            if before is None or uniforms[r] < welch_growth_probability(
                norms, schedule.gamma * before
            ):
                coefficient[r] *= schedule.beta
            previous[r] = norms
        level = schedule.alpha / sizes.size
        if schedule.stop_early and all((p > level).all() for p in p_values):
            break
    return [_verdict(p, schedule.alpha / sizes.size) for p in p_values]


def _verdict(p_values: np.ndarray, level: float) -> tuple[EPIStatus, str]:
    worst = float(p_values.min())
    if worst > level:
        return EPIStatus.CONVERGED, (
            f"The published test passes: smallest p-value {worst:.3g} > {level:.3g}."
        )
    return EPIStatus.NOT_CONVERGED, (
        f"The published test fails: smallest p-value {worst:.3g} <= {level:.3g}."
    )
