"""One file, looked at whole: what it holds, its print, or why it cannot be read. Needs numpy and the formats, not torch.

A file is opened without waiting and without following a link, so that a pipe put in its place meanwhile stops nothing; its
bytes are read once; its head is judged before a pixel is decoded; and where decoding fails the file's own structure tells one
that was cut short from one whose bytes were changed.
"""

from __future__ import annotations

import base64
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nonesuch.data import formats
from nonesuch.data.duplicates import Print, print_of

MAX_BYTES = 256 << 20  # of a file that is held whole; larger ones are read from where they are
_NAME = "file"  # what the formats' sentences begin with

# Starts of what is not read, whatever its name says. "text" is last: it has no magic of its own.
_OTHERS = (
    (b"8BPS", "a Photoshop document (PSD)"), (b"%PDF", "a PDF document"), (b"%!PS", "PostScript (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"), (b"SIMPLE  =", "a FITS file"), (b"PK\x03\x04", "a ZIP archive"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\x0a\x05\x01\x08", "PCX"),
    (b"\xff\x0a", "JPEG XL"), (b"\x00\x00\x00\x0cJXL ", "JPEG XL"), (b"gimp xcf", "a GIMP document"),
    (b"\x76\x2f\x31\x01", "OpenEXR"), (b"7z\xbc\xaf", "a 7z archive"), (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "a gzip archive"), (b"\x00\x00\x01\x00", "a Windows icon"),
    (b"SQLite format 3", "a database"), (b"\x89HDF", "HDF5"), (b"DDS ", "DDS"),
    (b"\x80\x02", "a pickle"), (b"\x7fELF", "a program"), (b"MZ", "a program"),
)  # fmt: skip
_CUT = ("truncat", "cut short", "end of file", "unexpected end", "too soon", "not enough", "incomplete", "eoferror", "premature")
_PICTURE_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
# A clause of `Picture.remarks` that begins so -> our kind and reason; the last is said by `Head.frames`
_REMARKS = (
    ("palette", "palette", "has a palette"), ("CMYK", "cmyk", "is CMYK"), ("1-bit", "one-bit", "has 1 bit a pixel"),
    ("turned as its EXIF", "turned", "is stored lying, with an EXIF orientation"), ("only the first", "", ""),
)  # fmt: skip


def examined(path: str) -> dict[str, Any]:
    """What there is to say of a file, ready for JSON: "head", "print" (see `print_from`), and "findings", (kind, reason) each."""
    try:
        source, start, size = _opened(path)
    except FileNotFoundError:
        return _said("vanished", "was listed, and is gone")
    except (OSError, ValueError) as error:
        return _said("unreadable", f"cannot be opened: {getattr(error, 'strerror', None) or error}")
    if size == 0:
        return _said("empty", "is empty, 0 bytes")
    try:
        known = formats.recognise(io.BytesIO(start), _NAME)
    except ValueError:
        return _said(*_other(start))
    found: dict[str, Any] = {"format": known.name, "bytes": size, "findings": []}
    promised = suffix_of(path)
    if promised and promised not in known.suffixes:
        found["findings"].append(("wrong-extension", f"is {known.name}, and its name ends in {promised}"))
    try:
        head = formats.head(source, _NAME)
    except ValueError as error:
        return {**found, "findings": [*found["findings"], _failure(error, known.name, source)]}
    too_large = _too_large(head)
    if too_large:
        return {**found, "findings": [*found["findings"], ("bomb", too_large)]}
    found["head"] = {f: getattr(head, f) for f in ("axes", "size", "channels", "dtype", "mode", "frames", "lossy")}
    try:
        picture = formats.read(source, _NAME)
    except ValueError as error:
        return {**found, "findings": [*found["findings"], _failure(error, known.name, source)]}
    found["findings"] += _changes(picture, head) + _damage(known.name, source)
    one = print_of(picture.values)
    if one.deviation == 0 and picture.values.size > 1 and (picture.values == picture.values.flat[0]).all():
        found["findings"].append(("blank", "has one value throughout"))
    return {**found, "print": _sent(one)}


def looked_at(path: str) -> tuple[formats.Head | None, tuple[str, str] | None]:
    """A file's head, or the kind and reason of what forbids reading it; little more than the head is read."""
    try:
        file = _regular(path)
    except FileNotFoundError:
        return None, ("vanished", "was listed, and is gone")
    except (OSError, ValueError) as error:
        return None, ("unreadable", f"cannot be opened: {getattr(error, 'strerror', None) or error}")
    with file:
        start = file.read(formats.SNIFFED_BYTES)
        if not start:
            return None, ("empty", "is empty, 0 bytes")
        file.seek(0)
        try:
            known = formats.recognise(file, _NAME)
        except ValueError:
            return None, _other(start)
        try:
            head = known.head(file)
        except Exception as error:  # decoders raise what they like on a damaged file
            kind = "needs-package" if isinstance(error, ImportError) else "bomb" if _is_bomb(str(error)) else "corrupt"
            return None, (kind, f"is damaged in its head: {' '.join(str(error).split()) or type(error).__name__}")
    too_large = _too_large(head)
    return (None, ("bomb", too_large)) if too_large else (head, None)


def suffix_of(name: str) -> str:
    """The longest suffix of a name that a format promises, such as ".nii.gz"; "" if none does."""
    low = name.lower()
    return max((s for s in formats.suffixes() if low.endswith(s)), key=len, default="")


def print_from(sent: list[Any]) -> Print:
    """A Print from what `examined` made of it."""
    digest, shape, *rest = sent
    mean, deviation, tint, side = rest
    return Print(digest, np.frombuffer(base64.b85decode(shape), np.float16), mean, deviation, tuple(tint), side)


def _sent(one: Print) -> list[Any]:
    shape = base64.b85encode(one.shape.tobytes()).decode()
    return [one.digest, shape, one.mean, one.deviation, list(one.tint), one.side_px]


def _said(kind: str, reason: str) -> dict[str, Any]:
    return {"findings": [(kind, reason)]}


def _regular(path: str) -> io.BufferedReader:
    """The open file. Raises ValueError for anything that is not a regular one, without waiting for it."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is no regular file any more")
    return os.fdopen(handle, "rb")


def _opened(path: str) -> tuple[bytes | Path, bytes, int]:
    """What the formats read, the file's first bytes, and its size."""
    with _regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            return Path(path), file.read(formats.SNIFFED_BYTES), size
        data = file.read()
    return data, data[: formats.SNIFFED_BYTES], len(data)


def _other(start: bytes) -> tuple[str, str]:
    """The kind and reason of a file that no format knows."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "html", "is an HTML page, such as a server sends in place of a picture"
    if text.startswith((b"<svg", b"<?xml")):
        return "disallowed-format", "is SVG or XML, which is not read"
    for magic, what in _OTHERS:
        if start.startswith(magic):
            return "disallowed-format", f"is {what}, which is not read"
    if start[4:8] == b"ftyp":
        return "disallowed-format", f"is {start[8:12].decode('latin-1').strip()} (HEIC, AVIF or video), which is not read"
    if not start.strip(b"\0"):
        return "unknown-format", "begins with zeros alone"
    plain = not set(start) - set(range(32, 127)) - {9, 10, 13}
    return "unknown-format", "holds text" if plain else "is of no known format"


def _too_large(head: formats.Head) -> str:
    try:
        formats.check_size(head)
    except ValueError as error:
        return "" if "no pixels" in str(error) else str(error).removeprefix("it ")
    return ""


def _is_bomb(said: str) -> bool:
    return any(w in said for w in ("too many", "decompression bomb", "too large"))


def _failure(error: ValueError, name: str, source: bytes | Path) -> tuple[str, str]:
    """The kind and reason of a file that cannot be read, from the formats' sentence and the file's own structure."""
    said = str(error).removeprefix(f"{_NAME} ").rstrip(".")
    if "needs a package" in said:
        return "needs-package", said
    if "NaN" in said:
        return "not-finite", "holds NaN or infinite values"
    if _is_bomb(said):
        return "bomb", said.removeprefix("cannot be read: it ")
    damage = _damage(name, source)
    if damage:
        kind, reason = damage[0]
        return ("truncated", reason) if kind == "pixels-complete" else (kind, reason)
    if any(w in said.lower() for w in _CUT):
        return "truncated", f"ends too soon ({said})"
    refused = any(w in said for w in ("is not read", "which is not", "are not read", "not supported", "only "))
    return "refused" if refused else "corrupt", said


def _damage(name: str, source: bytes | Path) -> list[tuple[str, str]]:
    """What the structure says: "pixels-complete" for a file that lacks its end (harmless if it could be read), or "corrupt"."""
    if not isinstance(source, bytes):
        return []
    size = len(source)
    if name == "PNG":
        return _png_damage(source)
    if name == "JPEG":
        cut = source.rfind(b"\xff\xd9") < 0
    elif name == "GIF":
        cut = not source.rstrip(b"\0").endswith(b";")
    elif name == "WebP":
        cut = 8 + int.from_bytes(source[4:8], "little") > size
    else:
        cut = name == "BMP" and int.from_bytes(source[2:6], "little") > size
    return [("pixels-complete", "ends before its end is marked")] if cut else []


def _png_damage(data: bytes) -> list[tuple[str, str]]:
    """The first chunk of the picture whose checksum is wrong, or the want of an end."""
    for name, start, end in _chunks(data):
        if end > len(data):
            return [("pixels-complete", f"ends in the middle of its chunk {name.decode('latin-1')}")]
        if name == b"IEND":
            return []
        if name in _PICTURE_CHUNKS and zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return [("corrupt", f"has bytes changed in its chunk {name.decode()}: the checksum is wrong")]
    return [("pixels-complete", "ends without its last chunk")]


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], at, end
        at = end


def _changes(picture: formats.Picture, head: formats.Head) -> list[tuple[str, str]]:
    """What reading changes, as findings."""
    found = []
    for remark in picture.remarks:
        usual = ("", "changed", f"is not read as stored: {remark}")
        _, kind, reason = next((r for r in _REMARKS if remark.startswith(r[0])), usual)
        if kind:
            found.append((kind, reason))
    if head.frames > 1 and head.axes == "hw":
        found.append(("animated", f"holds {head.frames} frames or pages"))
    return found


def kind_of_other(path: str) -> tuple[str, str]:
    """The kind and reason of a file whose name promises no picture: "slice" of a series that needs no suffix, or what it is."""
    try:
        with _regular(path) as file:
            start = file.read(formats.SNIFFED_BYTES)
    except (OSError, ValueError) as error:
        return "other-file", f"cannot be opened: {getattr(error, 'strerror', None) or error}"
    try:
        known = formats.recognise(io.BytesIO(start), _NAME)
    except ValueError:
        return "other-file", "is no picture"
    if known.series is not None and "." not in os.path.basename(path):
        return "slice", ""
    return "unlisted", f"is {known.name}, and its name does not end in {' or '.join(known.suffixes)}"
