# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Priors without draws: is there a law at all, and where does it lie?

A flat prior over the real numbers, or over scales, is no distribution. Data, or a
factor, may make one of it: the joint density has to fall off in both directions of each
coordinate, faster than one over the distance. It is followed along lines from good
points, to distances that double.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random, vmap

from numpyro_epi._model.start import Start, fit_elbo, fit_gaussian, has_gradient

# Distances along a coordinate, powers of two: from far below to far above any scale.
EXPONENTS = np.arange(-12, 41)
# Draws of which the best are improved, and looked from.
NUM_DRAWS, NUM_POINTS = 64, 4
# Passes over the coordinates, of which each takes the best step along its line.
NUM_SWEEPS = 20
# The log density of a law falls by more than one for each e-fold of the distance; by
# how much more it has to here, and over how many doublings.
MARGIN, NUM_DOUBLINGS = 0.1, 3
# The same for a coordinate by itself, of which there are bounds alone: one over the
# distance squared passes. At two distances, in standard deviations, of so many
# coordinates: those that depend most on the others.
TAIL_MARGIN, TAILS, MAX_TAILS = 0.5, (8.0, 64.0), 8
# Nats below the best point at which a coordinate is as far from it as its spread.
SPREAD_DROP = 0.5
# Lines along which simulations run side by side.
LINES_AT_ONCE = 16


def find_start(problem: Any) -> Start:
    """A Gaussian about the law that the data make of improper priors.

    It depends on the model and its arguments alone, not on the key of a run.

    Args:
        problem: The model with its arguments.

    Raises:
        ValueError: Naming the site, where the data leave no law.
    """
    log_joint = _log_joint(problem)
    keys = random.split(random.key(0), NUM_DRAWS)
    u = jax.jit(vmap(problem.sample_prior))(keys)
    values = np.asarray(jax.jit(vmap(log_joint))(u))
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    owners = _owners(problem)
    improper = np.array(
        [i for i, name in enumerate(owners) if name in problem.improper]
    )
    points = jax.jit(_climb, static_argnums=0)(
        log_joint, u[order[:NUM_POINTS]], jnp.asarray(improper)
    )
    heights, lines, moves = _look(problem, log_joint, points)
    _check_proper(owners, improper, heights, lines, moves)
    best = int(np.argmax(np.where(np.isfinite(heights), heights, -np.inf)))
    spread = _spread(heights[best], lines[best])
    start = fit_gaussian(log_joint, np.asarray(points[best]), spread)
    _check_tails(log_joint, owners, improper, start)
    return start


def _log_joint(problem: Any) -> Any:
    def log_joint(u: jax.Array) -> jax.Array:
        sim = problem.simulate(u, random.key(0))
        return sim.log_prior + sim.log_likelihood

    return log_joint


def _owners(problem: Any) -> list[str]:
    """Name of the site of each coordinate."""
    return [site.name for site in problem.sites for _ in range(site.num_coordinates)]


def _steps() -> jax.Array:
    """Of both signs, shape (2, E)."""
    return jnp.asarray([[1.0], [-1.0]]) * 2.0 ** jnp.asarray(EXPONENTS, float)


