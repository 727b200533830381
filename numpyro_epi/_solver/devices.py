# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Draws laid out over the devices of a mesh, in every stage of a run."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Devices:
    """Lays draws out over the first axis of a mesh; does nothing without one.

    Args:
        mesh: devices, or None.

    Attributes:
        num: devices along that axis.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        # Only draws are laid out by hand; the rest is left to the compiler.
        self.mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)
        self.num = 1 if mesh is None else mesh.devices.shape[0]

    def multiple(self, size: int) -> int:
        """The least number of draws from `size` on that the devices can share."""
        return -(-size // self.num) * self.num

    def spread(self, array: jax.Array) -> jax.Array:
        """Lay the first axis out, if the devices can share it."""
        if self.mesh is None or array.shape[0] % self.num:
            return array
        spec = PartitionSpec(self.mesh.axis_names[0])
        return lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

    def map(self, function: Callable[..., Any], *arrays: jax.Array) -> Any:
        """A function of arrays of draws, each device by itself with its share.

        For loops over batches, whose order the compiler would keep.
        """
        if self.mesh is None or arrays[0].shape[0] % self.num:
            return function(*arrays)
        spec = PartitionSpec(self.mesh.axis_names[0])
        shared = jax.shard_map(
            function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return shared(*arrays)
