# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""How far a result can be trusted, what it costs, and what other targets would cost."""

from ._convergence import (
    Convergence,
    PublishedTest,
    convergence_diagnostic,
    published_test_diagnostic,
)
from ._corrected import CorrectedDraws, corrected_draws
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
    "CorrectedDraws",
    "DualityGap",
    "FineTuning",
    "PublishedTest",
    "Restarts",
    "ShadowPrices",
    "WhatIf",
    "convergence_diagnostic",
    "corrected_draws",
    "duality_gap_diagnostic",
    "fine_tuning_diagnostic",
    "published_test_diagnostic",
    "restart_diagnostic",
    "shadow_price_diagnostic",
    "what_if",
]
