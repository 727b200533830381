# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Normalizing-flow guides for NumPyro models, fast both ways."""

from .base import AutoFlow
from .neural_spline import AutoNeuralSpline
from .real_nvp import AutoRealNVP

__all__ = ["AutoFlow", "AutoNeuralSpline", "AutoRealNVP"]
