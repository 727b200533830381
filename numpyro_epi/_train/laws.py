# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact laws of a run: one for each restart, and what they tell of its guide."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._solver.draws import Simulator
from numpyro_epi._solver.law import Law, Standard
from numpyro_epi._solver.search import Search, Searcher
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
        found: the law of each restart, if they are found.

    Attributes:
        found: of each restart; None if there is none to be had, as `reason` says.
        reason: why there are no laws, in words; empty if there are.
    """

    def __init__(
        self,
        engine: Engine,
        simulations: Simulations,
        found: Sequence[Law | None] = (),
    ) -> None:
        self.engine = engine
        self.options = engine.options
        self.problem = engine.problem
        self.simulations = simulations
        self.found = tuple(found) or (None,) * self.options.num_restarts
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
        if not self.simulations.ledger.has_weights:
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

    def start(self) -> tuple[Search, ...]:
        """Searches for the laws of all restarts."""
        ledger = self.simulations.ledger
        keys = self.simulations.next_keys()
        return tuple(
            Search(ledger.table, ledger.num_repeats, keys[r])
            for r in range(self.options.num_restarts)
        )

    def advance(self, search: Search, pilot_u: np.ndarray) -> Search:
        """One round of a search.

        Args:
            search: for one law.
            pilot_u: draws of the prior, shape (n, D).
        """
        searcher = Searcher(
            self.engine.programs,
            self.standard,
            lambda: self._kind_of_moves(pilot_u),
            size=self.options.warm_start_size,
            note=self._note,
        )
        new = searcher.advance(search)
        self.simulations.count(new.num_moves - search.num_moves)
        return new

    def settle(self, searches: Sequence[Search]) -> None:
        """Take what the searches have found, in the units of the first law there is."""
        usable = [search.table for search in searches if search.law.is_usable]
        table = usable[0] if usable else self._narrowest(searches)
        self.found = tuple(s.law.in_units(s.table.units_in(table)) for s in searches)
        self.simulations.measure_in(table)

    def _narrowest(self, searches: Sequence[Search]) -> ConstraintTable:
        """The smallest units of draws of the prior, and of laws that are not trusted.

        Units that are too wide would take any guide for one that meets its targets.
        """
        table = self.simulations.table
        for search in searches:
            if search.law.is_at_the_targets:
                scale = np.minimum(table.scale, search.table.scale)
                table = replace(table, scale=scale)
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

    def _note(self, *arrays: np.ndarray) -> np.ndarray:
        return self.simulations.note(*(x[None] for x in arrays))

    def _simulator(self, law: Law) -> Simulator:
        """Simulates draws as often as those of a law."""
        num_repeats = len(law.draws.repeats)
        table = self.simulations.table
        return Simulator(self.engine.programs, table, num_repeats, self._note)

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
        return weigh_to_law(law, self.standard, self._simulator(law), ev, r, key)

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
            gap, error = law.log_normalizer - noise - s.score(law.multipliers), 0.0
            if law.draws.is_quiet:
                gap = np.fmax(gap, gap_of_draws(law, self.simulations.table, ev, r))
            else:
                error = s.score_error
            found.append(s._replace(gap=float(gap), gap_error=error))
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
