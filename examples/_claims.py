# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""A table of claims: what a paper says, what we find, and whether they agree."""

import textwrap
from typing import NamedTuple

WIDTHS = {"claim": 28, "published": 19, "ours": 26, "statistic": 25, "verdict": 24}


class Claim(NamedTuple):
    """A row of the table.

    Attributes:
        claim: What the paper says, in words.
        published: The number that the paper, or its code or logs, gives.
        ours: What this run gives.
        statistic: What supports the verdict: how `ours` is computed, and the bar.
        verdict: From `verdict`.
    """

    claim: str
    published: str
    ours: str
    statistic: str
    verdict: str


def verdict(holds, otherwise: str) -> str:
    """A verdict: "holds", or in which way we differ."""
    return "holds" if holds else f"differs: {otherwise}"


def entropy_claim(result, label: str, published: float, maximum=None) -> Claim:
    """Whether the published inference was the least committed one.

    What a missed target adds to an entropy does not count: violation times multiplier
    is subtracted. The prior must be uniform.

    Args:
        result: `EPIResult`.
        label: What was published, for instance "best of 5 runs".
        published: Its entropy, nats.
        maximum: Of the entropy, nats, if it is known.
    """
    corrected = result.score + result.entropy + result.divergence
    more = corrected - published
    sense = "less" if more > 0 else "more"
    answer = verdict(abs(more) < 0.05, f"{abs(more):.2f} nats {sense} committed")
    return Claim(
        "EPI finds the least committed distribution",
        f"entropy {published} nats, {label}",
        f"entropy {corrected:.2f} nats, {result.status}",
        "differential entropy, corrected for violations"
        + ("" if maximum is None else f"; maximum {maximum:.2f}"),
        answer if result.converged else "not shown: targets are missed",
    )


def print_claims(claims: list[Claim], *, converged: bool) -> None:
    """Print the table, each cell wrapped to the width of its column."""
    rule = "  ".join("-" * width for width in WIDTHS.values())
    print(f"\n{_line(WIDTHS)}\n{rule}")
    for claim in claims:
        cells = [
            textwrap.wrap(text, width, break_long_words=False) or [""]
            for text, width in zip(claim, WIDTHS.values(), strict=True)
        ]
        for i in range(max(map(len, cells))):
            print(_line([cell[i] if i < len(cell) else "" for cell in cells]))
        print(rule)
    count = sum(claim.verdict == "holds" for claim in claims)
    print(f"{count} of {len(claims)} claims hold.")
    if not converged:
        print(
            "The inference has not converged: these verdicts are about a distribution "
            "that does not have the property, and say nothing about the paper."
        )


def _line(cells) -> str:
    widths = WIDTHS.values()
    return "  ".join(f"{c:{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()
