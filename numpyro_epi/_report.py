# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""The printed report of a result, at most 100 columns wide."""

from typing import TYPE_CHECKING

import numpy as np

from numpyro_epi._math.convergence import adjusted_p_values
from numpyro_epi._math.dependence import confirmed_relations
from numpyro_epi._math.psis import MAX_KHAT
from numpyro_epi._math.relation_text import describe_relations

if TYPE_CHECKING:
    from numpyro_epi._math.constraints import ConstraintTable
    from numpyro_epi._restart import EPIRestart
    from numpyro_epi.diagnostics import DualityGap, Restarts
    from numpyro_epi.result import EPIResult

WIDTH = 100
LABEL_WIDTH = 25
# Constraints that are listed; of more, those with the largest violations.
MAX_ROWS = 40
# Multipliers of one site that are listed; of more, the first and last few.
MAX_MULTIPLIERS = 32
# Share of a target variance that the mean alone leaves, below which that is said; and
# the number of statistics of which it is said.
WIDENED, MAX_WIDENED = 0.8, 3
# Relations between statistics that are listed.
MAX_RELATIONS = 5
# Nats to the maximum beyond which a reader is warned: half of a law is 0.7.
LARGE_GAP = 0.5

MULTIPLIERS_SOURCES = {
    "dual": "exact, those of the law",
    "guide": "as trained with the guide, approximate",
}
METHODS = {"importance": "importance sampling", "chains": "Markov chains"}


def summary(
    result: "EPIResult",
    certificate: "DualityGap | None" = None,
    restarts: "Restarts | None" = None,
) -> str:
    """Text of `EPIResult.print_summary`."""
    best = result.restarts[result.best]
    lines = [f"Emergent property inference: {result.status}", f"  {result.message}", ""]
    lines += _constraints(result, best)
    lines += ["", *_distribution(best, result._engine.problem.improper)]
    lines += _law(best)
    if certificate is not None:
        lines += _certificate(certificate)
    lines += [*_multipliers(best), *_shared(result.table, best)]
    lines += _widened(result.table, best)
    if len(result.restarts) > 1:
        lines += ["", *_restarts(result)]
    if restarts is not None:
        lines += _disagreement(restarts)
    lines += ["", *_failures(result), *_cost(result)]
    return "\n".join(part for line in lines for part in _wrap(line))


# -- constraints ----------------------------------------------------------------------


def _constraints(result: "EPIResult", best: "EPIRestart") -> list[str]:
    """One line for each constraint."""
    table = result.table
    targets = np.concatenate([table.mean, table.var[table.has_var]])
    achieved, errors = _achieved(table, best)
    labels = _labels(table)
    lines = [
        f"  {'constraint':{LABEL_WIDTH}s} {'target':>11s} {'achieved':>11s} "
        f"{'std. error':>11s} {'violation':>18s} {'p-value':>8s} {'for all':>7s}"
    ]
    rows = _rows(best.violation)
    adjusted = adjusted_p_values(best.p_values)
    for i in rows:
        violation = f"{_signed(best.violation[i])} +- {best.violation_error[i]:.2g}"
        lines.append(
            f"  {_shorten(labels[i], LABEL_WIDTH):{LABEL_WIDTH}s} {targets[i]:11.4g} "
            f"{achieved[i]:11.4g} {errors[i]:11.2g} {violation:>18s} "
            f"{best.p_values[i]:8.2g} {adjusted[i]:7.2g}"
        )
    if len(rows) < len(labels):
        lines.append(
            f"  ({len(labels) - len(rows)} constraints with smaller violations are not "
            "shown)"
        )
    lines.append(
        "  (violation in scaled units, in which the spread of a constraint is about 1; "
        f"tolerance {result.tolerance:g}; p-values of a violation of zero: one at a "
        "time, and for all at once by Holm's method)"
    )
    return lines


def _achieved(
    table: "ConstraintTable", best: "EPIRestart"
) -> tuple[np.ndarray, np.ndarray]:
    """E[f] and E[(f - mean)^2] over the stored draws, and standard errors, (K,)."""
    stats = np.concatenate(
        [v.reshape(len(v), -1) for v in best.draws.statistics.values()], axis=1
    ).astype(np.float64)
    squares = (stats - table.mean)[:, table.has_var] ** 2
    values = np.concatenate([stats, squares], axis=1)
    if len(values) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return nothing, nothing
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _labels(table: "ConstraintTable") -> list[str]:
    names = table.statistic_labels
    with_var = [n for n, has_var in zip(names, table.has_var, strict=True) if has_var]
    return [f"{n}, mean" for n in names] + [f"{n}, variance" for n in with_var]


