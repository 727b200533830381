# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of the two regimes of the superior colliculus."""

import matplotlib.pyplot as plt
import numpy as np
from _colliculus import CONNECTIONS, REGIMES, SELF
from _colliculus_figures import REGIME_COLORS
from _colliculus_regimes import EXPERIMENT, NONE, SATURATED
from _colliculus_regimes_lines import line_of
from _script import BLACK, BLUE, GREEN, GREY, ORANGE, PINK

from numpyro_epi import plotting
from numpyro_epi.circuits.colliculus import LABELS

ARROW = 0.8  # length of an arrow, in units of connections
NAMES = {r: f"regime {r} (sW = {v:+g})" for r, (_, v) in REGIMES.items()}


def plot_modes(result, path):
    """The path over the draws, v1 at each mode as arrows, and the entries of v1."""
    axes = plotting.plot_mode_path(path.modes, result, labels=LABELS)
    fig, points = axes[0, 0].figure, path.points
    z, v1 = result.draws.latents["z"], path.v1["flow"]
    low, high = np.quantile(z, [0.003, 0.997], axis=0)
    low, high = np.minimum(low, points.min(0)) - 0.3, np.maximum(high, points.max(0))
    for (i, j), ax in np.ndenumerate(axes):
        if ax is None:
            continue
        ax.set_xlim(low[j], high[j] + 0.3)
        if i > j:
            ax.set_ylim(low[i], high[i] + 0.3)
            ax.quiver(
                *points[:, [j, i]].T,
                *ARROW * v1[:, [j, i]].T,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.012,
                color=ORANGE,
                zorder=6,
            )
    cell, top = axes[2, 2].get_position(), axes[0, 0].get_position()
    fig.text(
        cell.x0,
        top.y1,
        f"Arrows: sensitive direction v1\nof the flow, {ARROW:g} long",
        color=ORANGE,
        fontsize="small",
        va="top",
    )
    draw_entries(fig.add_axes((cell.x0 + 0.1, cell.y1 + 0.06, 0.34, 0.22)), path)
    return fig


def draw_entries(ax, path):
    """Entries of v1 along the path, of both laws."""
    ax.axhline(0, color=BLACK, lw=0.7)
    colors = (BLUE, GREY, ORANGE, GREEN)
    for k, (name, color) in enumerate(zip(CONNECTIONS, colors, strict=True)):
        for law, look in (("flow", "o-"), ("exact law", "s:")):
            ax.plot(
                path.modes.values,
                path.v1[law][:, k],
                look,
                color=color,
                ms=3.5,
                lw=1.2,
                label=name if law == "flow" else None,
            )
    ax.set(
        xlabel="self connection sW, held",
        ylabel="entry of v1",
        title="v1 turns (solid: flow, dotted: exact law)",
        ylim=(-1.05, 1.45),
    )
    ax.legend(fontsize=7, ncols=4, loc="upper center", borderaxespad=0)


