# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Stomatogastric ganglion: to which couplings is the hub frequency sensitive?
===========================================================================

`stg.py` infers the couplings g_el and g_synA (nS) that give the hub neuron a frequency
of 0.55 +- 0.025 Hz. This script asks the result what the property depends on, as in
Figure 1E-F of the paper, with `numpyro_epi.sensitivity` and `numpyro_epi.plotting`:

    modes          where is the density highest, and does that place mean anything?
    directions     eigenvectors of the Hessian of the log density, most sensitive first
    perturbations  what the simulator does along them
    information    what the property takes from each coupling, over the distribution

The least committed law depends on the couplings through the hub frequency alone, and is
nearly constant along the contour of 0.55 Hz: a ridge. Where on it a flow is highest is
an accident of its fit, which is also in its Hessian. So the table has two places, the
highest mode of this run and the mode of the paper, (6.11, 1.31) nS, and two laws: the
flow, and the exact law with the multipliers of the run, whose Hessian comes from the
simulator (`of="tilted"`): by differences, as derivatives at a point miss the jumps of
the hub frequency, and at the paper's mode see a plateau 0.1 nS wide.

The multiplier l1 of the mean is not zero, as the frequencies are skewed. So where noise
is small the law is highest not at 0.55 Hz but at 0.55 - l1 / (2 l2) = 0.53 Hz, with l2
that of the variance. From there a step one way is nearer to 0.55 Hz and the other way
further off: at the highest mode the error need not grow with distance.

Robust is the direction of the contour. At the paper's mode the exact law finds it, 23
degrees from the axis of g_el; a flow misses it by as much as its fit is rough.

The script runs the inference, or reads a saved one (`--result FILE`), prints the
paper's claims beside our numbers, and writes

    stg_sensitivity.png     modes and directions of both laws, over the draws
    stg_perturbations.png   the hub frequency along these directions

.. image:: images/stg_sensitivity.png
.. image:: images/stg_perturbations.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 1E-F and
Methods, "Hessian sensitivity vectors".
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _claims import Claim, print_claims, verdict
from _script import infer_or_load, parser, save
from _stg import HIGH, LOW, MEAN, SD, hub_frequencies
from _stg_sensitivity import (
    KINDS,
    LAWS,
    PUBLISHED_EIGENVALUES,
    PUBLISHED_MODE,
    look_around,
)
from matplotlib.patches import Patch

from numpyro_epi import plotting, sensitivity
from numpyro_epi.circuits import stg

MAX_ANGLE = 20.0  # degrees
MIN_RATIO, MAX_P_VALUE = 10.0, 0.01


def claims(modes, places, info, subspace):
    """Every claim of Figure 1E-F, at each place and for each law, as a row."""
    rows = [mode_claim(modes)]
    for place in places:
        rows.append(eigenvalue_claim(place))
        rows += [direction_claim(place, law) for law in LAWS]
        rows += [slope_claim(place, law) for law in LAWS]
    return [*rows, information_claim(info), subspace_claim(subspace)]


def mode_claim(modes):
    num, num_regions = len(modes.points), int(modes.component.max()) + 1
    if num_regions > 1:
        differs = f"{num_regions} separate regions"
    else:
        differs = "one region, but where on it the mode is means nothing"
    kind = "on a ridge" if modes.on_ridge[0] else "not on a ridge"
    kind = "at the edge of the support" if modes.at_boundary[0] else kind
    is_peak = not (modes.on_ridge[0] or modes.at_boundary[0])
    return Claim(
        "The density peaks at one mode",
        f"at {pair(PUBLISHED_MODE)} nS",
        f"{pair(first(modes))} nS, {kind}; highest of {num} in {num_regions} connected "
        f"region{'s' if num_regions > 1 else ''}",
        "200 climbs; a ridge: much of the region is about as high",
        verdict(num_regions == 1 and is_peak, differs),
    )


