# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the circuit examples share as scripts: options, looks, and saving figures."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

import numpyro_epi as epi

# Okabe and Ito's colours, which people with colour blindness can tell apart.
BLACK, BLUE, ORANGE, GREEN, GREY = "k", "#0072B2", "#D55E00", "#009E73", "0.6"
PINK, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 130,
}
INTEGERS = ("num_particles", "num_epochs", "num_steps", "num_evaluation")
INTEGERS += ("num_restarts", "warm_start_size")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of `EPI`, a key and an output folder."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Options of EPI that are not given have their defaults.",
    )
    parser.add_argument("--key", type=int, default=0, help="random key (default 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    for name in INTEGERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--progress-bar", action=argparse.BooleanOptionalAction)
    return parser


def infer(model, args: argparse.Namespace, rng_key, *model_args, **model_kwargs):
    """Run `EPI` with the options that were given, and print its report."""
    names = (*INTEGERS, "progress_bar")
    given = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    result = epi.EPI(model, **given).run(rng_key, *model_args, **model_kwargs)
    result.print_summary()
    return result


def infer_or_load(model, args: argparse.Namespace, rng_key):
    """Run `infer`, or read the result that `args.result` names and print its report."""
    if args.result is None:
        return infer(model, args, rng_key)
    result = epi.EPIResult.load(args.result, model)
    result.print_summary()
    return result


def save(figures: dict, args: argparse.Namespace) -> None:
    """Draw and write figures: `{file name: function that makes the figure}`."""
    args.out.mkdir(parents=True, exist_ok=True)
    written = [args.out / name for name in figures]
    with plt.rc_context(STYLE):
        for path, plot in zip(written, figures.values(), strict=True):
            figure = plot()
            figure.savefig(path)
            plt.close(figure)
    print("\nWritten: " + ", ".join(str(path) for path in written))