def _rows(violation: np.ndarray) -> list[int]:
    """Indices of the constraints to show, in order."""
    worst_first = np.argsort(-np.abs(violation), kind="stable")
    return sorted(int(i) for i in worst_first[:MAX_ROWS])


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 100 else f"{value:+.3g}"


# -- the distribution -----------------------------------------------------------------


def _distribution(best: "EPIRestart", improper: tuple[str, ...]) -> list[str]:
    """Entropy, divergence and their like."""
    lines = [
        _entry("entropy of the distribution", f"{best.entropy:10.3f} nats"),
        _divergence(best, improper),
    ]
    if np.any(best.draws.log_likelihood):
        text = f"{best.log_likelihood:10.3f} nats"
        lines.append(_entry("expected log likelihood of data", text))
    text = f"{best.score:10.3f} nats"
    lines.append(_entry("violation-corrected objective", text))
    if np.isfinite(best.log_normalizer):
        gap = best.log_normalizer - best.score
        text = (
            f"{best.log_normalizer:10.3f} nats  (gap {gap:+.3f}, from "
            f"{best.dual_ess:,.0f} effective draws)"
        )
        lines.append(_entry("its maximum, log Z of the law", text))
        if gap > LARGE_GAP:
            lines.append(
                f"  A gap of {gap:.1f} nats is large: a part with the property may be "
                "missing, or the guide is not flexible enough. Look at `diagnostics."
                "duality_gap_diagnostic`; try more `num_epochs`, `num_restarts`, or "
                "`num_flows` of the guide."
            )
    if best.invalid > 0:
        text = f"{best.invalid:10.2%}  (left out)"
        lines.append(_entry("draws that cannot be simulated", text))
    skipped = best.history.skipped
    if skipped.any():
        text = f"{skipped.mean():10.2%}"
        lines.append(_entry("steps skipped, gradient not finite", text))
    return lines


def _law(best: "EPIRestart") -> list[str]:
    """What the exact law is, beside the guide."""
    law = best.law
    if law is None:
        return [_entry("the exact law", f"not found: {best.law_reason}")]
    worst = int(np.argmax(np.abs(law.violation)))
    text = (
        f"{law.entropy:10.3f} nats  (worst violation {_signed(law.violation[worst])} "
        f"+- {law.violation_error[worst]:.2g}, {law.ess:,.0f} effective draws by "
        f"{METHODS[law.method]})"
    )
    lines = [_entry("entropy of the exact law", text)]
    if not law.converged:
        lines.append(f"  The law is not to be trusted: {law.reason}.")
    return lines


def _divergence(best: "EPIRestart", improper: tuple[str, ...]) -> str:
    """KL from the prior, or what it is if the prior is no distribution."""
    if improper:
        names = ", ".join(f"`{name}`" for name in improper)
        text = (
            f"{best.divergence:10.3f} nats  (no KL: the prior of {names} is improper)"
        )
        return _entry("E[log density - log prior]", text)
    share = f"leaves {np.exp(-best.divergence):.2g} of the prior"
    return _entry("KL from the prior", f"{best.divergence:10.3f} nats  ({share})")


def _certificate(found: "DualityGap") -> list[str]:
    """The bound, the gap and how far to trust them."""
    text = (
        f"{found.bound:10.3f} +- {found.bound_error:.2g} nats  (k-hat "
        f"{found.khat:.2f}, {found.ess:,.0f} effective draws)"
    )
    lines = [_entry("certificate: no distribution beats", text)]
    text = f"{found.gap:10.3f} +- {found.gap_error:.2g} nats"
    if found.khat > MAX_KHAT:
        text += "  (not to be trusted: k-hat is above 0.7)"
    elif found.noise_error > 0:
        text += f"  (noise of averaged simulations: {found.noise_error:.2g})"
    lines.append(_entry("distance from it", text))
    return lines


def _entry(name: str, value: str) -> str:
    return f"  {name:34s} {value}"


def _multipliers(best: "EPIRestart") -> list[str]:
    """The multipliers by site: of the mean, then of the variance."""
    source = MULTIPLIERS_SOURCES[best.multipliers_source]
    lines = [f"  multipliers in raw units ({source}):"]
    for site, values in best.multipliers.items():
        rows = zip(("mean", "variance"), values, strict=False)
        shown = "; ".join(f"{moment} {_numbers(row)}" for moment, row in rows)
        lines.append(f"    {_shorten(site, LABEL_WIDTH)}: {shown}")
    return lines


def _shared(table: "ConstraintTable", best: "EPIRestart") -> list[str]:
    """A line for each relation between statistics, which share their multipliers."""
    stats = table.flatten(best.draws.statistics)
    relations = confirmed_relations(stats, table.has_var)
    names = describe_relations(relations, table.statistic_labels)
    lines = [f"  in all draws {name}" for name in names[:MAX_RELATIONS]]
    if len(names) > MAX_RELATIONS:
        lines.append(f"  ({len(names) - MAX_RELATIONS} more relations are not shown)")
    if names:
        lines.append(
            "  Such statistics have no multipliers, nor prices, of their own: these "
            "belong to their sum, and the smallest that give this law are shown."
        )
    return lines


