# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How far a result can be trusted, what it costs, and what other targets would cost."""

from typing import Any

from ._convergence import (
    Convergence,
    PublishedTest,
    convergence_diagnostic,
    published_test_diagnostic,
)
from ._gap import DualityGap, duality_gap_diagnostic
from ._prices import (
    FineTuning,
    ShadowPrices,
    WhatIf,
    fine_tuning_diagnostic,
    shadow_price_diagnostic,
    what_if,
)
from ._restarts import Restarts, restart_diagnostic

__all__ = [
    "Convergence",
    "DualityGap",
    "FineTuning",
    "PublishedTest",
    "Restarts",
    "ShadowPrices",
    "WhatIf",
    "convergence_diagnostic",
    "duality_gap_diagnostic",
    "fine_tuning_diagnostic",
    "published_test_diagnostic",
    "restart_diagnostic",
    "shadow_price_diagnostic",
    "what_if",
]


def __getattr__(name: str) -> Any:
    if name == "corrected_draws":
        raise AttributeError(
            "`corrected_draws` is gone: draws of the exact law are a part of the "
            "result. Use `result.law.sample(rng_key, num_samples)`."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
