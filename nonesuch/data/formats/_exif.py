"""The orientation a camera wrote into a file, and pictures turned by it.

Tag 0x0112 of the first directory of a TIFF structure, 1 to 8: where the first row and the first column lie in the scene. Read by
hand, for nothing else of EXIF (places, names, thumbnails) is ever looked at.

References:
    Exchangeable image file format for digital still cameras: Exif Version 2.32 (CIPA DC-008, 2019), 4.6.4
"""

from __future__ import annotations

import struct

import numpy as np

TURNED = "turned as its EXIF orientation says"
_ORIENTATION, _SHORT = 0x0112, 3


def orientation(exif: bytes) -> int:
    """1 to 8, from the bytes of an EXIF block; 1 (upright) where it says nothing that can be understood."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * min(entries, 512), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def turned(size: tuple[int, int], code: int) -> tuple[int, int]:
    """(height, width) after turning: exchanged by codes 5 to 8."""
    return (size[1], size[0]) if code >= 5 else size


def upright(values: np.ndarray, code: int) -> np.ndarray:
    """values (..., height, width) as the scene was."""
    if code >= 5:  # the first row is a column of the scene: 5 transposed, 6 turned right, 7 transverse, 8 turned left
        values = values.swapaxes(-1, -2)
        code = {5: 1, 6: 2, 7: 3, 8: 4}[code]
    if code in (2, 3):
        values = values[..., ::-1]
    if code in (3, 4):
        values = values[..., ::-1, :]
    return values
