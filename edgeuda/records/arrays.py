"""Arrays of numbers in JSON records: as text, where digits would take several times the room."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["float16", "float32"]


@dataclass(frozen=True)
class Floats:
    """An array of floats.

    Attributes:
        kind: Type of its numbers, little-endian.
        shape: Its shape.
        base64: Its bytes, by rows.
    """

    kind: Kind
    shape: tuple[int, ...]
    base64: str

    def __post_init__(self) -> None:
        if min(self.shape, default=0) < 0:
            msg = f"expected a shape without negative sizes, found {list(self.shape)}"
            raise ValueError(msg)
        if not np.isfinite(self.array).all():
            msg = "expected finite numbers, found others"
            raise ValueError(msg)

    @classmethod
    def of(cls, array: npt.ArrayLike, kind: Kind = "float32") -> Floats:
        """Return the form of an array, rounded to its type."""
        values = np.asarray(array, np.dtype(kind).newbyteorder("<"))
        return cls(kind, values.shape, base64.b64encode(values.tobytes()).decode())

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The array, as float32.

        Raises:
            ValueError: If the text does not hold as many numbers as the shape says.
        """
        dtype = np.dtype(self.kind).newbyteorder("<")
        wanted = int(np.prod(self.shape, dtype=object)) * dtype.itemsize
        try:
            content = base64.b64decode(self.base64, validate=True)
        except binascii.Error as err:
            msg = f"expected base64, found other text ({err})"
            raise ValueError(msg) from err
        if len(content) != wanted:
            msg = (
                f"expected {wanted} bytes for {list(self.shape)} {self.kind}, found {len(content)}"
            )
            raise ValueError(msg)
        return np.frombuffer(content, dtype).reshape(self.shape).astype(np.float32)
