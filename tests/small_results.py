# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results for tests of what is done with results: one trained, others not at all."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi

OPTIONS = {
    "num_particles": 100,
    "num_epochs": 2,
    "num_steps": 30,
    "num_evaluation": 500,
    "num_restarts": 2,
    "warm_start": False,
    "stat_gradient": "reverse",
    "progress_bar": False,
}
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=1, hidden_dims=(8,))


class Model:
    """A noisy model with a vector and a positive latent, data and two properties.

    It counts how often it is traced, and raises once it is not to be run any more.
    """

    def __init__(self):
        self.num_traces = 0
        self.is_forbidden = False

    def __call__(self, shift=0.0, *, limit=2.0, name="rows", target=1.0):
        self.num_traces += 1
        if self.is_forbidden:
            raise RuntimeError("The simulator was run.")
        a = numpyro.sample("a", dist.Uniform(-limit, limit).expand([2]).to_event(1))
        b = numpyro.sample("scope/b", dist.LogNormal(shift, 0.5))
        numpyro.sample("y", dist.Normal(a[0], 1.0), obs=0.3)
        noise = 0.1 * jax.random.normal(numpyro.prng_key())
        epi.emergent_property(a.sum() + noise, mean=0.5, var=0.25, name="total")
        rows = jnp.outer(jnp.array([1.0, 10.0]), jnp.stack([b, a[1]]))
        epi.emergent_property(rows, mean=[[target, 0.0], [10.0, 0.0]], name=name)


class Trained(NamedTuple):
    """A result, what ran, and the model."""

    result: epi.EPIResult
    inference: epi.EPI
    model: Model


@cache
def trained() -> Trained:
    """The result of a short run, far from converged."""
    model = Model()
    inference = epi.EPI(model, GUIDE, **OPTIONS)
    return Trained(inference.run(jax.random.key(0)), inference, model)


def shaken(model, guide=GUIDE, **options) -> epi.EPIResult:
    """A result without a run, its guide's parameters moved at random.

    It samples and has a density; there are no restarts to report.
    """
    inference = epi.EPI(model, guide, progress_bar=False, **options)
    engine = inference._engine(jax.random.key(0), (), {})
    table = engine.problem.table
    state = engine.init_state(jax.random.split(jax.random.key(1), 1), table.targets)
    leaves, tree = jax.tree.flatten(state.average)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return epi.EPIResult(
        restarts=(),
        best=0,
        table=table,
        state=state._replace(average=jax.tree.unflatten(tree, moved)),
        gradient=None,
        is_noisy=False,
        masks_invalid=inference.options.leaves_out,
        tolerance=inference.options.tolerance,
        num_simulations=0,
        seconds=0.0,
        _engine=engine,
    )
