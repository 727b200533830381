# Copyright Contributors to the numpyro_epi project.
# SPDX-License-Identifier: Apache-2.0

"""Named arrays in one `.npz` file: written whole or not at all, read within bounds."""

import io
import json
import os
import struct
import tokenize
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from numpyro_epi._files._format import Arrays

# What a damaged file may raise where it is read: by zipfile (RuntimeError for members
# that claim to be encrypted, or packed in an unknown way), by NumPy, and by JSON.
DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError,
    OSError, MemoryError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
    SyntaxError, tokenize.TokenError,
)  # fmt: skip
SUFFIX = ".npy"


def write(path: Path, draft: Path, header: dict[str, Any], arrays: Arrays) -> None:
    """Write beside the file, then rename: a file is whole, or it is the older one."""
    text = json.dumps(header, default=lambda number: number.item())
    header_bytes = np.frombuffer(text.encode(), np.uint8)
    try:
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, header=header_bytes)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays; raises one of `DAMAGE` if these are not what was written.

    Nothing larger than the file itself is ever allocated: members are not compressed,
    and an array is as large as its bytes.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as content:
        arrays = {}
        for member in content.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its members are compressed")
            if not member.filename.endswith(SUFFIX):
                raise ValueError(f"it has a member {member.filename!r}")
            if member.file_size > path.stat().st_size:
                raise ValueError("a member is larger than the file")
            name = member.filename.removesuffix(SUFFIX)
            arrays[name] = _array(content.read(member))
    header = json.loads(bytes(arrays.pop("header")))
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    return header, arrays


def _array(data: bytes) -> np.ndarray:
    """An array from the bytes of a `.npy` file of its own."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it has objects in it")
    rest = data[stream.tell() :]
    if len(rest) != prod(shape) * dtype.itemsize:
        raise ValueError("an array is not as large as it says")
    found = np.frombuffer(rest, dtype).copy()
    return found.reshape(shape, order="F" if is_fortran else "C")
