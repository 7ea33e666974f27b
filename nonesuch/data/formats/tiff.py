"""TIFF: any number of channels, 1 to 64 bits, integers or floats, strips or tiles, planar or not, one page or many, by tifffile.

Pages are the frames of a file, unless it says that they are channels, the slices of a volume or the moments of a clip: in the
words of ImageJ, of OME-XML, or of what we write. A missing or short strip is refused, where tifffile would fill it with zeros.
Spacing is read where it is metric, not from the dots per inch of a print.

References:
    TIFF, Revision 6.0 (Adobe, 1992); The OME-TIFF format (Open Microscopy Environment)
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from nonesuch.data.formats import MAX_VALUES, Format, Head, Picture, check_size
from nonesuch.data.formats._exif import TURNED, turned, upright
from nonesuch.data.formats._pillow import cmyk_to_rgb, first_of, profiled

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_MAX_PAGES = 20_000
_MAX_SEGMENTS = 1 << 20
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG = (6, 7, 33007, 34892)  # compressions
_LOSSY = (*_JPEG, 33004, 33005, 34712, 34927, 50001)  # JPEG 2000 and WebP beside it
_UNITS = {"mm": 1.0, "micron": 1e-3, "um": 1e-3, "\\u00B5m": 1e-3, "µm": 1e-3, "cm": 10.0}
_OUT = {
    f"{kind}{size}"
    for kind, sizes in (("uint", (8, 16, 32, 64)), ("int", (8, 16, 32, 64)), ("float", (16, 32, 64)))
    for size in sizes
}

_silent: ContextVar[bool] = ContextVar("_silent", default=False)


@dataclass(frozen=True)
class _Layout:
    """pages in order, of which each `parts` make the channels of one plane; axes: what the planes lie along; spacing in mm."""

    pages: tuple[TiffPage, ...]
    parts: int
    axes: str
    spacing: tuple[float, ...] | None

    @property
    def planes(self) -> int:
        return len(self.pages) // self.parts


@contextmanager
def _opened(file: BinaryIO) -> Iterator[_Layout]:
    """The layout of a file; what tifffile logs meanwhile is dropped: what matters of it is checked here and raised."""
    import tifffile

    logger = logging.getLogger("tifffile")
    if _unless_silent not in logger.filters:
        logger.addFilter(_unless_silent)
    token = _silent.set(True)
    try:
        _check_chain(file)
        file.seek(0)
        with tifffile.TiffFile(file, name="file.tif", _multifile=False) as opened:
            yield _layout(opened)
    finally:
        _silent.reset(token)


def _check_chain(file: BinaryIO) -> None:
    """Raise ValueError where the chain of directories breaks off: tifffile would leave out the pages beyond without a word."""
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    large = struct.unpack(order + "H", start[2:4])[0] == 43
    count_form, at_form, entry = ("Q", "Q", 20) if large else ("H", "I", 12)
    (at,) = struct.unpack_from(order + at_form, start, 8 if large else 4)
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) > _MAX_PAGES:
            raise ValueError(f"its pages have no end, or are more than {_MAX_PAGES}")
        seen.add(at)
        file.seek(at)
        start = file.read(struct.calcsize(order + count_form))
        if len(start) < struct.calcsize(order + count_form):
            raise ValueError("it is cut short: a page is missing")
        file.seek(min(struct.unpack(order + count_form, start)[0], 1 << 20) * entry, 1)
        following = file.read(struct.calcsize(order + at_form))
        if len(following) < struct.calcsize(order + at_form):
            raise ValueError("it is cut short: a page is missing")
        (at,) = struct.unpack(order + at_form, following)


def _unless_silent(record: logging.LogRecord) -> bool:
    return not _silent.get()


def _layout(opened: TiffFile) -> _Layout:
    if not 0 < len(opened.pages) <= _MAX_PAGES:
        raise ValueError(f"it has {len(opened.pages)} pages; 1 to {_MAX_PAGES} are read")
    first = opened.pages.first
    _check(first)  # before anything else of it is believed
    kind = _kind(first)
    alike = tuple(p for p in opened.pages if not p.is_reduced and _kind(p) == kind) or (first,)  # others: previews, masks
    for page in alike:
        _check(page)
    said = first.description if len(first.description) < 1 << 20 else ""
    counts = _described(said, len(alike))
    if math.prod(counts.values()) > len(alike):
        raise ValueError(f"it says it has {math.prod(counts.values())} pages, and holds {len(alike)}")
    parts = counts.get("c", 1)
    if parts < 1 or len(alike) % parts or (parts > 1 and first.samplesperpixel > 1):
        parts = 1
    along = [a for a in "td" if counts.get(a, 1) * parts == len(alike) and a in counts]
    axes = f"{along[0]}hw" if along else "hw"
    return _Layout(alike, parts, axes, _spacing(first, said, axes))


def _kind(page: TiffPage) -> tuple[object, ...]:
    return page.shaped, page.dtype, int(page.photometric), page.bitspersample


def _described(said: str, pages: int) -> dict[str, int]:
    """How many channels (c), slices (d) and moments (t) the pages are, as far as the description says."""
    if said.startswith("ImageJ="):
        found = dict(re.findall(r"^(channels|slices|frames)=(\d{1,6})\s*$", said, re.MULTILINE))
        return {
            letter: int(found[word]) for letter, word in (("c", "channels"), ("d", "slices"), ("t", "frames")) if word in found
        }
    if "<OME" in said[:2000] and re.search(r"DimensionOrder=\"XYC", said):
        found = dict(re.findall(r"\bSize([CZT])=\"(\d{1,6})\"", said))
        counts = {letter: int(found[word]) for letter, word in (("c", "C"), ("d", "Z"), ("t", "T")) if word in found}
        return {k: n for k, n in counts.items() if n > 1}
    axes = _json(said).get("axes")
    if isinstance(axes, str):
        return {"cyx": {"c": pages}, "zyx": {"d": pages}, "tyx": {"t": pages}, "dhw": {"d": pages}, "thw": {"t": pages}}.get(
            axes.lower().removesuffix("s"), {}
        )
    return {}


def _json(said: str) -> dict[str, object]:
    try:
        found = json.loads(said) if said.startswith("{") else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _spacing(page: TiffPage, said: str, axes: str) -> tuple[float, ...] | None:
    """mm along each axis (s along t), where the file gives it in metric units for all of them."""
    own = _json(said).get("spacing")
    if isinstance(own, list) and len(own) == len(axes) and all(isinstance(v, (int, float)) and 0 < v < 1e12 for v in own):
        return tuple(float(v) for v in own)
    unit = re.search(r"^unit=(\S+)\s*$", said, re.MULTILINE) if said.startswith("ImageJ=") else None
    scale = _UNITS.get(unit[1]) if unit else 10.0 if int(page.resolutionunit) == 3 else None
    per_unit = [page.tags.valueof(tag) for tag in (283, 282)]  # along y, x
    if scale is None or not all(isinstance(r, tuple) and len(r) == 2 and r[0] > 0 and r[1] > 0 for r in per_unit):
        return None
    plane = tuple(scale * below / above for above, below in per_unit)
    if axes == "hw":
        return plane
    depth = re.search(r"^(?:spacing|finterval)=([\d.eE+-]+)\s*$", said, re.MULTILINE)
    along = float(depth[1]) * (scale if axes == "dhw" else 1) if depth else 0.0
    return (along, *plane) if along > 0 and math.isfinite(along) else None


def _check(page: TiffPage) -> None:
    """Raise ValueError for a page that is not read, or whose data is not all there."""
    photometric, samples = int(page.photometric), page.samplesperpixel
    if page.dtype is None or page.dtype.kind not in "buif" or page.shaped[1] != 1:
        raise ValueError("its pixels are of a type that is not read")
    channels = {_PALETTE: 1, _CMYK: 4, _YCBCR: 3}.get(photometric)
    if photometric not in (0, 1, 2, 3, 5, 6) or (channels and samples != channels) or (photometric == _RGB and samples < 3):
        raise ValueError(f"it has {samples} channels of photometric interpretation {photometric}, which is not read")
    if photometric == _YCBCR and int(page.compression) not in _JPEG:
        raise ValueError("it is YCbCr without JPEG compression, which is not read; convert it to RGB")
    if photometric == _CMYK and page.dtype.name not in ("uint8", "uint16"):
        raise ValueError("it is CMYK of another depth than 8 or 16 bits, which is not read")
    check_size(Head("hw", (page.imagelength, page.imagewidth), samples, page.dtype.name, ""))
    pieces, lengths = page.dataoffsets, page.databytecounts
    high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if min(high, wide) < 1 or page.tiledepth > 1:
        raise ValueError("its strips or tiles are damaged")
    expected = page.shaped[0] * -(-page.imagelength // high) * -(-page.imagewidth // wide)
    inside = min(high, page.imagelength) if not page.is_tiled else high
    if inside * wide * samples > MAX_VALUES or not expected == len(pieces) == len(lengths) <= _MAX_SEGMENTS:
        raise ValueError("its strips or tiles do not make up the picture")
    end = page.parent.filehandle.size
    if any(at <= 0 or n <= 0 or at + n > end for at, n in zip(pieces, lengths, strict=True)):
        raise ValueError("it is cut short, or part of the picture is missing")


def _form(page: TiffPage) -> tuple[int, str]:
    """Channels and type of what `_values` gives of a page."""
    photometric, dtype = int(page.photometric), "uint8" if page.dtype.kind == "b" else page.dtype.name
    if photometric == _PALETTE:
        return 3, str(_palette(page).dtype)
    return (3 if photometric == _CMYK else page.samplesperpixel), dtype


def _palette(page: TiffPage) -> np.ndarray:
    """The colour map (3, n), uint8 where that says it all."""
    table = np.asarray(page.colormap, np.uint16)
    if table.ndim != 2 or table.shape != (3, 2**page.bitspersample):
        raise ValueError("its palette is damaged")
    high = table >> 8
    return high.astype(np.uint8) if (table == high * 257).all() or (table & 255 == 0).all() else table


def _head(file: BinaryIO) -> Head:
    with _opened(file) as layout:
        page = layout.pages[0]
        channels, dtype = _form(page)
        size: tuple[int, ...] = turned((page.imagelength, page.imagewidth), _code(page))
        frames = layout.planes
        if layout.axes != "hw":
            size, frames = (layout.planes, *size), 1
        lossy = int(page.compression) in _LOSSY
        return Head(layout.axes, size, channels * layout.parts, dtype, _mode(page), frames, lossy)


def _mode(page: TiffPage) -> str:
    names = {_WHITE_IS_ZERO: "white is zero", _RGB: "RGB", _PALETTE: "P", _CMYK: "CMYK", _YCBCR: "YCbCr"}
    return f"{names.get(int(page.photometric), 'L')};{page.dtype.name if page.dtype.kind != 'b' else '1'}"


def _code(page: TiffPage) -> int:
    code = page.tags.valueof(274, default=1)
    return code if isinstance(code, int) and 1 <= code <= 8 else 1


def _read(file: BinaryIO) -> Picture:
    with _opened(file) as layout:
        count = layout.planes if layout.axes != "hw" else 1
        values, remarks = _planes(layout, count)
        if layout.axes == "hw":
            return Picture(values[:, 0], "hw", layout.spacing, remarks=(*remarks, *first_of(layout.planes, "pages")))
        return Picture(values, layout.axes, layout.spacing, remarks=remarks)


def _frames(file: BinaryIO, axes: str) -> Picture:
    with _opened(file) as layout:
        values, remarks = _planes(layout, layout.planes)
        return Picture(values, axes, remarks=remarks)


def _planes(layout: _Layout, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The first planes (channels, count, height, width), and what was changed."""
    remarks: tuple[str, ...] = ()
    planes = []
    for at in range(0, count * layout.parts, layout.parts):
        parts = []
        for page in layout.pages[at : at + layout.parts]:
            values, remarks = _values(page)
            parts.append(values)
        planes.append(parts[0] if layout.parts == 1 else np.concatenate(parts))
    return (planes[0][:, None] if count == 1 else np.stack(planes, 1)), remarks


