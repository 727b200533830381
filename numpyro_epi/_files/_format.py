# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What writers and readers agree on."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = "numpyro_epi result"
# Raise it when a file of the previous version could be misread.
VERSION = 7

Arrays = dict[str, np.ndarray]


def package_version() -> str:
    """Version of this package."""
    return sys.modules["numpyro_epi"].__version__


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by their path in the tree, such as `.params['auto_loc']`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def is_x64() -> bool:
    """Whether JAX computes in double precision by default."""
    return bool(jnp.result_type(float) == np.float64)
