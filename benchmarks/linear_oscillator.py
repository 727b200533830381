# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The linear system by the default options and by the published schedule.

For each method and key the table shows:

- entropy, nats: the known maximum is 7.04. A distribution that misses its targets can
  have more;
- corrected: entropy minus violation times the exact multipliers, to first order the
  entropy that is left when targets are met. Losing one of the two modes costs 0.69;
- violation: the worst of the four on fresh draws, scaled units, and its standard error;
- a12 > 0: share of the draws; 0.5 is exact. `modes` is 2 if both have at least 10%;
- seconds, compilation included, and simulations of the run.
"""

import argparse
import statistics
from typing import NamedTuple

import jax
import numpy as np

import numpyro_epi as epi
from numpyro_epi.circuits import linear

# Of the exact solution, in scaled units: means of growth and frequency, variances.
EXACT_MULTIPLIERS = np.array([-0.001, -0.261, 7.998, 1.195]) * np.concatenate(
    [np.sqrt(linear.PAPER.var), np.sqrt(2.0) * np.array(linear.PAPER.var)]
)


class Row(NamedTuple):
    method: str
    key: int
    status: str
    entropy: float
    corrected: float
    violation: float
    error: float
    share: float
    seconds: float
    simulations: int

    @property
    def modes(self):
        return 1 + (0.1 <= self.share <= 0.9)


def measure(method, key, inference, num_draws):
    """One run, judged on fresh draws."""
    result = inference.run(jax.random.key(key))
    draws = result.predict(jax.random.key(1000 + key), num_draws, batch_size=5000)
    stats = np.stack([draws["growth"], draws["frequency"]], axis=-1).astype(np.float64)
    scaled = (stats - linear.PAPER.mean) / np.sqrt(linear.PAPER.var)
    deviations = np.concatenate([scaled, (scaled**2 - 1.0) / np.sqrt(2.0)], axis=-1)
    violation = deviations.mean(axis=0)
    error = deviations.std(axis=0) / np.sqrt(num_draws)
    worst = np.argmax(np.abs(violation))
    return Row(
        method,
        key,
        str(result.status),
        result.entropy,
        result.entropy - EXACT_MULTIPLIERS @ violation,
        violation[worst],
        error[worst],
        float((draws["a"][:, 1] > 0).mean()),
        result.seconds,
        result.num_simulations,
    )


def methods(args):
    """Name and a function that makes the inference afresh, so that it compiles."""

    def default():
        options = {} if args.num_epochs is None else {"num_epochs": args.num_epochs}
        return epi.EPI(linear.model, progress_bar=False, **options)

    def published():
        guide = epi.guides.AutoRealNVP(
            linear.model, num_flows=3, hidden_dims=(50, 50), base="normal", mixing=False
        )
        return epi.EPI(
            linear.model,
            guide,
            schedule=epi.PublishedSchedule(),
            num_particles=500,
            num_steps=args.published_steps,
            num_epochs=args.num_epochs or args.published_epochs,
            progress_bar=False,
        )

    return {"default": default, "published": published}


def print_row(row):
    print(
        f"{row.method:10s} {row.key:>5} {row.status:14s} {row.entropy:8.3f} "
        f"{row.corrected:10.3f} {row.violation:+10.3f} +- {row.error:.3f} "
        f"{row.share:8.2f} {row.modes:6d} {row.seconds:8.1f} {row.simulations:12,}",
        flush=True,
    )


def main(args):
    print(
        f"{'method':10s} {'key':>5} {'status':14s} {'entropy':>8} {'corrected':>10} "
        f"{'violation':>19} {'a12 > 0':>8} {'modes':>6} {'seconds':>8} "
        f"{'simulations':>12}"
    )
    rows = []
    for key in args.keys:
        for name in args.methods:
            inference = methods(args)[name]()
            rows.append(measure(name, key, inference, args.num_draws))
            print_row(rows[-1])
    print(f"Medians over {len(args.keys)} keys; the maximum of the entropy is "
          f"{linear.PAPER.max_entropy:.2f}:")  # fmt: skip
    for name in args.methods:
        mine = [row for row in rows if row.method == name]
        print(
            f"{name:10s} entropy {median(mine, 'entropy'):.3f}, "
            f"corrected {median(mine, 'corrected'):.3f}, "
            f"violation {statistics.median(abs(r.violation) for r in mine):.3f}, "
            f"both modes {sum(r.modes == 2 for r in mine)} of {len(mine)}, "
            f"{median(mine, 'seconds'):.0f} s, "
            f"{median(mine, 'simulations'):,.0f} simulations"
        )


def median(rows, name):
    return statistics.median(getattr(row, name) for row in rows)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=["default", "published"],
        default=["default", "published"],
    )
    parser.add_argument("--num-epochs", type=int, help="of both methods")
    parser.add_argument("--published-epochs", type=int, default=10)
    parser.add_argument("--published-steps", type=int, default=2500)
    parser.add_argument("--num-draws", type=int, default=100_000)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse_args())
