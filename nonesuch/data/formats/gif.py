"""GIF: palettes of up to 256 colours, still or animated, through Pillow; a palette of greys alone is grey.

The blocks are walked by hand, so that frames are counted and the canvas is measured before a pixel is decoded.

References:
    Graphics Interchange Format, Version 89a (CompuServe, 1990)
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from nonesuch.data.formats import MAX_PIXELS, Format, Head, Picture
from nonesuch.data.formats._pillow import first_of, frames, planes

_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_CONTROL = 0xF9


@dataclass
class _Blocks:
    width: int
    height: int
    grey: bool = True
    transparent: bool = False
    frames: int = 0

    @property
    def channels(self) -> int:
        return (1 if self.grey else 3) + self.transparent


def _knows(start: bytes) -> bool:
    return start[:6] in (b"GIF87a", b"GIF89a")


def _blocks(data: bytes) -> _Blocks:
    """What the blocks say; the first frame may be larger than the screen, and then is the picture.

    Only the first frame's transparency counts: later frames leave out what did not change and lie over it.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, shared = _table(data, 13, flags)
    said, transparent = _Blocks(width, height), False
    while at < len(data) and data[at] != _END:
        if data[at] == _EXTENSION:
            if data[at + 1] == _CONTROL:
                transparent = bool(data[at + 3] & 1)
            at = _skip(data, at + 2)
        elif data[at] == _IMAGE:
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
            at, own = _table(data, at + 10, flags)
            at = _skip(data, at + 1)
            if said.frames == 0:
                said.width, said.height = max(width, left + wide), max(height, top + high)
                said.transparent = transparent
            elif (left + wide) > said.width or (top + high) > said.height:
                raise ValueError("a later frame is larger than its first")
            table = own or shared
            said.grey = said.grey and table[::3] == table[1::3] == table[2::3]
            said.frames += 1
            transparent = False
        else:
            raise ValueError("its blocks are damaged")
    if said.frames == 0:
        raise ValueError("it holds no pixels")
    return said


def _table(data: bytes, at: int, flags: int) -> tuple[int, bytes]:
    """The end of the colour table that the flags announce, and the table."""
    size = 3 << (flags & 7) + 1 if flags & 0x80 else 0
    return at + size, data[at : at + size]


def _skip(data: bytes, at: int) -> int:
    """The end of the sub-blocks that begin here."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _head(file: BinaryIO) -> Head:
    said = _blocks(file.read())
    return Head("hw", (said.height, said.width), said.channels, "uint8", "P", said.frames)


def _read(file: BinaryIO) -> Picture:
    return _decoded(file, None)


def _decoded(file: BinaryIO, axes: str | None) -> Picture:
    from PIL.GifImagePlugin import GifImageFile

    data = file.read()
    said = _blocks(data)
    if said.width * said.height > MAX_PIXELS:
        raise ValueError("it has too many pixels")
    change = (
        "palette with transparency read as alpha"
        if said.transparent
        else "palette read as grey"
        if said.grey
        else "palette read as RGB"
    )
    with GifImageFile(io.BytesIO(data)) as image:
        if axes is None:
            return Picture(planes(image, said.channels), remarks=(change, *first_of(said.frames)))
        found = frames(image, said.channels, axes, said.frames)
        return Picture(found.values, axes, found.spacing, remarks=(change, *found.remarks))


FORMAT = Format("GIF", (".gif",), _knows, _head, _read, frames=_decoded)
