# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What the distribution says about the model: sensitivity, regimes, interventions.

A point has D components, named after their sites: `g_el`, `a[0]`, `J[0,1]`.
"""

from ._active import ActiveSubspace, active_subspace
from ._groups import Groups, group_by_mode
from ._hessian import Directions, Hessian, directions, hessian
from ._information import Correlations, Information, correlations, information
from ._interventions import Bands, intervene
from ._mode_path import ModePath, conditional_modes
from ._modes import Modes, find_modes
from ._perturb import DirectionTest, Perturbation, direction_test, perturb

__all__ = [
    "ActiveSubspace",
    "Bands",
    "Correlations",
    "DirectionTest",
    "Directions",
    "Groups",
    "Hessian",
    "Information",
    "ModePath",
    "Modes",
    "Perturbation",
    "active_subspace",
    "conditional_modes",
    "correlations",
    "direction_test",
    "directions",
    "find_modes",
    "group_by_mode",
    "hessian",
    "information",
    "intervene",
    "perturb",
]
