# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What a NumPyro program costs: a gradient step of `EPI` against plain JAX.

Both sides scan the same step on the linear system: the same flow (six affine couplings
of two layers of 50 units, each after a linear mixing of the four coordinates), 1,000
particles on the same lattice, evidence lower bound, violations of the two halves with
their running average, likelihood of 250 anchor draws (as with noisy simulations),
clipped Adam with cosine decay, average of the parameters. The plain side is written by
hand below, without NumPyro, and without what makes `EPI` safe: no guard against steps
that are not finite.

Runs alternate, A B A B, and the ratio is the median over pairs. Bar: 1.3.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, nn, random

import numpyro_epi as epi
from numpyro_epi.circuits import linear

# The names of the options in `EPI`, at their defaults.
NUM_PARTICLES, NUM_STEPS, ANCHOR, PENALTY = 1000, 200, 1.0, 1.0
HORIZON, POOL_SIZE = 2000, 10_000
MULTIPLIERS = jnp.array([0.0, -0.17, 0.7, 0.65])
MEAN, SD = np.array(linear.PAPER.mean), np.sqrt(linear.PAPER.var)
HALVES = [
    ((0, 1), (2, 3)),
    ((2, 3), (0, 1)),
    ((0, 3), (1, 2)),
    ((1, 2), (0, 3)),
    ((0, 2), (1, 3)),
    ((1, 3), (0, 2)),
]
LAYER_CAP, MIXING_CAP = 2.0, 3.0


# Plain JAX ---------------------------------------------------------------------------


def init_plain(key):
    def dense(key, inputs, outputs):
        kernel = random.normal(key, (inputs, outputs)) / inputs**0.5
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    layers = []
    for layer_key in random.split(key, len(HALVES)):
        first, second = random.split(layer_key)
        last = {"kernel": jnp.zeros((50, 4)), "bias": jnp.zeros(4)}
        net = [dense(first, 2, 50), dense(second, 50, 50), last]
        mixing = {"matrix": jnp.zeros((4, 4)), "shift": jnp.zeros(4)}
        layers.append({"net": net, "mixing": mixing})
    return layers


def conditioner(net, kept):
    for layer in net[:-1]:
        kept = nn.silu(kept @ layer["kernel"] + layer["bias"])
    theta = kept @ net[-1]["kernel"] + net[-1]["bias"]
    theta = theta.reshape(*kept.shape[:-1], 2, 2)
    return LAYER_CAP * jnp.tanh(theta[..., 0] / LAYER_CAP), theta[..., 1]


def factors(mixing):
    matrix = mixing["matrix"]
    log_diagonal = MIXING_CAP * jnp.tanh(jnp.diagonal(matrix) / MIXING_CAP)
    lower = jnp.tril(matrix, -1) + jnp.eye(4)
    return lower, jnp.triu(matrix, 1) + jnp.diag(jnp.exp(log_diagonal)), log_diagonal


def log_logistic(x):
    return (nn.log_sigmoid(x) + nn.log_sigmoid(-x)).sum(-1)


def forward(params, x):
    """From the base to u, with log q."""
    log_q = log_logistic(x)
    for layer, (kept, moved) in zip(params, HALVES, strict=True):
        lower, upper, log_diagonal = factors(layer["mixing"])
        x = x @ (lower @ upper).T + layer["mixing"]["shift"]
        a, b = x[..., np.array(kept)], x[..., np.array(moved)]
        log_scale, shift = conditioner(layer["net"], a)
        b = b * jnp.exp(log_scale) + shift
        x = jnp.concatenate([a, b], -1)[..., np.argsort(kept + moved)]
        log_q = log_q - log_diagonal.sum() - log_scale.sum(-1)
    return x, log_q


def log_density(params, u):
    log_q = jnp.zeros(u.shape[:-1])
    for layer, (kept, moved) in zip(params[::-1], HALVES[::-1], strict=True):
        a, b = u[..., np.array(kept)], u[..., np.array(moved)]
        log_scale, shift = conditioner(layer["net"], a)
        b = (b - shift) * jnp.exp(-log_scale)
        u = jnp.concatenate([a, b], -1)[..., np.argsort(kept + moved)]
        lower, upper, log_diagonal = factors(layer["mixing"])
        inverse = jax.scipy.linalg.solve_triangular(
            lower, jnp.eye(4), lower=True, unit_diagonal=True
        )
        inverse = jax.scipy.linalg.solve_triangular(upper, inverse)
        u = (u - layer["mixing"]["shift"]) @ inverse.T
        log_q = log_q - log_diagonal.sum() - log_scale.sum(-1)
    return log_q + log_logistic(u)


def base_draws(key):
    """Two lattices with a random shift each, as logistic draws."""
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / 5.0)
    half = NUM_PARTICLES // 2
    points = (np.arange(half)[:, None] * root ** -np.arange(1.0, 5.0)) % 1.0
    shifts = random.uniform(key, (2, 1, 4))
    uniform = jnp.concatenate(list((jnp.asarray(points) + shifts) % 1.0))
    uniform = jnp.clip(uniform, 1e-7, 1.0 - 1e-7)
    return jnp.log(uniform) - jnp.log1p(-uniform)


