# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The solver by its default options: the exact law and the guide, row by row.

Beside each figure stands, in brackets, what it has to reach, and after a stroke what
the trainer took before the law came first; both are kept in `solver.csv`. The table
shows:

- law: log Z plus the log volume of a uniform prior, so that of a law that meets its
  targets it is the entropy, with its standard error; log Z alone where data or another
  prior take part;
- guide: the violation-corrected objective on the same scale, which the law bounds;
- status: of the run; an asterisk where the law is not trusted;
- seconds, compilation included, and simulations of the whole run.

Of laws in nine pieces the share of each is printed; each has one ninth.
"""

import argparse
import csv
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi
from numpyro_epi.circuits import colliculus, linear, rnn, stg, v1


def regression():
    """400 data, priors 1,000 wide, and a property of the line at 100."""
    rng = np.random.default_rng(0)
    x = rng.normal(100, 15, 400).astype(np.float32)
    y = (26 + 0.6 * x + rng.normal(0, 18, 400)).astype(np.float32)
    b0 = numpyro.sample("b0", dist.Normal(0, 1000))
    b1 = numpyro.sample("b1", dist.Normal(0, 1000))
    s = numpyro.sample("s", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(b0 + b1 * x, s).to_event(1), obs=y)
    epi.emergent_property(b0 + 100 * b1, mean=88.0, var=0.4, name="at_100")


def populations(start, rates, num_years=20, steps_a_year=20):
    """Prey and predators at each year, by Runge and Kutta, shape (years, 2)."""

    def slope(x):
        birth, eaten, death, growth = rates
        prey, predators = x
        return jnp.stack(
            [(birth - eaten * predators) * prey, (growth * prey - death) * predators]
        )

    def step(x, _):
        h = 1.0 / steps_a_year
        a = slope(x)
        b = slope(x + h / 2 * a)
        c = slope(x + h / 2 * b)
        d = slope(x + h * c)
        return x + h / 6 * (a + 2 * b + 2 * c + d), None

    def year(x, _):
        return jax.lax.scan(step, x, None, length=steps_a_year)[0], x

    return jax.lax.scan(year, start, None, length=num_years)[1]


RATES, START = np.array([0.55, 0.028, 0.80, 0.024]), np.array([30.0, 5.0])
SEEN = np.exp(
    np.log(np.asarray(populations(jnp.asarray(START), jnp.asarray(RATES))))
    + 0.2 * np.random.default_rng(1).normal(size=(20, 2))
)


def predator_prey():
    """40 data, 8 latents, and the number of prey at which predators hold their own."""
    start = numpyro.sample("start", dist.LogNormal(jnp.log(10.0), 1).expand([2]))
    rates = numpyro.sample(
        "rates",
        dist.TruncatedNormal(
            jnp.array([1.0, 0.05, 1.0, 0.05]),
            jnp.array([0.5, 0.05, 0.5, 0.05]),
            low=0.0,
        ),
    )
    noise = numpyro.sample("noise", dist.LogNormal(-1, 1).expand([2]))
    x = jnp.log(jnp.clip(populations(start, rates), 1e-3, 1e6))
    numpyro.sample("seen", dist.LogNormal(x, noise), obs=SEEN)
    epi.emergent_property(rates[2] / rates[3], mean=36.0, var=1.0, name="balance")


def nine(statistic, mean, sd):
    z = numpyro.sample("z", dist.Uniform(-3 * np.pi, 3 * np.pi).expand([2]).to_event(1))
    epi.emergent_property(statistic(z), mean=mean, var=sd**2)


def count():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([12]).to_event(1))
    epi.emergent_property((z > 0.5).sum(), mean=8.0, var=1.0)


MODELS = {
    "linear": linear.model,
    "stg": stg.model,
    "v1-5Hz": v1.model,
    "v1-10Hz": partial(v1.model, 10.0),
    "colliculus": colliculus.model,
    **{f"rnn-{num}": partial(rnn.model, num) for num in (2, 5, 10, 25, 50)},
    "nine-rings": partial(nine, lambda z: jnp.cos(z).sum(), 1.6, 0.05),
    "nine-flat": partial(nine, jnp.cos, 0.85, 0.1),
    "count": count,
    "regression": regression,
    "predator-prey": predator_prey,
}
# Priors that are not uniform: nothing is added to log Z.
PLAIN = {"count", "regression", "predator-prey"}


class Row(NamedTuple):
    """What one run has found."""

    law: float
    law_error: float
    guide: float
    status: str
    seconds: float
    simulations: int


def measure(name, key, options):
    inference = epi.EPI(MODELS[name], progress_bar=False, **options)
    result = inference.run(jax.random.key(key))
    # Of a uniform prior entropy and divergence have one sum, the log of its volume.
    volume = 0.0 if name in PLAIN else result.entropy + result.divergence
    law = result.law
    if name.startswith("nine") and law is not None:
        print(f"{'':17} shares {np.round(shares(law), 3)}")
    return Row(
        np.nan if law is None else law.log_normalizer + volume,
        np.nan if law is None else law.log_normalizer_error,
        result.score + volume,
        f"{result.status}{'' if law is not None and law.converged else '*'}",
        result.seconds,
        result.num_simulations,
    )


def shares(law):
    """Of the nine pieces."""
    z = law.draws.latents["z"]
    cell = np.clip(np.floor((z + 3 * np.pi) / (2 * np.pi)), 0, 2) @ np.array([3, 1])
    return np.bincount(cell.astype(int), weights=law.weights, minlength=9)


def goals():
    """By row, of `solver.csv`; None where there is none."""
    with (Path(__file__).parent / "solver.csv").open() as file:
        return {
            line.pop("row"): {k: float(v) if v else None for k, v in line.items()}
            for line in csv.DictReader(file)
        }


def beside(number, goal, before=None, form="{:,.0f}"):
    """A figure with what it has to reach, and what it was."""
    text = form.format(number)
    text += "" if goal is None else f" ({form.format(goal)})"
    return text + ("" if before is None else f" | {form.format(before)}")


def print_row(name, key, row, goal):
    law = beside(row.law, goal["truth"], form="{:.3f}") + f" +- {row.law_error:.3f}"
    guide = beside(row.guide, goal["guide_at_least"], form="{:.3f}")
    seconds = beside(row.seconds, goal["seconds_at_most"], goal["seconds_before"])
    simulations = beside(
        row.simulations, goal["simulations_at_most"], goal["simulations_before"]
    )
    print(
        f"{name:13} {key:3d} {law:26} {guide:17} {row.status:14} {seconds:16} "
        f"{simulations}",
        flush=True,
    )


def main(args):
    device = jax.devices()[0]
    print(f"Device: {device.device_kind} ({device.platform}), JAX {jax.__version__}")
    print("In brackets: the truth of a law, or what to reach. After a stroke: before.")
    print(
        f"{'row':13} {'key':>3} {'law':26} {'guide':17} {'status':14} {'seconds':16} "
        "simulations"
    )
    options = {} if args.num_epochs is None else {"num_epochs": args.num_epochs}
    table, rows = goals(), []
    for name in args.rows:
        for key in args.keys:
            rows.append(measure(name, key, options))
            print_row(name, key, rows[-1], table[name])
    print(f"Median of the seconds: {np.median([row.seconds for row in rows]):.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--keys", nargs="+", type=int, default=[0])
    parser.add_argument("--num-epochs", type=int, help="of EPI; by default its own")
    main(parser.parse_args())
