# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Rounds of adaptive multiple importance sampling with the guide as a proposal.

See `warm_start` for the method. While the targets are still out of reach, half of each
round's draws come from a Gaussian with the weighted moments of the pool instead: a few
hundred effective draws determine it, where they do not determine a flow.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._math.dual import DualSolution, solve_noisy_dual
from numpyro_epi._math.importance import GaussianProposal, systematic_resample
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.fit import fit_best
from numpyro_epi._train.state import PoolDraws, choose_rows
from numpyro_epi._train.warm_start import Pool, solve_pool, split_indices

# Log density of draws u, shape (R, n, D), under a proposal of each restart.
LogDensity = Callable[[np.ndarray], np.ndarray]
Found = list[tuple[DualSolution, float]]
# Nats from the maximum beyond which a fitted guide is left for an untrained one.
MAX_MISFIT = 20.0
# Draws that tell whether a law is in pieces.
ISLAND_DRAWS = 2000
# Share of its misfit that a round leaves, beyond which the next one does not help.
STUCK = 0.9


class AdaptiveSampler:
    """Pools of simulated draws, one for each restart, and the rounds that extend them.

    Args:
        engine: compiled functions.
        simulate: from draws u, shape (R, n, D), to a `Pool` whose arrays have a leading
            axis of restarts.
        next_keys: gives a fresh key for each restart.
    """

    def __init__(
        self,
        engine: Engine,
        simulate: Callable[[np.ndarray], Pool],
        next_keys: Callable[[], jax.Array],
    ) -> None:
        self.engine = engine
        self.simulate = simulate
        self.next_keys = next_keys
        self.options = engine.options
        self.has_var = engine.problem.table.has_var
        self.pools: list[Pool] = []
        self.proposals: list[LogDensity] = []
        # Of the guide that the last round drew from, see `round`.
        self.misfit = np.full(self.options.num_restarts, np.nan)
        # On which the components of the guides' bases stand.
        self.num_islands = [1] * self.options.num_restarts

    @property
    def min_ess(self) -> float:
        """Effective draws that a fit of the guide needs, on the way."""
        wanted = 20.0 * self.engine.problem.num_latents + 100.0
        return min(wanted, 0.1 * self.options.warm_start_size)

    def start(self) -> Found:
        """Simulate draws from the prior, and solve the dual on them."""
        num = 2 * self.options.warm_start_size
        new = self.simulate(self.engine.chunks.prior_draws(self.next_keys(), num))
        self.pools = [_row(new, r) for r in range(self.options.num_restarts)]
        for pool in self.pools:
            log_start = self.engine.problem.log_start(pool.u, pool.log_prior)
            pool.log_proposals.append(log_start)
            pool.counts.append(num)
        return self.solve([None] * len(self.pools))

    def rounds(self, params: Any, found: Found) -> tuple[Any, Found, int]:
        """Fit the guide to the pool, simulate its draws, solve again; until it is good.

        In tens of dimensions weighted draws tell the multipliers but not a flow: where
        it stays far off, there is no use in further rounds, nor in a last fit.

        Returns:
            Parameters of a last fit, the dual solutions, the number of rounds.
        """
        wanted_ess = 0.5 * self.options.warm_start_size
        num_rounds, history = 0, [max(d for _, d in found)]
        before = np.full(self.options.num_restarts, np.nan)
        while num_rounds < self.options.warm_start_rounds:
            if all(d == 0.0 and s.ess >= wanted_ess for s, d in found):
                break
            # Three rounds without coming much closer, by ratio or by difference.
            if len(history) > 3 and history[-4] > 0.0:
                gain = history[-4] - history[-1]
                if gain < 0.5 * history[-4] and gain < 0.1:
                    break
            params = self.fit(params, found, 8)
            found = self.round(params, found)
            num_rounds += 1
            history.append(max(d for _, d in found))
            if (self.misfit > np.maximum(STUCK * before, MAX_MISFIT)).all():
                return params, found, num_rounds
            has_arrived = np.array([d == 0.0 for _, d in found])
            before = np.where(has_arrived, self.misfit, np.nan)
        return self.fit(params, found, 20, is_last=True), found, num_rounds

    def round(self, params: Any, found: Found) -> Found:
        """Add simulated draws of the guide to the pools, and solve again.

        Those of the guide also tell its misfit: nats from the law of the solution.
        """
        start = len(self.pools[0].u)
        size = self.options.warm_start_size
        is_far = any(distance > 0.0 for _, distance in found)
        num = size // 2 if is_far else size
        draws = [self.engine.chunks.draws(params, self.next_keys(), num)[0]]
        proposals: list[LogDensity] = [lambda u: self.engine.chunks.log_q(params, u)]
        if is_far:
            gaussians = [
                GaussianProposal.from_draws(pool.u, solution.weights)
                for pool, (solution, _) in zip(self.pools, found, strict=True)
            ]
            normal = jax.vmap(
                lambda k: random.normal(k, (size - num, draws[0].shape[-1]))
            )
            noise = np.asarray(normal(self.next_keys()))
            draws.append(
                np.stack([g.move(x) for g, x in zip(gaussians, noise, strict=True)])
            )
            proposals.append(
                lambda u: np.stack(
                    [g.log_prob(x) for g, x in zip(gaussians, u, strict=True)]
                )
            )
        u = np.concatenate(draws, axis=1).astype(draws[0].dtype)
        self.add(self.simulate(u), proposals, [part.shape[1] for part in draws])
        found = self.solve([(s.multipliers, distance) for s, distance in found])
        rows = slice(start, start + num)
        self.misfit = np.array(
            [
                _misfit(pool, solution, rows, pool.log_proposals[-len(proposals)])
                for pool, (solution, _) in zip(self.pools, found, strict=True)
            ]
        )
        return found

    def add(self, new: Pool, proposals: list[LogDensity], counts: list[int]) -> None:
        """Append draws (R, n, ...) of one proposal after another.

        The density of every draw under every proposal is kept.
        """
        log_start = self.engine.problem.log_start(new.u, new.log_prior)
        rows = [log_start] + [log_q(new.u) for log_q in self.proposals]
        old = np.stack([pool.u for pool in self.pools])
        both = np.concatenate([old, new.u], axis=1)
        last = [log_q(both) for log_q in proposals]
        for r, pool in enumerate(self.pools):
            pool.extend(_row(new, r))
            pool.log_proposals = [
                np.concatenate([old_row, row[r]])
                for old_row, row in zip(pool.log_proposals, rows, strict=True)
            ] + [row[r] for row in last]
            pool.counts += counts
        self.proposals += proposals

    def solve(self, previous: list, min_ess: float | None = None) -> Found:
        """Dual solution and distance for each restart.

        Args:
            previous: multipliers and distance to go on from, or None, for each restart.
            min_ess: smallest effective sample size to accept.
        """
        least = self.min_ess if min_ess is None else min_ess
        return [
            solve_pool(pool, least, start, self.has_var)
            for pool, start in zip(self.pools, previous, strict=True)
        ]

    def resample(self, weights: list[np.ndarray]) -> tuple[list, list]:
        """Draws to fit and draws to hold out, for each restart."""
        size = self.options.warm_start_size
        offsets = np.asarray(jax.vmap(random.uniform)(self.next_keys()))
        train, held_out = [], []
        for pool, w, offset in zip(self.pools, weights, offsets, strict=True):
            rows = split_indices(w, size, size // 4, float(offset))
            train.append(_draws(pool, rows[0]))
            held_out.append(_draws(pool, rows[1]))
        return train, held_out

    def anchor(
        self,
        found: Found,
        simulate_many: Callable[[np.ndarray], tuple[Pool, np.ndarray]] | None,
    ) -> tuple[np.ndarray, PoolDraws, np.ndarray]:
        """Multipliers (R, K), draws of the law that they define, its log Z (R,).

        A statistic averaged over few simulations is noisy, and weights that contain it
        prefer draws whose noise was lucky; so do those with a noisy log likelihood. So
        draws are resampled, simulated afresh many times, and weighted again: the new
        weights undo the old ones.

        Args:
            found: dual solutions on the pools.
            simulate_many: averages many simulations of each draw, and gives the
                covariance of the averages, shape (R, n, K, K); None where simulations
                are deterministic.
        """
        multipliers = np.stack([s.multipliers for s, _ in found])
        log_normalizers = np.array([s.log_normalizer for s, _ in found])
        draws, _ = self.resample([s.weights for s, _ in found])
        pool = PoolDraws(*(jnp.stack(arrays) for arrays in zip(*draws, strict=True)))
        if simulate_many is None:
            return multipliers, pool, log_normalizers
        pool = pool.without_density
        size = self.options.warm_start_size
        offsets = np.asarray(jax.vmap(random.uniform)(self.next_keys()))
        rows = [
            systematic_resample(solution.weights, size // 2, float(offset))
            for (solution, _), offset in zip(found, offsets, strict=True)
        ]
        u = np.stack([p.u[r] for p, r in zip(self.pools, rows, strict=True)])
        many, covariance = simulate_many(u)
        for r, (solution, distance) in enumerate(found):
            old, new = self.pools[r], _row(many, r)
            log_w = old.deviations[rows[r]] @ solution.multipliers
            log_w += new.log_likelihood - old.log_likelihood[rows[r]]
            log_w = np.where(new.is_valid, log_w, -np.inf)
            again = solve_noisy_dual(
                log_w, new.deviations, covariance[r], solution.multipliers
            )
            if distance > 0.0 or again.residual > 0.05 or again.ess < self.min_ess:
                log_normalizers[r] = np.nan
                continue  # too noisy to be improved: the pool's own solution stays
            multipliers[r] = again.multipliers
            # The old weights had the old log Z: the new weights give the difference.
            log_normalizers[r] += again.log_normalizer
            chosen = systematic_resample(again.weights, size, float(offsets[r]))
            pool = pool._replace(u=pool.u.at[r].set(u[r][chosen]))
        return multipliers, pool, log_normalizers

    def fit(
        self, params: Any, found: Found, num_chunks: int, *, is_last: bool = False
    ) -> Any:
        """The guide, fitted to the weighted pools by maximum likelihood.

        The last fit is the one that training starts from: with weight decay, if that
        suits it better.
        """
        train, held_out = (
            jnp.stack([draws.u for draws in part])
            for part in self.resample([s.weights for s, _ in found])
        )
        params = self._split(params, found, train)
        keys = self.next_keys()
        args = train, held_out, keys, num_chunks
        if is_last:
            return fit_best(self.engine.fit, params, *args)
        return self.engine.fit(params, *args, 0.0)[0]

    def _split(self, params: Any, found: Found, train: jax.Array) -> Any:
        """Give the base of a guide a component on each island of its weighted draws.

        Guides whose number of islands has changed start anew; the weights of the
        components of the others follow the draws.
        """
        components = self.engine.guide.components
        if components is None:
            return params
        draws = [self._island_draws(*solved) for solved in enumerate(found)]
        islands = [components.find_islands(u) for u, _ in draws]
        nums = [int(labels.max()) + 1 for labels in islands]
        is_new = np.array(nums) != self.num_islands
        old = components.get(params)
        if not is_new.any():
            return params if old is None else self.engine.reweigh(params, train)
        self.num_islands = nums
        new = [
            components.on_islands(*pair, labels) if labels.any() else components.none(1)
            for pair, labels in zip(draws, islands, strict=True)
        ]
        # Powers of two: a program is compiled for each number of components.
        num = 1 << (max(c.num for c in new) - 1).bit_length()
        new = jax.tree.map(lambda *x: jnp.stack(x), *(c.padded(num) for c in new))
        if old is not None and old.num == num:
            new = choose_rows(is_new, new, old)
        flow = components.set(params, None)
        flow = choose_rows(is_new, self.engine.init_params(self.next_keys()), flow)
        return components.set(flow, new)

    def _island_draws(
        self, r: int, found: tuple[DualSolution, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distinct weighted draws of a restart, and counts; none before it arrives."""
        solution, distance = found
        u = self.pools[r].u
        if distance > 0.0:
            return u[:1], np.ones(1, int)
        rows = systematic_resample(solution.weights, ISLAND_DRAWS, 0.5)
        rows, counts = np.unique(rows, return_counts=True)
        return u[rows], counts


def _misfit(
    pool: Pool, solution: DualSolution, rows: slice, log_q: np.ndarray
) -> float:
    """Log Z minus the score of a guide, from its own draws; infinite without any."""
    score = pool.log_prior + pool.log_likelihood - log_q
    score = (score - pool.deviations @ solution.multipliers)[rows]
    score = score[pool.is_valid[rows] & np.isfinite(score)]
    return solution.log_normalizer - score.mean() if score.size else np.inf


def _draws(pool: Pool, rows: np.ndarray) -> PoolDraws:
    """Rows of the pool of one restart."""
    log_model = pool.log_prior[rows] + pool.log_likelihood[rows]
    arrays = pool.u[rows], log_model, pool.deviations[rows]
    return PoolDraws(*(jnp.asarray(x, pool.u.dtype) for x in arrays))


def _row(pool: Pool, r: int) -> Pool:
    """One restart of a pool whose arrays have a leading axis of restarts."""
    return Pool(
        pool.u[r],
        pool.log_prior[r],
        pool.log_likelihood[r],
        pool.deviations[r],
        pool.is_valid[r],
        None if pool.noise is None else pool.noise[r],
    )
