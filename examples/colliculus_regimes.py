# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""
Superior colliculus: two regimes of connections, and how to tell them apart
===========================================================================

`colliculus.py` infers connections sW, vW, hW, dW that let a circuit do the Pro and the
Anti task, each with an accuracy of 0.75 +- 0.075. Their distribution is bent. Here the
result is asked what that means, as in the paper's Figures 4C-D and 5, with
`numpyro_epi.sensitivity` and `numpyro_epi.plotting`:

    conditional_modes   a path of nine modes z*(sW), sW from 1 to -1
    directions          the sensitive direction v1 at each: the first eigenvector of the
                        Hessian of the log density, with a negative entry of hW
    perturb             both accuracies along v1, v_task and v_diag. The last two raise
                        one eigenvalue of the connectivity each: task (Pro units against
                        Anti units) and diag (a Pro unit with the Anti unit across)
    group_by_mode       draws by nearest mode, 500 for each
    intervene           errors of each group when activity is silenced late in the
                        delay, x = (1 - gamma) phi(u)

Regime 1 is where sW is -1 to -0.5, regime 2 where it is 0.5 to 1; the modes at -0.75
and 0.75 are their examples. v1 is taken twice: from the flow, and from the exact law
with the multipliers of the run (`of="tilted"`), which knows the model and not the fit.

Held at one sW, the density has a ridge with peaks of nearly the same height. Where the
one that the path is on ends, it jumps, mostly in vW; where, differs from run to run.

The script runs the inference, or reads a saved one (`--result FILE`), prints the
paper's claims beside our numbers, and writes

    colliculus_modes.png     the path of modes over the draws, with v1 as arrows
    colliculus_regimes.png   accuracies along v1, v_task and v_diag in both regimes
    colliculus_opto.png      silencing: bands by group, errors, correlations

.. image:: images/colliculus_modes.png
.. image:: images/colliculus_regimes.png
.. image:: images/colliculus_opto.png

Reference: Bittner et al., Interrogating theoretical models of neural computation with
emergent property inference, eLife 2021, doi:10.7554/eLife.56265, Figures 4C-D and 5 and
Methods, "Mode identification with EPI" to "Modeling optogenetic silencing".
"""

import jax
from _claims import print_claims
from _colliculus_regimes import follow_path, group, silence
from _colliculus_regimes_claims import Findings, claims
from _colliculus_regimes_figures import plot_modes, plot_regimes, plot_silenced
from _colliculus_regimes_lines import perturb_modes, take_census
from _script import infer_or_load, parser, save

from numpyro_epi.circuits import colliculus


def main(args):
    result = infer_or_load(colliculus.model, args, jax.random.key(args.key))
    law_key, line_key, census_key, group_key, opto_key = jax.random.split(
        jax.random.key(args.key + 1), 5
    )
    num = args.num_simulations
    path = follow_path(result, law_key, 4 * num)
    lines = perturb_modes(result, path, line_key, num)
    census = take_census(result, census_key, args.num_places, num)
    grouping = group(result, path, group_key, args.num_per_group, args.num_brute_force)
    silenced = silence(result, path, grouping.groups, opto_key)
    found = Findings(path, lines, census, grouping, silenced)
    print_claims(claims(found), converged=result.converged)
    save(
        {
            "colliculus_modes.png": lambda: plot_modes(result, path),
            "colliculus_regimes.png": lambda: plot_regimes(result, lines, census),
            "colliculus_opto.png": lambda: plot_silenced(silenced),
        },
        args,
    )


def parse_args(argv=None):
    arguments = parser("Two regimes of connections, and how to tell them apart")
    arguments.add_argument("--result", help="file of a saved result, not to infer")
    for name, default, text in (
        ("--num-simulations", 25, "at each point of a line"),
        ("--num-places", 30, "draws of each regime from which lines start"),
        ("--num-per-group", 500, "draws of each group"),
        ("--num-brute-force", 200_000, "draws of the prior"),
    ):
        arguments.add_argument(name, type=int, default=default, help=text)
    return arguments.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