def eigenvalue_claim(place):
    found = {law: look.eigenvalues for law, look in place.looks.items()}
    flat = [law for law, (low, high) in found.items() if not low < -2 * abs(high)]
    return Claim(
        f"At {place.name}, {pair(place.at)} nS, one direction is sensitive, one robust",
        "{}, {}".format(*PUBLISHED_EIGENVALUES),
        "; ".join(f"{law} {low:.2f}, {high:.2f}" for law, (low, high) in found.items()),
        "eigenvalues of the Hessian of the log density, 1/nS^2 (exact law: differences "
        "over a quarter sd of the draws); ratio of sizes above 2, for both laws",
        verdict(not flat, f"not for the {' and the '.join(flat)}"),
    )


def direction_claim(place, law):
    angle = place.looks[law].angle
    return Claim(
        f"At {place.name}, g_synA is sensitive and g_el robust",
        "drawn as arrows",
        f"{law}: eigenvectors {angle:.0f} deg from these axes",
        f"they are orthogonal: one angle for both; bar {MAX_ANGLE:.0f} deg",
        verdict(angle < MAX_ANGLE, f"turned by {angle:.0f} deg"),
    )


def slope_claim(place, law):
    look = place.looks[law]
    (slope, error), (robust, robust_error) = look.slopes
    p_value = float(look.tests[0].p_value[0])
    ratio = f"{look.ratio:.1f}" if look.ratio < 100 else "above 100"
    is_shown = slope > 0 and p_value < MAX_P_VALUE
    return Claim(
        f"At {place.name}, the hub frequency deteriorates along the sensitive "
        "direction alone",
        "shown by traces",
        f"{law}: slopes {slope:.2f} +- {error:.2f} and {robust:.2f} +- "
        f"{robust_error:.2f}, ratio {ratio}; p = {p_value:.0e}",
        f"of |f - {MEAN} Hz|, target sds per nS, up to {look.reach:.2f} nS; sensitive "
        f"one positive, p below {MAX_P_VALUE:g}; ratio of sizes above {MIN_RATIO:g}",
        verdict(
            is_shown and look.ratio > MIN_RATIO,
            f"ratio {ratio}" if is_shown else "no such slope",
        ),
    )


def information_claim(info):
    nats = dict(zip(info.names, info.given_others, strict=True))
    errors = dict(zip(info.names, info.given_others_error, strict=True))
    gap = nats["g_synA"] - nats["g_el"]
    margin = gap / np.hypot(*errors.values())
    return Claim(
        "The same over the whole distribution",
        "-",
        ", ".join(f"{k} {nats[k]:.2f} +- {errors[k]:.2f}" for k in nats) + " nats",
        "that the property takes from each, given the other; g_synA more by five "
        "standard errors",
        verdict(margin > 5, f"{margin:.1f} standard errors"),
    )


def subspace_claim(subspace):
    """Directions over all draws, in unconstrained coordinates: without an edge."""
    names = subspace.names.index("g_el"), subspace.names.index("g_synA")
    g_el, g_synA = (abs(subspace.vectors[0][i]) for i in names)
    angle = np.degrees(np.arctan2(g_el, g_synA))
    most, least = subspace.eigenvalues
    is_near = angle < MAX_ANGLE
    return Claim(
        "Over the whole distribution g_synA is sensitive and g_el robust",
        "-",
        f"eigenvectors {angle:.0f} deg from these axes, eigenvalues {most:.1f}, "
        f"{least:.1f}",
        "of the mean outer product of the gradient of log q, both couplings as logits "
        f"of their place between the bounds; bar {MAX_ANGLE:g} deg",
        verdict(is_near, f"turned by {angle:.0f} deg"),
    )


def pair(at):
    return f"({at['g_el']:.2f}, {at['g_synA']:.2f})"


def first(modes):
    """Couplings of the highest mode."""
    return {site: float(values[0]) for site, values in modes.latents.items()}


# -- figures ---------------------------------------------------------------------------


def plot_directions(result, modes, places, rng_key):
    """Draws with modes, contours of the hub frequency, and the directions of a law."""
    fig, axes = plt.subplots(1, 2, figsize=(11.5, 5.6), layout="constrained")
    levels = [MEAN - SD, MEAN, MEAN + SD]
    label = f"simulated {MEAN:g} Hz (dashed: {levels[0]:g}, {levels[2]:g})"
    contours = {("g_el", "g_synA"): (frequency_map(rng_key), levels, label)}
    for ax, law in zip(axes, LAWS, strict=True):
        plotting.plot_pairs(
            result,
            modes=modes,
            directions=join([place.looks[law] for place in places]),
            points={"published mode": PUBLISHED_MODE},
            contours=contours,
            labels=stg.LABELS,
            ax=ax,
        )
        ax.set_title(f"Directions of the {law}")
    share_legend(fig, axes)
    return fig


