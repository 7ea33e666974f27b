"""BMP: grey, palettes and colour of 1 to 32 bits, through Pillow."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

from nonesuch.data.formats import Format, Head, Picture, check_size
from nonesuch.data.formats._pillow import planes

if TYPE_CHECKING:
    from PIL.BmpImagePlugin import BmpImageFile

_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 4}
_CHANGES = {"1": ("1-bit grey stretched over 8 bits",), "P": ("palette read as RGB",)}
_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header's versions


def _knows(start: bytes) -> bool:
    return start[:2] == b"BM" and len(start) >= 26 and struct.unpack_from("<I", start, 14)[0] in _HEADERS


def _opened(file: BinaryIO) -> BmpImageFile:
    from PIL.BmpImagePlugin import BmpImageFile

    image = BmpImageFile(file)
    if image.mode not in _CHANNELS:
        raise ValueError(f"it is of mode {image.mode}, which is not read")
    return image


def _head(file: BinaryIO) -> Head:
    image = _opened(file)  # reads the header, no pixel
    return Head("hw", (image.height, image.width), _CHANNELS[image.mode], "uint8", image.mode)


def _read(file: BinaryIO) -> Picture:
    image = _opened(file)
    check_size(Head("hw", (image.height, image.width), _CHANNELS[image.mode], "uint8", image.mode))
    return Picture(planes(image, _CHANNELS[image.mode]), remarks=_CHANGES.get(image.mode, ()))


FORMAT = Format("BMP", (".bmp", ".dib"), _knows, _head, _read)