def _climb(log_joint: Any, points: jax.Array, coordinates: jax.Array) -> jax.Array:
    """The best places on lines along some coordinates, one line after another."""
    steps = jnp.append(_steps().ravel(), 0.0)

    def move(u: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        places = u + steps[:, None] * jax.nn.one_hot(i, u.size)
        values = vmap(log_joint)(places)
        # The last one, no step at all, is taken where none is better.
        values = jnp.where(jnp.isfinite(values), values, -jnp.inf)[::-1]
        return places[::-1][jnp.argmax(values)], None

    def climb(u: jax.Array) -> jax.Array:
        order = jnp.tile(coordinates, NUM_SWEEPS)
        return lax.scan(move, u, order)[0]

    return lax.map(climb, points)


def _look(
    problem: Any, log_joint: Any, points: jax.Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log density along all coordinates from each point.

    Returns:
        That of the points, shape (P,), that along the lines, shape (P, D, 2, E), and
        whether the latents there are finite and differ from those before.
    """

    def one(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        latents, _ = problem.constrain(u)
        flat = [jnp.ravel(x) for x in jax.tree.leaves(latents)]
        return log_joint(u), jnp.concatenate(flat)

    def line(u: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = u + _steps()[..., None] * jax.nn.one_hot(i, u.size)
        values, latents = vmap(vmap(one))(places)
        is_new = (latents != jnp.roll(latents, 1, axis=1)).any(-1).at[:, 0].set(True)
        return values, is_new & jnp.isfinite(latents).all(-1)

    def lines(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        num, dim = points.shape
        pairs = jnp.repeat(points, dim, axis=0), jnp.tile(jnp.arange(dim), num)
        found = lax.map(lambda pair: line(*pair), pairs, batch_size=LINES_AT_ONCE)
        return jax.tree.map(lambda x: x.reshape(num, dim, *x.shape[1:]), found)

    heights = jax.jit(vmap(log_joint))(points)
    values, moves = jax.jit(lines)(points)
    return np.asarray(heights, float), np.asarray(values, float), np.asarray(moves)


def _check_proper(
    owners: list[str],
    improper: np.ndarray,
    heights: np.ndarray,
    lines: np.ndarray,
    moves: np.ndarray,
) -> None:
    """Refuse a model whose log density does not fall off along a coordinate."""
    for point in np.flatnonzero(np.isfinite(heights)):
        for i in improper:
            for side in range(2):
                if not falls_off(lines[point, i, side], moves[point, i, side]):
                    raise ValueError(_message(owners[i], "+" if side == 0 else "-"))
    if not np.isfinite(heights).any():
        name = owners[improper[0]]
        raise ValueError(
            f"Expected a place with a finite log density where the improper prior of "
            f"`{name}` begins, near zero in unconstrained coordinates, got none among "
            f"{NUM_DRAWS} draws. Give `{name}` a proper prior, such as a wide "
            "`dist.Normal`."
        )


def _check_tails(
    log_joint: Any, owners: list[str], improper: np.ndarray, start: Start
) -> None:
    """Refuse what no single line shows: x and y of which the data know but x + y.

    The log density of a coordinate by itself, the others integrated out, is bounded
    from below by a Gaussian fit, at two distances on either side.
    """
    if start.loc.size == 1 or not has_gradient(log_joint, start.loc):
        return
    covariance = start.factor @ start.factor.T
    alone = 1.0 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    widest = np.argsort(-(start.scale / alone)[improper], kind="stable")
    chosen = improper[widest[:MAX_TAILS]]
    tasks = [(i, side, far) for i in chosen for side in (1.0, -1.0) for far in TAILS]

    def bound(task: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, place, loc = task

        def conditional(u: jax.Array) -> jax.Array:
            # A normal density takes the place of the coordinate, to no effect.
            e = (u[i] - loc[i]) / jnp.asarray(start.scale)[i]
            return log_joint(u.at[i].set(place)) - 0.5 * e**2

        return fit_elbo(conditional, loc, jnp.asarray(start.factor, float))[2]

    places = np.array([start.loc[i] + s * t * start.scale[i] for i, s, t in tasks])
    slopes = covariance / np.diag(covariance)
    locs = np.stack(
        [
            start.loc + slopes[:, i] * (place - start.loc[i])
            for (i, _, _), place in zip(tasks, places, strict=True)
        ]
    )
    index = jnp.asarray([i for i, _, _ in tasks])
    args = index, jnp.asarray(places, float), jnp.asarray(locs, float)
    found = np.asarray(
        jax.jit(lambda x: lax.map(bound, x, batch_size=LINES_AT_ONCE))(args), float
    ).reshape(-1, 2)
    slope = np.diff(found)[:, 0] / np.log(TAILS[1] / TAILS[0])
    for (i, side, _), value in zip(tasks[::2], slope, strict=True):
        if value > -(1.0 + TAIL_MARGIN):
            raise ValueError(_message(owners[i], "+" if side > 0 else "-"))


def _message(name: str, sign: str) -> str:
    text = (
        f"Expected data that make a law of the improper prior of `{name}`, but the log "
        "density of model and data does not fall off towards "
        f"{sign}infinity in its unconstrained coordinates. "
    )
    if name.endswith("_unwrapped"):
        return text + (
            "If it comes from `CircularReparam`, leave that out: the guides of EPI "
            "take circular supports as they are."
        )
    return text + (
        "Give it a proper prior, such as a wide `dist.Normal` or `dist.LogNormal`, or "
        "observe data that depend on it."
    )


def falls_off(values: np.ndarray, moves: np.ndarray) -> bool:
    """Whether a log density falls faster than that of no law, far out on a line.

    Args:
        values: at distances that double, shape (E,).
        moves: whether the latents there are finite and differ from those before: they
            stand still where rounding takes them to the edge of their support.

    Returns:
        False too where it is not finite before it has fallen, but for a density of
        zero: there the numbers end, and not the law.
    """
    is_known = np.isfinite(values) & moves
    if not is_known.any():
        return False
    end = int(np.flatnonzero(is_known)[-1]) + 1
    if end < values.size and moves[end] and np.isneginf(values[end]):
        return True
    last = np.diff(values[:end])[-NUM_DOUBLINGS:]
    return bool(last.size > 0 and (last < -(1.0 + MARGIN) * np.log(2.0)).all())


def _spread(height: float, lines: np.ndarray) -> np.ndarray:
    """Distance to where the log density has dropped, of each coordinate, shape (D,)."""
    drop = height - np.where(np.isfinite(lines), lines, -np.inf)
    has_dropped = drop > SPREAD_DROP
    first = np.where(has_dropped.any(-1), has_dropped.argmax(-1), 0)
    distance = 2.0 ** EXPONENTS[first].astype(float)
    distance = np.where(has_dropped.any(-1), distance, 1.0)
    return np.sqrt(distance.prod(axis=-1))
