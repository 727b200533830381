# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of the superior colliculus."""

import matplotlib.pyplot as plt
import numpy as np
from _colliculus import (
    AXES,
    MEAN,
    REGIMES,
    SD,
    SELF,
    Silencing,
    bend,
)
from _script import BLACK, BLUE, GREEN, GREY, ORANGE, PINK

REGIME_COLORS = {1: BLUE, 2: ORANGE}


def plot_distribution(found):
    fig, axes = plt.subplots(2, 3, figsize=(11.5, 7.6))
    z = found.result.draws.latents["z"]
    density = found.result.draws.log_density
    pairs = {
        axes[0, 0]: (0, 2),
        axes[1, 0]: (0, 1),
        axes[1, 1]: (0, 3),
        axes[1, 2]: (1, 2),
    }
    for ax, (i, j) in pairs.items():
        points = draw_pair(ax, z, density, i, j, found)
    fig.colorbar(points, ax=axes[1, 2], extend="both", label="log density (nats)")
    axes[0, 0].set_title("Positive sW: hW falls with it; negative: rises")
    draw_bend(axes[0, 1], z)
    draw_accuracies(axes[0, 2], found.result)
    fig.suptitle(
        "Connections that switch between tasks with an accuracy of 75%",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    # Above the panels, so that it covers no arrow.
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="upper right",
        bbox_to_anchor=(0.99, 0.965),
        ncols=4,
        fontsize=8,
    )
    fig.text(
        0.01,
        0.01,
        "Path: the most probable point at each sW. In vW the density is nearly flat, "
        "with peaks of about the same height: where the one that the path\n"
        "is on ends, it jumps, at an sW that differs from run to run: no border of "
        "regimes. "
        "Open circles beyond the draws: brute force accepts accuracies of 0.6 to 0.9.",
        fontsize=9,
        va="bottom",
    )
    fig.tight_layout(rect=(0, 0.05, 1, 0.95))
    return fig


def draw_pair(ax, z, density, i, j, found):
    """Draws in the plane of two connections, brute force, and modes along sW."""
    shown = np.argsort(density[:4000])
    points = ax.scatter(
        z[shown, i],
        z[shown, j],
        c=density[shown],
        s=3,
        lw=0,
        vmin=np.quantile(density, 0.02),
        vmax=np.quantile(density, 0.999),
        rasterized=True,
    )
    brute = found.brute.accepted
    ax.plot(
        brute[:, i],
        brute[:, j],
        "o",
        color=BLACK,
        mfc="none",
        ms=4,
        mew=0.7,
        label="brute force",
    )
    if i == SELF:
        path = np.stack([mode.point for mode in found.modes.values()])
        ax.plot(path[:, i], path[:, j], ".-", color=PINK, ms=7, label="modes, sW fixed")
    for regime, (_, value) in REGIMES.items():
        mode = found.modes[value]
        tip = mode.point + 0.7 * mode.directions[0]
        ax.annotate(
            "",
            (tip[i], tip[j]),
            (mode.point[i], mode.point[j]),
            arrowprops={"arrowstyle": "->", "color": REGIME_COLORS[regime], "lw": 2.5},
        )
        ax.plot(
            [],
            [],
            "-",
            color=REGIME_COLORS[regime],
            lw=2.5,
            label=f"0.7 times the most sensitive direction, regime {regime}",
        )
    (left, low), (right, high) = np.quantile(z[:, [i, j]], [0.003, 0.997], axis=0)
    ax.set(
        xlim=(left - 0.3, right + 0.3),
        ylim=(low - 0.3, high + 0.3),
        xlabel=AXES[i],
        ylabel=AXES[j],
    )
    return points


def draw_bend(ax, z):
    edges = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 1.5])
    bins = dict(enumerate(zip(edges[:-1], edges[1:], strict=True)))
    found = bend(z, bins)
    ax.axhline(0, color=BLACK, lw=0.7)
    ax.errorbar(
        0.5 * (edges[1:] + edges[:-1]),
        found.correlations,
        2 * found.errors,
        0.5 * np.diff(edges),
        fmt="o",
        color=PINK,
        ms=5,
    )
    ax.set(
        ylim=(-1, 1),
        xlabel="self connection sW, in bins",
        ylabel="correlation of sW and hW",
        title="The correlation changes sign (bars: 2 errors)",
    )


