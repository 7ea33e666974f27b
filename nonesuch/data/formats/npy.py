"""NumPy's arrays as one picture: `.npy`, and `.npz` with `values` (channels, *size), `axes` and, if known, `spacing`.

A bare array (an .npy, or an .npz of one array) is read as open() reads arrays: (H, W); (H, W, C) if the last axis has at most 4
entries, else (C, H, W) if the first has; else a volume (D, H, W); with four axes, a volume of channels in the same way. Headers
are read by an expression, never evaluated, and objects are refused, so nothing of a stranger's array is ever run.

References:
    A simple file format for NumPy arrays (Kern, 2007), NEP 1
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from nonesuch.data.formats import Format, Head, Picture, check_size

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'([<>|=][a-zA-Z]\d{1,4})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([\d, ]*)\),?\s*\}\s*"
)
_MAX_HEADER_BYTES = 10_000
_MAX_AXES, _MAX_MEMBERS = 8, 64
_AXES = ("hw", "dhw", "thw", "l", "")
_NUMBERS = "buif"


def _header(file: BinaryIO) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """Type, whether columns come first, and shape, of the array that begins here."""
    magic = file.read(8)
    if magic[:6] != _MAGIC or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it is no NumPy array")
    wide = magic[6] > 1
    (length,) = struct.unpack("<I" if wide else "<H", file.read(4 if wide else 2))
    said = _HEADER.fullmatch(file.read(length) if length <= _MAX_HEADER_BYTES else b"")
    if said is None:
        raise ValueError("its header is damaged, or it holds other things than numbers")
    shape = tuple(int(n) for n in said[3].replace(b",", b" ").split())
    if len(shape) > _MAX_AXES:
        raise ValueError(f"it is an array of {len(shape)} axes, which is no picture")
    return np.dtype(said[1].decode()), said[2] == b"True", shape


def _array(file: BinaryIO) -> np.ndarray:
    dtype, columns_first, shape = _header(file)
    count = math.prod(shape)
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError("it is cut short")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if columns_first else "C")


def _members(file: BinaryIO) -> tuple[zipfile.ZipFile, Mapping[str, str]]:
    """An .npz and the names of its arrays."""
    opened = zipfile.ZipFile(file)
    names = [n for n in opened.namelist() if n.endswith(".npy")]
    if not 0 < len(names) <= _MAX_MEMBERS:
        raise ValueError("it holds no arrays")
    return opened, {n.removesuffix(".npy"): n for n in names}


def _main(names: Mapping[str, str]) -> str:
    """The array that is the picture."""
    if "values" in names:
        return names["values"]
    if len(names) > 1:
        raise ValueError(f"it holds {len(names)} arrays ({', '.join(sorted(names)[:5])}); a picture is one, named values")
    return next(iter(names.values()))


def _small(opened: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of a few entries."""
    with opened.open(name) as file:
        dtype, _, shape = _header(file)
        if math.prod(shape) > _MAX_AXES or dtype.kind not in "Uf" or dtype.itemsize > 256:
            raise ValueError("what it says of its axes is damaged")
    with opened.open(name) as file:
        return _array(file)


def _axes(opened: zipfile.ZipFile | None, names: Mapping[str, str]) -> str | None:
    if opened is None or "axes" not in names or "values" not in names:
        return None
    axes = str(_small(opened, names["axes"]))
    if axes not in _AXES:
        raise ValueError("what it says of its axes is damaged")
    return axes


def _lies(shape: tuple[int, ...], axes: str | None) -> tuple[str, int | None]:
    """Axes of an array, and the place of its channels; None where it has no axis for them."""
    if axes is not None:
        if len(shape) != len(axes) + 1:
            raise ValueError(f"its array of {len(shape)} axes does not lie along {axes!r}")
        return axes, 0
    if len(shape) == 2:
        return "hw", None
    if len(shape) in (3, 4):
        plain = "hw" if len(shape) == 3 else "dhw"
        if shape[-1] <= 4:
            return plain, -1
        if shape[0] <= 4:
            return plain, 0
        if len(shape) == 3:
            return "dhw", None
    raise ValueError(f"it is an array of shape {' x '.join(map(str, shape)) or 'nothing'}, which is no picture")


def _said(file: BinaryIO, axes: str | None) -> Head:
    dtype, _, shape = _header(file)
    if dtype.kind not in _NUMBERS or dtype.itemsize > 8:
        raise ValueError(f"it is an array of {dtype.name}, which is no picture")
    axes, at = _lies(shape, axes)
    channels = 1 if at is None else shape[at]
    size = shape if at is None else shape[1:] if at == 0 else shape[:-1]
    found = Head(axes, size, channels, "uint8" if dtype.kind == "b" else dtype.name, dtype.name)
    check_size(found)
    return found


def _head(file: BinaryIO) -> Head:
    if _bare(file):
        return _said(file, None)
    opened, names = _members(file)
    with opened, opened.open(_main(names)) as member:
        return _said(member, _axes(opened, names))  # type: ignore[arg-type]  # a zip member reads as a file


def _bare(file: BinaryIO) -> bool:
    start = file.read(len(_MAGIC))
    file.seek(0)
    return start == _MAGIC


def _read(file: BinaryIO) -> Picture:
    if _bare(file):
        return _picture(_array(file), None, None)
    opened, names = _members(file)
    with opened:
        axes = _axes(opened, names)
        spacing = tuple(map(float, _small(opened, names["spacing"]))) if axes and "spacing" in names else None
        with opened.open(_main(names)) as member:
            return _picture(_array(member), axes, spacing)  # type: ignore[arg-type]  # a zip member reads as a file


def _picture(values: np.ndarray, axes: str | None, spacing: tuple[float, ...] | None) -> Picture:
    axes, at = _lies(values.shape, axes)
    values = values[None] if at is None else np.moveaxis(values, at, 0)
    remarks: tuple[str, ...] = ()
    if values.dtype.kind == "b":
        values, remarks = values.view(np.uint8) * np.uint8(255), ("1-bit grey stretched over 8 bits",)
    if spacing is not None and (len(spacing) != len(axes) or not all(math.isfinite(s) and s > 0 for s in spacing)):
        raise ValueError("what it says of its spacing is damaged")
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable))
    return Picture(values, axes, spacing, remarks=remarks)


def _encode(picture: Picture) -> bytes:
    arrays = {"values": picture.values, "axes": np.array(picture.axes, "<U3")}
    if picture.spacing is not None:
        arrays["spacing"] = np.array(picture.spacing, np.float64)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
            opened.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), file.getvalue(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _knows(start: bytes) -> bool:
    """An .npy, or a zip whose first member is one."""
    name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    return start.startswith(_MAGIC) or (start.startswith(b"PK\3\4") and name.endswith(b".npy"))


FORMAT = Format(
    "NumPy",
    (".npz", ".npy"),
    _knows,
    _head,
    _read,
    _encode,
    holds=lambda axes, channels, dtype: axes in _AXES and np.dtype(dtype).kind in "uif" and np.dtype(dtype).itemsize <= 8,
)
