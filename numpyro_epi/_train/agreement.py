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
from typing import Any, NamedTuple

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


class Findings(NamedTuple):
    """What is known of relations between the statistics of a run.

    Attributes:
        given: the table as the model asks for it.
        stats: statistics of all simulations that were looked at, shape (n, S).
        relations: those that all of these have, if enough of them tell.
        num_starts: how often draws near the law were looked at.
        is_settled: whether there is nothing left to look for.
    """

    given: ConstraintTable
    stats: np.ndarray
    relations: tuple[Relation, ...]
    num_starts: int
    is_settled: bool


class Agreement:
    """Looks for relations between statistics; see the module.

    Sets the table of the simulations.

    Args:
        engine: compiled functions.
        simulations: of the run, after its pilot.
        findings: so far; None to look at the draws of the pilot.

    Attributes:
        findings: since.
    """

    def __init__(
        self,
        engine: Engine,
        simulations: Simulations,
        findings: Findings | None = None,
    ) -> None:
        self.engine = engine
        self.simulations = simulations
        self.findings = self._look_at_pilot() if findings is None else findings

    def _look_at_pilot(self) -> Findings:
        given = self.simulations.table
        stats = np.asarray(self.simulations.ledger.pilot_stats, np.float64)
        relations = self._find(given, stats, None)
        agreed = nearest_targets(given, relations)
        is_informed = bool((num_informative(stats) >= MIN_INFORMATIVE).all())
        # The published algorithm has no draws near the law before its first epoch.
        has_schedule = self.engine.options.schedule is not None
        is_settled = (is_informed and not relations) or has_schedule
        if not is_settled and agreed is not None and distance(given, agreed) > AGREED:
            self.simulations.know(table=agreed)
        return Findings(given, stats, relations, 0, is_settled)

    def _find(
        self, given: ConstraintTable, stats: np.ndarray, num_reference: int | None
    ) -> tuple[Relation, ...]:
        """Relations in all draws so far, which also decide who shares steps."""
        found = confirmed_relations(stats, given.has_var, num_reference)
        self.simulations.know(shares=own_shares(given, found))
        return tuple(found)

    def _add(self, new: np.ndarray, num_reference: int | None) -> Findings:
        """Take note of statistics of further simulations, shape (n, S)."""
        old = self.findings
        stats = np.concatenate([old.stats, new])
        relations = self._find(old.given, stats, num_reference)
        self.findings = old._replace(stats=stats, relations=relations)
        return self.findings

    def must_start_over(self, u: np.ndarray | None) -> bool:
        """Look at draws near the law; whether the targets have to be others.

        Args:
            u: draws of the law of the present targets, shape (R, n, D), or None.

        Raises:
            ContradictoryTargetsError: if targets disagree beyond the tolerance.
        """
        if self.findings.is_settled or u is None:
            return False
        new = self._simulate(u)
        given, stats, relations, num_starts, _ = self._add(new, len(new))
        agreed = nearest_targets(given, relations)
        tolerance = self.engine.options.tolerance
        if agreed is None:
            if self.simulations.ledger.seen.unreachable(given) is None:
                raise contradiction(given, None, relations, len(stats))
            agreed = given  # which the run will say of itself
        elif distance(given, agreed) > tolerance:
            raise contradiction(given, agreed, relations, len(stats))
        elif distance(given, agreed) <= AGREED:
            agreed = given
        stays = distance(self.simulations.table, agreed) <= AGREED
        is_settled = stays or num_starts + 1 >= MAX_STARTS
        self.findings = self.findings._replace(
            num_starts=num_starts + 1, is_settled=is_settled
        )
        if not stays:
            self.simulations.know(table=agreed)
        return not stays

    def _simulate(self, u: np.ndarray) -> np.ndarray:
        """Statistics of draws, and of as many around them, shape (n, S)."""
        u = np.asarray(u)
        keys = jax.vmap(lambda k: random.fold_in(k, u.shape[1]))(
            self.simulations.ledger.keys
        )
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
        self.simulations.count(2 * u.shape[0] * u.shape[1])
        # Around the law simulations may fail where those of the law do not.
        is_valid = np.isfinite(sim.stats).all(axis=-1) & np.isfinite(sim.log_likelihood)
        return np.asarray(sim.stats[is_valid], np.float64)

    def look_back(self, stats: np.ndarray) -> str | None:
        """Why the draws at the end of a run cannot have the targets, if so.

        For the published algorithm, before which there are no draws near the law.

        Args:
            stats: statistics of all draws, shape (R, n, S).
        """
        has_schedule = self.engine.options.schedule is not None
        if self.findings.is_settled and not has_schedule:
            return None
        new = stats[np.isfinite(stats).all(axis=-1)]
        found = self._add(np.asarray(new, np.float64), len(new) or None)
        agreed = nearest_targets(found.given, found.relations)
        tolerance = self.engine.options.tolerance
        if agreed is None or distance(found.given, agreed) <= tolerance:
            return None
        return str(
            contradiction(found.given, agreed, found.relations, len(found.stats))
        )

    def warn(self) -> None:
        """Say that the targets of the run are not those of the model."""
        given, stats, relations, *_ = self.findings
        table = self.simulations.table
        if distance(given, table) <= AGREED:
            return
        where = involved(given, relations)
        warnings.warn(
            f"{_disagreement(given, relations, len(stats))} That is "
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
