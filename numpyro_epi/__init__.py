# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Emergent property inference (EPI) in NumPyro."""

from . import circuits, diagnostics, guides, handlers, plotting, sensitivity
from ._train.agreement import ContradictoryTargetsError
from ._train.check import EPICheck
from ._train.options import PublishedSchedule
from ._train.solver import EPIState
from ._train.status import EPIStatus, InvalidStatisticError
from .arviz import to_arviz
from .diagnostics import what_if
from .epi import EPI
from .law import EPILaw
from .primitives import emergent_property
from .result import EPIResult

__version__ = "0.1.0"

__all__ = [
    "ContradictoryTargetsError",
    "EPI",
    "EPICheck",
    "EPILaw",
    "EPIResult",
    "EPIState",
    "EPIStatus",
    "InvalidStatisticError",
    "PublishedSchedule",
    "__version__",
    "circuits",
    "diagnostics",
    "emergent_property",
    "guides",
    "handlers",
    "plotting",
    "sensitivity",
    "to_arviz",
    "what_if",
]
