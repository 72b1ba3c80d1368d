"""Label Studio's run lengths: the bits of thi.ng's ``rle-pack``, four channels for each pixel.

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack. After a header (32 bits:
how many values; 5: bits of a value, less 1; four times 4: bits of a run's length, less 1) follow
runs: one bit, whether a value is repeated; two, which of the four; the length less 1; the value
once, or as many values as the length says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeuda.annotation.drawn import Mask

SIZES = (3, 4, 8, 16)
"""Bits of a run's length, as Label Studio's own converter chooses them."""
HALF = 128
"""Opacity above which a pixel belongs to a brush, whose edge is smoothed: that of its SDK."""


def encode(mask: Mask) -> list[int]:
    """Return a mask's run lengths as bytes, as they stand under ``rle`` in Label Studio's JSON.

    Args:
        mask: ``[H, W]`` bool.
    """
    flat = mask.ravel()
    ends = np.flatnonzero(np.append(flat[1:] != flat[:-1], True)) + 1
    bits = [f"{flat.size * 4:032b}{7:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    start = 0
    for end in ends.tolist():
        value = 255 if flat[start] else 0
        left = 4 * (end - start)
        while left:
            length = min(left, 1 << SIZES[-1])
            which = next(n for n, size in enumerate(SIZES) if length <= 1 << size)
            bits.append(f"1{which:02b}{length - 1:0{SIZES[which]}b}{value:08b}")
            left -= length
        start = end
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode(rle: Sequence[int], height: int, width: int) -> Mask:
    """Return the mask of run lengths, ``[H, W]`` bool: where it is more than half opaque.

    Args:
        rle: Bytes, see `encode`.
        height: Rows.
        width: Columns.

    Raises:
        ValueError: If they are cut short, or of another size.
    """
    text = "".join(f"{byte:08b}" for byte in bytes(rle))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            msg = "its run lengths are cut short"
            raise ValueError(msg)
        return int(text[place - count : place], 2)

    total = take(32)
    if total != height * width * 4:
        msg = f"run lengths of {total} values, of {width}x{height} pixels {height * width * 4}"
        raise ValueError(msg)
    bits = take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.int64)
    at = 0
    while at < total:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        if at + length > total:
            msg = "its run lengths go beyond the image"
            raise ValueError(msg)
        if repeated:
            values[at : at + length] = take(bits)
        else:
            values[at : at + length] = [take(bits) for _ in range(length)]
        at += length
    return np.asarray(values.reshape(height, width, 4)[:, :, 3] > HALF)
