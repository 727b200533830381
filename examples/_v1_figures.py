# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of visual cortex."""

import matplotlib.pyplot as plt
import numpy as np
from _script import BLACK, BLUE, GREY, ORANGE, PINK
from _v1 import POPULATIONS, TARGETS, TEST_INPUTS, shift_of, squares

from numpyro_epi.circuits import v1

COLORS = dict(zip(POPULATIONS, (BLACK, BLUE, ORANGE, PINK), strict=True))
LOOKS = {5.0: BLUE, 10.0: ORANGE}


def plot_distribution(results):
    fig, axes = plt.subplots(2, 3, figsize=(11, 7))
    for ax, mean in zip(axes[0], TARGETS, strict=False):
        draw_plane(fig, ax, results[mean], mean)
    draw_prediction(axes[0, 2], results)
    for ax, columns in zip(axes[1], ([0, 1], [2, 3]), strict=False):
        draw_sums(ax, results, columns)
    draw_marginals(axes[1, 2], results)
    fig.suptitle(
        "Noise in E and P makes the E rate fluctuate, and more of one allows for less "
        "of the other; S and V hardly matter",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    fig.tight_layout()
    return fig


def draw_plane(fig, ax, result, mean):
    """Draws in the plane of sigma_E and sigma_P, with the ellipse of linear theory."""
    sigma, density = result.draws.latents["sigma"][:4000], result.draws.log_density
    density = density[:4000]
    shown = np.argsort(density)
    points = ax.scatter(
        sigma[shown, 0],
        sigma[shown, 1],
        c=density[shown],
        s=4,
        lw=0,
        vmin=np.quantile(density, 0.02),
        vmax=np.quantile(density, 0.999),
        rasterized=True,
    )
    fig.colorbar(points, ax=ax, extend="both", label="log density (nats)")
    unit = [float(v1.linear_std(0.001 * row)[0]) / 0.001 for row in np.eye(4)]
    angle = np.linspace(0, np.pi / 2, 200)
    ax.plot(
        mean / unit[0] * np.cos(angle),
        mean / unit[1] * np.sin(angle),
        color=BLACK,
        lw=1.3,
        label=f"{mean:g} Hz in linear theory",
    )
    corner = "upper right" if mean < 7 else "lower left"
    ax.legend(loc=corner, frameon=True, framealpha=0.9)
    ax.set(
        xlim=(0, v1.PAPER.max_sigma),
        ylim=(0, v1.PAPER.max_sigma),
        xlabel="noise of E, $\\sigma_E$ ($\\sqrt{\\mathrm{Hz}}$)",
        ylabel="noise of P, $\\sigma_P$ ($\\sqrt{\\mathrm{Hz}}$)",
        title=f"E fluctuates by {mean:g} $\\pm$ 1 Hz",
    )


def draw_prediction(ax, results):
    for mean, result in results.items():
        values = result.draws.statistics["s_E"]
        label = f"{values.mean():.2f} $\\pm$ {values.std():.2f} Hz"
        ax.hist(
            values,
            np.linspace(0, 15, 76),
            density=True,
            color=LOOKS[mean],
            alpha=0.6,
            label=label,
        )
        for level in (mean - 1, mean, mean + 1):
            ls = "-" if level == mean else ":"
            ax.axvline(level, 0, 0.8, color=BLACK, lw=0.9, ls=ls)
    ax.legend(loc="upper left", ncols=2)
    ax.set(
        xlabel="standard deviation of the E rate (Hz)",
        ylabel="density (1/Hz)",
        title="Predictions (lines: target mean and sd)",
    )
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])


def draw_sums(ax, results, columns):
    names = [f"$\\sigma_{POPULATIONS[c]}^2$" for c in columns]
    for mean, result in results.items():
        values = 1e3 * squares(result)[:, columns].sum(axis=-1)
        bins = np.linspace(0, 5, 51)
        ax.hist(
            values,
            bins,
            density=True,
            color=LOOKS[mean],
            alpha=0.6,
            label=f"{mean:g} Hz",
        )
    ax.legend(title="E fluctuates by")
    found = shift_of(*results.values(), columns).difference.value
    ax.set(
        xlabel=f"{' + '.join(names)} ($10^{{-3}}$ Hz)",
        ylabel="density ($10^3$ / Hz)",
        title=f"{' + '.join(names)} moves by {found:z.2f} spreads",
    )


