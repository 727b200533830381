# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Results and states on disk: `.npz` files of plain arrays, one of them JSON.

Nothing is pickled and no code is stored: whoever loads a file brings the model and the
guide, and what the file says of them decides whether they are those of the run.
"""

from numpyro_epi._files._checkpoint import Checkpoint
from numpyro_epi._files._format import package_version
from numpyro_epi._files._reading import load
from numpyro_epi._files._writing import save

__all__ = ["Checkpoint", "load", "package_version", "save"]
