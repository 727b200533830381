# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Figures of results and of what `numpyro_epi.sensitivity` finds in them.

Each function returns the axes that it drew on, as an array, and draws on axes that it
is given as `ax`. Save a figure with `axes.flat[0].figure.savefig("file.png")`. None
shows a figure or changes matplotlib's settings. The standard plots of samples (traces,
ranks, autocorrelation) are ArviZ's: `arviz.plot_rank(numpyro_epi.to_arviz(result))`.

`labels={"g_el": ("g_el", "nS")}` gives names and units, by component of the latents or
of the statistics. One mapping serves all figures of a model: that of a ready circuit is
its `LABELS`, such as `circuits.stg.LABELS`.
"""

from ._curves import plot_bands, plot_perturbation
from ._history import plot_history
from ._mode_path import plot_mode_path
from ._pairs import plot_pairs
from ._predictive import plot_predictive
from ._spectrum import plot_spectrum

__all__ = [
    "plot_bands",
    "plot_history",
    "plot_mode_path",
    "plot_pairs",
    "plot_perturbation",
    "plot_predictive",
    "plot_spectrum",
]