def _widened(table: "ConstraintTable", best: "EPIRestart") -> list[str]:
    """A line for each target variance that is more than the mean alone leaves.

    Where the statistic is about Gaussian with variance v under q, and q has the factor
    exp(-lambda f^2), its variance without that factor is 1 / (1 / v - 2 lambda).
    """
    second = [v[1].ravel() for v in best.multipliers.values() if len(v) == 2]
    names = np.array(table.statistic_labels, dtype=object)[table.has_var]
    variances = table.var[table.has_var]
    multipliers = np.concatenate([np.zeros(0), *second])
    shares = 1.0 / (1.0 + 2.0 * variances * np.maximum(-multipliers, 0.0))
    chosen = [i for i in np.argsort(shares, kind="stable") if shares[i] < WIDENED]
    return [
        f"  {_shorten(names[i], LABEL_WIDTH)}: its mean alone leaves a variance of "
        f"about {shares[i] * variances[i]:.2g}; the target, {variances[i]:.2g}, is "
        "more, which few draws far away can make up for. Leave `var` out, or ask for "
        "less."
        for i in chosen[:MAX_WIDENED]
    ]


def _numbers(values: np.ndarray) -> str:
    """Numbers on one line: a nested list, or its ends if it is long."""
    text = np.array2string(
        np.asarray(values),
        threshold=MAX_MULTIPLIERS,
        max_line_width=10**6,
        formatter={"float_kind": lambda x: f"{x:.4g}"},
    )
    return " ".join(text.split())


# -- restarts and cost ----------------------------------------------------------------


def _restarts(result: "EPIResult") -> list[str]:
    """One line for each restart; a star marks the best."""
    lines = [
        f"  {'restart':>7s}  {'status':15s} {'entropy':>9s} {'KL':>9s} "
        f"{'corrected':>10s} {'worst violation':>16s}"
    ]
    for i, restart in enumerate(result.restarts):
        mark = "*" if i == result.best else " "
        lines.append(
            f"  {mark}{i:6d}  {restart.status!s:15s} {restart.entropy:9.3f} "
            f"{restart.divergence:9.3f} {restart.score:10.3f} "
            f"{np.abs(restart.violation).max():16.4f}"
        )
    return lines


def _disagreement(found: "Restarts") -> list[str]:
    """Which restart lacks what another has, and how far their means differ."""
    lines = [
        f"  restart {j} lacks a part that restart {i} has: "
        f"{found.outside[i, j]:.1%} of the draws of {i}"
        for i, j in found.missing
    ]
    if not lines:
        lines = ["  no restart lacks a part that another one has"]
    worst = max(found.r_hat, key=lambda name: float(np.max(found.r_hat[name])))
    value = float(np.max(found.r_hat[worst]))
    return [*lines, f"  largest r-hat between restarts: {value:.3f}, of {worst}"]


def _failures(result: "EPIResult") -> list[str]:
    """How many simulations were left out in the whole run."""
    if result.num_invalid == 0:
        return []
    return [
        f"  {result.num_invalid:,} simulations failed and were left out (those of "
        "single steps not counted): the law is that of the prior restricted to latents "
        "that can be simulated"
    ]


def _cost(result: "EPIResult") -> list[str]:
    noisy = "noisy" if result.is_noisy else "deterministic"
    lines = [
        f"  {result.seconds:.1f} s, {result.num_simulations:,} simulations, {noisy} "
        f"statistics, gradient: {result.gradient.choice} ({result.gradient.reason})"
    ]
    if result.stopped_by != "done":
        lines.append(f"  not run to its end: stopped by {result.stopped_by}")
    if result.has_noisy_likelihood:
        noise = result._engine.problem.likelihood_noise
        lines += [f"  {sentence}" for sentence in noise.sentences()]
    return lines


# -- fitting in -----------------------------------------------------------------------


def _shorten(text: str, width: int) -> str:
    """Cut the middle: the end tells elements and moments apart."""
    if len(text) <= width:
        return text
    tail = 2 * width // 3
    return f"{text[: width - tail - 1]}~{text[-tail:]}"


def _wrap(line: str) -> list[str]:
    """Break a long line at blanks, with the indent of its beginning."""
    indent = " " * (len(line) - len(line.lstrip()))
    parts = []
    while len(line) > WIDTH:
        cut = line.rfind(" ", len(indent) + 1, WIDTH + 1)
        if cut < 0:  # one long word
            cut = WIDTH
        parts.append(line[:cut])
        line = indent + line[cut:].lstrip()
    return [*parts, line]
