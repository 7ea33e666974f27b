"""Images as pictures a person can look at: uint8 with transparency, sheets of them, PNG files, and folders of files.

What is written to a folder is a file an image with the values, depth, channels, axes and spacing of the images learned from, in
a folder a class: what torchvision's ImageFolder and `datasets.load_dataset("imagefolder")` read, and `nonesuch.data.open` again.
Conditions that folders cannot say stand in a `metadata.csv` beside them.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import Category, Given, Image, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.data.formats import Picture, encode

Write = Callable[[Picture, int | None], tuple[bytes, str]]  # a picture and which one it is (None: a sheet) -> its file, suffix


def picture(x: Tensor, spec: ImageSpec) -> Tensor:
    """Images (..., C, *size) as uint8 (..., H, W, 4): the middle slice of volumes and clips; NaN is transparent."""
    if spec.kind == "categorical":
        x = x.float() / max(1, (spec.levels or 2) - 1) * 2 - 1
    axes = len(spec.size)
    if axes == 3:
        x = x.select(-3, x.shape[-3] // 2)
    x = x[..., None, None] if axes == 0 else x[..., None, :] if axes == 1 else x
    blank = x.isnan().any(-3)
    colour = ((x.nan_to_num(-1).clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8).movedim(-3, -1)
    alpha = colour[..., 3:4] if spec.channels == 4 else torch.full_like(colour[..., :1], 255)
    shown = colour[..., :3] if spec.channels in (3, 4) else colour[..., :1].expand(*colour.shape[:-1], 3)
    return torch.cat([shown, torch.where(blank[..., None], 0, alpha)], -1)


def sheet(grid: Tensor, spec: ImageSpec, gap: int | None = None) -> Tensor:
    """A grid (R, K, C, *size) as one picture, uint8 (H, W, 4), with transparent gaps."""
    tiles = picture(grid, spec)
    rows, columns, height, width = tiles.shape[:4]
    gap = max(1, width // 12) if gap is None else gap
    out = torch.zeros(rows * (height + gap) - gap, columns * (width + gap) - gap, 4, dtype=torch.uint8)
    for r in range(rows):
        for c in range(columns):
            out[r * (height + gap) : r * (height + gap) + height, c * (width + gap) : c * (width + gap) + width] = tiles[r, c]
    return out


def png_bytes(pixels: Tensor, scale: int = 1) -> bytes:
    """uint8 (H, W, 4) as a PNG file, each pixel `scale` times as large."""
    from PIL import Image

    array = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array, "RGBA").save(file, "PNG", optimize=True)
    return file.getvalue()


def half_blocks(pixels: Tensor) -> str:
    """uint8 (H, W, 4) as rich markup: a character is two pixels, the upper one its colour, the lower one its ground."""
    rows = pixels[: len(pixels) // 2 * 2, :, :3].tolist()
    return "\n".join(
        "".join(f"[rgb({a[0]},{a[1]},{a[2]}) on rgb({b[0]},{b[1]},{b[2]})]\u2580[/]" for a, b in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    )


def save_sheet(x: Tensor, spec: ImageSpec, path: Path, side_px: int = 32, write: Write | None = None) -> None:
    """Write images (n, C, *size) as one sheet, as square as it can be, each enlarged to at least `side_px`.

    write: makes the PNG instead, such as one that says what made it.
    """
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    grid = torch.full((rows * columns, *x.shape[1:]), torch.nan)
    grid[: len(x)] = x.float()
    pixels = sheet(grid.view(rows, columns, *x.shape[1:]), spec)
    width = spec.size[-1] if spec.size else 1
    scale = max(1, side_px // width)
    if write is None:
        data = png_bytes(pixels, scale)
    else:
        large = pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        data, _ = write(Picture(np.ascontiguousarray(large.permute(2, 0, 1).numpy())), None)
    write_atomic(path, data)


def save_images(
    x: Tensor, spec: ImageSpec, schema: Schema, given: Given, folder: Path, seed: int, write: Write | None = None
) -> list[Path]:
    """Write images (n, C, *size) as folder/class/seed-index.png, .tif, .nii or .npz: the first that keeps their values.

    Without a column of categories there are no class folders; with other columns beside one, or instead of one, all of them
    stand in folder/metadata.csv, where rows of earlier files are kept. write: makes the files' bytes instead of
    `formats.encode`, such as ones that say what made them. Returns the files written.
    """
    columns = {name: column for name, column in schema.columns.items() if not isinstance(column, Image)}
    told = {name: [_told(schema, name, value) for value in given.columns[name]] for name in columns}
    labels = [""] * len(x)
    for name, column in columns.items():
        if isinstance(column, Category):
            folders = class_folders(column.names)
            labels = [folders[value] for value in told[name]]
            break
    files = []
    for i, label in enumerate(labels):
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        data, suffix = encode(stored(x[i], spec)) if write is None else write(stored(x[i], spec), i)
        files.append(place / f"{seed}-{i:06d}{suffix}")
        write_atomic(files[-1], data)
    if columns and not (len(columns) == 1 and any(labels)):
        _tabulate(folder / "metadata.csv", [f.relative_to(folder).as_posix() for f in files], told)
    return files


def stored(x: Tensor, spec: ImageSpec) -> Picture:
    """One image (C, *size) of the inside as the values of its file: of spec.dtype, or for 64 bits the narrowest that fits."""
    values = spec.to_values(x.detach().cpu()).numpy()
    if spec.value_range:  # real numbers may be drawn a little beyond those learned from
        values = values.clip(min(spec.value_range), max(spec.value_range))
    wanted = _dtype(spec)
    if wanted.kind == "b":  # as a picture of one bit is read: black and white
        values, wanted = (values > 0) * 255, np.dtype("uint8")
    if wanted.kind in "ui":
        info = np.iinfo(wanted)
        values = values if values.dtype.kind in "ui" else np.rint(values.astype(np.float64))
        values = values.clip(info.min, info.max)
    return Picture(np.ascontiguousarray(values.astype(wanted)).reshape(x.shape), spec.axes, spec.spacing, spec.unit)


def file_name(text: str) -> str:
    """A class's name as a folder's name: no separators, no leading dot."""
    return re.sub(r"[^\w .-]", "_", text).lstrip(".") or "_"


def _dtype(spec: ImageSpec) -> np.dtype:
    try:
        found = np.dtype(spec.dtype)
    except TypeError:  # of torch alone, such as bfloat16
        return np.dtype("float32")
    if found.kind not in "buif":
        return np.dtype("float32")
    if found.kind in "ui" and found.itemsize == 8:
        lo, hi = sorted(spec.value_range or (0, (spec.levels or 2) - 1))
        for name in ("uint8", "uint16", "int32"):
            if np.iinfo(name).min <= lo and hi <= np.iinfo(name).max:
                return np.dtype(name)
    return found


def class_folders(names: Sequence[str]) -> Mapping[str, str]:
    """Each class's folder, and that of images without one; two classes never share a folder."""
    found: dict[str, str] = {}
    for name in (*names, ""):
        wanted = plain = file_name(name) if name else "unlabelled"
        again = 1
        while wanted.casefold() in {f.casefold() for f in found.values()}:
            again += 1
            wanted = f"{plain} {again}"
        found[name] = wanted
    return found


def _told(schema: Schema, name: str, value: Tensor) -> str:
    """A condition as a cell of a table; "" where it is missing."""
    column = schema.columns[name]
    if not bool(column.present(value[None])[0]):
        return ""
    if isinstance(column, Category):
        return column.names[int(value)]
    if isinstance(column, Number):
        return f"{float(value) * column.std + column.mean:.6g}"
    codes = [int(v) - 1 for v in value.tolist() if v > 0]
    return bytes(codes).decode("utf-8", "replace")


def _tabulate(path: Path, names: list[str], told: Mapping[str, list[str]]) -> None:
    """Write a row for each file; rows of other files stay, with their columns."""
    rows: dict[str, dict[str, str]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["file_name"]: dict(row) for row in csv.DictReader(file) if row.get("file_name")}
    for i, name in enumerate(names):
        rows[name] = {"file_name": name, **{column: cells[i] for column, cells in told.items()}}
    header = list(dict.fromkeys(key for row in rows.values() for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_atomic(path, text.getvalue().encode())
