# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
EPI against NUTS and SVI: is the answer a property of the question or of the method?
====================================================================================

Emergent property inference returns a trained flow. A theorist asks: would another
method have found the same parameters? The least committed distribution with the
property has a formula. With T = (f - mean, (f - mean)^2 - var) of the statistic f,

    p(z) = p0(z) exp(-lambda . E[T | z]) / Z,

and the only unknown in it are the two numbers lambda, the multipliers, which EPI also
returns. Put them into the model, `numpyro_epi.handlers.tilt(model, lambda)`, and p is
the posterior of an ordinary NumPyro model. Whatever draws from a posterior must agree:

    exact    sums over a fine grid of z, possible for one or two latents only
    EPI      draws of the flow that found the multipliers
    NUTS     Markov chains on the tilted model: no flow, but neither density nor entropy
    SVI      a new flow (`AutoRealNVP`), and a Gaussian (`AutoMultivariateNormal`),
             trained on the tilted model by NumPyro's own loop

Three models are small enough for all of them:

    banana     b + a^2 = -3 +- 0.5 with a and b ~ Normal(0, 2)
    positive   z = 3 +- 0.7 with z ~ LogNormal(0, 1)
    noisy      exp(z / 2) + noise = 2 +- 0.7 with z ~ Normal(0, 1), noise of sd 0.5

In the noisy model T is averaged over the noise *before* the exponential. Chains that
freeze the noise, or sample it together with z, would draw from another distribution,
so the tilted model refuses NUTS; SVI averages by itself and is right.

The table has means and standard deviations, entropies, and KL(q || p) for everything
that has a density q: the nats that it is short of the exact p, zero for a perfect flow.
A Gaussian (of log z where z is positive) cannot bend, and its KL says so. Where a model
is noisy, KL is itself an average over noise, to about 0.01. "ESS" is the number of
independent draws that the draws are worth for the worst mean or variance of a latent.
Seconds include compilation; those of EPI include finding the multipliers, which the
others are given: they cannot ask for a property, only draw once it is priced.

The script prints the table and draws the marginals of all methods on top of each other:

    compare_nuts_svi.png

