"""Images as pictures a person can look at: uint8 with transparency, sheets of them, PNG files, and folders of files.

What is written to a folder is a file an image, in a folder a class, so that `nonesuch.data.open` reads it again. Pictures of 16
bits keep them; others are stretched over the 256 values of 8 bits.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec


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


def save_sheet(x: Tensor, spec: ImageSpec, path: Path, side_px: int = 32) -> None:
    """Write images (n, C, *size) as one sheet, as square as it can be, each enlarged to at least `side_px`."""
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    grid = torch.full((rows * columns, *x.shape[1:]), torch.nan)
    grid[: len(x)] = x.float()
    pixels = sheet(grid.view(rows, columns, *x.shape[1:]), spec)
    width = spec.size[-1] if spec.size else 1
    write_atomic(path, png_bytes(pixels, max(1, side_px // width)))


def save_images(x: Tensor, spec: ImageSpec, schema: Schema, given: Given, folder: Path, seed: int) -> None:
    """Write images (n, C, *size) as folder/class/seed-index.png, or without class folders where there are no classes."""
    labels: list[str] = [""] * len(x)
    for name, column in schema.columns.items():
        if isinstance(column, Category):
            labels = [file_name(column.names[i]) if i >= 0 else "unlabelled" for i in given.columns[name].tolist()]
            break
    for i, label in enumerate(labels):
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / f"{seed}-{i:06d}.png", _file(x[i], spec))


def file_name(text: str) -> str:
    """A class's name as a folder's name: no separators, no leading dot."""
    return re.sub(r"[^\w .-]", "_", text).lstrip(".") or "_"


def _file(x: Tensor, spec: ImageSpec) -> bytes:
    from PIL import Image

    if spec.dtype == "uint16" and spec.channels == 1 and len(spec.size) == 2:
        values = spec.to_values(x).round().clamp(0, 65535).numpy().astype(np.uint16)[0]
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        return file.getvalue()
    file = io.BytesIO()
    mode = {3: "RGB", 4: "RGBA"}.get(spec.channels, "L")
    Image.fromarray(picture(x, spec).numpy(), "RGBA").convert(mode).save(file, "PNG")
    return file.getvalue()
