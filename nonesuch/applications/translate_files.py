"""Picture files made of picture files: read at their own depth, translated, and written beside a sheet of before and after.

A file of 8 or 16 bits comes back with as many; a grey picture is shown to a model of colour as three equal channels and a colour
picture to a model of grey as its luma; transparency goes round the model, enlarged by cubic convolution. Every file is read
before the first is written, so that a damaged one ends the job with nothing half-done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonesuch.applications import Event
from nonesuch.applications.provenance import SOURCES, origins, stamping
from nonesuch.applications.translate import Options, picture_of
from nonesuch.applications.translate import run as translated
from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import Image
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.data import formats
from nonesuch.data.formats import Picture, encode
from nonesuch.data.items import Left, walk
from nonesuch.data.pictures import sheet, stored
from nonesuch.nn.bicubic import enlarge

_SHOWN, _SIDE = 8, 256  # pictures on the sheet, and the side of the middle of each that is shown
_LUMA = (0.299, 0.587, 0.114)
_DEPTHS = {"uint8": 256, "uint16": 65536}


@dataclass(frozen=True)
class Read:
    """A file as a model is shown it: y (1, C', *size), its transparency or None, and the spec that results are written by."""

    y: Tensor
    alpha: Tensor | None
    spec: ImageSpec
    remarks: tuple[str, ...]


def paths_in(pictures: Path) -> list[tuple[Path, Path]]:
    """Each picture file and its place below the folder; of a file, itself. Raises ValueError if there are none."""
    if pictures.is_file():
        return [(pictures, Path(pictures.name))]
    if not pictures.is_dir():
        raise ValueError(f"there is no {pictures}; give a picture or a folder of them.")
    found = [(path, path.relative_to(pictures)) for path in walk(pictures, Left())]
    if not found:
        raise ValueError(f"{pictures} holds no pictures; give the folder that does.")
    return found


def read(path: Path, column: Image, spec: ImageSpec) -> Read:
    """A file as the model's column takes it; spec: of the model's own pictures. Raises ValueError that begins with its name."""
    name = formats.printable(path)
    found = formats.read(path, axes=None if column.spec.axes == "hw" else column.spec.axes)
    values, axes = found.values, len(column.spec.size)
    if values.ndim != 1 + axes:
        raise ValueError(f"{name} is of axes {found.axes!r}, and the model takes {column.spec.axes!r}.")
    levels = _DEPTHS.get(str(values.dtype))
    if levels is not None:
        y = torch.from_numpy(values.astype(np.float32)) * (2 / (levels - 1)) - 1
        out = replace(spec, levels=levels, value_range=None, dtype=str(values.dtype), kind="ordinal", spacing=None)
    elif str(values.dtype) == column.spec.dtype:
        y, out = column.spec.from_values(torch.from_numpy(values.astype(np.float64))).float(), spec
    else:
        raise ValueError(f"{name} holds {values.dtype}; the model takes pictures of 8 or 16 bits, or of {column.spec.dtype}.")
    alpha, wanted = None, column.spec.channels
    if len(y) in (2, 4) and len(y) != wanted:
        y, alpha = y[:-1], y[-1:]
    if len(y) == 1 and wanted == 3:
        y = y.expand(3, *y.shape[1:])
    elif len(y) == 3 and wanted == 1:
        y = torch.tensordot(torch.tensor(_LUMA), y, 1)[None]
    if len(y) != wanted:
        raise ValueError(f"{name} has {len(values)} channels, and the model takes {wanted}.")
    return Read(y[None].clamp(-1, 1), alpha, out, found.remarks)


def run(
    model: Model, pictures: Path, out: Path, job: str, given: Mapping[str, Any] | None = None, seed: int = 0,
    options: Options | None = None, provenance: bool = True,
) -> Iterator[Event]:  # fmt: skip
    """Translate the pictures of a file or folder into `out`, under their names; the result is a record of each, and the sheet.

    given: the model's other columns; picture i has the seed (seed, i). Raises ValueError before anything is written if a file
    cannot be read, or if `out` cannot be written to.
    """
    model.require_fitted()
    _, column, ratio = picture_of(model)
    found = paths_in(pictures)
    condition = model.schema.given(len(found), given)
    yield Event(0, len(found), "looking at the files")
    for path, _ in found:
        read(path, column, model.spec)
    made = origins(model, job, condition, seed, source=SOURCES[1]) if provenance else []
    out.mkdir(parents=True, exist_ok=True)
    records, shown, taken = [], [], set[Path]()
    for i, (path, place) in enumerate(found):
        begin, source = time.perf_counter(), read(path, column, model.spec)
        one = None if given is None else {k: v[i] if isinstance(v, (list, tuple)) else v for k, v in given.items()}
        x = None
        for event in translated(model, source.y, one, Seeds.of(seed, 1, start=i), options):
            yield Event(i, len(found), f"{place} {event.text}")
            x = event.result if event.result is not None else x
        assert isinstance(x, Tensor)
        target, whole = _target(out, place, taken), _with_alpha(x[0], source.alpha, ratio)
        spec = replace(source.spec, channels=len(whole), size=tuple(whole.shape[1:]), sizes=())
        write = stamping(made, spec) if provenance else _plain
        data, suffix = write(stored(whole, spec), i)
        target = target.with_name(target.name + suffix)
        write_atomic(target, data)
        if len(shown) < _SHOWN and len(x.shape) == 4:
            shown.append((_seen(enlarge(source.y, ratio)[0]), _seen(x[0])))
        seconds = round(time.perf_counter() - begin, 3)
        record = {"picture": str(path), "out": str(target), "size": list(whole.shape[1:]), "seconds": seconds}
        records.append(record | ({"remarks": list(source.remarks)} if source.remarks else {}))
    picture = None
    if shown:
        picture = out / "sheet.png"
        write_atomic(picture, (stamping(made, model.spec) if provenance else _plain)(_sheet(shown), None)[0])
    result = {"pictures": records, "sheet": str(picture) if picture else None}
    yield Event(len(found), len(found), "done", result=result)


def _plain(picture: Picture, index: int | None) -> tuple[bytes, str]:
    return encode(picture)


def _target(out: Path, place: Path, taken: set[Path]) -> Path:
    """The file to write, without suffix: the picture's name, with its own suffix where two would be the same."""
    plain = place.with_suffix("")
    stem = out / (place if plain in taken or plain == Path("sheet") else plain)
    taken.add(plain)
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem


def _with_alpha(x: Tensor, alpha: Tensor | None, ratio: int) -> Tensor:
    """A picture (C, *size) with the transparency that its source had, if it has channels that go with one."""
    if alpha is None or len(x) not in (1, 3):
        return x
    return torch.cat([x, enlarge(alpha[None], ratio)[0].clamp(-1, 1).to(x)])


def _seen(x: Tensor) -> Tensor:
    """The middle of a picture in three channels, (3, 256, 256); transparent beyond its edges."""
    x = (x if len(x) == 3 else x[:1].expand(3, *x.shape[1:])).cpu().float()
    canvas = torch.full((3, _SIDE, _SIDE), torch.nan)
    height, width = (min(n, _SIDE) for n in x.shape[1:])
    top, left = (max(0, (n - _SIDE) // 2) for n in x.shape[1:])
    canvas[:, :height, :width] = x[:, top : top + height, left : left + width]
    return canvas


def _sheet(shown: list[tuple[Tensor, Tensor]]) -> Picture:
    """A row a picture, before and after."""
    grid = torch.stack([torch.stack(pair) for pair in shown])
    pixels = sheet(grid, ImageSpec(3, (_SIDE, _SIDE)), 4)
    return Picture(np.ascontiguousarray(pixels.permute(2, 0, 1).numpy()))
