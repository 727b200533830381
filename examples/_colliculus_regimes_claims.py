# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the paper claims about the two regimes, beside our numbers."""

from typing import NamedTuple

import numpy as np
from _claims import Claim, verdict
from _colliculus import (
    PUBLISHED_SPEED_UP,
    REGIMES,
    SELF,
    both,
    task_claim,
)
from _colliculus_curves import KINDS, kind
from _colliculus_regimes import (
    EXPERIMENT,
    SATURATED,
    Grouping,
    Path,
    Silenced,
)
from _colliculus_regimes_lines import Census, line_of

MAX_SECONDS = 30.0  # for the path of modes
MIN_TURN = 30.0  # degrees
WANTED_KINDS = {1: KINDS[0], 2: KINDS[1]}  # of Anti accuracy along v1, by regime


class Findings(NamedTuple):
    """All that the table needs."""

    path: Path
    lines: dict
    census: Census
    grouping: Grouping
    silenced: Silenced


def claims(found: Findings):
    """Every claim of Figures 4C-D and 5 that needs modes, as a row."""
    return [
        path_claim(found.path),
        *(turn_claim(found.path, law) for law in found.path.v1),
        census_turn_claim(found.census),
        *line_claims(found.lines),
        *(census_claim(found.census, regime) for regime in REGIMES),
        diag_claim(
            "at draws",
            {r: found.census.change("diag", r) for r in REGIMES},
            f"mean change over {len(found.census.v1[1])} draws of each regime from "
            "-0.25 to 0.25 along v_diag; both five errors from 0",
        ),
        speed_claim(found.grouping),
        *silencing_claims(found.silenced),
    ]


def path_claim(path):
    modes = path.modes
    num, ok = len(modes.values), int(np.sum(modes.converged))
    steep, flat = path.curvatures[:, 0], path.curvatures[:, -1]
    edge = ", ".join(f"{x:g}" for x in modes.values[path.at_edge])
    return Claim(
        "Modes z*(sW) form a path from sW = 1 to -1",
        "9 modes",
        f"{num} modes, {ok} converged, in {path.seconds:.1f} s; at the edge of the box "
        f"for sW {edge or 'nowhere'}; curvature of the exact law there, sW held: "
        f"steepest {np.median(steep):.0f}, flattest {np.median(flat):.1f}",
        f"ascent of log q with sW held; all converge inside the box, in less than "
        f"{MAX_SECONDS:.0f} s with compilation; curvatures are medians",
        verdict(
            ok == num and not edge and path.seconds < MAX_SECONDS,
            f"{num - ok} did not converge, {path.at_edge.sum()} at the edge of the box"
            if ok < num or edge
            else "slower",
        ),
    )


def turn_claim(path, law):
    entries = path.v1[law][:, SELF]
    first, last = (entries[path.row(v)] for _, v in REGIMES.values())
    angle = path.turn(law)
    apart = ", ".join(f"{x:.0f}" for x in path.agreement())
    return Claim(
        "The sensitive direction v1 turns between the regimes",
        "arrows in a figure",
        f"{law}: by {angle:.0f} deg; entry of sW "
        + ", ".join(f"{x:+.2f}" for x in entries)
        + ("" if law == "flow" else f"; {apart} deg from the flow's"),
        f"angle from sW = -0.75 to 0.75, above {MIN_TURN:.0f} deg; entry of sW "
        "positive at -0.75, negative at 0.75 (hW always negative)",
        verdict(
            angle > MIN_TURN and first > 0 > last,
            f"turns by {angle:.0f} deg, entry of sW {first:+.2f} and {last:+.2f}",
        ),
    )


def census_turn_claim(census):
    (first, error), (last, last_error) = (census.entry(r) for r in REGIMES)
    return Claim(
        "The sensitive direction v1 turns between the regimes: not only at the mode",
        "arrows in a figure",
        f"entry of sW {first:+.2f} +- {error:.2f} in regime 1, {last:+.2f} +- "
        f"{last_error:.2f} in regime 2",
        f"exact law, mean over {len(census.v1[1])} and {len(census.v1[2])} draws with "
        "sW in -1 to -0.5 and in 0.5 to 1; signs as above, two errors",
        verdict(
            first > 2 * error and last < -2 * last_error, "the sign does not change"
        ),
    )


