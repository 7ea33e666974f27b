"""JPEG: grey, colour and CMYK of 8 bits, through Pillow. Lossy: bits/dim of such pictures are not comparable with others.

The markers are read by hand up to the first scan, and Pillow is handed the picture without its metadata: of those only the
orientation and the colour profile are wanted, and a damaged camera note must not hinder.

References:
    Digital compression and coding of continuous-tone still images (ITU-T T.81, 1992)
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from nonesuch.data.formats import Format, Head, Picture
from nonesuch.data.formats._exif import TURNED, orientation, turned, upright
from nonesuch.data.formats._pillow import cmyk_to_rgb, planes, profiled

_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive, all by Huffman codes
_OTHERS = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # lossless, hierarchical, arithmetic
_SCAN, _END, _EXIF, _ICC, _ADOBE, _COMMENT = 0xDA, 0xD9, 0xE1, 0xE2, 0xEE, 0xFE
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclass
class _Markers:
    """What the segments before the first scan say; kept: the bytes Pillow gets; tail: where the first scan begins."""

    width: int = 0
    height: int = 0
    inks: int = 0
    code: int = 1
    profile: dict[int, bytes] = field(default_factory=dict)
    kept: list[bytes] = field(default_factory=list)


def _markers(file: BinaryIO) -> _Markers:
    if file.read(2) != b"\xff\xd8":
        raise ValueError("it is no JPEG")
    said = _Markers(kept=[b"\xff\xd8"])
    while True:
        if file.read(1) != b"\xff":
            raise ValueError("its segments are damaged or end too soon")
        marker = file.read(1)[0]
        while marker == 0xFF:  # filling
            marker = file.read(1)[0]
        if marker == _END:
            raise ValueError("it holds no pixels")
        (length,) = struct.unpack(">H", file.read(2))
        body = file.read(length - 2) if length >= 2 else b""
        if len(body) != length - 2:
            raise ValueError("it is cut short")
        if marker in _OTHERS:
            raise ValueError("it is a lossless, hierarchical or arithmetic JPEG, which is not read")
        if marker in _FRAMES:
            bits, said.height, said.width, said.inks = struct.unpack(">BHHB", body[:6])
            if bits != 8 or said.inks not in _MODES:
                raise ValueError(f"it is a JPEG of {bits} bits and {said.inks} channels, which is not read")
        elif marker == _EXIF and body.startswith(b"Exif\0"):
            said.code = orientation(body)
        elif marker == _ICC and body.startswith(b"ICC_PROFILE\0"):
            said.profile[body[12]] = body[14:]
        if marker < 0xE0 or marker in (0xE0, _ADOBE):  # no metadata, but the sort of colours
            said.kept.append(b"\xff" + bytes((marker,)) + struct.pack(">H", length) + body)
        if marker == _SCAN:
            if not said.inks:
                raise ValueError("its pixels come before its header")
            return said


def _head(file: BinaryIO) -> Head:
    said = _markers(file)
    size = turned((said.height, said.width), said.code)
    return Head("hw", size, 1 if said.inks == 1 else 3, "uint8", _MODES[said.inks], lossy=True)


def _read(file: BinaryIO) -> Picture:
    from PIL.JpegImagePlugin import JpegImageFile

    said = _markers(file)
    profile = b"".join(said.profile[k] for k in sorted(said.profile))
    with JpegImageFile(io.BytesIO(b"".join((*said.kept, file.read())))) as image:
        if said.inks == 4:
            values, remarks = cmyk_to_rgb(np.moveaxis(np.asarray(image), -1, 0), profile)
        else:
            values, remarks = planes(image, said.inks), profiled(profile)
    if said.code != 1:
        values, remarks = np.ascontiguousarray(upright(values, said.code)), (*remarks, TURNED)
    return Picture(values, remarks=remarks)


FORMAT = Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), lambda start: start.startswith(b"\xff\xd8\xff"), _head, _read)