def draw_accuracies(ax, result):
    pro, anti = (
        result.draws.statistics[f"{task}_accuracy"][:4000] for task in ("pro", "anti")
    )
    ax.plot(pro, anti, ".", color=GREY, ms=2, rasterized=True)
    ax.errorbar(
        MEAN,
        MEAN,
        2 * SD,
        2 * SD,
        fmt="o",
        color=ORANGE,
        capsize=4,
        lw=2,
        label="target, 2 sd",
    )
    ax.errorbar(
        pro.mean(),
        anti.mean(),
        2 * anti.std(),
        2 * pro.std(),
        fmt="s",
        color=BLUE,
        capsize=4,
        lw=1,
        label="achieved, 2 sd",
    )
    ax.legend(loc="lower left", frameon=True)
    ax.set(
        xlim=(0.35, 1),
        ylim=(0.35, 1),
        xlabel="accuracy in the Pro task",
        ylabel="accuracy in the Anti task",
        title="Predicted accuracies",
    )


def plot_perturbations(around):
    """Rows: tasks; columns: directions; colours: regimes; thin: at draws."""
    fig, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey="row")
    titles = {
        "sensitive": "along the sensitive direction",
        "task": "raising the task eigenvalue",
        "diag": "raising the diag eigenvalue",
    }
    for column, (direction, title) in zip(axes.T, titles.items(), strict=True):
        column[0].set_title(title)
        column[1].set_xlabel("distance from the mode or the draw")
        for task, ax in enumerate(column):
            for regime, (found, draws) in around.items():
                for curves in draws:
                    ax.plot(
                        curves.distances,
                        curves.means[direction][:, task],
                        color=REGIME_COLORS[regime],
                        lw=0.6,
                        alpha=0.35,
                    )
                ax.errorbar(
                    found.distances,
                    found.means[direction][:, task],
                    found.errors[direction][:, task],
                    fmt="o-",
                    color=REGIME_COLORS[regime],
                    ms=4,
                    lw=2.0,
                    label=f"mode of regime {regime} (sW = {REGIMES[regime][1]:+g})",
                )
    axes[0, 0].set_ylabel("accuracy in the Pro task")
    axes[1, 0].set_ylabel("accuracy in the Anti task")
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="upper left", ncols=2, bbox_to_anchor=(0.0, 0.93))
    num = max(len(draws) for _, draws in around.values())
    fig.suptitle(
        "The same step changes the Anti task in different ways: at the modes (thick) "
        f"and at {num} draws of each regime\n"
        "(thin; each from its own accuracy, 0.75 +- 0.075)",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    fig.tight_layout(rect=(0, 0, 1, 0.95))
    return fig


def plot_silencing(found: Silencing):
    fig, axes = plt.subplots(1, 3, figsize=(11.5, 4))
    for task, (name, color) in enumerate((("Pro", GREEN), ("Anti", PINK))):
        mean, error = 100 * np.array([found.rise(x, task) for x in found.levels]).T
        look = {"fmt": "o-", "color": color, "label": f"{name} task"}
        axes[0].errorbar(found.levels, mean, error, **look)
    axes[0].axhline(50, color=BLACK, lw=0.7, ls=":")
    axes[0].legend()
    axes[0].set(
        xlabel="share of activity silenced late in the delay, $\\gamma$",
        ylabel="rise of the error (points)",
        title=f"{found.found['all'].shape[1]} draws of the distribution",
    )
    for regime, color in REGIME_COLORS.items():
        rises = [found.rise(level, 1, regime) for level in found.levels]
        mean, error = 100 * np.array(rises).T
        (low, high), _ = REGIMES[regime]
        axes[1].errorbar(
            found.levels,
            mean,
            error,
            fmt="o-",
            color=color,
            label=f"regime {regime}: sW in {low:g} to {high:g}",
        )
    axes[1].axvline(0.675, color=BLACK, lw=0.7, ls=":")
    axes[1].legend(loc="upper left")
    axes[1].set(
        xlabel="share of activity silenced, $\\gamma$ (dotted: 0.675)",
        ylabel="rise of the Anti error (points)",
        title="Regime 1 suffers first",
    )
    before, after = found.at(0.85)
    axes[2].plot(before[:, 0], after[:, 1], ".", color=GREY)
    axes[2].plot([0, 1], [1, 0], color=BLACK, lw=1, label="$1 - p_P$")
    axes[2].legend()
    axes[2].set(
        xlim=(0.35, 1),
        ylim=(0, 0.7),
        xlabel="Pro accuracy $p_P$, not silenced",
        ylabel="Anti accuracy, $\\gamma$ = 0.85",
        title="Silenced, Anti trials are treated as Pro",
    )
    fig.tight_layout()
    return fig
