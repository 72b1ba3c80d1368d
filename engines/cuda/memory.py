"""Arrays over page-locked memory that CUDA owns."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[Any]
"""What is copied to a device and from it: contiguous, of any type."""


def size_of(shape: tuple[int, ...], dtype: type) -> int:
    """Return the bytes of an array."""
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def array_at(address: int, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
    """Return an array over memory that somebody else owns.

    Args:
        address: Where ``size_of(shape, dtype)`` bytes lie.
        shape: Of the array.
        dtype: Of its elements.
    """
    memory = (ctypes.c_uint8 * size_of(shape, dtype)).from_address(address)
    array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
    return array