def join(looks):
    """Directions at several places as one."""
    found = [look.directions for look in looks]
    fields = "eigenvalues", "tilted_eigenvalues", "vectors", "points"
    stacked = {f: np.stack([getattr(x, f) for x in found]) for f in fields}
    return found[0]._replace(**stacked)


def frequency_map(rng_key, num=41, num_simulations=8):
    """Mean hub frequency as a function of couplings, interpolated on a grid."""
    ends = np.linspace(LOW, HIGH, num)
    z = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(-1, 2)
    keys = jax.random.split(rng_key, num_simulations)
    table = hub_frequencies(jnp.asarray(z), keys).mean(axis=-1).reshape(num, num)
    step = (HIGH - LOW) / (num - 1)

    def frequency(g_el, g_synA):
        places = [(g_el - LOW[0]) / step[0], (g_synA - LOW[1]) / step[1]]
        return jax.scipy.ndimage.map_coordinates(table, places, 1, mode="nearest")

    return frequency


def plot_lines(result, places):
    """Hub frequency along the directions of each law (columns) at each place (rows)."""
    size = {"figsize": (10, 7.2), "sharey": True, "layout": "constrained"}
    fig, axes = plt.subplots(len(places), len(LAWS), **size)
    for row, place in zip(axes, places, strict=True):
        for ax, (law, look) in zip(row, place.looks.items(), strict=True):
            lines = dict(zip(KINDS, look.lines, strict=True))
            plotting.plot_perturbation(lines, result=result, labels=stg.LABELS, ax=ax)
            slopes = " and ".join(f"{slope:.2f}" for slope, _ in look.slopes)
            ax.set_title(
                f"{place.name.capitalize()}, {pair(place.at)} nS, directions of the "
                f"{law}\n(slopes of the error: {slopes} sd/nS)"
            )
            ax.label_outer()
    share_legend(fig, axes, Patch(color="0.7", label="band: two standard errors"))
    return fig


def share_legend(fig, axes, *more):
    """One legend above all panels, in place of one for each, with more handles."""
    found = {}
    for ax in axes.flat:
        legend = ax.get_legend()
        texts = [text.get_text() for text in legend.get_texts()]
        for text, handle in zip(texts, legend.legend_handles, strict=True):
            name = text.removesuffix(" (some cut)")  # in one panel, perhaps
            if name not in found or text != name:
                found[name] = (handle, text)
        legend.remove()
    rows = [*found.values(), *((handle, handle.get_label()) for handle in more)]
    fig.legend(*zip(*rows, strict=True), loc="outside upper left", ncols=4)


def main(args):
    keys = jax.random.split(jax.random.key(args.key), 6)
    result = infer_or_load(stg.model, args, keys[0])
    modes = sensitivity.find_modes(result, keys[1])
    places = [
        look_around(result, name, at, key, args.num_simulations)
        for name, at, key in (
            ("our mode", first(modes), keys[2]),
            ("the published mode", PUBLISHED_MODE, keys[3]),
        )
    ]
    info = sensitivity.information(result, keys[4])
    subspace = sensitivity.active_subspace(result, coordinates="unconstrained")
    rows = claims(modes, places, info, subspace)
    print_claims(rows, converged=result.converged)
    save(
        {
            "stg_sensitivity.png": lambda: plot_directions(
                result, modes, places, keys[5]
            ),
            "stg_perturbations.png": lambda: plot_lines(result, places),
        },
        args,
    )


def parse_args(argv=None):
    arguments = parser("To which couplings is the hub frequency sensitive?")
    arguments.add_argument(
        "--result", type=Path, help="a saved result of `circuits.stg.model`"
    )
    arguments.add_argument(
        "--num-simulations",
        type=int,
        default=2000,
        help="simulations behind each curvature of the exact law (default 2000)",
    )
    return arguments.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
