# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""One table of the further models in `long_*.py`, and the judge of a result.

Each of those files has its own form of a truth, which suits its models; here they
become rows of one form.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

import long_coords
import long_copies
import long_failures
import long_noise
import long_params
import long_precision
import numpyro_epi as epi

# Of a converged run: scaled units of a fresh violation; and of one that is right: nats,
# standard deviations of means, shares of standard deviations.
MAX_VIOLATION, MAX_GAP, MAX_SHIFT, MAX_STRETCH = 0.1, 0.1, 0.15, 0.15
NUM_DRAWS = 20_000


@dataclass(frozen=True)
class Truth:
    """What is known of the law.

    Attributes:
        entropy: of the law, nats.
        divergence: from the prior, nats.
        maximum: of `result.score`, nats.
        moments: by name a function of draws of latents and statistics to shape (n,),
            and the mean and standard deviation of its values.
        checks: functions of the draws that must hold.
    """

    entropy: float | None = None
    divergence: float | None = None
    maximum: float | None = None
    moments: Mapping[str, tuple[Callable, float, float]] = field(default_factory=dict)
    checks: tuple[Callable, ...] = ()


@dataclass(frozen=True)
class Row:
    """A model, and its truth or the error that it should end with."""

    model: Callable
    args: tuple
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    truth: Callable[[], Truth] | None
    error: tuple[type[Exception], str] | None = None


def wrong(result: epi.EPIResult, truth: Truth) -> list[str]:
    """What of a result is not that of the law, in words."""
    draws = result.predict(jax.random.key(11), NUM_DRAWS)
    found = []
    scaled = result.table.scaled_multipliers(result.multipliers)
    off = float(scaled @ result.restarts[result.best].violation)
    # To first order in the violation, an entropy is too large by lambda . V.
    for name, value, exact in (
        ("entropy", result.entropy - off, truth.entropy),
        ("divergence", result.divergence + off, truth.divergence),
        ("score", result.score, truth.maximum),
    ):
        if exact is not None and not abs(value - exact) <= MAX_GAP:
            found.append(f"{name} {value:.3f} instead of {exact:.3f}")
    for name, (fn, mean, sd) in truth.moments.items():
        values = np.asarray(fn(draws), np.float64)
        if not abs(values.mean() - mean) <= MAX_SHIFT * sd:
            found.append(f"mean of {name} {values.mean():.4g} instead of {mean:.4g}")
        if not abs(values.std() / sd - 1.0) <= MAX_STRETCH:
            found.append(f"sd of {name} {values.std():.4g} instead of {sd:.4g}")
    found += ["a check of the draws" for check in truth.checks if not check(draws)]
    return found


def fresh_violation(result: epi.EPIResult) -> float:
    """Largest |E[T]| over draws that the run has not seen, scaled units."""
    draws = result.predict(jax.random.key(12), NUM_DRAWS)
    stats = [
        draws[name].reshape(len(draws[name]), -1) for name, _ in result.table.sites
    ]
    return float(np.abs(result.table.deviations(np.hstack(stats)).mean(0)).max())


# -- the forms of the files -----------------------------------------------------------


def _by_site(known: Mapping[str, Any]) -> Truth:
    """`{"entropy": .., "divergence": .., site: (mean, sd)}`, sds of None left out."""
    numbers = {k: v for k, v in known.items() if k in ("entropy", "divergence")}
    sites = {k: v for k, v in known.items() if k not in numbers}
    moments = {}
    for name, (mean, sd) in sites.items():
        means, sds = np.atleast_1d(mean), np.atleast_1d(sd)
        for i, (m, s) in enumerate(zip(means, sds, strict=True)):
            column = lambda draws, name=name, i=i: (  # noqa: E731
                draws[name].reshape(len(draws[name]), -1)[:, i]
            )
            moments[f"{name} {i}"] = (column, float(m), float(s))
    return Truth(moments=moments, **numbers)


def _plain(entry: tuple) -> Row:
    """(model, args, kwargs of the model, truth function or error)."""
    model, args, kwargs, truth = entry
    if isinstance(truth, tuple):
        return Row(model, args, kwargs, {}, None, (truth[0], re.escape(truth[1])))
    if isinstance(truth, type):
        return Row(model, args, kwargs, {}, None, (truth, ""))
    return Row(model, args, kwargs, {}, lambda: _by_site(truth()))


def _failure(entry: tuple) -> Row:
    """(model, args, options of `EPI`, dictionary); moments of statistics, variances."""
    model, args, options, known = entry
    if "error" in known:
        return Row(model, args, {}, options, None, known["error"])

    def truth() -> Truth:
        name = "emergent_property"
        moments = {
            f"statistic {i}": (
                lambda d, i=i: d[name].reshape(len(d[name]), -1)[:, i],
                mean,
                var**0.5,
            )
            for i, (mean, var) in enumerate(known.get("moments", []))
        }
        checks = (known["latents"],) if "latents" in known else ()
        return Truth(known.get("entropy"), None, None, moments, checks)

    return Row(model, args, {}, options, truth)


def _noise(entry: tuple) -> Row:
    """(model, args, kwargs, {moment: (function of latents, value, sd)} or words)."""
    model, args, kwargs, known = entry
    if isinstance(known, str):
        return Row(model, args, kwargs, {}, None, (ValueError, known))

    def agrees(fn: Callable, value: float, sd: float) -> Callable:
        # A mean without a variance is met to 0.05 of the spread of the prior: 1 here.
        return lambda draws: abs(fn(draws) - value) <= max(MAX_SHIFT * sd, 0.05)

    checks = tuple(agrees(*known[name]) for name in known)
    return Row(model, args, kwargs, {}, lambda: Truth(checks=checks))


def _coords(case: Any) -> Row:
    if case.error is not None:
        return Row(case.model, case.args, case.kwargs, {}, None, case.error)

    def truth() -> Truth:
        law = case.truth()
        lam = law.solve()
        exact = law.mean_and_variance(lam)
        moments = {
            name: (fn, float(exact[name][0]), float(exact[name][1]) ** 0.5)
            for name, fn in case.functions.items()
        }
        return Truth(case.entropy, None, law.log_normalizer(lam), moments)

    return Row(case.model, case.args, case.kwargs, {}, truth)


FORMS = {
    long_coords: _coords,
    long_copies: _plain,
    long_failures: _failure,
    long_noise: _noise,
    long_params: _plain,
    long_precision: _plain,
}
LONG = {
    f"{module.__name__.removeprefix('long_')}: {name}": form(entry)
    for module, form in FORMS.items()
    for name, entry in module.LONG.items()
}
