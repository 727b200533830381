# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Do the targets of a run contradict each other, in every simulation there is?

Relations between statistics are suspected on draws of the prior, and believed only
where draws near the law have them too: a rate that is rectified at zero is constant, or
a copy of another, wherever the prior does not reach. So the warm start goes to targets
that would agree; its draws, and others around them, confirm the relations, or the run
starts over with the targets as they were. Targets that disagree beyond the tolerance
are refused, others replaced by the nearest ones that agree.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import random

from numpyro_epi._math.agreement import (
    AGREED,
    disagreeing,
    distance,
    nearest_targets,
    own_shares,
)
from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._math.dependence import (
    MIN_INFORMATIVE,
    Relation,
    confirmed_relations,
    num_informative,
)
from numpyro_epi._math.importance import GaussianProposal
from numpyro_epi._math.relation_text import (
    describe_relations,
    describe_targets,
    printed,
)
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.simulations import Simulations

# Draws of the law that confirm a relation, and as many of a Gaussian around them.
NUM_DRAWS = 2000
# Of its covariance in that of the law: a law that makes use of an exception is wider.
WIDENING = 4.0
# Times that a run starts over at most, because a relation was believed that is none.
MAX_STARTS = 3
# Statistics whose new targets a message lists; of more, it says where they are.
MAX_LISTED = 12


class ContradictoryTargetsError(ValueError):
    """Targets that no law can have, because statistics depend on each other.

    Attributes:
        relations: what holds in all simulations, in words.
        targets: the nearest targets that agree, `{site: (mean, var)}`, as
            `handlers.retarget` takes them; empty if there are none near by.
    """

    def __init__(
        self,
        message: str,
        relations: Sequence[str] = (),
        targets: dict[str, tuple] | None = None,
    ) -> None:
        self.relations = tuple(relations)
        self.targets = dict(targets or {})
        super().__init__(message)


class Agreement:
    """What is known of relations between statistics, and the targets that follow.

    Sets `Simulations.table`.

    Args:
        engine: compiled functions.
        simulations: of the run, after its pilot.

    Attributes:
        given: the table as the model asks for it.
        stats: statistics of all simulations that were looked at, shape (n, S).
        relations: those that all of these have, if enough of them tell.
        is_settled: whether there is nothing left to look for.
    """

    def __init__(self, engine: Engine, simulations: Simulations) -> None:
        self.engine = engine
        self.simulations = simulations
        self.given = simulations.table
        self.stats = np.asarray(simulations.pilot_stats, np.float64)
        self.relations = self._find(None)
        self.num_starts = 0
        agreed = nearest_targets(self.given, self.relations)
        is_informed = bool((num_informative(self.stats) >= MIN_INFORMATIVE).all())
        # The published algorithm has no draws near the law before its first epoch.
        has_schedule = engine.options.schedule is not None
        self.is_settled = (is_informed and not self.relations) or has_schedule
        if self.is_settled or agreed is None:
            return
        if distance(self.given, agreed) > AGREED:
            simulations.table = agreed

    def _find(self, num_reference: int | None) -> list[Relation]:
        """Relations in all draws so far, which also decide who shares steps."""
        found = confirmed_relations(self.stats, self.given.has_var, num_reference)
        self.simulations.shares = own_shares(self.given, found)
        return found

    def must_start_over(self, u: np.ndarray | None) -> bool:
        """Look at draws near the law; whether the targets have to be others.

        Args:
            u: draws of the law of the present targets, shape (R, n, D), or None.

        Raises:
            ContradictoryTargetsError: if targets disagree beyond the tolerance.
        """
        if self.is_settled or u is None:
            return False
        new = self._simulate(u)
        self.stats = np.concatenate([self.stats, new])
        self.relations = self._find(len(new))
        agreed = nearest_targets(self.given, self.relations)
        tolerance = self.engine.options.tolerance
        if agreed is None:
            if self.simulations.seen.unreachable(self.given) is None:
                raise contradiction(self.given, None, self.relations, len(self.stats))
            agreed = self.given  # which the run will say of itself
        elif distance(self.given, agreed) > tolerance:
            raise contradiction(self.given, agreed, self.relations, len(self.stats))
        elif distance(self.given, agreed) <= AGREED:
            agreed = self.given
        self.num_starts += 1
        self.is_settled = distance(self.simulations.table, agreed) <= AGREED
        if self.is_settled:
            return False
        self.is_settled = self.num_starts >= MAX_STARTS
        self.simulations.table = agreed
        return True

    def _simulate(self, u: np.ndarray) -> np.ndarray:
        """Statistics of draws, and of as many around them, shape (n, S)."""
        u = np.asarray(u)
        keys = jax.vmap(lambda k: random.fold_in(k, u.shape[1]))(self.simulations.keys)
        shape = u.shape[1:]
        noise = jax.vmap(lambda k: random.normal(random.fold_in(k, 1), shape))(keys)
        weights = np.full(u.shape[1], 1.0 / u.shape[1])
        around = np.stack(
            [
                GaussianProposal.from_draws(own, weights, WIDENING).move(np.asarray(x))
                for own, x in zip(u, noise, strict=True)
            ]
        )
        around = around.astype(u.dtype)
        sim = self.engine.chunks.simulate(np.concatenate([u, around], axis=1), keys)
        self.simulations.num_simulations += 2 * u.shape[0] * u.shape[1]
        # Around the law simulations may fail where those of the law do not.
        is_valid = np.isfinite(sim.stats).all(axis=-1) & np.isfinite(sim.log_likelihood)
        return np.asarray(sim.stats[is_valid], np.float64)

    def look_back(self, stats: np.ndarray) -> str | None:
        """Why the draws at the end of a run cannot have the targets, if so.

        For the published algorithm, before which there are no draws near the law.

        Args:
            stats: statistics of all draws, shape (R, n, S).
        """
        if self.is_settled and self.engine.options.schedule is None:
            return None
        new = stats[np.isfinite(stats).all(axis=-1)]
        self.stats = np.concatenate([self.stats, np.asarray(new, np.float64)])
        self.relations = self._find(len(new) or None)
        agreed = nearest_targets(self.given, self.relations)
        tolerance = self.engine.options.tolerance
        if agreed is None or distance(self.given, agreed) <= tolerance:
            return None
        return str(contradiction(self.given, agreed, self.relations, len(self.stats)))

    def warn(self) -> None:
        """Say that the targets of the run are not those of the model."""
        table = self.simulations.table
        far = distance(self.given, table)
        if far <= AGREED:
            return
        where = involved(self.given, self.relations)
        warnings.warn(
            f"{_disagreement(self.given, self.relations, len(self.stats))} That is "
            f"within the tolerance of {self.engine.options.tolerance:g}, so the run "
            "takes the nearest targets that agree: "
            f"{describe_targets(table, where)}. To be rid of this warning, "
            f"{_way_out(table, where)}.",
            UserWarning,
            stacklevel=4,
        )


