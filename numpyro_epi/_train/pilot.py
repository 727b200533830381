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
from jax import random, vmap

from numpyro_epi._math.constraints import Targets, deviations
from numpyro_epi._train.problem import Problem

# A wrong pathwise gradient is one that misses this share of the true one...
MISSED_SHARE = 0.2
# ...by this many standard errors, over all statistics, directions and weights.
MISSED_Z_SCORE = 5.0
# ...or is not finite for this share of the draws.
MAX_NON_FINITE = 0.01
# Scalar operations of a simulation that costs more than a step of the default flow: its
# simulations are worth keeping. In more latents importance weights do not last.
MIN_REPLAY_OPERATIONS = 1e5
MAX_REPLAY_LATENTS = 12
# More latents than this, and forward mode costs more than it saves.
MAX_FORWARD_LATENTS = 8
# Pathwise gradients this much noisier than differences are those of a chaotic system.
MAX_NOISE_RATIO = 100.0


class GradientHealth(NamedTuple):
    """What the pilot found.

    Attributes:
        choice: "reverse", "forward", "score" or "replay".
        reason: why, in words.
        missed: share of the change of the statistics that their derivative misses.
        non_finite: share of pilot draws whose derivative is not finite.
    """

    choice: str
    reason: str
    missed: float
    non_finite: float

    @property
    def is_trusted(self) -> bool:
        """Whether derivatives of the statistics tell how they change."""
        return self.missed <= MISSED_SHARE and self.non_finite <= MAX_NON_FINITE


def make_pilot(problem: Problem, has_var: np.ndarray) -> Callable:
    """Paired differences and derivatives along coordinate directions.

    Returns:
        A function of (u of shape (n, D), step sizes (D,), direction indices (n,), keys
        (n,), uniforms in (-1, 1) (n,), targets), giving differences and derivatives,
        both of shape (n, K), or (n, K + 1) with the log likelihood of data.
    """

    def stat(u: jax.Array, key: jax.Array, targets: Targets) -> jax.Array:
        sim = problem.simulate(u, key)
        devs = deviations(sim.stats, targets, has_var)
        if not problem.has_likelihood:
            return devs
        return jnp.append(devs, sim.log_likelihood)

    def one(u, steps, direction, key, where, targets):  # noqa: ANN001, ANN202
        size = steps[direction]
        unit = jnp.zeros_like(u).at[direction].set(1.0)
        # As one batch: simulations next to each other can hang, see `lapack`.
        places = u + size * jnp.stack([1.0, -1.0, where])[:, None] * unit
        stats, slopes = look(lambda v: stat(v, key, targets), places, unit)
        return (stats[0] - stats[1]) / 2.0, slopes[2] * size

    look = _backward if problem.derivatives.forward else _forward
    return jax.jit(vmap(one, in_axes=(0, None, 0, 0, 0, None)))


def _forward(
    fn: Callable, places: jax.Array, unit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Values at places (n, D) and derivatives along a unit vector, shapes (n, K)."""
    return jax.jvp(vmap(fn), (places,), (jnp.broadcast_to(unit, places.shape),))


def _backward(
    fn: Callable, places: jax.Array, unit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same in reverse mode, one pass for each statistic."""

    def both(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = fn(v)
        return value, value

    jacobian, values = vmap(jax.jacrev(both, has_aux=True))(places)
    return values, jacobian @ unit


def check_gradient(
    problem: Problem, pilot: Callable, u: np.ndarray, targets: Targets, key: jax.Array
) -> tuple[float, float, float, float]:
    """Compare derivatives with differences around draws u, shape (n, D).

    Returns:
        Share of the change that derivatives miss (0 where not significant), its
        z-score, share of non-finite derivatives, ratio of their variances.
    """
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
    rows = is_simulated & is_finite
    if rows.sum() < 50:
        return 0.0, 0.0, non_finite, 1.0
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
    return missed, z_score, non_finite, noise


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
) -> GradientHealth:
    """Decide how to differentiate the statistics.

    Args:
        problem: the model.
        pilot: from `make_pilot`.
        u: draws around which to look, shape (n, D).
        targets: of the statistics.
        key: random key.
        requested: the option `stat_gradient`.
        can_score: whether the guide has the density that a score needs.
        can_replay: whether the guide is near its target and changes slowly.
        masks_invalid: whether failed simulations are left out.
    """
    cost, derivatives = problem.cost, problem.derivatives
    if requested in ("forward", "reverse"):
        derivatives.check(requested, option="stat_gradient")
    is_forward = cost.has_loop and problem.num_latents <= MAX_FORWARD_LATENTS
    pathwise = "forward" if is_forward else "reverse"
    other = "reverse" if is_forward else "forward"
    found = (0.0, 0.0, 0.0, 1.0)
    if not derivatives.has_any:
        if not can_score:
            raise ValueError(
                "Expected a model that can be differentiated, because this guide has "
                "no density at given points, but JAX refuses derivatives in both "
                f"modes: {derivatives.reverse} Use `numpyro_epi.guides.AutoRealNVP`."
            )
        found = (1.0, np.inf, 0.0, 1.0)
    else:
        if derivatives.reason_against(pathwise):
            pathwise = other
        found = check_gradient(problem, pilot, u, targets, key)
    missed, z_score, non_finite, noise = found
    is_dear = cost.num_operations >= MIN_REPLAY_OPERATIONS
    is_small = problem.num_latents <= MAX_REPLAY_LATENTS
    if requested == "auto" and can_score and can_replay and is_dear and is_small:
        why = f"few latents, and {cost.num_operations:.1g} operations per simulation"
        return GradientHealth("replay", why, missed, non_finite)
    if masks_invalid and requested != "replay":
        why = "failed simulations are masked, which moves the edge of the target"
        return GradientHealth("score", why, missed, non_finite)
    if requested != "auto":
        return GradientHealth(requested, "as requested", missed, non_finite)
    reason = ""
    if not derivatives.has_any:
        reason = "JAX cannot differentiate the model"
    elif non_finite > MAX_NON_FINITE:
        reason = f"{non_finite:.1%} of the derivatives are not finite"
    elif missed > MISSED_SHARE:
        reason = (
            f"derivatives miss {missed:.0%} of the change of a statistic"
            f"{' or of log L' if problem.has_likelihood else ''} (z = {z_score:.0f}): "
            "it jumps"
        )
    elif noise > MAX_NOISE_RATIO:
        reason = f"derivatives are {noise:.0f} times noisier than differences"
    if reason and can_score:
        return GradientHealth("score", reason, missed, non_finite)
    why = "few latents and a long simulation" if is_forward else "smooth"
    if is_forward != (pathwise == "forward"):
        why = f"the model has no derivatives in {other} mode"
    return GradientHealth(pathwise, reason or why, missed, non_finite)
