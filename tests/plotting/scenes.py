# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results with draws made by hand, and what sensitivity analyses hand to figures."""

from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi
from numpyro_epi._model.problem import Problem
from numpyro_epi._restart import EPIDraws, EPIHistory, EPIRestart
from numpyro_epi.result import EPIResult
from numpyro_epi.sensitivity import Bands, Directions, ModePath, Modes, Perturbation


def make_result(model, latents, statistics, log_density, num_epochs=5) -> EPIResult:
    """A result that holds the given draws and a made-up history, without a run."""
    problem = Problem(model, (), {}, jax.random.key(0))
    problem.order_sites(sorted(latents))
    stats = np.concatenate([v.reshape(len(v), -1) for v in statistics.values()], axis=1)
    table = problem.table.with_scale(stats)
    num, shape = table.num_constraints, (num_epochs, table.num_constraints)
    rng = np.random.default_rng(0)
    violation = rng.normal(0, 0.3, shape) / (1 + np.arange(num_epochs))[:, None]
    per_epoch = np.linspace(2.0, 1.0, num_epochs)
    history = EPIHistory(
        entropy=per_epoch,
        divergence=3 - per_epoch,
        log_likelihood=0 * per_epoch,
        violation=violation,
        violation_error=np.full(shape, 0.02),
        p_values=np.full(shape, 0.5),
        multipliers=np.tile(np.linspace(-0.3, 0.8, num), (num_epochs, 1)),
        penalty=np.tile(2.0 ** np.arange(num_epochs)[:, None], (1, num)),
        invalid=0 * per_epoch,
        skipped=0 * per_epoch,
        seconds=per_epoch,
        simulations=100 * per_epoch,
    )
    draws = EPIDraws(latents, statistics, log_density, log_density, 0 * log_density)
    restart = EPIRestart(
        params={},
        status=epi.EPIStatus.CONVERGED,
        message="",
        entropy=1.0,
        divergence=2.0,
        log_likelihood=0.0,
        score=-2.0,
        violation=violation[-1],
        violation_error=history.violation_error[-1],
        p_values=history.p_values[-1],
        multipliers=table.raw_multipliers(np.linspace(-0.3, 0.8, num)),
        multipliers_source="dual",
        dual_ess=100.0,
        log_normalizer=0.0,
        invalid=0.0,
        losses=np.zeros(1),
        history=history,
        draws=draws,
    )
    return EPIResult(
        restarts=(restart,),
        best=0,
        table=table,
        state=None,
        gradient=None,
        is_noisy=False,
        masks_invalid=False,
        tolerance=0.05,
        num_simulations=0,
        seconds=0.0,
        _engine=SimpleNamespace(problem=problem),
    )


@cache
def three() -> EPIResult:
    """Latents: a bounded pair and a positive number; a scalar and a matrix."""

    def model():
        a = numpyro.sample("a", dist.Uniform(-2.0, 2.0).expand([2]).to_event(1))
        b = numpyro.sample("scope/b", dist.LogNormal(0.0, 0.5))
        epi.emergent_property(a.sum(), mean=0.5, var=0.25, name="total")
        rows = np.ones((2, 2)) * b
        epi.emergent_property(rows, mean=[[1.0, 0.0], [10.0, 0.0]], name="rows")

    rng = np.random.default_rng(1)
    a = np.clip(rng.normal(0.2, 0.5, (500, 2)), -1.9, 1.9)
    b = np.exp(0.3 * rng.normal(size=500))
    density = -0.5 * ((a - 0.2) ** 2).sum(1) / 0.25 - 0.5 * np.log(b) ** 2 / 0.09
    rows = b[:, None, None] * np.array([[1.0, 0.1], [10.0, 1.0]])
    statistics = {"total": a.sum(1), "rows": rows}
    return make_result(model, {"a": a, "scope/b": b}, statistics, density)


@cache
def normal(num: int) -> EPIResult:
    """Independent Gaussian latents `x`; of many, `x[2]` and `x[7]` lie on a ring."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1).expand([num]).to_event(1))
        epi.emergent_property(x, mean=0.0, var=1.0, name="f")

    x = np.random.default_rng(2).normal(size=(1000, num))
    density = -0.5 * (x**2).sum(1) - 0.5 * num * np.log(2 * np.pi)
    if num > 7:
        radius = np.hypot(x[:, 2], x[:, 7])
        x[:, [2, 7]] *= (2 / radius)[:, None]
    return make_result(model, {"x": x}, {"f": x}, density)


@cache
def line() -> EPIResult:
    """One scalar latent `z`, standard normal."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 1))
        epi.emergent_property(z, mean=0.0, var=1.0, name="f")

    z = np.random.default_rng(3).normal(size=2000)
    density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    return make_result(model, {"z": z}, {"f": z}, density)


NAMES = ("a[0]", "a[1]", "scope/b")


def directions(**changes) -> Directions:
    """Of `three`, at one point."""
    vectors = np.array([[0.6, 0.8, 0.0], [0.8, -0.6, 0.0], [0.0, 0.0, 1.0]])
    values = np.array([-16.0, -4.0, -1e-3])
    point = np.array([0.2, 0.2, 1.0])
    made = Directions(
        values, vectors, 1.1 * values, point, NAMES, "constrained", "flow"
    )
    return made._replace(**changes)


def modes(**changes) -> Modes:
    """Of `three`: one inside, one at the boundary, one on a ridge."""
    points = np.array([[0.2, 0.2, 1.0], [-2.0, 0.5, 0.8], [0.5, -0.9, 1.2]])
    latents = {"a": points[:, :2], "scope/b": points[:, 2]}
    flags = np.array([[False, True, False], [False, False, True]])
    third = np.full(3, 1 / 3)
    kind = np.arange(3)
    made = Modes(latents, points, third, third, points, *flags, kind, NAMES)
    return made._replace(**changes)


def path(**changes) -> ModePath:
    """Of `three`, along `a[0]`; the last mode did not converge."""
    values = np.linspace(-1.0, 1.0, 5)
    points = np.stack([values, 0.2 - 0.5 * values, 1 + 0.1 * values], axis=1)
    latents = {"a": points[:, :2], "scope/b": points[:, 2]}
    good = np.array([True] * 4 + [False])
    made = ModePath("a[0]", values, latents, points, -(values**2), good, NAMES)
    return made._replace(**changes)


def perturbation(slope=1.0, **changes) -> Perturbation:
    """Of `three`."""
    deltas = np.linspace(-0.5, 0.5, 7)
    rows = np.broadcast_to(deltas[:, None, None], (7, 2, 2)) * [[1, 2], [3, 4]]
    means = {"total": 0.5 + slope * deltas, "rows": rows}
    errors = {name: np.full(value.shape, 0.05) for name, value in means.items()}
    direction = np.array([1.0, 0.0, 0.0])
    points = deltas[:, None] * direction
    made = Perturbation(deltas, points, means, errors, errors, NAMES, direction)
    return made._replace(**changes)


def bands(num_groups=2, **changes) -> Bands:
    """Of `three`: the total falls with gamma, faster in later groups."""
    gamma = np.linspace(0, 1, 6)
    total = 0.5 - np.arange(1, num_groups + 1)[:, None] * gamma / num_groups
    mean = {"total": total}
    lower, upper = {"total": total - 0.2}, {"total": total + 0.2}
    error = {"total": 0 * total + 0.01}
    names = tuple(f"group {k}" for k in range(num_groups))
    made = Bands("gamma", gamma, mean, lower, upper, error, names, NAMES)
    return made._replace(**changes)
