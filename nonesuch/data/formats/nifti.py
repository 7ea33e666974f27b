"""NIfTI (.nii, .nii.gz; extra [medical]): volumes of patients, in one orientation and with their spacing.

    values = slope * stored + inter        (x, y, z) mm = affine @ (i, j, k, 1), x right, y front, z head

Axes are turned to the nearest anatomical ones (see `_anatomy`), the spacing is the affine's voxel size. Integers stay integers
where slope and inter are whole; otherwise float32. A fourth axis is channels; a volume one voxel thick is an image "hw". Of
everything else the header holds (descriptions, names of files, extensions) nothing is read. What we write has an RAS affine with
the spacing on its diagonal, and empty texts.

References: NIfTI-1 Data Format (Cox et al., 2003), https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from nonesuch.data.formats import Format, Head, Picture
from nonesuch.data.formats._anatomy import TURNED, turned

_HEADERS = {348: 1, 540: 2}  # bytes of a header -> version of NIfTI
_MAX_OFFSET = 16 << 20  # bytes before the values; what is there is text, and skipped
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
_COLOURS = {("R", "G", "B"): 3, ("R", "G", "B", "A"): 4}
_MM = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}


@dataclass(frozen=True)
class _Header:
    """shape: (x, y, z, extra); stored: dtype in the file; colours: 0, or of a voxel that is a colour; affine: to RAS mm."""

    shape: tuple[int, int, int, int]
    stored: np.dtype[Any]
    colours: int
    offset: int
    slope: float
    inter: float
    affine: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values: the stored one, the first signed integer that holds them rescaled, or float32."""
        stored = np.dtype("uint8") if self.colours else self.stored.newbyteorder("=")
        if (self.slope, self.inter) == (1, 0) or self.colours:
            return stored
        if stored.kind in "iu" and self.slope.is_integer() and self.inter.is_integer():
            ends = [self.slope * int(e) + self.inter for e in (np.iinfo(stored).min, np.iinfo(stored).max)]
            for bits in (16, 32):
                if min(ends) >= -(2 ** (bits - 1)) and max(ends) < 2 ** (bits - 1):
                    return np.dtype(f"int{bits}")
        return np.dtype("float32")


def knows(start: bytes) -> bool:
    """A NIfTI header, plain or at the start of a gzip stream; pairs of .hdr and .img are known, and refused by `head`."""
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(31).decompress(start, 348)
        except zlib.error:
            return False
    version = next((v for order in ("little", "big") if (v := _HEADERS.get(int.from_bytes(start[:4], order)))), 0)
    magic = start[4:7] if version == 2 else start[344:347]
    return version > 0 and (magic in (b"n+1", b"ni1", b"n+2", b"ni2") or (version == 1 and 4 <= len(start) < 348))


def head(file: BinaryIO) -> Head:
    """What the header says; the values are not decompressed."""
    header = _header(_plain(file))
    empty = np.broadcast_to(np.zeros((), header.dtype), (header.colours or header.shape[3], *header.shape[:3]))
    values, axes, _, _ = _oriented(header, empty)
    return Head(axes, values.shape[1:], len(values), str(header.dtype), "RGB" if header.colours else "grey")


def read(file: BinaryIO) -> Picture:
    """The values in the file's units. Raises ValueError for a file cut short, a pair of files, and complex numbers."""
    stream = _plain(file)
    header = _header(stream)
    stream.seek(header.offset)
    count = math.prod(header.shape) * max(1, header.colours)
    raw = stream.read(count * header.stored.itemsize)
    if len(raw) < count * header.stored.itemsize:
        raise ValueError(f"it is cut short: {len(raw):,} of {count * header.stored.itemsize:,} bytes of values are there")
    stream.read(1)  # at the end of a gzip stream, its checksum is compared
    flat = np.frombuffer(raw, header.stored)
    if header.colours:
        stored = flat.reshape(header.colours, *header.shape[:3], order="F")
    else:
        stored = np.moveaxis(flat.reshape(header.shape, order="F"), 3, 0)
    values, axes, spacing, changed = _oriented(header, stored)
    remarks = (TURNED,) if changed else ()
    return Picture(_rescaled(np.ascontiguousarray(values), header), axes, spacing, None, remarks)