def draw_marginals(ax, results):
    """Distribution functions of the four levels."""
    share = np.linspace(0, 1, 500)
    for mean, style in zip(results, ("-", "--"), strict=True):
        sigma = results[mean].draws.latents["sigma"]
        for i, name in enumerate(POPULATIONS):
            label = f"$\\sigma_{name}$" if mean == TARGETS[0] else None
            ax.plot(
                np.quantile(sigma[:, i], share),
                share,
                style,
                color=COLORS[name],
                lw=4.0 if name == "S" else 1.3,  # else V, on the same line, covers it
                label=label,
            )
    ax.plot([0, v1.PAPER.max_sigma], [0, 1], color=GREY, lw=7, zorder=0)
    ax.legend(
        title="solid: 5 Hz, dashed: 10 Hz\ngrey: no preference",
        alignment="left",
        loc="lower right",
        fontsize=8,
    )
    ax.set(
        xlim=(0, 0.12),
        xticks=[0, 0.02, 0.04],
        xlabel="noise level ($\\sqrt{\\mathrm{Hz}}$)",
        ylabel="share of draws below",
        title="S and V may have any noise",
    )


def plot_circuit(results, checked, rng_key):
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), width_ratios=[1.2, 1, 1])
    draw_rates(axes[0], results[5.0], rng_key)
    draw_responses(axes[1])
    draw_theory(axes[2], checked)
    fig.tight_layout()
    return fig


def draw_rates(ax, result, rng_key):
    """Rates in one trial, with mean and standard deviation over 100 trials."""
    sigma = result.draws.latents["sigma"][0]
    found = v1.paths(sigma, rng_key)
    rates = np.asarray(found.rates)
    for i, name in enumerate(POPULATIONS):
        mean, sd = rates[..., i].mean(axis=0), rates[..., i].std(axis=0)
        ax.fill_between(
            found.times, mean - sd, mean + sd, color=COLORS[name], alpha=0.25, lw=0
        )
        ax.plot(found.times, rates[0, :, i], color=COLORS[name], lw=1, label=name)
    ax.axvspan(75, 100, color="0.93", zorder=0)
    ax.legend(ncols=4, loc="upper left")
    ax.set(
        xlim=(25, 100),
        ylim=(10, 90),
        xlabel="time (ms); grey: where the statistic looks",
        ylabel="rate (Hz)",
        title="A draw at 5 Hz: a trial, and mean $\\pm$ sd of 100",
    )


def draw_responses(ax):
    """Rates after a step of each population's own input, without noise."""
    times = np.linspace(0.0, 60.0, 241)
    rest = v1.steady_state()
    for i, name in enumerate(POPULATIONS):
        change = TEST_INPUTS[i] * np.eye(4)[i]
        rates = v1.noise_free(times, rest, change=change, dt0=0.1)
        response = np.asarray(rates)[:, i] - float(rest[i])
        label = f"{name}, input +{TEST_INPUTS[i]:g}"
        ax.plot(times, response, color=COLORS[name], label=label)
    ax.axhline(0, color=BLACK, lw=0.7)
    ax.legend(loc="upper right")
    ax.set(
        ylim=(-4, 7),
        xlabel="time after more input (ms)",
        ylabel="change of its own rate (Hz)",
        title="Only P is paradoxical: its rate falls",
    )


def draw_theory(ax, checked):
    for i, name in enumerate(POPULATIONS):
        ax.loglog(checked.levels, checked.linear[i], "--", color=COLORS[name], lw=1)
        ax.loglog(
            checked.levels,
            checked.simulated[i],
            "o",
            color=COLORS[name],
            ms=4,
            label=f"noise in {name}",
        )
    ax.plot([], [], "--", color=GREY, label="linear theory")
    ax.legend()
    ax.set_xticks(checked.levels, [f"{level:g}" for level in checked.levels])
    ax.minorticks_off()
    ax.set(
        xlabel="noise level ($\\sqrt{\\mathrm{Hz}}$)",
        ylabel="sd of the E rate (Hz)",
        title="Theory is exact for little noise",
    )
