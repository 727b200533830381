# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of the stomatogastric circuit."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _script import BLACK, BLUE, GREY, ORANGE, PINK, SKY
from _stg import HIGH, LOW, MEAN, SD, hub_frequencies
from matplotlib.lines import Line2D

from numpyro_epi.circuits import stg

COLORS = (BLUE, SKY, BLACK, ORANGE, PINK)
NEURON_COLORS = dict(zip(stg.NEURONS, COLORS, strict=True))


def plot_distribution(result, moved, rng_key):
    fig = plt.figure(figsize=(10.5, 6.3))
    grid = fig.add_gridspec(2, 2, width_ratios=[1.35, 1], hspace=0.5, wspace=0.22)
    draw_draws(fig, fig.add_subplot(grid[:, 0]), result, moved.mode, rng_key)
    draw_prediction(fig.add_subplot(grid[0, 1]), result)
    draw_lines(fig.add_subplot(grid[1, 1]), moved)
    fig.subplots_adjust(0.06, 0.18, 0.98, 0.93)
    fig.text(
        0.02,
        0.02,
        "Within the target the density is nearly flat: where its highest point lies, "
        "and which way is robust there, differs from run to run.\n"
        "The exact law tells more than this one point: see stg_sensitivity.png. Where "
        "contours crowd, the frequency changes within 0.1 nS.",
        fontsize=9,
        va="bottom",
    )
    return fig


def draw_draws(fig, ax, result, mode, rng_key):
    """Draws, contours of the simulated hub frequency, and both directions."""
    latents, density = result.draws.latents, result.draws.log_density
    shown = np.argsort(density[:4000])
    points = ax.scatter(
        latents["g_el"][shown],
        latents["g_synA"][shown],
        c=density[shown],
        s=5,
        lw=0,
        vmin=np.quantile(density, 0.02),
        vmax=np.quantile(density, 0.999),
        rasterized=True,
    )
    fig.colorbar(points, ax=ax, extend="both", label="log density (nats)", pad=0.02)
    x, y = np.linspace(LOW, HIGH, 41).T
    z = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    frequency = hub_frequencies(jnp.asarray(z), jax.random.split(rng_key, 8))
    frequency = np.asarray(frequency).mean(axis=-1).reshape(41, 41)
    levels = [MEAN - 2 * SD, MEAN - SD, MEAN, MEAN + SD, MEAN + 2 * SD]
    widths, styles = [0.9, 0.9, 1.6, 0.9, 0.9], ["--", "--", "-", "--", "--"]
    lines = ax.contour(
        x, y, frequency, levels, colors=BLACK, linewidths=widths, linestyles=styles
    )
    ax.clabel(lines, fmt=lambda level: f"{level:.3f} Hz", fontsize=7)
    lengths = np.abs(mode.eigenvalues) ** -0.5
    for vector, length, style in zip(
        mode.directions, np.minimum(lengths, 1.5), ("-", "--"), strict=True
    ):
        tip = mode.point + length * vector
        ax.plot(*np.stack([mode.point, tip]).T, style, color="w", lw=4.5)
        ax.plot(*np.stack([mode.point, tip]).T, style, color=ORANGE, lw=2.5)
    ax.plot(*mode.point, "*", color=ORANGE, mec="w", ms=15)
    handles = [
        Line2D([], [], marker="*", ls="", color=ORANGE, ms=10, label="mode"),
        Line2D([], [], color=ORANGE, lw=2.5, label="sensitive direction"),
        Line2D([], [], color=ORANGE, lw=2.5, ls="--", label="robust direction"),
        Line2D([], [], color=BLACK, lw=1.2, label="simulated frequency"),
    ]
    ax.legend(handles=handles, loc="upper right", frameon=True, framealpha=0.9)
    ax.set(
        xlim=(LOW[0], HIGH[0]),
        ylim=(LOW[1], HIGH[1]),
        xlabel="electrical coupling $g_{el}$ (nS)",
        ylabel="synapses onto the hub $g_{synA}$ (nS)",
        title=f"Couplings that give the hub 0.55 Hz ({shown.size:,} draws)",
    )


def draw_prediction(ax, result):
    values = result.draws.statistics["hub_frequency"]
    ax.hist(values, np.linspace(0.45, 0.65, 61), color=GREY, density=True)
    for level, style in ((MEAN, "-"), (MEAN - 2 * SD, "--"), (MEAN + 2 * SD, "--")):
        ax.axvline(level, color=ORANGE, ls=style, lw=1.3)
    ax.set(
        xlabel="hub frequency (Hz)",
        ylabel="density (1/Hz)",
        title=f"Predicted: {values.mean():.3f} $\\pm$ 2 x {values.std():.3f} Hz "
        f"(orange: target)",
    )


def draw_lines(ax, moved):
    text = "target $\\pm$ 1 sd"
    ax.axhspan(MEAN - SD, MEAN + SD, color="0.9", label=text)
    styles = ((ORANGE, "o-", "sensitive"), (BLUE, "s--", "robust"))
    for mean, error, (color, fmt, name) in zip(
        moved.means, moved.errors, styles, strict=True
    ):
        ax.errorbar(
            moved.distances, mean, error, fmt=fmt, color=color, ms=4, lw=1, label=name
        )
    ax.legend(loc="lower left")
    ax.set(
        xlabel="distance from the mode (nS)",
        ylabel="hub frequency (Hz)",
        title="Away from the mode along both directions",
    )


def plot_traces(moved, rng_key):
    """Voltages of the five neurons at six places."""
    v1, v2 = moved.mode.directions
    mode, reach = moved.mode.point, moved.reach
    away = f"{reach:.2f} nS"
    places = {
        "at the mode": mode,
        f"{away} along the sensitive direction": mode + reach * v1,
        f"{away} along the robust direction": mode + reach * v2,
        "where fast and slow pair go their own ways": np.array([4.5, 3.0]),
        f"{away} against the sensitive direction": mode - reach * v1,
        f"{away} against the robust direction": mode - reach * v2,
    }
    fig, axes = plt.subplots(2, 3, figsize=(12, 6), sharex=True, sharey=True)
    for ax, (name, place) in zip(axes.flat, places.items(), strict=True):
        draw_traces(ax, np.clip(place, LOW, HIGH), name, rng_key)
    for ax in axes[1]:
        ax.set_xlabel("time (s)")
    axes[0, 0].set_yticks(-150.0 * np.arange(5), stg.NEURONS)
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0)
    axes[0, 0].plot([7.6, 7.6], [-20, 80], color=BLACK, lw=2, clip_on=False)
    axes[0, 0].text(7.65, 30, "100 mV", va="center", fontsize=8)
    fig.suptitle("Five neurons, one simulation each", x=0.02, ha="left", fontsize=12)
    fig.tight_layout(rect=(0, 0, 1, 0.98))
    return fig


def draw_traces(ax, place, name, rng_key):
    voltages = np.asarray(stg.simulate(*place, rng_key).v)
    hub = float(stg.frequencies(voltages)[stg.NEURONS.index("hub")])
    for i, (neuron, color) in enumerate(NEURON_COLORS.items()):
        lw = 1.6 if neuron == "hub" else 1.0
        ax.plot(stg.PAPER.times / 1e3, voltages[:, i] - 150.0 * i, color=color, lw=lw)
    ax.set_title(f"({place[0]:.2f}, {place[1]:.2f}) nS, hub {hub:.2f} Hz:\n{name}")
    ax.spines["left"].set_visible(False)
