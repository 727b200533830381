# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What can be known of a model before any training."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._math.constraints import ConstraintTable
from numpyro_epi._train.agreement import relations_in_words
from numpyro_epi._train.engine import Engine
from numpyro_epi._train.failures import exceeds, show_share
from numpyro_epi._train.pilot import GradientHealth, choose_gradient
from numpyro_epi._train.plan import Plan, plan
from numpyro_epi._train.precision import check_latents, check_statistics
from numpyro_epi._train.simulations import differs


class EPICheck(NamedTuple):
    """Report of `EPI.check`; `print` it.

    Attributes:
        table: constraints with their targets and scales.
        num_latents: D, unconstrained coordinates.
        prior_mean: mean of each statistic over prior draws, (S,).
        prior_sd: its standard deviation, (S,).
        prior_quantile: share of prior draws below the target mean, (S,).
        prior_range: smallest and largest value, (2, S).
        invalid: share of prior draws that cannot be simulated.
        is_noisy: whether statistics differ between simulations of the same latents.
        seconds_per_1000: wall-clock time of 1,000 simulations, compiled.
        gradient: how statistics would be differentiated near the prior, and why.
        num_draws: prior draws behind all this.
        plan: how many simulations a run makes, and how long it takes, roughly.
        advice: what a run would do about the failures, if there are any.
        has_noisy_likelihood: whether the log likelihood differs, too.
        notes: on its noise, in words.
        relations: statistics that say the same thing in all these simulations, and
            whether the targets agree with that, in words.
        improper: sites whose prior has no draws. Then "prior" is, in all fields, a wide
            Gaussian about the law of model and data.
    """

    table: ConstraintTable
    num_latents: int
    prior_mean: np.ndarray
    prior_sd: np.ndarray
    prior_quantile: np.ndarray
    prior_range: np.ndarray
    invalid: float
    is_noisy: bool
    seconds_per_1000: float
    gradient: GradientHealth
    num_draws: int
    plan: Plan
    advice: str
    has_noisy_likelihood: bool = False
    notes: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    improper: tuple[str, ...] = ()

    def __str__(self) -> str:
        noisy = "noisy" if self.is_noisy else "deterministic"
        lines = [
            f"{self.num_latents} latent coordinates, {self.table.num_constraints} "
            f"constraints, {noisy} statistics, {self.seconds_per_1000:.3g} s per 1,000 "
            "simulations",
            show_share(round(self.invalid * self.num_draws), self.num_draws)
            + self.advice,
            str(self.plan),
            *self.notes,
            f"gradient of statistics: {self.gradient.choice} ({self.gradient.reason})",
            *self._on_improper(),
            f"{'statistic':24s} {'target':>22s} {'prior predictive':>22s} "
            f"{'range':>22s} {'P(below)':>9s}",
        ]
        for i, label in enumerate(self.table.statistic_labels):
            sd = np.sqrt(self.table.var[i])
            target = f"{self.table.mean[i]:.4g}"
            target += "" if np.isnan(sd) else f" +- {sd:.3g}"
            low, high = self.prior_range[:, i]
            lines.append(
                f"{label[:24]:24s} {target:>22s} "
                f"{f'{self.prior_mean[i]:.4g} +- {self.prior_sd[i]:.3g}':>22s} "
                f"{f'[{low:.4g}, {high:.4g}]':>22s} {self.prior_quantile[i]:9.3f}"
            )
        return "\n".join([*lines, *self.relations])

    def _on_improper(self) -> list[str]:
        names = ", ".join(f"`{name}`" for name in self.improper)
        text = f"the prior of {names} has no draws: a wide Gaussian stands in for it"
        return [text] if names else []


def check_problem(engine: Engine, rng_key: jax.Array, num: int = 2000) -> EPICheck:
    """Simulate prior draws and look at the statistics and their gradient."""
    keys = jax.random.split(rng_key, 4)
    u = engine.chunks.prior_draws(keys[:1], num)
    first = engine.chunks.simulate(u, keys[1:2])
    began = time.perf_counter()
    again = engine.chunks.simulate(u, keys[2:3])
    seconds = (time.perf_counter() - began) / engine.chunks.num_simulated(num)
    stats = first.stats[0].astype(np.float64)
    good = np.isfinite(stats).all(axis=1) & np.isfinite(first.log_likelihood[0])
    table = engine.problem.table
    if good.any():
        table = table.with_scale(stats[good])
        check_statistics(table, engine.problem.stat_dtypes)
    latents, _ = engine.problem.constrain(jnp.asarray(u[0]))
    check_latents(jax.tree.map(np.asarray, latents))
    kept = stats[good] if good.any() else np.full((1, stats.shape[1]), np.nan)
    is_noisy = differs(first.stats, again.stats)
    gradient = choose_gradient(
        engine.problem,
        engine.pilot,
        np.asarray(u[0]),
        table.targets,
        keys[3],
        requested=engine.options.stat_gradient,
        can_score=engine.guide.has_fast_density,
        can_replay=engine.options.warm_start is not False,
        masks_invalid=engine.options.on_invalid == "mask",
        leaves_out=engine.options.leaves_out,
    )
    noisy_likelihood = engine.problem.minibatches.are_noisy
    noisy_likelihood |= differs(first.log_likelihood, again.log_likelihood)
    notes = engine.problem.likelihood_noise.sentences() if noisy_likelihood else []
    return EPICheck(
        table=table,
        num_latents=engine.problem.num_latents,
        prior_mean=kept.mean(axis=0),
        prior_sd=kept.std(axis=0),
        prior_quantile=(kept < table.mean).mean(axis=0),
        prior_range=np.stack([kept.min(axis=0), kept.max(axis=0)]),
        invalid=float(1.0 - good.mean()),
        is_noisy=is_noisy,
        seconds_per_1000=1000.0 * seconds,
        gradient=gradient,
        num_draws=num,
        plan=plan(engine, gradient.choice, seconds, is_noisy=is_noisy),
        advice=_advice(engine.options.on_invalid, int((~good).sum()), num),
        has_noisy_likelihood=noisy_likelihood,
        notes=tuple(notes),
        relations=relations_in_words(table, kept) if good.any() else (),
        improper=engine.problem.improper,
    )


def _advice(policy: str, num_failed: int, num: int) -> str:
    """What a run would do about failures."""
    if num_failed == 0:
        return ""
    if num_failed == num:
        return ": a run would stop there"
    if policy == "raise" or (policy == "auto" and exceeds(num_failed, num)):
        return ': a run would stop there; `on_invalid="mask"` leaves them out'
    return ": left out, which restricts the prior to latents that can be simulated"