def line_claims(lines):
    """Figure 4D: what the simulator does along the directions."""
    mine = {r: lines[v] for r, (_, v) in REGIMES.items()}
    pro = {r: line_of(x["flow"], "pro") for r, x in mine.items()}
    anti = {r: line_of(x["flow"], "anti") for r, x in mine.items()}
    exact = {r: line_of(x["exact law"], "anti") for r, x in mine.items()}
    alike = {
        r: np.corrcoef(line.mean, np.interp(line.distances, *mirrored(mine[r])))[0, 1]
        for r, line in anti.items()
    }
    diag = {r: line_of(x["diag"], "anti").rise for r, x in mine.items()}
    return [
        Claim(
            "Pro accuracy rises monotonically along v1, in both regimes",
            "rises",
            both("{0[0]:+.3f} +- {0[1]:.3f}", {r: x.rise for r, x in pro.items()}),
            "change from -0.25 to 0.25 along v1 of the flow; five errors above 0, no "
            "later point four errors below an earlier one",
            verdict(all(map(rises, pro.values())), "not in both"),
        ),
        *(anti_claim(r, anti[r], exact[r]) for r in REGIMES),
        task_claim(alike),
        diag_claim(
            "at both modes",
            diag,
            "change from -0.25 to 0.25 along v_diag; both five errors from 0",
        ),
    ]


def diag_claim(where, changes, statistic):
    (first, error), (last, last_error) = changes.values()
    return Claim(
        f"Raising the diag eigenvalue acts on Anti accuracy in opposite ways, {where}",
        "opposite",
        both("{0[0]:+.3f} +- {0[1]:.3f}", changes),
        statistic,
        verdict(
            first * last < 0 and abs(first) > 5 * error and abs(last) > 5 * last_error,
            "not opposite",
        ),
    )


def mirrored(lines):
    """Anti accuracy along -v_task."""
    line = line_of(lines["task"], "anti")
    return -line.distances[::-1], line.mean[::-1]


def rises(line):
    change, error = line.rise
    return change > 5 * error and line.drop < 4


def anti_claim(regime, flow, exact):
    wanted = WANTED_KINDS[regime]
    found = [kind(line.ends) for line in (flow, exact)]
    return Claim(
        f"Anti accuracy {wanted} along v1 in regime {regime}",
        wanted,
        f"flow: {changes(flow)}; exact law: {changes(exact)}",
        "changes from the mode to -0.25 and to 0.25; three errors, along v1 of the "
        "flow",
        verdict(
            found[0] == wanted,
            "{} (flow), {} (exact law)".format(*found),
        ),
    )


def census_claim(census, regime):
    wanted, shares = WANTED_KINDS[regime], census.shares(regime)
    (low, high), _ = REGIMES[regime]
    most = max(shares, key=shares.get)
    return Claim(
        f"Anti accuracy {wanted} along v1 in regime {regime}: not only at the mode",
        wanted,
        ", ".join(f"{name} at {share:.0%}" for name, share in shares.items())
        + f" of {len(census.v1[regime])} draws",
        f"draws with sW in {low:g} to {high:g}, both accuracies 0.75 +- 0.075; v1 of "
        "the exact law, ends and errors as above; at more than half of the draws",
        verdict(shares[wanted] > 0.5, f"{most} at {shares[most]:.0%}"),
    )


def changes(line):
    return " and ".join(f"{x:+.3f} +- {e:.3f}" for x, e in line.ends)


def speed_claim(found):
    num, (full, early) = found.groups.points.shape[1], found.speed_ups
    accepted = len(found.brute.accepted)
    error = 1 / max(accepted, 1) ** 0.5
    return Claim(
        "Grouping by mode is far faster than brute force",
        f"5.34 ms against 115 s: {PUBLISHED_SPEED_UP:,} times",
        f"{1e3 * found.flow_cost:.2f} ms against {found.brute_costs[0]:.0f} s: "
        f"{full:,.0f} times (+- {error:.0%}); {early:,.0f} times with early stops",
        f"seconds until each group has one draw more: {num} draws each took "
        f"{found.groups.num_drawn:,} draws and {found.groups.seconds:.1f} s; brute "
        f"force: {accepted} of {found.brute.num_draws:,} accepted, times the share of "
        f"the rarest group, {found.shares.min():.1%}; bar {PUBLISHED_SPEED_UP:,}",
        verdict(full > PUBLISHED_SPEED_UP, f"{full:,.0f} times")
        if accepted
        else "not shown: brute force found nothing",
    )


