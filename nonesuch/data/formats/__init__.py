"""File formats of pictures, one a file, registered by being there: what a file holds, its values at full depth, and back again.

A file is known by its first bytes, never by its name. `head` reads what a file says of itself, without its pixels, so that a
bomb is refused before anything is allocated; `read` gives values as they are stored, (channels, *size), with what had to be
changed said in `remarks`; `encode` writes them in the same depth, channels and range. Adding a format is adding a file that
defines FORMAT.

What reading changes, the same in every format: the orientation of EXIF is applied; a palette is RGB, with alpha where the file
has transparency; CMYK is RGB, by the file's colour profile or, without one, by R = (1 - C)(1 - K); 1, 2 and 4 bits are stretched
over 8; of several frames or pages the first is read, unless all are asked for by axes="thw" or "dhw". Alpha, 16 bits and floats
stay. A damaged file is refused, never mended: half a picture is not a picture.
"""

from __future__ import annotations

import gzip
import importlib
import io
import math
import os
import pkgutil
import re
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

MAX_VALUES = 1 << 28  # of one picture; a file that says more is refused unread
MAX_PIXELS = 80 << 20  # of one plane; Pillow begins to warn at 85 Mi
SNIFFED_BYTES = 512  # what `Format.knows` is shown: the start of the file


@dataclass(frozen=True)
class Head:
    """What a file says it holds. axes: "hw", "dhw" or "thw"; size: after orientation; dtype: numpy's, of what `read` gives;
    mode: the file's own word, such as "CMYK"; frames: of an animation or a file of several pages; lossy: came through JPEG or
    its like."""

    axes: str
    size: tuple[int, ...]
    channels: int
    dtype: str
    mode: str
    frames: int = 1
    lossy: bool = False

    @property
    def values(self) -> int:
        """How many numbers `read` would give."""
        return math.prod(self.size) * self.channels


@dataclass(frozen=True)
class Picture:
    """values: (channels, *size) as stored; spacing: distance of neighbours along each axis, mm (seconds along t), or None;
    unit: of the values; remarks: what reading changed, a clause each. Nothing else of a file's metadata is ever kept."""

    values: np.ndarray
    axes: str = "hw"
    spacing: tuple[float, ...] | None = None
    unit: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One file format.

    suffixes: the first is the one written; knows: the file's first bytes -> whether it is one; head, read: an open file ->
    Head, Picture; both raise whatever they like on a damaged one. encode: a Picture -> the file's bytes; holds: whether
    `encode` keeps (axes, channels, dtype) without loss; None for a format that is only read. extra: what to install.
    frames: an open file and "thw" or "dhw" -> all its frames or pages along t or d; for formats of which `read` gives the first.
    series: an open file -> the name of the volume it is a slice of; join: all files of one -> the volume.
    spaced: whether `encode` keeps the spacing.
    """

    name: str
    suffixes: tuple[str, ...]
    knows: Callable[[bytes], bool]
    head: Callable[[BinaryIO], Head]
    read: Callable[[BinaryIO], Picture]
    encode: Callable[[Picture], bytes] | None = None
    holds: Callable[[str, int, str], bool] = field(default=lambda axes, channels, dtype: False)
    extra: str = ""
    frames: Callable[[BinaryIO, str], Picture] | None = None
    series: Callable[[BinaryIO], str] | None = None
    join: Callable[[Sequence[BinaryIO]], Picture] | None = None
    spaced: bool = True


@cache
def formats() -> tuple[Format, ...]:
    """All formats, in the order of their files' names."""
    found = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}").FORMAT for name in found)


def suffixes() -> Mapping[str, Format]:
    """Lower-case suffix, with its dot -> the format it promises."""
    return {suffix: f for f in formats() for suffix in f.suffixes}


def recognise(file: BinaryIO, name: str) -> Format:
    """The format of an open file, by its first bytes; the file is left at its start. Raises ValueError, beginning with name."""
    start = file.read(SNIFFED_BYTES)
    file.seek(0)
    for one in formats():
        if one.knows(start):
            return one
    what = "is empty" if not start else "holds text or HTML" if start.lstrip()[:1] in (b"<", b"{") else "is of no known format"
    raise ValueError(f"{name} {what}; images are {', '.join(f.name for f in formats())}.")


def head(source: Path | bytes, name: str = "") -> Head:
    """What a file (or its bytes) says it holds. Raises ValueError with a sentence that begins with its name."""
    return _opened(source, name, lambda found, file: found.head(file))