def contradiction(
    given: ConstraintTable,
    agreed: ConstraintTable | None,
    relations: Sequence[Relation],
    num_simulations: int,
    call: str = "numpyro_epi.handlers.retarget(model",
) -> ContradictoryTargetsError:
    """The error for targets that disagree; `agreed` are the nearest that do not.

    Args:
        given: targets.
        agreed: the nearest that agree, or None.
        relations: between the statistics.
        num_simulations: in which they hold.
        call: beginning of the call that takes other targets.
    """
    message = f"{_disagreement(given, relations, num_simulations)} No law has them. "
    names = describe_relations(relations, given.statistic_labels)
    where = involved(given, relations)
    if agreed is None:
        message += "Leave one of these out, or its variance."
        return ContradictoryTargetsError(message, names)
    message += (
        f"Leave one of these out, or its variance, or {_way_out(agreed, where, call)}: "
        f"the nearest targets that agree are {describe_targets(agreed, where)}."
    )
    return ContradictoryTargetsError(message, names, new_targets(agreed, where))


def involved(table: ConstraintTable, relations: Sequence[Relation]) -> list[int]:
    """Statistics of relations with which the targets disagree."""
    found = disagreeing(table, relations)
    return sorted({int(i) for relation in found for i in relation.statistics})


def new_targets(table: ConstraintTable, indices: Sequence[int]) -> dict[str, tuple]:
    """Targets of the sites of some statistics, as `handlers.retarget` takes them."""
    rounded = replace(
        table,
        mean=np.array([printed(*x) for x in zip(table.mean, table.scale, strict=True)]),
        var=np.array([printed(v, v) if v > 0 else v for v in table.var]),
    )
    means, variances = table.split(rounded.mean), table.split(rounded.var)
    is_in = table.split(np.isin(np.arange(table.num_statistics), list(indices)))
    return {
        name: (means[name].tolist(),)
        if np.isnan(variances[name]).any()
        else (means[name].tolist(), variances[name].tolist())
        for name, _ in table.sites
        if is_in[name].any()
    }


def _disagreement(
    table: ConstraintTable, relations: Sequence[Relation], num_simulations: int
) -> str:
    where = involved(table, relations)
    near = [r for r in relations if set(r.statistics) & set(where)]
    names = "; ".join(describe_relations(near, table.statistic_labels))
    return (
        f"Expected targets that agree with each other, but {names} in all "
        f"{num_simulations:,} simulations that were looked at, while the targets are "
        f"{describe_targets(table, where)}."
    )


def _way_out(
    table: ConstraintTable,
    indices: Sequence[int],
    call: str = "numpyro_epi.handlers.retarget(model",
) -> str:
    shown: Any = new_targets(table, indices)
    if len(indices) > MAX_LISTED:
        shown = "targets"
    return f"use `{call}, {shown})`"


def relations_in_words(table: ConstraintTable, stats: np.ndarray) -> tuple[str, ...]:
    """What `EPI.check` says of relations in draws of the prior, (n, S)."""
    relations = confirmed_relations(stats, table.has_var)
    names = describe_relations(relations, table.statistic_labels)
    lines = [f"in all of these simulations {name}" for name in names]
    where = involved(table, relations)
    agreed = nearest_targets(table, relations)
    if where:
        line = (
            "the targets disagree with that: unless simulations near the law are "
            "another matter, no law has them"
        )
        if agreed is not None:
            line += f"; the nearest that agree: {describe_targets(agreed, where)}"
        lines.append(line)
    return tuple(lines)
