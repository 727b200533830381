# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of each regime: sampled until every mode has enough of them."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._checks import as_key, describe
from numpyro_epi.result import EPIResult

from ._arguments import count
from ._ascent import scale_of
from ._density import log_q_at
from ._layout import layout_of
from ._mode_path import ModePath
from ._modes import Modes

BATCH = 10_000


class Groups(NamedTuple):
    """Result of `group_by_mode`: S groups of n draws, in the order of the modes.

    Attributes:
        latents: `{site: (S, n, *shape)}`.
        points: the same as flat points, (S, n, D).
        log_prob: log q, nats, (S, n).
        num_drawn: draws that it took.
        seconds: wall-clock time that it took, compilation included.
        names: of the components, D of them.
    """

    latents: dict[str, np.ndarray]
    points: np.ndarray
    log_prob: np.ndarray
    num_drawn: int
    seconds: float
    names: tuple[str, ...]


def group_by_mode(
    result: EPIResult,
    modes: Modes | ModePath,
    rng_key: Any,
    *,
    num_per_group: int = 500,
    max_draws: int = 10_000_000,
) -> Groups:
    """Assign draws to the nearest mode, and draw until every group is full.

    Distances are in standard deviations of the stored draws, so they do not depend on
    units. The simulator is not run.

    Args:
        result: of a run.
        modes: of `find_modes`, or a path of `conditional_modes`; S of them.
        rng_key: random key.
        num_per_group: draws n of each group; further ones are dropped.
        max_draws: in all, before it gives up.

    Returns:
        A `Groups`.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a number is out of range.
        RuntimeError: if a group is still not full after `max_draws`; the message says
            which.
        NotImplementedError: if the guide has no density at given points.

    Example:
        >>> path = conditional_modes(result, "z[0]", [1.0, 1.5, 2.0])
        >>> groups = group_by_mode(result, path, jax.random.key(0), num_per_group=50)
        >>> groups.points.shape
        (3, 50, 2)
    """
    layout, key = layout_of(result), as_key(rng_key)
    if not isinstance(modes, Modes | ModePath):
        raise TypeError(
            "Expected what `find_modes` or `conditional_modes` returns as `modes`, got "
            f"{describe(modes)}."
        )
    num = count("num_per_group", num_per_group)
    limit = count("max_draws", max_draws)
    started = time.perf_counter()
    scale, num_drawn = scale_of(result), 0
    groups: list[list[np.ndarray]] = [[] for _ in modes.points]
    while (sizes := [sum(map(len, group)) for group in groups]) and min(sizes) < num:
        if num_drawn >= limit:
            raise RuntimeError(_not_full(modes, sizes, num, limit))
        size = min(BATCH, limit - num_drawn)
        u = result._draws(jax.random.fold_in(key, num_drawn), size)
        points = np.asarray(layout.from_u(jnp.asarray(u))[0])
        gaps = (points[:, None, :] - modes.points) / scale
        nearest = (gaps**2).sum(axis=-1).argmin(axis=1)
        for label, group in enumerate(groups):
            group.append(points[nearest == label])
        num_drawn += size
    points = np.stack([np.concatenate(group)[:num] for group in groups])
    log_prob = log_q_at(result, points.reshape(-1, layout.num_latents))
    return Groups(
        latents=layout.latents(points),
        points=points,
        log_prob=log_prob.reshape(points.shape[:2]),
        num_drawn=num_drawn,
        seconds=time.perf_counter() - started,
        names=layout.names,
    )


def _not_full(modes: Modes | ModePath, sizes: list[int], num: int, limit: int) -> str:
    row = int(np.argmin(sizes))
    place = f"group {row}"
    if isinstance(modes, ModePath):
        place += f" (`{modes.component}` = {modes.values[row]:g})"
    return (
        f"Expected {num} draws in every group, got {sizes[row]} in {place} after "
        f"{limit} draws. Leave that mode out, or raise `max_draws`."
    )
