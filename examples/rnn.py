# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Recurrent networks: which rank-2 connections amplify an input, and then let it decay?
=====================================================================================

N neurons with activity x (dimensionless) excite and inhibit each other,

    tau dx/dt = -x + W x,    W = U V',    tau = 100 ms,

with N x 2 matrices U and V. Their 4 N entries, between -1 and 1, are unknown, and each
network adds noise of standard deviation g to them. Activity dies out in the end if the
leading eigenvalue of W has a real part below 1. On the way, some input grows if the
leading eigenvalue of (W + W') / 2 is above 1. Both together are stable amplification:

    real part of the leading eigenvalue        0.5 +- 0.25
    eigenvalue of the symmetric part           1.5 +- 0.25

The script infers networks of 2 and of 10 neurons with little and with much noise,
prints what each inference found and cost, and the paper's claims beside our numbers. It
writes

    rnn_amplification.png   eigenvalues of the draws, and their activity over time

.. image:: images/rnn_amplification.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _claims import Claim, entropy_claim, print_claims, verdict
from _script import BLACK, BLUE, GREY, ORANGE, PINK, infer, parser, save

from numpyro_epi.circuits import rnn

NAMES = ("real_eigenvalue", "symmetric_eigenvalue")
MEANS, SDS = np.array(rnn.PAPER.mean), np.array(rnn.PAPER.var) ** 0.5
PUBLISHED_ENTROPY = {2: -8.6, 10: -6.3, 50: -44.0, 100: -221.0}  # at g = 0.01
TIMES = np.linspace(0.0, 4000.0, 201)  # ms
LEAST_SHARE = 0.93  # the exact distribution has 0.956 at N = 5


class Run(NamedTuple):
    """One inference, and what its networks do.

    Attributes:
        num_neurons: N.
        noise: g.
        result: `EPIResult`.
        shares: Of draws that amplify and decay, only decay, and explode, shape (3,).
        norms: |x(t)| from the input that grows most at first, |x(0)| = 1, at `TIMES`,
            shape (n, T).
    """

    num_neurons: int
    noise: float
    result: object
    shares: np.ndarray
    norms: np.ndarray


# One function for each claim. --------------------------------------------------------


def regime_shares(statistics):
    """Shares of stable amplification, monotonic decay and instability, shape (3,)."""
    real, symmetric = (np.asarray(statistics[name]) for name in NAMES)
    is_stable, grows = real < 1, symmetric > 1
    return np.array(
        [(is_stable & grows).mean(), (is_stable & ~grows).mean(), (~is_stable).mean()]
    )


def activity_norms(result, rng_key, noise, num_draws=500):
    """|x(t)| of new draws, starting from the input that grows most at first."""
    draw_key, noise_key = jax.random.split(rng_key)
    draws = result.sample(draw_key, num_draws)
    U, V = rnn.add_noise(draws["U"], draws["V"], noise_key, noise)
    W = U @ jnp.swapaxes(V, -1, -2)
    _, vectors = jnp.linalg.eigh(0.5 * (W + jnp.swapaxes(W, -1, -2)))
    follow = jax.jit(jax.vmap(lambda u, v, x: rnn.trajectory(u, v, TIMES, x)))
    return np.linalg.norm(follow(U, V, vectors[..., -1]), axis=-1)


def share_of_transients(norms):
    """Share of traces that rise above their start and end below it."""
    return float(((norms.max(axis=-1) > 1.001) & (norms[:, -1] < 1)).mean())


# The tables. -------------------------------------------------------------------------


def print_runs(runs):
    """What each inference found and cost, ready for comparison with other methods."""
    print(
        f"\n{'N':>4} {'g':>5}  {'status':14} {'Re lambda_1':>14} {'lambda_1^s':>14} "
        f"{'entropy':>8} {'maximum':>8} {'amplify':>8} {'decay':>6} {'explode':>8} "
        f"{'simulations':>12} {'seconds':>8}"
    )
    for run in runs:
        stats = run.result.draws.statistics
        moments = [f"{stats[k].mean():.3f} +- {stats[k].std():.3f}" for k in NAMES]
        most = dict(rnn.PAPER.max_entropy).get(run.num_neurons)
        most = f"{most:8.2f}" if most and run.noise == rnn.PAPER.noise else f"{'-':>8}"
        print(
            f"{run.num_neurons:4d} {run.noise:5.2f}  {str(run.result.status):14} "
            f"{moments[0]:>14} {moments[1]:>14} {run.result.entropy:8.2f} {most} "
            f"{run.shares[0]:8.1%} {run.shares[1]:6.1%} {run.shares[2]:8.1%} "
            f"{run.result.num_simulations:12,} {run.result.seconds:8.0f}"
        )


def claims(runs):
    """Every claim of the paper about this circuit, as a row."""
    converged = [run.result.converged for run in runs]
    sizes = " and ".join(str(n) for n in dict.fromkeys(r.num_neurons for r in runs))
    noises = " and ".join(str(g) for g in dict.fromkeys(r.noise for r in runs))
    stats = [run.result.draws.statistics for run in runs]
    means = np.array([[s[k].mean() for k in NAMES] for s in stats])
    sds = np.array([[s[k].std() for k in NAMES] for s in stats])
    amplify = np.array([run.shares[0] for run in runs])
    transient = np.array([share_of_transients(run.norms) for run in runs])
    rows = [
        Claim(
            f"Mean and variance hold for N = {sizes} and g = {noises}",
            "always",
            f"means within {np.abs(means - MEANS).max():.3f}, sds within "
            f"{np.abs(sds - SDS).max():.3f}",
            f"{sum(converged)} of {len(runs)} runs: all constraints equivalent within "
            f"{runs[0].result.tolerance:g} scaled units",
            verdict(all(converged), f"{converged.count(False)} runs do not converge"),
        ),
        Claim(
            "Draws amplify stably: Re lambda_1 < 1 and lambda_1^s > 1",
            "nearly all",
            f"{amplify.min():.1%} to {amplify.max():.1%}",
            f"share of {len(stats[0][NAMES[0]]):,} draws each; bar {LEAST_SHARE:.0%}; "
            "by reweighting the prior the exact law has 92 +- 1% at N = 2",
            verdict(amplify.min() >= LEAST_SHARE, f"only {amplify.min():.1%}"),
        ),
        Claim(
            "Their activity |x(t)| rises, then decays",
            "shown by 15 traces",
            f"{transient.min():.1%} to {transient.max():.1%}",
            f"share of {len(runs[0].norms)} traces above |x(0)| at some time and below "
            f"it at {TIMES[-1] / 1e3:g} s; bar 90%",
            verdict(transient.min() >= 0.9, f"only {transient.min():.1%}"),
        ),
    ]
    for run in runs:
        if run.num_neurons in PUBLISHED_ENTROPY and run.noise == rnn.PAPER.noise:
            published = PUBLISHED_ENTROPY[run.num_neurons]
            most = dict(rnn.PAPER.max_entropy).get(run.num_neurons)
            label = f"N = {run.num_neurons}"
            rows.append(entropy_claim(run.result, label, published, most))
    return rows


# Everything below draws. -------------------------------------------------------------


def plot_amplification(runs):
    """For each inference: eigenvalues of the draws above, activity over time below."""
    size = (1 + 2.6 * len(runs), 6)
    fig, axes = plt.subplots(
        2, len(runs), figsize=size, squeeze=False, sharex="row", sharey="row"
    )
    for run, (above, below) in zip(runs, axes.T, strict=True):
        draw_eigenvalues(above, run)
        draw_activity(below, run)
        above.set_title(f"N = {run.num_neurons}, g = {run.noise:g}")
    axes[0, 0].set_ylabel("$\\lambda_1^s$ of the symmetric part")
    axes[0, 0].legend(loc="upper left", handletextpad=0.3)
    axes[1, 0].set_ylabel("activity $|x(t)|$, start: 1")
    fig.suptitle(
        "Above 1 on the vertical axis networks amplify an input,\n"
        "left of 1 on the horizontal axis they let it decay",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    fig.tight_layout()
    return fig


def draw_eigenvalues(ax, run):
    real, symmetric = (run.result.draws.statistics[name][:3000] for name in NAMES)
    ax.plot(real, symmetric, ".", color=BLUE, ms=2, alpha=0.4, rasterized=True)
    ax.axvline(1, color=BLACK, lw=0.8, ls=":")
    ax.axhline(1, color=BLACK, lw=0.8, ls=":")
    target = {"fmt": "*", "color": ORANGE, "ms": 12, "mec": "w", "capsize": 3}
    ax.errorbar(*MEANS, 2 * SDS[1], 2 * SDS[0], label="target, 2 sd", **target)
    ax.set(xlim=(-0.5, 1.5), ylim=(0.5, 2.75), xlabel="real part of $\\lambda_1$ of W")


def draw_activity(ax, run):
    looks = ((BLUE, "amplify, decay"), (GREY, "only decay"), (PINK, "explode"))
    for norm in run.norms[:15]:
        kind = 2 if norm[-1] >= 1 else int(norm.max() <= 1.001)
        ax.plot(TIMES / 1e3, norm, color=looks[kind][0], lw=0.9)
    ax.axhline(1, color=BLACK, lw=0.8, ls=":")
    text = [f"{s:.1%} {name}" for s, (_, name) in zip(run.shares, looks, strict=True)]
    place = {"transform": ax.transAxes, "ha": "right", "va": "top"}
    box = {"facecolor": "w", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    ax.text(0.97, 0.97, "\n".join(text), bbox=box, **place)
    ax.set(xlim=(0, 1.5), ylim=(0, 3.2), xlabel="time (s)")


def parse_args(argv=None):
    arguments = parser("Which rank-2 networks amplify an input and let it decay?")
    arguments.add_argument("--num-neurons", type=int, nargs="+", default=[2, 10])
    arguments.add_argument(
        "--noise", type=float, nargs="+", default=[0.01, 0.1], help="g, several"
    )
    return arguments.parse_args(argv)


def main(args):
    runs = []
    cases = [(n, g) for n in args.num_neurons for g in args.noise]
    keys = jax.random.split(jax.random.key(args.key), (len(cases), 2))
    for (num_neurons, noise), (run_key, trace_key) in zip(cases, keys, strict=True):
        print(f"\nN = {num_neurons} neurons, noise g = {noise}")
        constants = rnn.PAPER._replace(noise=noise)
        result = infer(rnn.model, args, run_key, num_neurons, constants=constants)
        shares = regime_shares(result.draws.statistics)
        norms = activity_norms(result, trace_key, noise)
        runs.append(Run(num_neurons, noise, result, shares, norms))
    print_runs(runs)
    print_claims(claims(runs), converged=all(run.result.converged for run in runs))
    save({"rnn_amplification.png": lambda: plot_amplification(runs)}, args)


if __name__ == "__main__":
    main(parse_args())
