# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Superior colliculus: which connections let a circuit switch between two tasks?
==============================================================================

A light appears on one side. In the Pro task an animal turns towards it, in the Anti
task away from it, and a cue before the light says which. Four units, left and right,
Pro and Anti (LP, LA, RP, RA), have activities x between 0 and 1,

    tau du/dt = -u + W x + h(t) + noise,    x = (1 + tanh((u - a) / b)) / 2,

with tau = 0.09 s. Four connections, each between -5 and 5, are unknown: of a unit onto
itself (sW), between both tasks on one side (vW, vertical), between both sides for one
task (hW, horizontal), and across (dW, diagonal). The emergent property is a circuit
that can do both, with choices that are sometimes wrong:

    accuracy in the Pro task    0.75 +- 0.075
    accuracy in the Anti task   0.75 +- 0.075

each averaged over 200 trials. The script runs the inference, or reads a saved one
(`--result FILE`), prints the paper's claims beside our numbers, and writes

    colliculus_distribution.png    connections that have the property, and its modes
    colliculus_perturbations.png   accuracies when connections move away from two modes
    colliculus_silencing.png       accuracies when activity is silenced in the delay

.. image:: images/colliculus_distribution.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figures 4 and 5. The
circuit was made by Duan and others, who are cited there.
"""

from typing import NamedTuple

import jax
import numpy as np
from _claims import Claim, entropy_claim, print_claims, verdict
from _colliculus import (
    PUBLISHED_ENTROPY,
    PUBLISHED_SPEED_UP,
    REGIMES,
    WANTED,
    Bend,
    BruteForce,
    Silencing,
    bend,
    both,
    brute_force,
    draw_rate,
    eigenmode_errors,
    find_modes,
    silence,
    task_claim,
)
from _colliculus_curves import KINDS, kind, perturb_around
from _colliculus_figures import plot_distribution, plot_perturbations, plot_silencing
from _script import infer_or_load, parser, save

from numpyro_epi.circuits import colliculus


class Findings(NamedTuple):
    """All that the table needs."""

    result: object
    brute: BruteForce
    modes: dict
    around: dict  # curves at the mode, and at draws, of each regime
    silencing: Silencing
    seconds_per_draw: float
    accepted_share: float


def claims(found: Findings):
    """Every claim of the paper about this circuit, as a row."""
    return [
        *shape_claims(found),
        *perturbation_claims(found.around),
        *silencing_claims(found.silencing),
        speed_claim(found),
        entropy_claim(found.result, "best of 5 runs, 2 failed", PUBLISHED_ENTROPY),
    ]


def shape_claims(found):
    """The bend, brute force, eigenvalues."""
    z = found.result.draws.latents["z"]
    ours = bend(z, {1: (-2.0, -1.0), 2: (0.5, 1.0)})
    brute = bend(found.brute.accepted, {1: (-2.0, -0.75), 2: (0.0, 1.5)})
    true, back, printed = eigenmode_errors(z[:1000])
    share = len(found.brute.accepted) / found.brute.num_draws
    return [
        Claim(
            "The distribution bends: sW and hW are correlated for negative sW, "
            "anticorrelated for positive sW",
            "+.73 and -.83 (Markov chains)",
            correlations(ours),
            "correlation for sW in -2 to -1, and in 0.5 to 1; five errors from 0",
            changes_sign(ours, 5),
        ),
        Claim(
            "Brute-force sampling confirms the bend",
            "the same shape",
            f"{correlations(brute)}; {len(found.brute.accepted)} of "
            f"{found.brute.num_draws:,} draws ({share:.1e})",
            "the same for sW in -2 to -0.75, and in 0 to 1.5; two errors from 0",
            changes_sign(brute, 2),
        ),
        Claim(
            "W has eigenmodes all, side, task, diag, and z = A lambda",
            "A as printed",
            f"errors {true:.0e} (eigenvalues), {back:.0e} (corrected A), {printed:.1f} "
            "(printed A)",
            "largest error over 1,000 draws; bar 1e-4",
            verdict(max(true, back) < 1e-4 < printed, "a formula is wrong")
            if printed < 1e-4
            else "differs: the printed A has permuted rows; corrected, it holds",
        ),
    ]


def correlations(found: Bend) -> str:
    pairs = zip(found.correlations, found.errors, strict=True)
    return " and ".join(f"{r:+.2f} +- {e:.2f}" for r, e in pairs)


def changes_sign(found: Bend, num_errors) -> str:
    if np.isnan(found.correlations).any():
        return "not shown: too few draws"
    low, high = found.correlations / found.errors
    holds = low > num_errors and high < -num_errors
    return verdict(holds, "the correlation does not change sign")


def perturbation_claims(around):
    """Sensitive direction and eigenvalues, in both regimes."""
    curves = {r: at_mode for r, (at_mode, _) in around.items()}
    slopes = {r: c.slope("sensitive", 0) for r, c in curves.items()}
    anti = {r: c.means["sensitive"][:, 1] for r, c in curves.items()}
    kinds = {r: kind(c.ends("sensitive", 1)) for r, c in curves.items()}
    shown = {
        r: " and ".join(f"{x:+.3f} +- {e:.3f}" for x, e in c.ends("sensitive", 1))
        for r, c in curves.items()
    }
    wanted = dict(zip(REGIMES, KINDS, strict=False))
    alike = {
        r: np.corrcoef(anti[r], c.means["task"][::-1, 1])[0, 1]
        for r, c in curves.items()
    }
    diag = {r: c.slope("diag", 1) for r, c in curves.items()}
    return [
        Claim(
            "Pro accuracy rises along the sensitive direction v1, in both regimes",
            "rises",
            both("{0[0]:+.3f} +- {0[1]:.3f}", slopes),
            "change from -0.25 to 0.25 along v1, modes at sW = -0.75 and 0.75; five "
            "errors above 0",
            verdict(all(s > 5 * e for s, e in slopes.values()), "not in both"),
        ),
        Claim(
            "Anti accuracy falls both ways along v1 in regime 1, rises in regime 2",
            "falls both ways; rises",
            both("{0}", shown),
            "change to -0.25 and to +0.25 along v1; three errors",
            verdict(
                kinds == wanted,
                ", ".join(f"{kinds[r]} in regime {r}" for r in REGIMES),
            ),
        ),
        census_claim(around),
        task_claim(alike),
        Claim(
            "Raising the diag eigenvalue acts on Anti accuracy in opposite ways",
            "opposite",
            both("{0[0]:+.3f} +- {0[1]:.3f}", diag),
            "change from -0.25 to 0.25 along v_diag; both five errors from 0",
            verdict(
                diag[1][0] * diag[2][0] < 0
                and all(abs(s) > 5 * e for s, e in diag.values()),
                "not opposite",
            ),
        ),
    ]


def census_claim(around):
    """Whether what the paper says of the modes is true of the regimes."""
    shares = {}
    for regime, (_, draws) in around.items():
        words = [kind(curves.ends("sensitive", 1)) for curves in draws]
        if not words:
            text = ("The same, at draws of both regimes", "-", "-", "draws")
            return Claim(*text, f"not shown: no draws in regime {regime}")
        shares[regime] = {word: words.count(word) / len(words) for word in KINDS}
    least = min(shares[r][word] for r, word in zip(REGIMES, KINDS, strict=False))
    return Claim(
        "The same at most draws of both regimes: it does not hang on the mode",
        "not reported",
        both("{}", {r: in_words(share) for r, share in shares.items()}),
        "shares of 30 draws with sW in -1 to -0.5 and 0.5 to 1, v1 of the flow at each "
        "draw; three errors; bar 50%",
        verdict(least > 0.5, "depends on where"),
    )


def in_words(shares):
    """Shares of the draws, without those of nobody."""
    return ", ".join(f"{word} {share:.0%}" for word, share in shares.items() if share)


def silencing_claims(found: Silencing):
    """Errors under silencing, at the published strengths."""
    if min(len(found.found[r][0]) for r in REGIMES) < 10:
        text = ("Silencing", "-", "-", "at least 10 draws in each regime")
        return [Claim(*text, "not shown: too few draws")]
    anti = [found.rise(level, 1)[0] for level in (0.5, 0.675, 0.85, 1.0)]
    pro = max(abs(found.rise(level, 0)[0]) for level in found.levels)
    regimes = {r: found.rise(0.675, 1, r) for r in REGIMES}
    flips = {}
    for level in (0.675, 0.85):
        before, after = found.at(level)
        r = np.corrcoef(before[:, 0], after[:, 1])[0, 1]
        flips[level] = (r, np.abs(after[:, 1] - (1 - before[:, 0])).mean())
    return [
        Claim(
            "Silencing adds up to about 50 points to the Anti error, and none to the "
            "Pro error",
            "50%; 0",
            "Anti error rises by "
            + ", ".join(f"{a:.2f}" for a in anti)
            + f"; Pro moves "
            f"by at most {pro:.3f}",
            "mean rise at gamma 0.5, 0.675, 0.85, 1; grows, 0.4 to 0.6 at the end, "
            "from 0.85 on by less than 0.05; Pro below 0.05",
            verdict(
                bool((np.diff(anti) > -0.02).all())
                and 0.4 < anti[3] < 0.6
                and anti[3] - anti[2] < 0.05
                and pro < 0.05,
                "see numbers",
            ),
        ),
        Claim(
            "At gamma = 0.675 regime 1 suffers in the Anti task, regime 2 does not",
            "7% on average",
            both("{0[0]:+.3f} +- {0[1]:.3f}", regimes),
            "mean rise of the Anti error, draws with sW in -1 to -0.5 and in 0.5 to 1; "
            "five errors apart, regime 2 below 0.05",
            verdict(
                regimes[1][0] - regimes[2][0]
                > 5 * np.hypot(regimes[1][1], regimes[2][1])
                and regimes[2][0] < 0.05,
                "no such contrast",
            ),
        ),
        Claim(
            "At gamma = 0.85 Anti accuracy is one minus Pro accuracy, not at 0.675",
            "close; no anticorrelation at 0.675",
            "; ".join(
                f"gamma {g}: r {r:+.2f}, |difference| {d:.2f}"
                for g, (r, d) in flips.items()
            ),
            "correlation of p_P without and p_A with silencing, mean |p_A - (1 - "
            "p_P)|; bars -0.5 and 0.1 at 0.85",
            verdict(
                flips[0.85][0] < -0.5 < flips[0.675][0] and flips[0.85][1] < 0.1,
                "see numbers",
            ),
        ),
    ]


def speed_claim(found):
    if not len(found.brute.accepted):
        text = ("The flow is faster than brute force", "-", "-", "accepted draws")
        return Claim(*text, "not shown: brute force found nothing")
    seconds = found.brute.seconds / len(found.brute.accepted)
    factor = seconds / found.seconds_per_draw
    return Claim(
        "The flow draws far faster than brute force",
        f"{PUBLISHED_SPEED_UP:,} times (of draws near given modes)",
        f"{factor:,.0f} times: {1e6 * found.seconds_per_draw:.1f} us against "
        f"{seconds:.1f} s",
        f"wall-clock time of a draw with accuracies in {WANTED[0]:g} to {WANTED[1]:g} "
        f"({found.accepted_share:.0%} of the flow's); brute force with early stops; "
        f"bar {PUBLISHED_SPEED_UP:,}",
        verdict(factor > PUBLISHED_SPEED_UP, f"{factor:,.0f} times"),
    )


def main(args):
    keys = jax.random.split(jax.random.key(args.key), 6)
    result = infer_or_load(colliculus.model, args, keys[0])
    modes = find_modes(result)
    around = {
        r: perturb_around(result, modes[v], window, keys[1], args.num_perturbed)
        for r, (window, v) in REGIMES.items()
    }
    found = Findings(
        result,
        brute_force(keys[2], args.num_brute_force),
        modes,
        around,
        silence(result, keys[3], args.num_silenced),
        *draw_rate(result, keys[4]),
    )
    print_claims(claims(found), converged=result.converged)
    save(
        {
            "colliculus_distribution.png": lambda: plot_distribution(found),
            "colliculus_perturbations.png": lambda: plot_perturbations(around),
            "colliculus_silencing.png": lambda: plot_silencing(found.silencing),
        },
        args,
    )


def parse_args(argv=None):
    arguments = parser("Which connections let a circuit switch between two tasks?")
    arguments.add_argument("--result", help="file of a saved result, not to infer")
    arguments.add_argument(
        "--num-brute-force", type=int, default=200_000, help="draws of the prior"
    )
    arguments.add_argument(
        "--num-perturbed", type=int, default=30, help="draws moved in each regime"
    )
    arguments.add_argument(
        "--num-silenced", type=int, default=300, help="draws silenced in each group"
    )
    return arguments.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