.. image:: images/compare_nuts_svi.png
"""

import argparse
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import seed
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.util import log_density
from numpyro.optim import optax_to_numpyro

import numpyro_epi as epi


def banana():
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    epi.emergent_property(b + a**2, mean=-3.0, var=0.5**2, name="bend")


def positive():
    z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
    epi.emergent_property(z, mean=3.0, var=0.5, name="level")


def noisy():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    noise = 0.5 * jax.random.normal(numpyro.prng_key())
    epi.emergent_property(jnp.exp(0.5 * z) + noise, mean=2.0, var=0.5, name="rate")


class Problem(NamedTuple):
    """A model, and where its latents are: `{site: (low, high)}`."""

    model: Callable[[], None]
    ranges: dict[str, tuple[float, float]]
    is_noisy: bool = False


PROBLEMS = {
    "banana": Problem(banana, {"a": (-4.0, 4.0), "b": (-16.0, 0.0)}),
    "positive": Problem(positive, {"z": (0.0, 10.0)}),
    "noisy": Problem(noisy, {"z": (-5.0, 5.0)}, is_noisy=True),
}


class Draws(NamedTuple):
    """What a method returns.

    Attributes:
        latents: `{site: (n,)}`.
        log_q: log density of the draws, (n,), or none.
        ess: effective sample size, of the latent where it is smallest.
        seconds: wall-clock time, compilation included.
    """

    latents: dict[str, np.ndarray]
    log_q: np.ndarray | None
    ess: float
    seconds: float


# The target, exactly. ----------------------------------------------------------------


class Exact(NamedTuple):
    """Sums over a grid of the latents.

    Attributes:
        points: `{site: (m,)}`, one axis for each latent.
        marginals: `{site: (m,)}`, densities at the points.
        entropy: nats.
        log_normalizer: log Z, nats.
    """

    points: dict[str, np.ndarray]
    marginals: dict[str, np.ndarray]
    entropy: float
    log_normalizer: float

    def mean_and_sd(self, site: str) -> tuple[float, float]:
        z, weights = (
            self.points[site],
            self.marginals[site] / self.marginals[site].sum(),
        )
        mean = (weights * z).sum()
        return float(mean), float(np.sqrt((weights * (z - mean) ** 2).sum()))


def log_tilted(tilted, latents, rng_key):
    """Log p0 - lambda . T, not normalised, of one simulation; a number."""
    return log_density(seed(tilted, rng_key), (), {}, latents)[0]


def solve_exactly(problem, tilted, rng_key, *, num_points=400, num_simulations=40_000):
    """Sum over a grid; T of a noisy model is averaged over simulations."""
    spans = [high - low for low, high in problem.ranges.values()]
    share = (0.5 + np.arange(num_points)) / num_points
    points = {site: lo + (hi - lo) * share for site, (lo, hi) in problem.ranges.items()}
    axes = np.meshgrid(*points.values(), indexing="ij")
    latents = {k: jnp.asarray(x.ravel()) for k, x in zip(points, axes, strict=True)}
    # The same noise at every point, so that the average is smooth.
    keys = jax.random.split(rng_key, num_simulations if problem.is_noisy else 1)
    one = jax.vmap(partial(log_tilted, tilted), in_axes=(0, None))
    sums = jax.jit(lambda z: jax.lax.map(partial(one, z), keys).mean(0))
    log_p = np.asarray(sums(latents), dtype=float).reshape(axes[0].shape)

    steps = np.array(spans) / num_points
    log_normalizer = np.logaddexp.reduce(log_p, axis=None) + np.log(steps).sum()
    mass = np.exp(log_p - log_normalizer) * steps.prod()
    marginals = {}
    for i, site in enumerate(points):
        others = tuple(j for j in range(len(steps)) if j != i)
        marginals[site] = mass.sum(others) / steps[i]
    entropy = float(log_normalizer - (mass * log_p).sum())
    return Exact(points, marginals, entropy, float(log_normalizer))


def shortfall(exact, tilted, draws, rng_key):
    """KL(q || p) in nats, estimated from draws of q with ten simulations each."""
    keys = jax.random.split(rng_key, (10, len(draws.log_q)))
    one = jax.vmap(partial(log_tilted, tilted))
    log_p = jax.jit(jax.vmap(one, in_axes=(None, 0)))(draws.latents, keys)
    return float(draws.log_q.mean() - log_p.mean() + exact.log_normalizer)


# The methods. ------------------------------------------------------------------------


def draw_from_result(result, rng_key, num_draws):
    """Draws of EPI's flow."""
    latents = result.sample(rng_key, num_draws)
    log_q = np.asarray(result.log_prob(latents))
    return Draws(_to_numpy(latents), log_q, num_draws, result.seconds)


