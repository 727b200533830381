# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Which gradient of the statistics can be trusted? Decided on a pilot, before training.

For an absolutely continuous statistic and s uniform on (-h, h),

    (T(u + h e) - T(u - h e)) / 2h  =  E_s[ dT(u + s e)/de ],

so the difference of both sides has mean zero over draws of u, with any weight phi(u).
A jump makes the left side see what the derivative does not: a count, a threshold, a
bistable circuit. The test is a paired one, with common simulation noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_epi._math.constraints import Targets
from numpyro_epi._model.problem import Problem

# A wrong pathwise gradient is one that misses this share of the true one...
MISSED_SHARE = 0.2
# ...by this many standard errors, over all statistics, directions and weights.
MISSED_Z_SCORE = 5.0
# ...or is not finite for this share of the draws.
MAX_NON_FINITE = 0.01
# Latents up to which dear simulations are kept: in more, weights do not last.
MAX_REPLAY_LATENTS = 12
# More latents than this, and forward mode costs more than it saves.
MAX_FORWARD_LATENTS = 8
# Pathwise gradients this much noisier than differences are those of a chaotic system.
MAX_NOISE_RATIO = 100.0
# Share of failures beyond which the edge of what can be simulated matters: derivatives
# inside do not see it.
MAX_PATHWISE_INVALID = 1e-3


class PilotLook(NamedTuple):
    """How derivatives compare with differences.

    Attributes:
        missed: share of the change that derivatives miss; 0 where not significant.
        z_score: of `missed`.
        non_finite: share of draws whose derivatives are not finite.
        noise: ratio of the variances of derivatives and differences.
        invalid: share of draws that cannot be simulated, on one side or the other.
    """

    missed: float
    z_score: float
    non_finite: float
    noise: float
    invalid: float


class GradientHealth(NamedTuple):
    """What the pilot found.

    Attributes:
        choice: "reverse", "forward", "score" or "replay"; "none" of a run that was
            stopped before.
        reason: why, in words.
        missed: share of the change of the statistics that their derivative misses; NaN
            if that was not looked at, because no derivative is used.
        non_finite: share of pilot draws whose derivative is not finite; NaN likewise.
    """

    choice: str
    reason: str
    missed: float
    non_finite: float

    @property
    def is_known(self) -> bool:
        """Whether derivatives were looked at."""
        return not np.isnan(self.missed)

    @property
    def is_trusted(self) -> bool:
        """Whether derivatives of the statistics tell how they change."""
        return self.missed <= MISSED_SHARE and self.non_finite <= MAX_NON_FINITE


def check_gradient(
    problem: Problem, pilot: Callable, u: np.ndarray, targets: Targets, key: jax.Array
) -> PilotLook:
    """Compare derivatives with differences around draws u, shape (n, D)."""
    num, dim = u.shape
    steps = 0.2 * np.maximum(u.std(axis=0), 1e-6)
    key_noise, key_where = random.split(key)
    directions = np.arange(num) % dim
    differences, slopes = pilot(
        jnp.asarray(u),
        jnp.asarray(steps, u.dtype),
        jnp.asarray(directions),
        random.split(key_noise, num),
        random.uniform(key_where, (num,), minval=-1.0, maxval=1.0),
        targets,
    )
    differences = np.asarray(differences, np.float64)
    slopes = np.asarray(slopes, np.float64)
    is_simulated = np.isfinite(differences).all(1)
    is_finite = np.isfinite(slopes).all(1)
    non_finite = float((is_simulated & ~is_finite).sum() / max(is_simulated.sum(), 1))
    invalid = float(1.0 - is_simulated.mean())
    rows = is_simulated & is_finite
    if rows.sum() < 50:
        return PilotLook(0.0, 0.0, non_finite, 1.0, invalid)
    u, differences, slopes = u[rows], differences[rows], slopes[rows]
    coordinate = (u - u.mean(0)) / u.std(0)
    along = coordinate[np.arange(len(u)), directions[rows]]
    # What a statistic changes by, or a thousandth of that along its main direction: it
    # may not depend on this one at all, and rounding is no jump.
    least = 1e-3 * np.abs(differences).mean(0) + 1e-12
    missed, z_score = 0.0, 0.0
    for group in range(dim):
        chosen = directions[rows] == group
        if chosen.sum() < 30:
            continue
        difference, slope = differences[chosen], slopes[chosen]
        # Rank-like squashing keeps heavy tails of T from hiding a missed jump.
        size = np.median(np.abs(difference), axis=0) + np.median(np.abs(slope), axis=0)
        size = np.where(size > 0, size, np.abs(difference).mean(0))
        size = np.maximum(size, least)
        gap = np.clip((difference - slope) / size, -10.0, 10.0)
        total = np.maximum(np.clip(np.abs(difference) / size, 0.0, 10.0).mean(0), 0.01)
        for weight in (np.ones(len(gap)), along[chosen]):
            term = weight[:, None] * gap
            error = term.std(0) / np.sqrt(chosen.sum()) + 1e-12
            score = np.abs(term.mean(0)) / error
            share = np.abs(term.mean(0)) / total
            worst = int(np.argmax(np.where(score > MISSED_Z_SCORE, share, -1.0)))
            if score[worst] > MISSED_Z_SCORE and share[worst] > missed:
                missed, z_score = float(share[worst]), float(score[worst])
    ratio = slopes.var(0) / np.maximum(differences.var(0), 1e-12)
    moving = differences.var(0) > 0
    noise = float(ratio[moving].min()) if moving.any() else 1.0
    return PilotLook(missed, z_score, non_finite, noise, invalid)


