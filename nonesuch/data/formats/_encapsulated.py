"""Frames of compressed DICOM: their size checked before a decoder allocates it, and the codings pydicom has no decoder for.

pydicom decodes RLE, JPEG of 8 bits and JPEG 2000 with numpy and Pillow. JPEG of 12 bits, lossless JPEG (what most archives hold)
and JPEG-LS are decoded here with imagecodecs. Missing: HTJ2K, MPEG and JPEG XL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_JPEG_12, _JPEG_LS = ("1.2.840.10008.1.2.4.51",), ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_8, _JPEG_2000 = ("1.2.840.10008.1.2.4.50",), ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_RLE, _PLAIN = ("1.2.840.10008.1.2.5",), ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
LOSSY = (*_JPEG_8, *_JPEG_12, "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")  # may be, and a file need not say


class Unreadable(ValueError):
    """A sentence of ours, which quotes nothing of the file."""


def decoded(dataset: Any, frames: int) -> np.ndarray:
    """The stored values of all frames, (frames, height, width, samples), colour as RGB; raises Unreadable or what decoders do."""
    from pydicom.pixels import pixel_array

    syntax = str(dataset.file_meta.TransferSyntaxUID)
    shape = (frames, int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if syntax in (*_PLAIN, *_RLE):
        return pixel_array(dataset).reshape(shape)
    if syntax not in (*_JPEG_8, *_JPEG_12, *_JPEG_LOSSLESS, *_JPEG_LS, *_JPEG_2000):
        raise Unreadable("its compression (HTJ2K, MPEG or JPEG XL) has no decoder here; decompress it first")
    parts = _frames(dataset, frames)
    if any(_size(part) != shape[1:3] for part in parts):
        raise Unreadable("its compressed frames are damaged, or of another size than it says")
    if syntax in (*_JPEG_LOSSLESS, *_JPEG_LS) or (syntax in _JPEG_12 and int(dataset.BitsStored) > 8):
        return _by_imagecodecs(dataset, parts, syntax in _JPEG_LS).reshape(shape)
    return pixel_array(dataset).reshape(shape)


def _frames(dataset: Any, frames: int) -> list[bytes]:
    from pydicom.encaps import generate_frames

    parts = []
    for part in generate_frames(dataset.PixelData, number_of_frames=frames):
        parts.append(part)
        if len(parts) > frames:
            break
    if len(parts) != frames:
        raise Unreadable("it does not hold as many frames as it says")
    return parts


def _by_imagecodecs(dataset: Any, parts: list[bytes], is_ls: bool) -> np.ndarray:
    import imagecodecs
    from pydicom.pixels.processing import convert_color_space

    if is_ls and any(not part.rstrip(b"\0").endswith(b"\xff\xd9") for part in parts):
        raise Unreadable("its compressed frames are cut short")  # a JPEG-LS decoder that finds no end spins for ten seconds
    decode = imagecodecs.jpegls_decode if is_ls else imagecodecs.jpeg8_decode
    values = np.stack([decode(part) for part in parts])
    if str(dataset.PhotometricInterpretation).startswith("YBR_FULL"):
        values = convert_color_space(values, "YBR_FULL", "RGB")
    if int(dataset.PixelRepresentation) == 0:
        return values
    bits = int(dataset.BitsStored)  # decoders give unsigned numbers: the sign is bit `bits` - 1
    signed = values.astype(np.int32)
    return np.where(signed >= 1 << (bits - 1), signed - (1 << bits), signed).astype(f"int{dataset.BitsAllocated}")


def _size(frame: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG, JPEG-LS or JPEG 2000 stream says it has."""
    at = frame.find(b"\xff\x4f\xff\x51")  # SOC, SIZ of JPEG 2000, alone or within a JP2 file
    if 0 <= at and len(frame) >= at + 24:
        right, bottom, left, top = (int.from_bytes(frame[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(4))
        return bottom - top, right - left
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