def deviations(a):
    """T of the matrices a, shape (P, 4), scaled."""
    a11, a12, a21, a22 = a.T
    disc = (a11 - a22) ** 2 + 4.0 * a12 * a21
    real = jnp.where(disc > 0, jnp.sqrt(jnp.where(disc > 0, disc, 1.0)), 0.0)
    imag = jnp.where(disc < 0, jnp.sqrt(jnp.where(disc < 0, -disc, 1.0)), 0.0)
    stats = jnp.stack([0.5 * (a11 + a22 + real), 0.5 * imag], axis=-1)
    scaled = (stats - MEAN) / SD
    return jnp.concatenate([scaled, (scaled**2 - 1.0) / 2**0.5], axis=-1)


def plain_loss(params, running, pool, key):
    draw_key, pool_key = random.split(key)
    u, log_q = forward(params, base_draws(draw_key))
    log_prior = log_logistic(u)  # of a uniform distribution, in u
    first, second = deviations(20.0 * nn.sigmoid(u) - 10.0).reshape(2, -1, 4).mean(1)
    blend = lax.stop_gradient(
        jnp.stack([0.95 * running + 0.05 * v for v in (second, first)])
    )
    tilts = MULTIPLIERS + PENALTY * blend
    rows = random.randint(pool_key, (NUM_PARTICLES // 4,), 0, POOL_SIZE)
    anchor = -ANCHOR * log_density(params, pool[rows]).mean()
    loss = (log_q - log_prior).mean() + 0.5 * (tilts[0] @ first + tilts[1] @ second)
    return loss + anchor, 0.5 * (first + second)


def plain_chunk():
    optim = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    def step(carry, _):
        params, average, state, running, pool, key, count = carry
        key, next_key = random.split(key)
        (_, violation), grads = jax.value_and_grad(plain_loss, has_aux=True)(
            params, running, pool, key
        )
        updates, state = optim.update(grads, state, params)
        progress = jnp.minimum(count / HORIZON, 1.0)
        factor = 0.02 + 0.98 * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        updates = jax.tree.map(lambda x: factor * x, updates)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, b: 0.995 * a + 0.005 * b, average, params)
        running = 0.95 * running + 0.05 * violation
        carry = params, average, state, running, pool, next_key, count + 1
        return carry, violation

    params = init_plain(random.key(0))
    start = (params, params, optim.init(params), jnp.zeros(4), make_pool())
    start += (random.key(1), 0)
    return jax.jit(lambda c: lax.scan(step, c, None, length=NUM_STEPS)), start


# EPI ---------------------------------------------------------------------------------


def make_pool():
    return random.logistic(random.key(2), (POOL_SIZE, 4))


def epi_chunk():
    inference = epi.EPI(linear.model, num_particles=NUM_PARTICLES, progress_bar=False)
    engine = inference._engine(random.key(0), (), {})
    state = inference.init(random.key(0)).guide
    state = state._replace(
        multipliers=MULTIPLIERS[None],
        pool=state.pool._replace(u=make_pool()[None]),
        anchor=jnp.array([ANCHOR]),
    )

    def chunk(state):
        state, infos = engine.run_steps(state, NUM_STEPS, "reverse")
        return state, infos.violation[:, 0]

    return chunk, state


def time_chunk(chunk, state):
    began = time.perf_counter()
    state, infos = jax.block_until_ready(chunk(state))
    return (time.perf_counter() - began) / NUM_STEPS, state, infos


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def main(args):
    sides = {"EPI": epi_chunk(), "plain": plain_chunk()}
    sizes = {"EPI": size(sides["EPI"][1].params), "plain": size(sides["plain"][1][0])}
    print(f"Parameters: {sizes}")
    states = {}
    for name, (chunk, state) in sides.items():
        seconds, states[name], _ = time_chunk(chunk, state)
        print(f"{name:5s}: first {NUM_STEPS} steps, with compilation, "
              f"{seconds * NUM_STEPS:.1f} s")  # fmt: skip
    times, violations = {name: [] for name in sides}, {}
    for _ in range(args.num_pairs):
        for name, (chunk, _) in sides.items():
            seconds, states[name], infos = time_chunk(chunk, states[name])
            violations[name] = np.round(np.abs(infos.mean(axis=0)).max(), 3)
            times[name].append(1e3 * seconds)
    ratios = [a / b for a, b in zip(times["EPI"], times["plain"], strict=True)]
    print(f"Largest violation in the last {NUM_STEPS} steps: {violations}")
    for name, values in times.items():
        print(f"{name:5s}: median {statistics.median(values):.2f} ms per step, "
              f"least {min(values):.2f}")  # fmt: skip
    print(f"Ratio: median {statistics.median(ratios):.2f} of {len(ratios)} pairs, "
          f"from {min(ratios):.2f} to {max(ratios):.2f}. Bar: 1.3.")  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-pairs", type=int, default=10)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
