# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Quickstart: which connections make two units oscillate at 1 Hz?
===============================================================

Two units with activity x (dimensionless) excite or inhibit themselves and each other,

    tau dx/dt = A x,    A = [[a11, a12],    tau = 1 s,    -10 <= a_ij <= 10.
                             [a21, a22]],

Their activity oscillates if the leading eigenvalue of A / tau is complex: its real part
is the *growth* of the oscillation (1/s) and its imaginary part the *frequency* (rad/s).
We ask for an *emergent property*, not for one data set:

    growth       0   +- 0.25 1/s      (neither explodes nor dies out)
    frequency    2pi +- pi/5 rad/s    (1 Hz +- 0.1 Hz)

Many matrices have it. Emergent property inference finds the distribution of the four
entries that has these means and variances and is otherwise as uncommitted as possible:
the one of largest entropy. Here that entropy is known, 7.04 nats, from 30 million
importance-weighted draws.

The script prints a report and writes three figures and a file that ArviZ opens:

    quickstart_distribution.png   the four entries, pair by pair
    quickstart_training.png       entropy, violations and multipliers during training
    quickstart_prediction.png     growth and frequency of the draws, and their activity
    quickstart.nc                 draws, statistics, targets and history

.. image:: images/quickstart_distribution.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 2.
"""

import argparse
import math
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi
from numpyro_epi import plotting
from numpyro_epi.circuits import linear

TARGETS = {"growth": (0.0, 0.25), "frequency": (2 * math.pi, math.pi / 5)}  # mean, sd
MAX_ENTROPY = linear.PAPER.max_entropy
BOUND = 10.0


def oscillator():
    a = numpyro.sample("a", dist.Uniform(-BOUND, BOUND).expand([4]).to_event(1))
    growth, frequency = linear.leading_eigenvalue(a.reshape(2, 2))
    for name, value in {"growth": growth, "frequency": frequency}.items():
        mean, sd = TARGETS[name]
        epi.emergent_property(value, mean=mean, var=sd**2, name=name)


# Everything below draws. -------------------------------------------------------------

STYLE = {
    "font.size": 9,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 130,
}
CONTOUR = "growth 0, frequency 1 Hz\n(if $a_{11} = a_{22} = 0$);\ndashed: 1 and 2 sd"


def plot_distribution(result):
    """All pairs of entries, coloured by log density, with contours by formula."""
    deviates = np.array([-2, -1, 0, 1, 2])
    growth, frequency = (mean + deviates * sd for mean, sd in TARGETS.values())
    axes = plotting.plot_pairs(
        result,
        labels=linear.LABELS,
        contours={
            ("a[0]", "a[3]"): (lambda a11, a22: (a11 + a22) / 2, growth, CONTOUR),
            ("a[1]", "a[2]"): (frequency_off_diagonal, frequency, CONTOUR),
        },
    )
    share = (result.draws.latents["a"][:, 1] > 0).mean()
    figure = axes[0, 0].figure
    figure.suptitle(
        "Matrices that oscillate at 1 Hz: $a_{11}$ and $a_{22}$ cancel, $a_{12}$ and "
        "$a_{21}$ have opposite signs",
        x=0.02,
        ha="left",
        fontsize=12,
    )
    figure.text(
        0.33,
        0.93,
        f"Two mirror-image solutions:\n$a_{{12}} > 0$ in {share:.0%} of the draws\n"
        "(exact: 50%). Entries are\ndimensionless. Dark dots in\nbetween: strays; the "
        "density of\na flow is nowhere zero.",
        va="top",
    )
    return figure


def frequency_off_diagonal(a12, a21):
    """Frequency (rad/s) where a11 = a22 = 0."""
    return np.sqrt(np.maximum(-a12 * a21, 0.0))


def plot_training(result):
    """Entropy, violations and multipliers after each epoch."""
    axes = plotting.plot_history(
        result,
        panels=["entropy", "violation", "multipliers"],
        max_entropy=MAX_ENTROPY,
        labels=linear.LABELS,
    )
    steps = len(result.losses) // len(result.history.entropy)
    axes[0].set_title(
        f"The entropy reaches {result.entropy:.2f} of at most {MAX_ENTROPY:.2f}"
    )
    axes[1].set_title("The violations shrink into the tolerance (bars: standard error)")
    axes[2].set_xlabel(f"epoch ({steps} gradient steps each)")
    figure = axes[0].figure
    figure.supxlabel(
        "Scaled units: a mean is off by so many target sds, a variance by so many times"
        " $\\sqrt{2}$ target variances.\n"
        "The corrected entropy subtracts violation times multiplier: what a missed "
        "target adds to the entropy does not count.\n"
        "Where multipliers of the training lie beyond the exact ones (pale), stray "
        "draws between the two solutions\nadd to the variances, and the flow makes up "
        "for them by being narrower elsewhere.",
        x=0.02,
        ha="left",
        fontsize="medium",
    )
    return figure


def plot_prediction(result):
    """Histograms of both statistics against their targets, and activity of draws."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    plotting.plot_predictive(result, labels=linear.LABELS, ax=axes[:2])
    axes[0].set_title("Growth: neither explodes nor dies out")
    axes[1].set_title("Frequency: 1 Hz, give or take 0.1 Hz")
    hertz = axes[1].secondary_xaxis(
        -0.22, functions=(lambda x: x / (2 * np.pi), lambda x: x * 2 * np.pi)
    )
    hertz.set_xlabel("frequency (Hz)")
    plot_activity(axes[2], result.draws.latents["a"])
    return figure


def plot_activity(ax, draws):
    """Activity of the first unit for draws of either sign of a12."""
    times = np.linspace(0.0, 3.0, 400)
    for sign, color, ls in ((1, "#0072B2", "-"), (-1, "#D55E00", "--")):
        chosen = draws[sign * draws[:, 1] > 0][:6]
        activity = linear.trajectory(chosen.reshape(-1, 2, 2), times)[..., 0]
        lines = ax.plot(times, activity.T, color=color, ls=ls, lw=0.9)
        if lines:
            sense = ">" if sign > 0 else "<"
            lines[0].set_label(f"6 draws, $a_{{12}} {sense} 0$")
    ax.set(
        xlabel="time (s)",
        ylabel="activity $x_1$ (dimensionless)",
    )
    ax.set_title("Twelve draws: about one cycle per second")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.2 * (high - low))
    ax.legend(loc="upper left", ncols=2)


def main(args):
    given = ("num_particles", "num_epochs", "num_steps", "num_evaluation")
    given += ("warm_start_size", "progress_bar")
    options = {k: getattr(args, k) for k in given if getattr(args, k) is not None}
    result = epi.EPI(oscillator, **options).run(jax.random.key(args.key))
    certificate_key = jax.random.key(args.key + 1)
    certificate = epi.diagnostics.duality_gap_diagnostic(result, certificate_key)
    result.print_summary(certificate)

    args.out.mkdir(parents=True, exist_ok=True)
    written = [args.out / "quickstart.nc"]
    epi.to_arviz(result).to_netcdf(str(written[0]))
    with plt.rc_context(STYLE):
        for name, plot in {
            "distribution": plot_distribution,
            "training": plot_training,
            "prediction": plot_prediction,
        }.items():
            written.append(args.out / f"quickstart_{name}.png")
            figure = plot(result)
            figure.savefig(written[-1])
            plt.close(figure)
    print("\nWritten: " + ", ".join(str(path) for path in written))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Which connections make two units oscillate at 1 Hz?",
        epilog="Options of EPI that are not given have their defaults.",
    )
    parser.add_argument("--key", type=int, default=0, help="random key (default 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
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
