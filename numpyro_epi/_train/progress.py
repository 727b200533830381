# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Progress bar of a run; one step function serves the bar and the silent scan."""

from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from numpyro_epi._train.engine import Engine
from numpyro_epi._train.options import Options
from numpyro_epi._train.state import GuideState, StepInfo

if TYPE_CHECKING:
    from numpyro_epi._train.records import EpochRecord


class Progress:
    """Context manager that shows stages and epochs, if it is entered.

    Attributes:
        left: of a budget, in words.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.left = ""
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self.options.progress_bar:
            total = self.options.num_epochs * self.options.num_steps
            self._bar = tqdm(total=total, unit="step", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def stage(self, name: str) -> None:
        """What a run is about to do."""
        if self._bar is not None:
            left = f" ({self.left} left)" if self.left else ""
            self._bar.set_description_str(f"{name}{left}")

    def count(self, num_simulations: int) -> None:
        """How many simulations there were before the first step."""
        if self._bar is not None and self._bar.n == 0:
            self._bar.set_postfix_str(f"{num_simulations:,} simulations")

    def run_epoch(
        self, engine: Engine, state: GuideState, stat_gradient: str
    ) -> tuple[GuideState, StepInfo]:
        """One epoch: a single scan, or shorter scans that move the bar."""
        num_steps = self.options.num_steps
        size = num_steps if self._bar is None else _chunk_size(num_steps)
        infos = []
        for _ in range(num_steps // size):
            state, info = engine.run_steps(state, size, stat_gradient)
            infos.append(jax.block_until_ready(info))
            if self._bar is not None:
                self._bar.total = max(self._bar.total, self._bar.n + size)
                self._bar.update(size)
        return state, jax.tree.map(lambda *x: jnp.concatenate(x), *infos)

    def show(self, record: "EpochRecord") -> None:
        """Entropy, worst violation in standard errors, penalty, invalid share."""
        if self._bar is None:
            return
        best = min(record.scores, key=lambda s: float(np.abs(s.violation).max()))
        ratio = np.abs(best.violation) / np.maximum(best.violation_error, 1e-12)
        shown = {
            "entropy": f"{best.entropy:.3f}",
            "violation": f"{np.abs(best.violation).max():.3f}",
            "worst": f"{ratio.max():.1f} s.e.",
            "penalty": f"{record.penalty.max():.3g}",
        }
        if best.invalid > 0:
            shown["invalid"] = f"{best.invalid:.1%}"
        self._bar.set_postfix(shown)


def _chunk_size(num_steps: int) -> int:
    """Largest divisor of the steps of an epoch that is at most a tenth of them."""
    limit = max(num_steps // 10, 1)
    return max(d for d in range(1, limit + 1) if num_steps % d == 0)
