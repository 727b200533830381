# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Every stage of a run on two devices: laid out over both, and the same answer."""

import os
import subprocess
import sys

import pytest

TWO_DEVICES = """
import sys
from functools import partial
import jax, numpy as np, numpyro, numpyro.distributions as dist, numpyro_epi as epi
import jax.numpy as jnp

assert jax.device_count() == 2
KEY = jax.random.key(0)
MESH = jax.make_mesh((2,), ("particles",))
GUIDE = partial(epi.guides.AutoRealNVP, num_flows=2, hidden_dims=(10,))
OPTIONS = dict(num_particles=100, num_epochs=2, num_steps=20, num_evaluation=2000,
               warm_start_size=4000, gap_tolerance=0.0, progress_bar=False)


def model(num=2):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([num]).to_event(1))
    epi.emergent_property(z[:2], mean=[0.5, -0.5], var=[0.25, 0.5])


def close(first, second, num):
    laws = first.law, second.law
    apart = abs(laws[0].log_normalizer - laws[1].log_normalizer)
    if num == 16:  # chains: rounding grows, and the populations are others in the end
        assert apart < 4 * np.hypot(*(law.log_normalizer_error for law in laws))
        return
    assert apart < 1e-3
    assert abs(first.entropy - second.entropy) < 1e-3
    assert np.abs(first.losses - second.losses).max() < 1e-3
    assert first.num_simulations == second.num_simulations


def is_shared(array):
    return len(array.sharding.device_set) == 2 and not array.is_fully_replicated


num = int(sys.argv[1])  # 2: by importance sampling, 16: by chains
one, two = (epi.EPI(model, GUIDE, mesh=m, **OPTIONS) for m in (None, MESH))
close(one.run(KEY, num), two.run(KEY, num), num)
engine = two._engine(KEY, (num,), {})
programs, chunks = engine.programs, engine.chunks
u = jnp.zeros((programs.chunk, num))
assert is_shared(programs.simulate(u, KEY).stats), "law"
assert is_shared(programs.prior(KEY)), "prior"
keys = KEY[None]
params = engine.init_params(keys)
u, log_q, _ = chunks._draw_chunk(params, keys)
assert is_shared(u), "guide"
assert is_shared(chunks._simulate_chunk(u, keys, 10).stats), "verdict"
assert is_shared(chunks._log_q_chunk(params, u)), "density"
text = engine.fit.lower(params, u, u, keys, 1, 0.0).compile().as_text()
assert "all-reduce" in text, "first fit"
steps = engine._scans["reverse", 20].lower(two.init(KEY, num).guide).compile()
assert "all-reduce" in steps.as_text(), "steps"
kinds = programs.moves
assert bool(kinds) == (num == 16)
print("right")
"""


@pytest.mark.long
@pytest.mark.parametrize("num", [pytest.param(2, marks=pytest.mark.ci), 16])
def test_every_stage_is_laid_out_over_two_devices(num):
    """Sums in another order: rounding, which 40 steps may amplify a little."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    out = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(num)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "right"
