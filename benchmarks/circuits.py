# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The circuits of the paper by the default options: one inference for each row and key.

The table shows:

- status: of the run, by its own report;
- entropy, nats: of the flow. A distribution that misses its targets can have more;
- corrected: entropy minus violation times multiplier, what is left of it when targets
  are met. It is the number to compare with `maximum`, of the exact distribution, which
  is known for small circuits, and with `published`, the best published run;
- amplify: of networks, the share of the stored draws that amplify and are stable: the
  largest real part of an eigenvalue of W is below 1, the largest eigenvalue of
  (W + W') / 2 above. The exact distribution has 95.6% at N = 5;
- violation: the worst of the stored evaluation draws, scaled units, and its standard
  error;
- seconds, compilation included, and simulations of the run.

A row that takes hours on a few processor cores is left out with `--rows`. On a GPU, the
same table.
"""

import argparse
import statistics
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

import numpyro_epi as epi
from numpyro_epi.circuits import colliculus, rnn, stg, v1


class Circuit(NamedTuple):
    """An inference of the paper.

    Attributes:
        model: NumPyro program, with the property that is asked for.
        maximum: Entropy of the exact distribution, nats, if it is known.
        published: The largest entropy of a published run that converged, nats, on the
            scale used here.
        num_keys: How many keys run unless others are given.
    """

    model: object
    maximum: float | None
    published: float | None
    num_keys: int = 3


def network(num_neurons, published=None):
    """The rank-2 network of a size."""
    maximum = dict(rnn.PAPER.max_entropy).get(num_neurons)
    return Circuit(partial(rnn.model, num_neurons), maximum, published)


CIRCUITS = {
    "stg": Circuit(stg.model, stg.PAPER.max_entropy, 1.04, 5),
    "rnn-2": network(2, -8.6),
    "rnn-5": network(5),
    "rnn-10": network(10, -6.3),
    "rnn-25": network(25),
    "rnn-50": network(50, -44.0),
    "rnn-100": network(100, -221.0),
    "v1-5Hz": Circuit(v1.model, v1.PAPER.max_entropy, -13.87),
    "v1-10Hz": Circuit(partial(v1.model, 10.0), -13.30, -13.91),
    "colliculus": Circuit(colliculus.model, None, -0.62, 5),
}


class Row(NamedTuple):
    name: str
    key: int
    status: str
    converged: bool
    entropy: float
    corrected: float
    violation: float
    error: float
    amplify: float | None
    seconds: float
    simulations: int


def measure(name, key, options):
    """One run; priors are uniform, so that entropy and divergence have one sum."""
    inference = epi.EPI(CIRCUITS[name].model, progress_bar=False, **options)
    result = inference.run(jax.random.key(key))
    best = result.restarts[result.best]
    worst = np.argmax(np.abs(best.violation))
    return Row(
        name,
        key,
        str(result.status),
        result.converged,
        result.entropy,
        result.score + result.entropy + result.divergence,
        best.violation[worst],
        best.violation_error[worst],
        share_of_amplification(result.draws.statistics),
        result.seconds,
        result.num_simulations,
    )


def share_of_amplification(drawn):
    """Of draws with the statistics of networks; None of other circuits."""
    if "real_eigenvalue" not in drawn:
        return None
    is_stable, grows = drawn["real_eigenvalue"] < 1, drawn["symmetric_eigenvalue"] > 1
    return float((is_stable & grows).mean())


def print_row(row):
    circuit = CIRCUITS[row.name]
    print(
        f"{row.name:10s} {row.key:>4} {row.status:14s} {row.entropy:8.2f} "
        f"{row.corrected:10.2f} {number(circuit.maximum):>8} "
        f"{number(circuit.published):>10} {row.violation:+10.3f} +- {row.error:.3f} "
        f"{'-' if row.amplify is None else f'{row.amplify:.1%}':>8} "
        f"{row.seconds:8.1f} {row.simulations:12,}",
        flush=True,
    )


def number(value):
    return "-" if value is None else f"{value:.2f}"


def median(rows, name):
    return statistics.median(getattr(row, name) for row in rows)


def print_medians(name, rows):
    print(
        f"{name:10s} {sum(row.converged for row in rows)} of {len(rows)} converged, "
        f"entropy {median(rows, 'entropy'):.2f}, "
        f"corrected {median(rows, 'corrected'):.2f}, "
        f"violation {statistics.median(abs(row.violation) for row in rows):.3f}, "
        f"{median(rows, 'seconds'):.0f} s, "
        f"{median(rows, 'simulations'):,.0f} simulations"
    )


def main(args):
    device = jax.devices()[0]
    print(f"Device: {device.device_kind} ({device.platform}), JAX {jax.__version__}")
    print(
        f"{'circuit':10s} {'key':>4} {'status':14s} {'entropy':>8} {'corrected':>10} "
        f"{'maximum':>8} {'published':>10} {'violation':>19} {'amplify':>8} "
        f"{'seconds':>8} {'simulations':>12}"
    )
    given = {k: getattr(args, k) for k in OPTIONS}
    options = {k: v for k, v in given.items() if v is not None}
    found = {}
    for name in args.rows:
        keys = range(CIRCUITS[name].num_keys) if args.keys is None else args.keys
        found[name] = []
        for key in keys:
            found[name].append(measure(name, key, options))
            print_row(found[name][-1])
    print("Medians over keys:")
    for name, rows in found.items():
        print_medians(name, rows)


OPTIONS = ("num_particles", "num_epochs", "num_steps", "num_evaluation")
OPTIONS += ("warm_start_size",)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Options of EPI that are not given have their defaults.",
    )
    parser.add_argument(
        "--rows", nargs="+", choices=list(CIRCUITS), default=list(CIRCUITS)
    )
    parser.add_argument(
        "--keys", type=int, nargs="+", help="default: 5 for stg and colliculus, else 3"
    )
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