def silencing_claims(found):
    """Figure 5: errors, eigenvalues and the flipped task, by group."""
    anti, error = found.rise(EXPERIMENT, "anti")
    late, late_error = found.rise(SATURATED, "anti")
    pro = max(np.abs(found.rise(x, "pro")[0]).max() for x in (EXPERIMENT, SATURATED))
    first, last = found.rows(1), found.rows(2)
    return [
        Claim(
            f"At gamma = {EXPERIMENT} regime 1 suffers in the Anti task, regime 2 does "
            "not",
            "7% on average",
            f"sW -1 to -0.5: {listed(anti, error, first)}; 0.5 to 1: "
            f"{listed(anti, error, last)}",
            "rise of the mean Anti error by group; each of regime 1 five errors above "
            "each of regime 2, which stay below 0.05",
            verdict(
                (anti - 5 * error)[first].min() > (anti + 5 * error)[last].max()
                and anti[last].max() < 0.05,
                "see numbers",
            ),
        ),
        *(eigenvalue_claim(found, name) for name in found.eigenvalues),
        Claim(
            f"At gamma = {SATURATED} the Anti error has risen by 50 points in all "
            "groups; the Pro error does not move",
            "about 50%; 0",
            f"sW -1 to -0.5: {listed(late, late_error, first)}; 0.5 to 1: "
            f"{listed(late, late_error, last)}; Pro moves by at most {pro:.3f}",
            f"rise of the mean error by group, 0.4 to 0.6; Pro below 0.05 at "
            f"{EXPERIMENT} too",
            verdict(
                late.min() > 0.4 and late.max() < 0.6 and pro < 0.05,
                f"{late.min():.2f} to {late.max():.2f}"
                + ("" if pro < 0.05 else ", and the Pro error moves"),
            ),
        ),
        flip_claim(found),
    ]


def eigenvalue_claim(found, name):
    r, error = found.correlation(name, EXPERIMENT)
    before, _ = found.correlation(name, 0.0)
    first, last = found.rows(1), found.rows(2)
    return Claim(
        f"At gamma = {EXPERIMENT} a larger {name} eigenvalue protects the Anti task in "
        "regime 1",
        "negative correlation",
        f"sW -1 to -0.5: {listed(r, error, first)} (not silenced: "
        f"{listed(before, None, first)}); 0.5 to 1: {listed(r, error, last)}",
        "correlation with the Anti error by group; all of regime 1 three errors below "
        "0",
        verdict(bool((r < -3 * error)[first].all()), "not in all groups"),
    )


def flip_claim(found):
    flips = {(g, r): found.flip(g, r) for g in (EXPERIMENT, SATURATED) for r in REGIMES}
    wrong = [
        f"regime {k} at {g}"
        for (g, k), (r, _, gap) in flips.items()
        if (r < -0.5 and gap < 0.1) != (g == SATURATED)
    ]
    return Claim(
        f"At gamma = {SATURATED} Anti accuracy is one minus Pro accuracy in both "
        f"regimes, not at {EXPERIMENT}",
        "close; no anticorrelation",
        "; ".join(
            f"gamma {g}, regime {k}: r {r:+.2f} +- {e:.2f}, |difference| {gap:.2f}"
            for (g, k), (r, e, gap) in flips.items()
        ),
        "correlation of p_P without and p_A with silencing below -0.5, and mean |p_A - "
        f"(1 - p_P)| below 0.1, at {SATURATED} only",
        verdict(not wrong, "in " + ", ".join(wrong)),
    )


def listed(values, errors, rows):
    """Numbers of some groups, in the order of sW, with the largest error."""
    text = ", ".join(f"{x:+.2f}" for x in values[rows][::-1])
    return text if errors is None else f"{text} (+- {errors[rows].max():.2f})"