def encode(picture: Picture) -> bytes:
    """A NIfTI-1 file, not compressed, of (C, d, h, w) or (C, h, w): RAS, spacing (or 1 mm) on the affine's diagonal."""
    import nibabel

    values = picture.values if picture.axes == "dhw" else picture.values[:, None]
    spacing = picture.spacing or (1.0,) * len(picture.axes)
    d, h, w = spacing if picture.axes == "dhw" else (1.0, *spacing)
    data = values[:, :, ::-1, ::-1].transpose(3, 2, 1, 0)  # left to right, back to front: to RAS
    data = data[..., 0] if data.shape[3] == 1 else data
    image = nibabel.Nifti1Image(np.asfortranarray(data), np.diag([w, h, d, 1.0]), dtype=data.dtype)
    image.set_sform(image.affine, "aligned")
    image.set_qform(image.affine, "aligned")
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def holds(axes: str, channels: int, dtype: str) -> bool:
    """Volumes and images of any number of channels, of whole numbers and floats."""
    return axes in ("dhw", "hw") and dtype in _DTYPES


def _plain(file: BinaryIO) -> Any:
    """The file, or what is in it if it is a gzip stream: decompressed no further than it is read."""
    magic = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file


def _header(stream: BinaryIO) -> _Header:
    import nibabel

    start = stream.read(540)
    two = 540 in (int.from_bytes(start[:4], order) for order in ("little", "big"))
    if len(start) < (540 if two else 348):
        raise ValueError("it is cut short within its header")
    if (start[4:6] if two else start[344:346]) == b"ni":
        raise ValueError("it is one half of a pair of .hdr and .img; convert it to a single .nii file")
    raw = (nibabel.Nifti2Header if two else nibabel.Nifti1Header)(start[: 540 if two else 348], check=False)
    shape = tuple(int(n) for n in raw.get_data_shape())
    spatial, rest = (*shape[:3], 1, 1, 1)[:3], shape[3:]
    if len(shape) < 2 or any(n < 1 for n in shape) or sum(n > 1 for n in rest) > 1:
        raise ValueError(f"its shape {' x '.join(map(str, shape)) or 'of no axes'} is not a volume of channels")
    dtype, colours = raw.get_data_dtype(), 0
    if dtype.names in _COLOURS:
        dtype, colours = np.dtype("uint8"), _COLOURS[dtype.names]
    if str(dtype.newbyteorder("=")) not in _DTYPES or (colours and math.prod(rest) > 1):
        raise ValueError("its values are complex or of a type that nothing here learns from; convert them to float32")
    offset = int(raw.get_data_offset()) or 352
    if not 0 < offset <= _MAX_OFFSET:
        raise ValueError("its header places the values beyond reach; the file is damaged")
    slope, inter = raw.get_slope_inter()
    affine = np.array(raw.get_best_affine(), np.float64)
    affine[:3] *= _MM.get(raw.get_xyzt_units()[0], 1.0)
    return _Header((*spatial, math.prod(rest)), dtype, colours, offset, float(slope or 1), float(inter or 0), affine)


def _oriented(header: _Header, values: np.ndarray) -> tuple[np.ndarray, str, tuple[float, ...] | None, bool]:
    """Values (C, i, j, k) as (C, d, h, w), or (C, h, w) where one axis is one voxel: with axes, spacing, and whether turned."""
    directions = header.affine[:3, :3].T * np.array([-1.0, -1.0, 1.0])  # RAS to LPS: where i, j and k point
    sizes = tuple(float(s) for s in np.sqrt((directions**2).sum(1)))
    known = all(math.isfinite(s) and s > 0 for s in sizes)
    plain = values.transpose(0, 3, 2, 1)
    out, spacing, changed = turned(plain, directions[::-1], sizes[::-1] if known else None)
    if 1 not in out.shape[1:]:
        return out, "dhw", spacing, changed
    thin = out.shape[1:].index(1)
    flat = spacing and tuple(s for axis, s in enumerate(spacing) if axis != thin)
    return out.squeeze(1 + thin), "hw", flat, changed


def _rescaled(stored: np.ndarray, header: _Header) -> np.ndarray:
    dtype = header.dtype
    if (header.slope, header.inter) == (1, 0) or header.colours:
        return stored.astype(dtype, copy=False)
    if dtype.kind == "i":
        return (stored.astype(np.int64) * int(header.slope) + int(header.inter)).astype(dtype)
    return (stored.astype(np.float64) * header.slope + header.inter).astype(dtype)


FORMAT = Format("NIfTI", (".nii", ".nii.gz"), knows, head, read, encode, holds, extra="medical")