def draw_by_nuts(tilted, rng_key, num_draws, *, num_warmup=500, num_chains=4):
    """NUTS on the tilted model; raises RuntimeError if it is noisy."""
    start = time.perf_counter()
    mcmc = MCMC(
        NUTS(tilted, target_accept_prob=0.9),
        num_warmup=num_warmup,
        num_samples=-(-num_draws // num_chains),
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key)
    sites = mcmc.last_state.z  # the latents; statistics are among the samples, too
    samples = mcmc.get_samples(group_by_chain=True)
    chains = _to_numpy({site: samples[site] for site in sites})
    seconds = time.perf_counter() - start
    # Of squares too: chains may cross a banana quickly and reach its tips rarely.
    ess = min(
        effective_sample_size(moment)
        for x in chains.values()
        for moment in (x, (x - x.mean()) ** 2)
    )
    num = next(iter(chains.values())).size
    latents = {site: x.reshape(-1) for site, x in chains.items()}
    return Draws(latents, None, min(float(ess), num), seconds)


def draw_by_svi(tilted, guide_class, rng_key, num_draws, *, num_steps=2000):
    """NumPyro's SVI on the tilted model, Adam with a learning rate that falls to 0."""
    guide = guide_class(tilted)
    start = time.perf_counter()
    svi_key, draw_key = jax.random.split(rng_key)
    optim = optax_to_numpyro(optax.adam(optax.cosine_decay_schedule(0.01, num_steps)))
    svi = SVI(tilted, guide, optim, Trace_ELBO(num_particles=100))
    params = svi.run(svi_key, num_steps, progress_bar=False).params

    def draw(key):
        latents = {}
        fn = seed(lambda: latents.update(guide()), key)
        return log_density(fn, (), {}, params)[0], latents

    log_q, latents = jax.jit(jax.vmap(draw))(jax.random.split(draw_key, num_draws))
    seconds = time.perf_counter() - start
    return Draws(_to_numpy(latents), np.asarray(log_q), num_draws, seconds)


def _to_numpy(latents: dict[str, Any]) -> dict[str, np.ndarray]:
    return {site: np.asarray(x) for site, x in latents.items()}


NAMES = {
    "NUTS": "NUTS",
    "EPI": "EPI",
    "flow": "SVI, AutoRealNVP",
    "gaussian": "SVI, AutoMultivariateNormal",
}


class Comparison(NamedTuple):
    """One model: the truth, what each method drew, and why NUTS refused, if it did."""

    exact: Exact
    methods: dict[str, Draws]
    shortfalls: dict[str, float]
    refusal: str | None


def compare(problem, result, rng_key, *, num_draws, num_warmup, svi_steps):
    """Run all methods on the model that is tilted by EPI's multipliers."""
    tilted = epi.handlers.tilt(problem.model, result.multipliers)
    keys = jax.random.split(rng_key, 6)
    exact = solve_exactly(problem, tilted, keys[0])
    methods = {"EPI": draw_from_result(result, keys[1], num_draws)}
    refusal = None
    try:
        methods["NUTS"] = draw_by_nuts(
            tilted, keys[2], num_draws, num_warmup=num_warmup
        )
    except RuntimeError as error:
        refusal = str(error)
    guides = {"flow": epi.guides.AutoRealNVP, "gaussian": AutoMultivariateNormal}
    for (name, guide), key in zip(guides.items(), keys[3:5], strict=True):
        methods[name] = draw_by_svi(tilted, guide, key, num_draws, num_steps=svi_steps)
    shortfalls = {
        name: shortfall(exact, tilted, draws, keys[5])
        for name, draws in methods.items()
        if draws.log_q is not None
    }
    return Comparison(exact, methods, shortfalls, refusal)


# Everything below prints and draws. --------------------------------------------------


def print_table(name, result, comparison):
    """A row for each method."""
    exact = comparison.exact
    print(f"\n{name}: {result.status} at the multipliers", end=" ")
    print({k: np.round(v, 3).tolist() for k, v in result.multipliers.items()})
    moments = "".join(f"{f'{site}, mean +- sd':>20}" for site in exact.points)
    print(f"{'':28}{moments}{'entropy':>9}{'KL':>7}{'ESS':>8}{'seconds':>9}")
    pairs = [exact.mean_and_sd(site) for site in exact.points]
    print(f"{'exact':28}{_moments(pairs)}{exact.entropy:9.3f}{0:7.2f}")
    for key, label in NAMES.items():
        if key not in comparison.methods:
            print(f"{label:28}  refused, see below")
            continue
        draws = comparison.methods[key]
        pairs = [
            (draws.latents[k].mean(), draws.latents[k].std()) for k in exact.points
        ]
        nats = f"{'-':>9}{'-':>7}"
        if draws.log_q is not None:
            nats = f"{-draws.log_q.mean():9.3f}{comparison.shortfalls[key]:7.2f}"
        tail = f"{draws.ess:8.0f}{draws.seconds:9.1f}"
        print(f"{label:28}{_moments(pairs)}{nats}{tail}")
    if comparison.refusal is not None:
        print(textwrap.fill(f"NUTS refused: {comparison.refusal}", 88))


def _moments(pairs):
    return "".join(f"{f'{mean:.3f} +- {sd:.3f}':>20}" for mean, sd in pairs)


# Okabe and Ito's colours, which people with colour blindness can tell apart.
LOOKS = {
    "NUTS": {"color": "0.85"},
    "EPI": {"histtype": "step", "color": "#0072B2", "lw": 1.5},
    "flow": {"histtype": "step", "color": "#D55E00", "lw": 1.5, "ls": "--"},
    "gaussian": {"histtype": "step", "color": "#009E73", "lw": 1.5, "ls": ":"},
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "legend.frameon": False,
    "savefig.dpi": 130,
}
TITLES = {
    ("banana", "a"): "Banana: a",
    ("banana", "b"): "Banana: b",
    ("positive", "z"): "Positive: z",
    ("noisy", "z"): "Noisy: z (NUTS refused)",
}


def plot_marginals(comparisons):
    """A panel for each latent, all methods on top of each other."""
    fig, axes = plt.subplots(1, len(TITLES), figsize=(12, 4))
    handles = {}
    for ax, ((name, site), title) in zip(axes, TITLES.items(), strict=True):
        draw_panel(ax, comparisons[name], site)
        ax.set(title=title, xlabel=site, yticks=[])
        drawn = zip(*ax.get_legend_handles_labels(), strict=True)
        handles |= {label: handle for handle, label in drawn}
    axes[0].set_ylabel("density")
    fig.suptitle(
        "Given the multipliers, the exact density, chains and flows agree; "
        "a Gaussian cannot bend",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    fig.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=len(handles),
    )
    fig.tight_layout(rect=(0, 0.08, 1, 1))
    return fig


def draw_panel(ax, comparison, site):
    """Marginals of one latent: the exact one as a line, draws as histograms."""
    x, density = comparison.exact.points[site], comparison.exact.marginals[site]
    shown = x[density > 1e-3 * density.max()]
    edges = np.linspace(shown[0], shown[-1], 41)
    for key, label in NAMES.items():
        if key not in comparison.methods:
            continue
        draws = comparison.methods[key].latents[site]
        weights = np.full(len(draws), 1 / (len(draws) * (edges[1] - edges[0])))
        ax.hist(draws, edges, weights=weights, label=label, **LOOKS[key])
    ax.plot(x, density, color="k", lw=0.8, label="exact")
    ax.set_xlim(edges[0], edges[-1])


def main(args):
    given = ("num_particles", "num_epochs", "num_steps", "num_evaluation")
    given += ("warm_start_size", "progress_bar")
    options = {k: getattr(args, k) for k in given if getattr(args, k) is not None}
    print("Emergent property inference, and other methods on the tilted model")
    comparisons = {}
    for i, (name, problem) in enumerate(PROBLEMS.items()):
        key, compare_key = jax.random.split(jax.random.key(args.key + i))
        result = epi.EPI(problem.model, **options).run(key)
        comparisons[name] = compare(
            problem,
            result,
            compare_key,
            num_draws=args.num_draws,
            num_warmup=args.num_warmup,
            svi_steps=args.svi_steps,
        )
        print_table(name, result, comparisons[name])

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "compare_nuts_svi.png"
    with plt.rc_context(STYLE):
        figure = plot_marginals(comparisons)
        figure.savefig(path)
        plt.close(figure)
    print(f"\nWritten: {path}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="EPI against NUTS and SVI on models with a known answer.",
        epilog="Options of EPI that are not given have their defaults.",
    )
    parser.add_argument("--key", type=int, default=0, help="random key (default 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    parser.add_argument("--num-draws", type=int, default=20_000, help="of each method")
    parser.add_argument(
        "--num-warmup", type=int, default=500, help="of each NUTS chain"
    )
    parser.add_argument("--svi-steps", type=int, default=2000)
    parser.add_argument("--num-particles", type=int)
    parser.add_argument("--num-epochs", type=int)
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--num-evaluation", type=int)
    parser.add_argument("--warm-start-size", type=int)
    parser.add_argument("--warm-start-rounds", type=int)
    parser.add_argument("--progress-bar", action=argparse.BooleanOptionalAction)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
