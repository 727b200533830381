# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The search for the law of a model, one round at a time.

Of a few latents importance sampling finds it (`population`), of many Markov chains
(`particles`). The verdict is of draws that have chosen neither multipliers nor path.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import random

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._solver.by_chains import (
    NUM_GROUPS,
    ChainsState,
    advance_chains,
    init_chains,
)
from numpyro_epi._solver.by_importance import (
    Verdict,
    advance_verdict,
    is_final,
    start_verdict,
)
from numpyro_epi._solver.draws import Note, Programs, Simulator
from numpyro_epi._solver.law import MAX_LAG, Law, Standard
from numpyro_epi._solver.particles import Particles
from numpyro_epi._solver.population import Population, PopulationState
from numpyro_epi._typing import existing

# Latents up to which importance sampling is tried first.
MAX_IMPORTANCE_LATENTS = 12
# Draws of a round, and particles of chains, as shares of a search's size.
ROUND, PARTICLES = 0.2, 0.1
# Particles of a group of the second population at least.
MIN_GROUP = 10
# Nats below zero that a divergence may seem to have.
MIN_NATS = 0.05


class Search(NamedTuple):
    """How far the search for one law is.

    Attributes:
        table: targets and units, which change on the way.
        num_repeats: simulations of each draw, which may be doubled.
        rng_key: of the search.
        stage: what comes next: "prior", "rounds", "verdict", "chains", or "done".
        num_simulations: so far.
        num_moves: those of them that moves of chains have made.
        population: of importance sampling.
        is_quiet: whether noise is so small that chains may move under one draw of it.
        verdict: on a law by importance sampling.
        kind: moves of chains: "hmc", "walk", or "" before there are any.
        chains: their state.
        found: the best law so far.
    """

    table: ConstraintTable
    num_repeats: int
    rng_key: jax.Array
    stage: str = "prior"
    num_simulations: int = 0
    num_moves: int = 0
    population: PopulationState | None = None
    is_quiet: bool = True
    verdict: Verdict | None = None
    kind: str = ""
    chains: ChainsState | None = None
    found: Law | None = None

    @property
    def is_done(self) -> bool:
        """Whether `found` is what is found."""
        return self.stage == "done"

    @property
    def law(self) -> Law:
        """What is found."""
        return existing(self.found)


class Searcher:
    """What searches for laws of one model.

    Args:
        programs: of the model.
        standard: of the verdict.
        choose_kind: moves of chains, if these are needed: "hmc", or "walk" where
            gradients are of no use.
        size: of a search: a round of importance sampling has a fifth of it.
        note: takes note of all simulations, and may stop a run.
    """

    def __init__(
        self,
        programs: Programs,
        standard: Standard,
        choose_kind: Callable[[], str],
        *,
        size: int = 10_000,
        note: Note = lambda *_: None,
    ) -> None:
        self.programs = programs
        self.problem = programs.problem
        self.standard = standard
        self.choose_kind = choose_kind
        self.size = size
        self.note = note
        self.is_narrow = self.problem.num_latents <= MAX_IMPORTANCE_LATENTS

    def run(self, search: Search) -> Search:
        """The whole of it."""
        while not search.is_done:
            search = self.advance(search)
        return search

    def advance(self, search: Search) -> Search:
        """One round, of whatever comes next."""
        simulator = Simulator(
            self.programs,
            search.table,
            search.num_repeats,
            self.note,
            search.num_simulations,
            search.num_moves,
        )
        step = {
            "prior": self._start,
            "rounds": self._advance_population,
            "verdict": self._advance_verdict,
            "chains": self._advance_chains,
        }[search.stage]
        return step(search, simulator)._replace(
            table=simulator.table,
            num_repeats=simulator.num_repeats,
            num_simulations=simulator.num_simulations,
            num_moves=simulator.num_moves,
        )

    def _population(self, simulator: Simulator) -> Population:
        return Population(simulator, int(ROUND * self.size))

    def _start(self, search: Search, simulator: Simulator) -> Search:
        """Draws of the prior, if importance sampling may be the way."""
        if not (self.is_narrow or search.num_repeats > 1):
            return search._replace(stage="chains")
        population = self._population(simulator)
        state = population.init(random.split(search.rng_key, 3)[0])
        is_quiet = state.draws.is_quiet
        goes_on = self.is_narrow or not is_quiet
        return search._replace(
            stage="rounds" if goes_on else "chains", population=state, is_quiet=is_quiet
        )

    def _advance_population(self, search: Search, simulator: Simulator) -> Search:
        population, state = self._population(simulator), existing(search.population)
        if not (state.is_done or state.is_stalled):
            return search._replace(population=population.advance(state))
        if not state.is_done and search.is_quiet:
            return search._replace(stage="chains")
        state = population.refine(state) if state.is_done else state
        return self._judge(search, population, state)

    def _judge(
        self,
        search: Search,
        population: Population,
        state: PopulationState,
        attempt: int = 0,
    ) -> Search:
        """A verdict is due."""
        key = random.split(search.rng_key, 3)[1]
        verdict = start_verdict(population, state, key, self.size, attempt)
        return search._replace(stage="verdict", population=state, verdict=verdict)

    def _advance_verdict(self, search: Search, simulator: Simulator) -> Search:
        population = self._population(simulator)
        verdict, law, state = advance_verdict(
            population,
            existing(search.population),
            existing(search.verdict),
            self.standard,
            self.size,
        )
        search = search._replace(verdict=verdict, population=state)
        if law is None:
            return search
        if not is_final(population, state, verdict, law, self.size):
            state = population.solve(state)
            return self._judge(search, population, state, verdict.attempt + 1)
        if search.chains is not None:
            by_chains = existing(search.chains.law)
            return self._finish(search, law if law.converged else by_chains)
        if law.converged or not search.is_quiet:
            return self._finish(search, law)
        return search._replace(stage="chains", found=law)

    def _advance_chains(self, search: Search, simulator: Simulator) -> Search:
        kind = search.kind or self.choose_kind()
        num = NUM_GROUPS * max(int(PARTICLES * self.size) // NUM_GROUPS, MIN_GROUP)
        particles = Particles(simulator, kind, num)
        if search.chains is None:
            state = init_chains(particles, search.rng_key)
        else:
            state = advance_chains(particles, search.chains, self.standard)
        search, law = search._replace(kind=kind, chains=state), state.law
        if law is None:
            return search
        if not self.is_narrow or not law.is_at_the_targets or law.converged:
            return self._finish(search, law)
        # Log Z along a path lags more than the draws at its end: those show the way.
        population = self._population(simulator)
        key = random.split(search.rng_key, 3)[2]
        around = population.at(law.pool, law.multipliers, key)
        return self._judge(search, population, around)

    def _finish(self, search: Search, law: Law) -> Search:
        """The better one of two laws, if its density is one."""
        other = search.found
        if other is not None and other.is_usable and not law.converged:
            law = other
        return search._replace(
            stage="done",
            found=self._with_doubts(law),
            population=None,
            verdict=None,
            chains=None,
        )

    def _with_doubts(self, law: Law) -> Law:
        if not (law.converged and self.problem.can_sample_prior):
            return law
        fit = law.weights @ law.draws.log_likelihood
        divergence = fit - law.multipliers @ law.violation - law.log_normalizer
        if divergence > -(MIN_NATS + MAX_LAG * law.log_normalizer_error):
            return law
        return law._replace(
            reason=f"its KL from the prior is {divergence:.2g} nats, and none is "
            "negative: the density of a prior does not integrate to one"
        )