def read(source: Path | bytes, name: str = "", axes: str | None = None) -> Picture:
    """A file's values at full depth, after its head was found sane.

    axes: "thw" or "dhw" asks for all frames or pages; otherwise the first is read, and that is said in the remarks.
    Raises ValueError with a sentence that begins with its name.
    """
    return _opened(source, name, lambda found, file: _read(found, file, axes))


def encode(picture: Picture, suffix: str | None = None) -> tuple[bytes, str]:
    """A picture as a file's bytes, and the suffix to give it: that asked for, or the first format that keeps it without loss.

    Raises ValueError for a suffix that cannot keep it, and for a picture that no format keeps.
    """
    axes, channels, dtype = picture.axes, len(picture.values), str(picture.values.dtype)
    what = f"{channels} channels of {dtype} along {axes or 'no axis'}"
    if suffix:
        asked = suffixes().get(suffix.lower())
        if asked is None or asked.encode is None or not asked.holds(axes, channels, dtype):
            raise ValueError(f"{suffix} does not keep {what} without loss; leave the choice to us.")
        data = asked.encode(picture)
        return (gzip.compress(data, mtime=0) if suffix.lower().endswith(".gz") else data), suffix
    able = [one for one in formats() if one.encode is not None and one.holds(axes, channels, dtype)]
    order = PREFERRED.get(axes, ())
    able.sort(key=lambda f: (picture.spacing is not None and not f.spaced, [*order, f.name].index(f.name)))
    for one in able:
        try:
            assert one.encode is not None
            return one.encode(picture), one.suffixes[0]
        except ImportError:  # of an extra that is not installed: the next one keeps it too
            continue
    raise ValueError(f"no format keeps {what} without loss; save them as an array.")


PREFERRED = {"hw": ("PNG", "TIFF"), "dhw": ("NIfTI", "TIFF"), "thw": ("MP4", "TIFF")}  # for writing, where several keep a picture


def printable(path: Path) -> str:
    """A file's path as a line that any terminal can show: control characters and undecodable bytes escaped."""
    plain = os.fsdecode(path)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in plain)


def check_size(said: Head, frames: int = 1) -> None:
    """Raise ValueError for a picture that is too large to read, before anything is allocated for it."""
    if min(said.size, default=1) < 1 or said.channels < 1:
        raise ValueError("it holds no pixels")
    if said.values * frames > MAX_VALUES or math.prod(said.size[-2:]) > MAX_PIXELS:
        many = f"{frames} frames of " if frames > 1 else ""
        raise ValueError(f"it says it has {many}{' x '.join(map(str, said.size))} pixels of {said.channels} channels, too many")


def _read(found: Format, file: BinaryIO, axes: str | None = None) -> Picture:
    said = found.head(file)
    every = axes in ("thw", "dhw") and said.axes == "hw" and found.frames is not None
    check_size(said, said.frames if every else 1)
    file.seek(0)
    picture = found.frames(file, axes) if every and found.frames and axes else found.read(file)
    if picture.values.size == 0:
        raise ValueError("it holds no pixels")
    if picture.values.dtype.kind == "f" and not np.isfinite(picture.values).all():
        raise ValueError("it holds NaN or infinite values")
    if not every and (picture.values.shape != (said.channels, *said.size) or str(picture.values.dtype) != said.dtype):
        raise ValueError("its head says another size or depth than its pixels have")
    return picture


Found = TypeVar("Found")


def _opened(source: Path | bytes, name: str, then: Callable[[Format, BinaryIO], Found]) -> Found:
    name = name or (printable(source) if isinstance(source, Path) else "the file")
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):  # a FIFO would never end
            raise ValueError(f"{name} is not a regular file.")
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            return then(recognise(file, name), file)
    except ImportError as error:
        raise ValueError(
            f"{name} needs a package that is not installed ({error.name}): pip install 'nonesuch[{_extra(error)}]'."
        ) from None
    except Exception as error:  # decoders raise what they like on a damaged file: OSError, SyntaxError, struct.error, ...
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name} cannot be read: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    """The first clause of what a decoder said, or that the file is damaged where it said nothing a person could use."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(
        error, (struct.error, LookupError, EOFError, TypeError, AttributeError, ArithmeticError, AssertionError, UnicodeError)
    ):
        return f"it is damaged ({type(error).__name__})"
    said = "".join(c if c.isprintable() else " " for c in str(error).replace("\n", " "))
    return re.split(r"[.!?](?:\s|$)", " ".join(said.split()))[0].rstrip(" .:;,") or f"it is damaged ({type(error).__name__})"


def _extra(error: ImportError) -> str:
    return {"nibabel": "medical", "pydicom": "medical", "av": "video"}.get(error.name or "", "formats")
