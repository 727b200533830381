# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact laws of a run: one for each restart, and what they tell of its guide."""

from dataclasses import replace
from functools import cached_property

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._solver.draws import Simulator
from numpyro_epi._solver.law import Law, Standard
from numpyro_epi._solver.search import find_law
from numpyro_epi._train.chunks import Evaluation
from numpyro_epi._train.correction import Correction, gap_of_draws, weigh_to_law
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.first_fit import WeightedDraws
from numpyro_epi._train.pilot import check_gradient, why_distrusted
from numpyro_epi._train.records import Scores
from numpyro_epi._train.simulations import Simulations


class Laws:
    """Searches for laws, and what follows from them.

    Args:
        engine: compiled functions.
        simulations: of the run.

    Attributes:
        found: of each restart; None if there is none to be had, as `reason` says.
        reason: why there are no laws, in words; empty if there are.
    """

    def __init__(self, engine: Engine, simulations: Simulations) -> None:
        self.engine = engine
        self.options = engine.options
        self.problem = engine.problem
        self.simulations = simulations
        self.found: list[Law | None] = [None] * self.options.num_restarts
        self.reason = self._why_none()
        if self.options.warm_start is True and self.reason:
            raise ValueError(
                f"`warm_start=True` needs a law to start from, but {self.reason}. Pass "
                "`warm_start='auto'`."
            )

    def _why_none(self) -> str:
        if self.options.schedule is not None:
            return "the published algorithm has none"
        if self.options.warm_start is False:
            return "`warm_start` is False"
        if not self.problem.can_start:
            return "the priors of some latents are masked or scaled: they have no draws"
        if not self.simulations.has_weights:
            return "the noise of the log likelihood is too large for weights"
        return ""

    @property
    def exist(self) -> np.ndarray:
        """Which restarts have a law that a guide can start from, shape (R,)."""
        return np.array([law is not None and law.is_usable for law in self.found])

    @property
    def are_trusted(self) -> np.ndarray:
        """Which restarts have a law whose multipliers are known, shape (R,)."""
        return np.array([law is not None and law.converged for law in self.found])

    def find(self, pilot_u: np.ndarray) -> None:
        """Search for all of them, and measure statistics in their units.

        Args:
            pilot_u: draws of the prior, shape (n, D).
        """
        found, tables = [], []
        for key in self.simulations.next_keys():
            law = find_law(
                self.simulator,
                key,
                self.standard,
                lambda: self._kind_of_moves(pilot_u),
                size=self.options.warm_start_size,
            )
            found.append(law)
            tables.append(self.simulator.table)
        self.simulations.num_simulations += self.simulator.num_moves
        # All are measured in the units of the first law that there is.
        usable = [t for law, t in zip(found, tables, strict=True) if law.is_usable]
        table = usable[0] if usable else self._narrowest(found, tables)
        self.found = [
            law.in_units(own.units_in(table))
            for law, own in zip(found, tables, strict=True)
        ]
        self.simulator.table = table
        self.simulations.measure_in(table)

    def _narrowest(
        self, found: list[Law], tables: list[ConstraintTable]
    ) -> ConstraintTable:
        """The smallest units of draws of the prior, and of laws that are not trusted.

        Units that are too wide would take any guide for one that meets its targets.
        """
        table = self.simulations.table
        for law, own in zip(found, tables, strict=True):
            if law.is_at_the_targets:
                table = replace(table, scale=np.minimum(table.scale, own.scale))
        return table

    def filled(self) -> list[Law]:
        """Those that there are, each missing one replaced by the first."""
        pairs = list(zip(self.found, self.exist, strict=True))
        first = next(law for law, exists in pairs if exists and law is not None)
        return [law if exists and law is not None else first for law, exists in pairs]

    def draws(self, num: int) -> np.ndarray | None:
        """Draws of those that there are, shape (R', n, D), or None."""
        laws = [law for law in self.found if law is not None and law.is_usable]
        if not laws:
            return None
        draws = [WeightedDraws(law.pool.u, law.pool_weights) for law in laws]
        return np.stack([part.take(num, 0.5) for part in draws])

    def own_scores(self, r: int, scores: Scores) -> Scores:
        """Fit and divergence of a law that is trusted, else those of the guide."""
        law = self.found[r]
        if law is None or not law.converged:
            return scores
        fit = float(law.weights @ law.draws.log_likelihood)
        tilt = float(law.multipliers @ law.violation)
        return scores._replace(
            log_likelihood=fit,
            divergence=fit - tilt - law.log_normalizer,
            divergence_error=law.log_normalizer_error,
        )

    @cached_property
    def simulator(self) -> Simulator:
        """Simulates draws of laws; all are noted."""
        simulations = self.simulations
        return Simulator(
            self.engine.programs,
            simulations.table,
            simulations.num_repeats,
            lambda *arrays: simulations.note(*(x[None] for x in arrays)),
        )

    @property
    def standard(self) -> Standard:
        """Of the verdict on laws."""
        options, labels = self.options, self.simulations.table.labels
        return Standard(options.tolerance, options.z_score, labels)

    def correct(self, ev: Evaluation, r: int) -> Correction | None:
        """Final draws of a guide, weighted to its law, if that can be trusted."""
        law = self.found[r]
        if law is None or not law.converged:
            return None
        key = self.simulations.next_keys()[r]
        return weigh_to_law(law, self.standard, self.simulator, ev, r, key)

    def with_gaps(self, ev: Evaluation, scores: list[Scores]) -> list[Scores]:
        """The same with their gaps to the laws, where there are any.

        What log Z of the law tells beyond its noise, or what draws tell by their own
        weights: they miss what the guide has lost, but have no noise. Of noisy
        simulations, one for each draw does not tell unless their noise is small.
        """
        found = []
        for r, (s, law) in enumerate(zip(scores, self.found, strict=True)):
            if law is None or not law.is_usable:
                found.append(s)
                continue
            noise = 2.0 * law.log_normalizer_error
            gap = law.log_normalizer - noise - s.score(law.multipliers)
            if law.draws.is_quiet:
                gap = np.fmax(gap, gap_of_draws(law, self.simulator, ev, r))
            found.append(s._replace(gap=float(gap)))
        return found

    def _kind_of_moves(self, u: np.ndarray) -> str:
        """Whether Markov chains have a use for gradients."""
        if not self.problem.derivatives.has_any:
            return "walk"
        look = check_gradient(
            self.problem,
            self.engine.pilot,
            u,
            self.simulations.table.targets,
            self.simulations.next_keys()[0],
        )
        return "walk" if why_distrusted(look) else "hmc"
