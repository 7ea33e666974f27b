"""A folder of pictures in the ImageFolder convention: flat, one folder a class, or a `metadata.csv` with `file_name`.

    photos/a.png                    no labels            photos/cat/a.png                      class folders
    photos/train/cat/a.png          its own splits       photos/metadata.csv: file_name,age    columns of a table

Pictures must agree in size, channels and depth; what Pillow would read with loss (16-bit colour) is refused, not truncated.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from nonesuch.core.given import Category, Column, Given, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.data.arrays import labelled, split
from nonesuch.data.dataset import Data, Images, fingerprint

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MODES = {"1": "L", "P": "RGB", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "I;16": "I;16"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "val": "test", "validation": "test"}
_MAX_PIXELS = 64 << 20
_MAX_CATEGORIES = 64


def open_folder(root: Path) -> Data:
    """Read a folder of pictures. Raises ValueError with the file's name for anything that cannot be learned from as it is."""
    splits = {p: _SPLITS[p.name.lower()] for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in _SPLITS}
    if {"train", "test"} <= set(splits.values()):
        train = _read(next(p for p, kind in splits.items() if kind == "train"), "train")
        test = _read(next(p for p, kind in splits.items() if kind == "test"), "test")
        if train.spec != test.spec or train.schema.columns.keys() != test.schema.columns.keys():
            raise ValueError(f"{root}: the train and test folders hold different kinds of images or classes.")
        aligned = test.recoded(train.schema)
        return Data(root.name, train, aligned, fingerprint(train) + fingerprint(aligned), _remarks(root))
    data = split(_read(root, "train"), root.name or str(root))
    return Data(data.name, data.train, data.test, data.fingerprint, _remarks(root))


def _read(root: Path, name: str) -> Images:
    table = root / "metadata.csv"
    rows = _table(table) if table.is_file() else None
    files = [root / r["file_name"] for r in rows] if rows is not None else sorted(_pictures(root))
    if not files:
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}); give the folder that does.")
    arrays = [_picture(f) for f in files]
    kinds = Counter((a.shape, str(a.dtype)) for a in arrays)
    if len(kinds) > 1:
        usual, most = kinds.most_common(1)[0]
        odd = next(f for f, a in zip(files, arrays, strict=True) if (a.shape, str(a.dtype)) != usual)
        raise ValueError(
            f"{root} holds images of {len(kinds)} different sizes or modes: {most} of {len(files)} are "
            f"{usual[0][2]} x {usual[0][1]} with {usual[0][0]} channels, {odd.name} is not. "
            "Bring them to one size and mode first."
        )
    values = np.stack(arrays)
    deep = values.dtype == np.uint16
    spec = ImageSpec(values.shape[1], values.shape[2:], levels=65536 if deep else 256, dtype=str(values.dtype))
    schema, given = _columns(rows) if rows is not None else _classes(root, files)
    return Images(spec, schema, torch.from_numpy(values.astype(np.int32) if deep else values), given, name)


def _pictures(root: Path) -> Iterable[Path]:
    """Regular files with a picture's suffix, hidden ones and links left out."""
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file() and not path.is_symlink():
            yield path


def _picture(path: Path) -> np.ndarray:
    """One picture (channels, height, width) of uint8, or uint16 for 16-bit grey."""
    from PIL import Image as Pillow

    if not path.is_file():
        raise ValueError(f"{path} is named in metadata.csv and is not there.")
    try:
        with Pillow.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise ValueError(f"{path} has {opened.width} x {opened.height} pixels, too many to read.")
            if _bits(path) == 16 and opened.mode != "I;16":
                raise ValueError(
                    f"{path} is 16-bit colour, which would be cut to 8 bits; convert it to 8 bits or to numpy arrays."
                )
            if opened.mode not in _MODES:
                raise ValueError(f"{path} is of mode {opened.mode}; convert it to grey, RGB or RGBA first.")
            mode = "RGBA" if opened.mode == "P" and "transparency" in opened.info else _MODES[opened.mode]
            array = np.asarray(opened if opened.mode == mode else opened.convert(mode))
    except Exception as error:  # decoders raise what they like on a damaged file: OSError, SyntaxError, struct.error, ...
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} cannot be read as an image: {str(error).rstrip('.')}.") from None
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _bits(path: Path) -> int:
    """Bits a channel of a PNG, from its header; 8 for other formats."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else 8


def _classes(root: Path, files: list[Path]) -> tuple[Schema, Given]:
    """Labels from class folders; none for a flat folder."""
    names = [f.relative_to(root).parts[0] if len(f.relative_to(root).parts) > 1 else None for f in files]
    known = sorted({n for n in names if n is not None})
    if not known:
        return Schema(), Given(len(files))
    place = {n: i for i, n in enumerate(known)}
    return labelled(torch.tensor([-1 if n is None else place[n] for n in names]), tuple(known))


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from None
    if not rows or not all(r.get("file_name") for r in rows):
        raise ValueError(f"{path} needs a header with file_name, and a row for each image.")
    return rows


def _columns(rows: list[dict[str, str]]) -> tuple[Schema, Given]:
    """A column each: numbers where all values are (unless few and whole: then classes), categories otherwise; "" is missing."""
    columns: dict[str, Column] = {}
    values = {}
    for name in (k for k in rows[0] if k and k != "file_name"):
        cells = [(r.get(name) or "").strip() or None for r in rows]
        column = _column(name, [c for c in cells if c is not None])
        columns[name], values[name] = column, column.encode(cells, name)
    return Schema(columns), Given(len(rows), values)


def _column(name: str, cells: list[str]) -> Category | Number:
    try:
        numbers = np.array([float(c) for c in cells])
        is_number = bool(np.isfinite(numbers).all()) and len(numbers) > 0
    except ValueError:
        is_number = False
    distinct = sorted(set(cells))
    if is_number and not (name in ("label", "class") or (len(distinct) <= 10 and all(c.lstrip("-").isdigit() for c in distinct))):
        quantiles = tuple(float(q) for q in np.quantile(numbers, np.linspace(0, 1, 33)))
        return Number(float(numbers.mean()), float(numbers.std()) or 1.0, quantiles)
    if len(distinct) > _MAX_CATEGORIES and name not in ("label", "class"):
        raise ValueError(
            f"the column {name!r} has {len(distinct)} different words, too many for a category; leave it out of metadata.csv."
        )
    counts = Counter(cells)
    return Category(tuple(distinct), tuple(counts[d] / len(cells) for d in distinct))


def _remarks(root: Path) -> tuple[str, ...]:
    """What a report must say of these files."""
    lossy = any(p.suffix.lower() in (".jpg", ".jpeg", ".webp") for p in _pictures(root))
    return (
        ("Some images came through JPEG or WebP: bits/dim and distances are not comparable with published ones.",)
        if lossy
        else ()
    )
