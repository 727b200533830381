# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Coordinates of latents for which NumPyro's own do not serve.

On a circle they may be cut anywhere (`turned_circular`), and masked elements of a site
have none (`kept_rows`). Both are supports that NumPyro's `biject_to` knows, so guides
of NumPyro have these coordinates too, if the model is run inside of `charts`.
"""

from ._charted import Charted, charts
from ._circle import find_centre, turned_circular, wrap
from ._rows import kept_rows

__all__ = [
    "Charted",
    "charts",
    "find_centre",
    "kept_rows",
    "turned_circular",
    "wrap",
]
