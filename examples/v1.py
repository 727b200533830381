# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Primary visual cortex: which noise makes excitatory neurons fluctuate by 5 or 10 Hz?
====================================================================================

Four populations, excitatory E and inhibitory P (parvalbumin), S (somatostatin) and V
(VIP), have rates x (Hz) that are squares of their inputs (sqrt(Hz)),

    tau dx/dt = -x + [W x + h + epsilon]_+^2,                       tau = 1 ms,
    d epsilon = -epsilon / tau_n dt + sqrt(2 / tau_n) s dB,         tau_n = 5 ms,

with noise of its own for each population, of level sigma: s^2 = sigma^2 (1 + tau /
tau_n). The four levels are unknown, between 0 and 0.05 sqrt(Hz). The emergent property
is how much the rate of E fluctuates in time, averaged over 100 trials:

    standard deviation of the E rate   5 +- 1 Hz,   and in a second inference 10 +- 1 Hz

The script runs both, prints the paper's claims beside our numbers, and writes

    v1_distribution.png   the noise levels that have either property
    v1_circuit.png        rates over time, paradoxical responses, and linear theory

Published levels are on another scale: figures show ten times the sigma used here.

.. image:: images/v1_distribution.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figure 3.
"""

import jax
import numpy as np
from _claims import Claim, entropy_claim, print_claims, verdict
from _script import infer, parser, save
from _v1 import (
    EXACT_CORRELATION,
    MAX_ENTROPY,
    NUM_TESTED,
    POPULATIONS,
    PUBLISHED_ENTROPY,
    ROUGH_CORRELATION,
    TARGETS,
    compensation,
    own_responses,
    shift_of,
    theory,
)
from _v1_figures import plot_circuit, plot_distribution

from numpyro_epi.circuits import v1


def claims(results, responses, checked):
    """Every claim of the paper about this circuit, as a row."""
    low, high = results[5.0], results[10.0]
    rows = [compensation_claim(results[mean], mean) for mean in TARGETS]
    rows += [sum_claim(low, high), equal_claim(low, high)]
    found = ", ".join(
        f"{name} {x:+.1f}" for name, x in zip(POPULATIONS, responses, strict=True)
    )
    ratio = checked.simulated / checked.linear
    least, most = ratio[:, 0].min(), ratio[:, 0].max()
    rows += [
        Claim(
            "Only P is paradoxical: more input, lower rate",
            "only P",
            f"{found} Hz",
            "change of the steady rate with the population's own input",
            verdict(bool((np.sign(responses) == [1, -1, 1, 1]).all()), "other signs"),
        ),
        Claim(
            "Linear theory gives the variance for small noise (equations 81 to 86, "
            "corrected)",
            "as printed, units do not match",
            f"simulated / theory {least:.3f} to {most:.3f}; with more noise up to "
            f"{ratio.max():.2f}",
            f"sd of the E rate, noise of {checked.levels[0]:g} sqrt(Hz) in one "
            "population; bar 5%",
            verdict(least > 0.95 and most < 1.05, "it does not"),
        ),
    ]
    return rows + [
        entropy_claim(
            results[mean],
            f"{mean:g} Hz (units differ, digits lost)",
            PUBLISHED_ENTROPY[mean],
            MAX_ENTROPY[mean],
        )
        for mean in TARGETS
    ]


def compensation_claim(result, mean):
    found = compensation(result)
    exact = EXACT_CORRELATION[mean]
    return Claim(
        f"sigma_E^2 and sigma_P^2 compensate each other at {mean:g} Hz",
        f"strongly (a rough check: {ROUGH_CORRELATION[mean]})",
        f"{found.value:.3f} +- {found.error:.3f}",
        f"correlation of squares; bar: within 0.1 of the exact one, {exact}",
        verdict(abs(found.value - exact) < 0.1, f"correlation {found.value:.2f}"),
    )


def sum_claim(low, high):
    found = shift_of(low, high, [0, 1])
    return Claim(
        "sigma_E^2 + sigma_P^2 is larger at 10 Hz than at 5 Hz",
        "p < 1e-10",
        f"p = {found.p_value:.0e}, larger by {found.difference.value:.2f} spreads",
        f"Mann-Whitney test, {NUM_TESTED} draws each",
        verdict(
            found.p_value < 1e-10 and found.difference.value > 0, "not significant"
        ),
    )


def equal_claim(low, high):
    """A missed significance shows nothing: ask for equivalence, with all draws."""
    found = shift_of(low, high, [2, 3])
    value, error = found.difference
    edge = abs(value) + 1.645 * error
    return Claim(
        "sigma_S^2 + sigma_V^2 is the same at 5 Hz and 10 Hz",
        "p = .40 (not significant)",
        f"differs by {value:+.3f} +- {error:.3f} spreads, p = {found.p_value:.2f}",
        f"equivalence: |difference| + 1.645 errors is {edge:.3f}, bar 0.1, all draws",
        verdict(edge < 0.1, "not shown to be equal within 0.1 spreads"),
    )


def main(args):
    keys = jax.random.split(jax.random.key(args.key), 4)
    results = {}
    for mean, key in zip(TARGETS, keys, strict=False):
        print(f"\nE fluctuates by {mean:g} Hz")
        results[mean] = infer(v1.model, args, key, mean=mean)
    checked = theory(keys[2], num_seconds=args.theory_seconds)
    rows = claims(results, own_responses(), checked)
    print_claims(rows, converged=all(r.converged for r in results.values()))
    save(
        {
            "v1_distribution.png": lambda: plot_distribution(results),
            "v1_circuit.png": lambda: plot_circuit(results, checked, keys[3]),
        },
        args,
    )


def parse_args(argv=None):
    arguments = parser("Which noise makes excitatory neurons fluctuate?")
    arguments.add_argument(
        "--theory-seconds",
        type=float,
        default=2.0,
        help="simulated time of each trial in the check of linear theory",
    )
    return arguments.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
