"""PNG: grey, colour, alpha and palettes of 1 to 16 bits, and animated ones, decoded by libpng through imagecodecs.

Pillow would cut 16-bit colour to 8 bits without a word. The head is read chunk by chunk, so that size, transparency and
orientation are known before a pixel is.

References:
    Portable Network Graphics (PNG) Specification, Third Edition (W3C, 2025)
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from nonesuch.data.formats import Format, Head, Picture
from nonesuch.data.formats._exif import TURNED, orientation, turned, upright
from nonesuch.data.formats._pillow import first_of, profiled, timing

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of each colour type
_NAMES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MAX_BLOCK = 1 << 20  # bytes of an EXIF block or colour profile that are looked at


@dataclass
class _Chunks:
    """What the chunks say: size, bits and kind of IHDR; whether colours are transparent; frames and their times; and so on."""

    width: int
    height: int
    bits: int
    kind: int
    transparent: bool = False
    frames: int = 1
    hidden: bool = False  # the picture itself is not one of the frames
    times: tuple[float, ...] = ()
    code: int = 1
    profile: bytes | None = None

    @property
    def channels(self) -> int:
        return _CHANNELS[self.kind] + self.transparent


def _chunks(file: BinaryIO) -> _Chunks:
    if file.read(8) != SIGNATURE:
        raise ValueError("it is no PNG")
    length, name, width, height, bits, kind, _, _, _ = struct.unpack(">I4sIIBBBBB", file.read(21))
    if name != b"IHDR" or length != 13 or bits not in _BITS.get(kind, ()):
        raise ValueError("its header is damaged")
    file.seek(4, 1)
    said, controls, started = _Chunks(width, height, bits, kind), 0, False
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        if name == b"IEND":
            break
        body = file.read(length) if name in _READ and length <= _MAX_BLOCK else b""
        file.seek(length - len(body) + 4, 1)
        started = started or name == b"IDAT"
        if name == b"tRNS":
            said.transparent = kind in (0, 2, 3)
        elif name == b"acTL" and len(body) == 8:
            said.frames = max(1, struct.unpack(">I", body[:4])[0])
        elif name == b"fcTL" and len(body) == 26:
            said.hidden = started and controls == 0
            controls += 1
            over, under = struct.unpack(">HH", body[20:24])
            said.times += (over / (under or 100),)
        elif name == b"eXIf":
            said.code = orientation(body)
        elif name == b"iCCP":
            said.profile = _inflated(body)
    else:
        raise ValueError("it is cut short: its end is missing")
    said.frames = min(said.frames, max(1, controls))
    return said


_READ = (b"acTL", b"fcTL", b"eXIf", b"iCCP")


def _inflated(body: bytes) -> bytes:
    """The colour profile of an iCCP chunk; no bytes for a damaged one. Only whether it is sRGB's is ever asked of it."""
    name, _, rest = body.partition(b"\0")
    try:
        return name + zlib.decompressobj().decompress(rest[1:], _MAX_BLOCK)
    except zlib.error:
        return b""


def _head(file: BinaryIO) -> Head:
    said = _chunks(file)
    name = _NAMES[said.kind] + (f";{said.bits}" if said.bits != 8 else "")
    size = turned((said.height, said.width), said.code)
    return Head("hw", size, said.channels, "uint16" if said.bits == 16 else "uint8", name, said.frames)


def _read(file: BinaryIO) -> Picture:
    import imagecodecs

    said = _chunks(file)
    file.seek(0)
    values = imagecodecs.png_decode(file.read())
    values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return Picture(_finished(values, said), remarks=(*_changes(said), *first_of(said.frames)))


def _frames(file: BinaryIO, axes: str) -> Picture:
    import imagecodecs

    said = _chunks(file)
    file.seek(0)
    if said.frames == 1:
        one = _read(file)
        return Picture(one.values[:, None], axes, remarks=one.remarks)
    values = imagecodecs.apng_decode(file.read())
    values = values[..., None] if values.ndim == 3 else values
    values = np.moveaxis(values, -1, 0)
    spacing, _, uneven = timing(list(said.times), axes)
    return Picture(_finished(values, said), axes, spacing, remarks=(*_changes(said), *uneven))


def _finished(values: np.ndarray, said: _Chunks) -> np.ndarray:
    if len(values) != said.channels or values.shape[-2:] != (said.height, said.width):
        raise ValueError("its pixels are not of the kind its header says")
    return np.ascontiguousarray(upright(values, said.code))


def _changes(said: _Chunks) -> tuple[str, ...]:
    remarks = []
    if said.kind == 3:
        remarks.append("palette with transparency read as RGBA" if said.transparent else "palette read as RGB")
    elif said.bits < 8:
        remarks.append(f"{said.bits}-bit grey stretched over 8 bits")
    if said.transparent and said.kind != 3:
        remarks.append("transparent colour read as an alpha channel")
    if said.code != 1:
        remarks.append(TURNED)
    return (*remarks, *profiled(said.profile))


def _encode(picture: Picture) -> bytes:
    import imagecodecs

    values = picture.values[0] if len(picture.values) == 1 else np.moveaxis(picture.values, 0, -1)
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(values), level=6))


FORMAT = Format(
    "PNG",
    (".png", ".apng"),
    knows=lambda start: start.startswith(SIGNATURE),
    head=_head,
    read=_read,
    encode=_encode,
    holds=lambda axes, channels, dtype: axes == "hw" and channels <= 4 and dtype in ("uint8", "uint16"),
    frames=_frames,
    spaced=False,
)