def plot_regimes(result, lines, census):
    """Columns: directions. Rows: Pro, Anti, and ends of the lines along the path.

    The last row also has the lines from draws, which take v1 of the exact law.
    """
    around = {"exact law": "v1", "task": "task", "diag": "diag"}
    titles = {
        "flow": "along v1 of the flow",
        "exact law": "along v1 of the exact law",
        "task": "raising the task eigenvalue",
        "diag": "raising the diag eigenvalue",
    }
    fig, axes = plt.subplots(
        3, 4, figsize=(13, 9), sharex="row", sharey="row", layout="constrained"
    )
    for k, (direction, title) in enumerate(titles.items()):
        column = axes[:, k]
        named = {NAMES[r]: lines[v][direction] for r, (_, v) in REGIMES.items()}
        plotting.plot_perturbation(named, result=result, labels=LABELS, ax=column[:2])
        column[0].set_title(title)
        draw_ends(column[2], lines, direction)
        if direction in around:
            draw_census(column[2], census, around[direction])
        if k > 0:
            column[0].get_legend().remove()
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    axes[2, 0].set_ylabel("change of Anti accuracy")
    axes[2, 0].legend(fontsize=8, ncols=2, loc="upper right")
    fig.suptitle(
        "The same step changes the Anti task in different ways along the path of modes "
        "(lines), and at draws near it (small dots of the same colours)",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    return fig


def draw_ends(ax, lines, direction):
    """Change of Anti accuracy from each mode to both ends of a line, two errors."""
    values = list(lines)
    ends = np.array([line_of(lines[v][direction], "anti").ends for v in values])
    ax.axhline(0, color=BLACK, lw=0.7)
    for k, (label, color) in enumerate((("-0.25", PINK), ("+0.25", GREEN))):
        mean, error = ends[:, k].T
        ax.errorbar(
            values, mean, 2 * error, fmt="o-", color=color, ms=4, label=f"to {label}"
        )
    for regime, (_, value) in REGIMES.items():
        style = {"color": REGIME_COLORS[regime], "lw": 0.8, "ls": ":"}
        ax.axvline(value, label=f"regime {regime}", **style)
    ax.set_xlabel("self connection sW of the mode")


def draw_census(ax, census, name):
    """The same changes at draws of both regimes."""
    for regime, places in census.places.items():
        for k, color in enumerate((PINK, GREEN)):
            change = census.ends[name][regime][:, k, 0]
            ax.plot(places[:, SELF], change, ".", color=color, ms=3, alpha=0.5)


def plot_silenced(found):
    """Bands by group, errors and correlations along the path, and the flipped task."""
    fig, axes = plt.subplots(2, 3, figsize=(11.5, 7.2), layout="constrained")
    draw_bands(axes[0, :2], found)
    draw_errors(axes[0, 2], found)
    draw_correlations(axes[1, 0], found)
    for ax, level in zip(axes[1, 1:], (EXPERIMENT, SATURATED), strict=True):
        draw_flip(ax, found, level)
    return fig


def draw_bands(axes, found):
    rows = [
        int(np.argmin(np.abs(found.values - v)))
        for v in (REGIMES[1][1], 0.0, REGIMES[2][1])
    ]
    parts = {
        name: {site: x[rows] for site, x in getattr(found.bands, name).items()}
        for name in ("mean", "lower", "upper", "standard_error")
    }
    names = [f"nearest mode: sW = {found.values[row]:g}" for row in rows]
    bands = found.bands._replace(names=tuple(names), **parts)
    plotting.plot_bands(bands, groups=names, labels=LABELS, ax=axes)
    axes[0].legend(fontsize=8, loc="lower left")
    axes[0].set(title="Silenced late in the delay: the Pro task", ylim=(0, 1.02))
    axes[1].set(title="The Anti task (bands: 95% of a group)", ylim=(0, 1.02))


def draw_errors(ax, found):
    for task, color in (("anti", PINK), ("pro", GREEN)):
        for level, look in ((NONE, "o--"), (EXPERIMENT, "s-")):
            k = int(np.argmin(np.abs(found.bands.values - level)))
            site = f"{task}_accuracy"
            ax.errorbar(
                found.values,
                100 * (1 - found.bands.mean[site][:, k]),
                200 * found.bands.standard_error[site][:, k],
                fmt=look,
                color=color,
                ms=4,
                lw=1.2,
                label=f"{task.title()}, $\\gamma$ = {level:g}",
            )
    ax.legend(fontsize=8)
    ax.set(
        xlabel="self connection sW of the nearest mode",
        ylabel="mean error (%)",
        title="Errors with and without silencing",
    )


def draw_correlations(ax, found):
    ax.axhline(0, color=BLACK, lw=0.7)
    for name, color in (("task", BLUE), ("diag", ORANGE)):
        for level, look in ((NONE, "o:"), (EXPERIMENT, "s-")):
            r, error = found.correlation(name, level)
            ax.errorbar(
                found.values,
                r,
                2 * error,
                fmt=look,
                color=color,
                ms=4,
                lw=1.2,
                label=f"{name} eigenvalue, $\\gamma$ = {level:g}",
            )
    ax.legend(fontsize=8, loc="upper left")
    ax.set(
        ylim=(None, 1.4),
        xlabel="self connection sW of the nearest mode",
        ylabel="correlation with the Anti error",
        title="What protects the Anti task",
    )


def draw_flip(ax, found, level):
    for regime, color in REGIME_COLORS.items():
        rows = found.rows(regime)
        pro, anti = found.draws[NONE][rows, :, 0], found.draws[level][rows, :, 1]
        r, _, _ = found.flip(level, regime)
        label = f"regime {regime}: r = {r:+.2f}"
        ax.plot(
            pro.ravel(),
            anti.ravel(),
            ".",
            color=color,
            ms=2.5,
            alpha=0.6,
            label=label,
            rasterized=True,
        )
    ax.plot([0, 1], [1, 0], color=BLACK, lw=1, label="$1 - p_P$")
    ax.legend(fontsize=8, markerscale=3)
    ax.set(
        xlim=(0.35, 1),
        ylim=(0, 1),
        xlabel="Pro accuracy $p_P$, not silenced",
        ylabel=f"Anti accuracy, $\\gamma$ = {level:g}",
        title="Silenced more, Anti is treated as Pro"
        if level == SATURATED
        else "As in the experiment: no relation",
    )
