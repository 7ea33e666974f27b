"""WebP: colour with or without alpha, lossy or not, still or animated, through Pillow.

The head is read from the chunks, for libwebp sets aside memory for the whole canvas as soon as it opens a file.

References:
    WebP Image Format (Zern, Massimino, Alakuijala, 2024), RFC 9649
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from nonesuch.data.formats import Format, Head, Picture
from nonesuch.data.formats._exif import TURNED, orientation, turned, upright
from nonesuch.data.formats._pillow import first_of, frames, planes, profiled

_MAX_BLOCK = 1 << 20


@dataclass
class _Chunks:
    width: int = 0
    height: int = 0
    alpha: bool = False
    lossy: bool = False
    frames: int = 0
    code: int = 1
    profile: bytes | None = None

    @property
    def channels(self) -> int:
        return 3 + self.alpha


def _knows(start: bytes) -> bool:
    return start[:4] == b"RIFF" and start[8:12] == b"WEBP"


def _chunks(file: BinaryIO) -> _Chunks:
    if not _knows(file.read(12)):
        raise ValueError("it is no WebP")
    said, extended = _Chunks(), False
    while len(start := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", start)
        wanted = length if name in (b"EXIF", b"ICCP") and length <= _MAX_BLOCK else min(length, 34)
        body = file.read(wanted)
        file.seek(length - len(body) + length % 2, 1)
        if name == b"VP8X":
            extended = True
            said.alpha = bool(body[0] & 0x10)
            said.width, said.height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        elif name in (b"VP8 ", b"VP8L"):
            said.lossy = said.lossy or name == b"VP8 "
            if not extended:
                said.width, said.height, said.alpha = _still(name, body)
        elif name == b"ANMF":
            said.frames += 1
            said.lossy = said.lossy or body[16:20] in (b"VP8 ", b"ALPH")
        elif name == b"EXIF":
            said.code = orientation(body)
        elif name == b"ICCP":
            said.profile = body
    if not said.width:
        raise ValueError("it holds no pixels")
    return said


def _still(name: bytes, body: bytes) -> tuple[int, int, bool]:
    """Width, height and alpha of a picture that has no header of its own."""
    if name == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF, False
    bits = int.from_bytes(body[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)


def _head(file: BinaryIO) -> Head:
    said = _chunks(file)
    size = turned((said.height, said.width), said.code)
    return Head("hw", size, said.channels, "uint8", "RGBA" if said.alpha else "RGB", max(1, said.frames), said.lossy)


def _read(file: BinaryIO) -> Picture:
    from PIL.WebPImagePlugin import WebPImageFile

    said = _chunks(file)
    file.seek(0)
    with WebPImageFile(io.BytesIO(file.read())) as image:
        values = planes(image, said.channels)
    return Picture(_upright(values, said), remarks=(*_changes(said), *first_of(said.frames)))


def _frames(file: BinaryIO, axes: str) -> Picture:
    from PIL.WebPImagePlugin import WebPImageFile

    said = _chunks(file)
    file.seek(0)
    with WebPImageFile(io.BytesIO(file.read())) as image:
        found = frames(image, said.channels, axes, max(1, said.frames))
    return Picture(_upright(found.values, said), axes, found.spacing, remarks=(*_changes(said), *found.remarks))


def _upright(values: np.ndarray, said: _Chunks) -> np.ndarray:
    return np.ascontiguousarray(upright(values, said.code))


def _changes(said: _Chunks) -> tuple[str, ...]:
    return (*((TURNED,) if said.code != 1 else ()), *profiled(said.profile))


FORMAT = Format("WebP", (".webp",), _knows, _head, _read, frames=_frames)
