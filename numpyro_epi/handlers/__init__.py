# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Effect handlers for models with emergent properties.

They follow NumPyro's own, and compose with them: each takes a model and returns one.
Build them inside the function that `jax.jit` or `jax.vmap` transforms where they hold
arrays of a run (`collect`); the others forget a run when it ends.
"""

from .collect import Property, collect
from .noise import noise
from .retarget import retarget
from .tilt import tilt

__all__ = ["Property", "collect", "noise", "retarget", "tilt"]
