# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The exact law by the first stage of the next solver, one row for each model and key.

The table shows the method, the entropy of the law (of uniform priors; else log Z) with
its standard error and the true value if it is known, the worst violation, effective
draws, seconds with compilation, and simulations.
"""

import argparse
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi
from numpyro_epi._model.problem import Problem
from numpyro_epi._solver.draws import Programs, Simulator
from numpyro_epi._solver.law import Standard
from numpyro_epi._solver.search import find_law
from numpyro_epi.circuits import linear, rnn, stg


def regression():
    """400 data, priors 1,000 wide, and a property of the line at 100."""
    rng = np.random.default_rng(0)
    x = rng.normal(100, 15, 400).astype(np.float32)
    y = (26 + 0.6 * x + rng.normal(0, 18, 400)).astype(np.float32)
    b0 = numpyro.sample("b0", dist.Normal(0, 1000))
    b1 = numpyro.sample("b1", dist.Normal(0, 1000))
    s = numpyro.sample("s", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(b0 + b1 * x, s).to_event(1), obs=y)
    epi.emergent_property(b0 + 100 * b1, mean=88.0, var=0.4, name="at_100")


def nine(statistic, mean, sd):
    z = numpyro.sample("z", dist.Uniform(-3 * np.pi, 3 * np.pi).expand([2]).to_event(1))
    epi.emergent_property(statistic(z), mean=mean, var=sd**2)


def count():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([12]).to_event(1))
    epi.emergent_property((z > 0.5).sum(), mean=8.0, var=1.0)


class Model(NamedTuple):
    """A model, log volume of its prior, log Z + volume if known, noise, moves."""

    model: object
    volume: float = 0.0
    truth: float | None = None
    num_repeats: int = 1
    kind: str = "hmc"


def network(num):
    truth = dict(rnn.PAPER.max_entropy).get(num)
    return Model(partial(rnn.model, num), 4 * num * np.log(2.0), truth)


RINGS = partial(nine, lambda z: jnp.cos(z).sum(), 1.6, 0.05)
MODELS = {
    "linear": Model(linear.model, 4 * np.log(20.0), 7.0416),
    "regression": Model(regression),
    "nine-rings": Model(RINGS, 2 * np.log(6 * np.pi)),
    "nine-flat": Model(partial(nine, jnp.cos, 0.85, 0.1), 2 * np.log(6 * np.pi)),
    "count": Model(count, kind="walk"),
    "stg": Model(stg.model, np.log(4.0 * 3.99), stg.PAPER.max_entropy, 4),
    "rnn-2": network(2),
    "rnn-5": network(5),
    "rnn-10": network(10),
    "rnn-25": network(25),
}


def measure(name, key):
    began, row = time.perf_counter(), MODELS[name]
    problem = Problem(row.model, (), {}, jax.random.key(0))
    simulator = Simulator(Programs(problem), problem.table, row.num_repeats)
    standard = Standard(0.05, 1.645, problem.table.labels)
    law = find_law(simulator, jax.random.key(key), standard, lambda: row.kind)
    seconds = time.perf_counter() - began
    truth = "-" if row.truth is None else f"{row.truth:.2f}"
    print(
        f"{name:11s} {key:3d} {law.method:10s} {law.log_normalizer + row.volume:9.3f} "
        f"+- {law.log_normalizer_error:.3f} {truth:>7s} "
        f"{np.abs(law.violation).max():9.3f} {law.ess:9.0f} {seconds:7.1f} "
        f"{simulator.num_simulations:11,} {law.reason or 'converged'}",
        flush=True,
    )
    if name.startswith("nine"):
        print(f"{'':15s} shares {np.round(shares(problem, law), 3)}", flush=True)
    return seconds


def shares(problem, law):
    """Of the nine pieces."""
    z = np.asarray(problem.constrain(jnp.asarray(law.draws.u, float))[0]["z"])
    cell = np.clip(np.floor((z + 3 * np.pi) / (2 * np.pi)), 0, 2) @ np.array([3, 1])
    return np.bincount(cell.astype(int), weights=law.weights, minlength=9)


def main(args):
    print(
        f"{'model':11s} {'key':>3} {'method':10s} {'log Z + volume':>18} {'truth':>7} "
        f"{'violation':>9} {'effective':>9} {'seconds':>7} {'simulations':>11} verdict"
    )
    seconds = [measure(name, key) for name in args.rows for key in args.keys]
    print(f"Median of the seconds: {np.median(seconds):.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--keys", nargs="+", type=int, default=[0])
    main(parser.parse_args())
