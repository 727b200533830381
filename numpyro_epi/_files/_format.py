# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""What writer and reader of a result agree on."""

import sys
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_epi._restart import EPIRestart
from numpyro_epi.law import EPILaw

FORMAT = "numpyro_epi result"
# Raise it when a file of the previous version could be misread.
VERSION = 6

Arrays = dict[str, np.ndarray]

# Of a restart: what the header holds, what is stored field by field, and numbers.
WORDS = ("status", "message", "multipliers_source", "law_reason")
NESTED = ("params", "multipliers", "history", "draws", "law", *WORDS)
NUMBERS = tuple(f.name for f in fields(EPIRestart) if f.name not in NESTED)

# Of a law: the same.
LAW_WORDS = ("method", "reason")
LAW_NESTED = ("draws", "multipliers", *LAW_WORDS)
LAW_NUMBERS = tuple(f.name for f in fields(EPILaw) if f.name not in LAW_NESTED)


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
