# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Stomatogastric ganglion: which couplings give the hub neuron a frequency of 0.55 Hz?
====================================================================================

A fast pair of neurons (f1, f2) and a slow pair (s1, s2) pull at a hub between them.
Each neuron has a voltage V (mV) and two gates N and H,

    C dV/dt = -(h_leak + h_Ca + h_K + h_hyp + h_elec + h_syn) + noise,
    dN/dt = lambda_N(V) (N_inf(V) - N),        dH/dt = (H_inf(V) - H) / tau_h(V),

simulated by Euler steps of 25 ms for 7.5 s. Two couplings are unknown:

    g_el      electrical, hub with f2 and with s2     4 to 8 nS
    g_synA    synapses of f1 and s1 onto the hub      0.01 to 4 nS

The emergent property is a hub between the two rhythms, 0.35 and 0.68 Hz:

    hub frequency   0.55 +- 0.025 Hz

The script runs the inference, prints the paper's claims beside our numbers, and writes

    stg_distribution.png   the couplings that have the property, and how robust they are
    stg_traces.png         what the five neurons do at and around the mode

.. image:: images/stg_distribution.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 1. The circuit
is that of Gutierrez, O'Leary and Marder, Neuron 2013, doi:10.1016/j.neuron.2013.01.016.
"""

import jax
import numpy as np
from _claims import Claim, entropy_claim, print_claims, verdict
from _script import infer, parser, save
from _stg import (
    MEAN,
    NUM_SIMULATIONS,
    PUBLISHED_ENTROPY,
    SD,
    elongation,
    perturbation,
    synchrony,
)
from _stg_figures import plot_distribution, plot_traces

from numpyro_epi.circuits import stg


def claims(result, long, moved, frequencies):
    """Every claim of the paper about this circuit, as a row."""
    stats = result.draws.statistics["hub_frequency"]
    mode, spread = moved.mode, float(np.ptp(frequencies))
    sensitive, robust = moved.changes
    margin = (sensitive - robust) / np.hypot(*moved.change_errors)
    eigenvalues = ", ".join(f"{x:.1f}" for x in mode.eigenvalues)
    return [
        Claim(
            "Draws are elongated along g_el",
            "sds 0.80 and 0.43 nS (exact, on a grid)",
            f"sds {long.sds[0]:.2f} and {long.sds[1]:.2f} nS; long axis "
            f"{long.angle:.0f} deg from g_el",
            "ratio of sds above 1.5, axis within 30 deg",
            verdict(
                long.sds[0] > 1.5 * long.sds[1] and long.angle < 30,
                f"axes of ratio {long.ratio:.2f} at {long.angle:.0f} deg",
            ),
        ),
        Claim(
            "One direction of the Hessian at the mode is sensitive, one robust",
            "-10.7, -3.2 at (6.11, 1.31) nS",
            f"{eigenvalues} at ({mode.point[0]:.2f}, {mode.point[1]:.2f}) nS",
            "eigenvalues of the Hessian of log q, 1/nS^2; ratio above 2",
            verdict(
                mode.eigenvalues[0] < -2 * abs(mode.eigenvalues[1]),
                "no direction stands out",
            ),
        ),
        Claim(
            "Hub frequency degrades along the sensitive direction and holds along the "
            "robust one, at equal distance",
            "shown by traces",
            f"moves by {1e3 * sensitive:.1f} against {1e3 * robust:.1f} mHz",
            f"mean |f - f(mode)| at two sensitive widths, {moved.reach:.2f} nS; "
            f"{margin:.1f} standard errors apart, bar 5; robust below "
            f"{1e3 * SD:.0f} mHz",
            verdict(
                margin > 5 and robust < SD,
                "no such contrast" if margin < 2 else "the contrast is not clear",
            ),
        ),
        Claim(
            "Predicted mean and two standard deviations match",
            f"{MEAN} +- {2 * SD:.3f} Hz",
            f"{stats.mean():.4f} +- {2 * stats.std():.4f} Hz",
            f"{len(stats):,} draws; equivalence within {result.tolerance:g} scaled "
            "units",
            verdict(result.converged, "the constraints are not met"),
        ),
        Claim(
            "At the mode the five neurons are near-synchronous",
            "0.538 to 0.552 Hz at (6.107, 1.309) nS",
            f"{frequencies.min():.3f} to {frequencies.max():.3f} Hz",
            f"range of their mean frequencies, {NUM_SIMULATIONS} simulations; bar "
            "0.03 Hz",
            verdict(spread < 0.03, f"frequencies {spread:.2f} Hz apart"),
        ),
        entropy_claim(
            result, "best of 5 runs, 3 failed", PUBLISHED_ENTROPY, stg.PAPER.max_entropy
        ),
    ]


def main(args):
    run_key, draw_key, line_key, trace_key = jax.random.split(
        jax.random.key(args.key), 4
    )
    result = infer(stg.model, args, run_key)
    long = elongation(result, draw_key)
    moved = perturbation(result, line_key)
    frequencies = synchrony(moved.mode, trace_key)
    rows = claims(result, long, moved, frequencies)
    print_claims(rows, converged=result.converged)
    save(
        {
            "stg_distribution.png": lambda: plot_distribution(result, moved, line_key),
            "stg_traces.png": lambda: plot_traces(moved, trace_key),
        },
        args,
    )


if __name__ == "__main__":
    main(parser("Which couplings give the hub neuron 0.55 Hz?").parse_args())