def choose_gradient(
    problem: Problem,
    pilot: Callable,
    u: np.ndarray,
    targets: Targets,
    key: jax.Array,
    *,
    requested: str,
    can_score: bool,
    can_replay: bool = False,
    masks_invalid: bool = False,
    leaves_out: bool = False,
) -> GradientHealth:
    """Decide how to differentiate the statistics.

    Args:
        problem: the model.
        pilot: from `slopes.make_pilot`.
        u: draws around which to look, shape (n, D).
        targets: of the statistics.
        key: random key.
        requested: the option `stat_gradient`.
        can_score: whether the guide has the density that a score needs.
        can_replay: whether the guide is near its target and changes slowly.
        masks_invalid: whether any number of failed simulations is left out.
        leaves_out: whether a few of them are.
    """
    cost, derivatives = problem.cost, problem.derivatives
    if requested in ("forward", "reverse"):
        derivatives.check(requested, option="stat_gradient")
    if not derivatives.has_any and not can_score:
        raise ValueError(
            "Expected a model that can be differentiated, because this guide has "
            "no density at given points, but JAX refuses derivatives in both "
            f"modes: {derivatives.reverse} Use `numpyro_epi.guides.AutoRealNVP`."
        )
    unseen = (np.nan, np.nan)
    if requested == "auto" and can_score and can_replay and is_dear(problem):
        why = f"few latents, and {cost.num_operations:.1g} operations per simulation"
        if cost.has_callback:
            why = "simulations leave JAX in a callback, and are kept"
        return GradientHealth("replay", why, *unseen)
    if masks_invalid and requested != "replay":
        why = "failed simulations are masked, which moves the edge of the target"
        return GradientHealth("score", why, *unseen)
    if requested in ("score", "replay"):
        return GradientHealth(requested, "as requested", *unseen)
    if not derivatives.has_any:
        return GradientHealth("score", "JAX cannot differentiate the model", *unseen)
    look = check_gradient(problem, pilot, u, targets, key)
    seen = look.missed, look.non_finite
    if leaves_out and can_score and look.invalid > MAX_PATHWISE_INVALID:
        why = f"{look.invalid:.1%} of the simulations fail, and derivatives do not see"
        return GradientHealth("score", f"{why} that edge", *seen)
    if requested != "auto":
        return GradientHealth(requested, "as requested", *seen)
    reason = why_distrusted(look)
    if reason and can_score:
        return GradientHealth("score", reason, *seen)
    is_forward = cost.has_loop and problem.num_latents <= MAX_FORWARD_LATENTS
    choice = "forward" if is_forward else "reverse"
    why = "few latents and a long simulation" if is_forward else "smooth"
    if derivatives.reason_against(choice):
        why = f"the model has no derivatives in {choice} mode"
        choice = "reverse" if is_forward else "forward"
    return GradientHealth(choice, reason or why, *seen)


def is_dear(problem: Problem) -> bool:
    """Whether simulations are worth keeping, and can be used again."""
    if problem.cost.has_callback:
        # In 32 latents replay costs 0.05 nats, and makes a sixth of the calls.
        return True
    is_small = problem.num_latents <= MAX_REPLAY_LATENTS
    return is_small and problem.cost.is_dear


def why_distrusted(look: PilotLook) -> str:
    """Why derivatives cannot be trusted, if they cannot."""
    if look.non_finite > MAX_NON_FINITE:
        return f"{look.non_finite:.1%} of the derivatives are not finite"
    if look.missed > MISSED_SHARE:
        return (
            f"derivatives miss {look.missed:.0%} of the change of a statistic, or of "
            f"log L (z = {look.z_score:.0f}): it jumps"
        )
    if look.noise > MAX_NOISE_RATIO:
        return f"derivatives are {look.noise:.0f} times noisier than differences"
    return ""