def _values(page: TiffPage) -> tuple[np.ndarray, tuple[str, ...]]:
    """One page (channels, height, width) as the scene was, and what was changed."""
    photometric, bits = int(page.photometric), page.bitspersample
    values = page.asarray(maxworkers=1).reshape(page.shaped)[:, 0]
    values = values[..., 0] if values.shape[-1] == 1 else np.moveaxis(values[0], -1, 0)
    profile = page.iccprofile
    remarks: tuple[str, ...] = ()
    if photometric == _PALETTE:
        values, remarks = _palette(page)[:, values[0]], ("palette read as RGB",)
    elif values.dtype.kind == "b" or (values.dtype == np.uint8 and bits in (2, 4)):
        values = values.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
        remarks = (f"{bits}-bit grey stretched over 8 bits",)
    elif photometric == _CMYK:
        values, remarks = cmyk_to_rgb(values, profile)
    if photometric == _WHITE_IS_ZERO and values.dtype.kind == "u":
        top = 255 if values.dtype == np.uint8 else 2**bits - 1
        values, remarks = (top - values.astype(np.uint64)).astype(values.dtype), (*remarks, "white is zero: inverted")
    if _code(page) != 1:
        values, remarks = upright(values, _code(page)), (*remarks, TURNED)
    if photometric == _RGB:
        remarks = (*remarks, *profiled(profile))
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False)), remarks


def _encode(picture: Picture) -> bytes:
    import tifffile

    channels, axes, spacing = len(picture.values), picture.axes, picture.spacing
    values = picture.values[0] if channels == 1 else np.moveaxis(picture.values, 0, -1)
    said = {"axes": axes, "spacing": spacing} if axes != "hw" or spacing else None
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        np.ascontiguousarray(values),
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        compression="zlib",
        metadata=None,
        software=False,
        description=json.dumps(said) if said else None,
        resolution=(10 / spacing[-1], 10 / spacing[-2]) if spacing else None,
        resolutionunit="CENTIMETER" if spacing else None,
        maxworkers=1,
    )
    return file.getvalue()


FORMAT = Format(
    "TIFF",
    (".tif", ".tiff"),
    knows=lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    head=_head,
    read=_read,
    encode=_encode,
    holds=lambda axes, channels, dtype: axes in ("hw", "dhw", "thw") and dtype in _OUT,
    frames=_frames,
)
