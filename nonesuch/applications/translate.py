"""Pictures made of pictures of any size: upscaling, colouring, translating, in overlapping tiles without seams.

`translate(model, y)` runs a model that is given an Image column on pictures y of whatever size. A `Translator` (a network of
convolutions: pix2pix, CycleGAN) takes parts of any size and says how far its pixels look: where tiles overlap by twice that, the
tiled result is the whole picture's, to rounding; a smaller overlap, as by default where the network looks far, is blended over
(`_tiles.py`). Any other model takes tiles of the size it was trained on. Noise belongs to places, so tiles of a model that draws
agree on what they start from.

Memory is that of the result, a tile at work, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonesuch.applications import Event, finish
from nonesuch.applications._tiles import Mosaic, Placed, Tiling
from nonesuch.core.given import Image
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.core.translator import Translator

needs: tuple[type, ...] = ()  # any model that is given an Image column

_TILE, _BLEND = 256, 16  # pixels of y: a tile's side, and the overlap beyond what does not count
_MARGIN = 16  # the largest margin that is left out by default: beyond it, what a network looks at weighs little


@dataclass(frozen=True)
class Options:
    """tile: the side of a tile in pixels of y (None: 256, or the size the model was trained on); overlap: how far tiles lie in
    each other (None: enough for no seam to be seen; twice the model's reach makes the result exact)."""

    tile: int | None = None
    overlap: int | None = None


def translate(
    model: Model, y: Tensor, *, given: Mapping[str, Any] | None = None, seeds: Seeds | int = 0, tile: int | None = None,
    overlap: int | None = None, draw: Callable[[Event], object] | None = None,
) -> Tensor:  # fmt: skip
    """Pictures x (n, C, *ratio size) of pictures y (n, C', *size) of any size, on [-1, 1] and not rounded to levels.

    given: the model's other columns; seeds: a picture's noise; tile, overlap: of `Options`; draw: sees every event.
    Raises ValueError for a model that is given no pictures, pictures of another kind, and tiles that cannot be.
    """
    found: Tensor = finish(run(model, y, given, seeds, Options(tile, overlap)), draw)
    return found


def picture_of(model: Model) -> tuple[str, Image, int]:
    """The model's one column of pictures, and how many times larger than these its own are.

    Raises ValueError for a model that is given none.
    """
    found = [(name, column) for name, column in model.schema.columns.items() if isinstance(column, Image)]
    if len(found) != 1:
        raise ValueError(
            f"translating takes a model that is given one picture, and this {type(model).__name__} is given "
            f"{', '.join(model.schema.columns) or 'nothing'}; fit one with given=Downsample(4), Grayscale(), paired "
            "folders, or bridge between two diffusion models (nonesuch translate --source, --source-model)."
        )
    name, column = found[0]
    ratios = {a / b for a, b in zip(model.spec.size, column.spec.size, strict=True)}
    if len(ratios) != 1 or not (ratio := ratios.pop()).is_integer():
        raise ValueError("translating takes a model whose pictures are a whole number of times the size of those it is given.")
    return name, column, int(ratio)


def run(
    model: Model, y: Tensor, given: Mapping[str, Any] | None = None, seeds: Seeds | int = 0, options: Options | None = None
) -> Iterator[Event]:
    """The job of `translate` as events, a tile each; the last one's result is x."""
    model.require_fitted()
    name, column, ratio = picture_of(model)
    _check(y, column, name)
    tiling = _tiling(model, column, tuple(y.shape[2:]), options or Options())
    keys = Seeds.of(seeds, len(y))
    padded = _padded(y, tiling.size)
    mosaic = Mosaic(len(y), model.spec.channels, tiling, ratio)
    glance = model.glance(y) if isinstance(model, Translator) else None
    for done, (corner, size) in enumerate(tiling):
        yield Event(done, len(tiling), f"tile {done + 1} of {len(tiling)}")
        part = padded[(..., *(slice(a, a + n) for a, n in zip(corner, size, strict=True)))].contiguous()
        mosaic.add(_part(model, name, part, given, Placed(keys.seed, keys.index, corner, size), glance), corner, size)
    whole = mosaic.whole()
    x = whole[(..., *(slice(0, n * ratio) for n in y.shape[2:]))]
    yield Event(len(tiling), len(tiling), "done", result=x)


def _check(y: Tensor, column: Image, name: str) -> None:
    """Raise ValueError if y are no pictures such as the column's, of any size."""
    if y.dim() != 2 + len(column.spec.size):
        column.spec.check(y, name)
    if len(y) == 0 or min(y.shape[2:]) == 0:
        raise ValueError("there are no pictures to translate; give at least one, of at least a pixel.")
    column.spec.of_size(tuple(y.shape[2:])).check(y, name)


def _tiling(model: Model, column: Image, size: tuple[int, ...], options: Options) -> Tiling:
    if options.tile is not None and options.tile < 1:
        raise ValueError(f"a tile needs a side of at least 1 pixel, not {options.tile}.")
    if not isinstance(model, Translator):
        tile = column.spec.size
        if options.tile is not None and tile != (options.tile,) * len(tile):
            raise ValueError(f"this {type(model).__name__} takes tiles of {' x '.join(map(str, tile))} only; leave the size out.")
        overlap = min(tile) // 4 if options.overlap is None else options.overlap
        return Tiling(tuple(max(a, b) for a, b in zip(size, tile, strict=True)), tile, overlap)
    side = -(-(options.tile or _TILE) // model.multiple) * model.multiple
    margin = min(model.reach, _MARGIN, max(0, side - model.multiple - 1) // 4)
    overlap = 2 * margin + min(_BLEND, side // 8) if options.overlap is None else options.overlap
    margin = min(model.reach, max(0, overlap - 1) // 2)
    return Tiling(size, tuple(_even(n, side, overlap, model.multiple) for n in size), overlap, margin, model.multiple)


def _even(size: int, side: int, overlap: int, multiple: int) -> int:
    """The side of tiles that are as many as those of `side` pixels, and all of about one length."""
    if side >= size or overlap + multiple > side:
        return side
    count = math.ceil((size - side) / ((side - overlap) // multiple * multiple)) + 1
    return min(side, math.ceil((size - overlap) / count / multiple) * multiple + overlap)


def _padded(y: Tensor, size: tuple[int, ...]) -> Tensor:
    """y with its last pixels repeated where it is smaller than `size`."""
    for axis, n in enumerate(size, 2):
        if y.shape[axis] < n:
            y = y.index_select(axis, torch.arange(n, device=y.device).clamp(max=y.shape[axis] - 1))
    return y


def _part(
    model: Model, name: str, y: Tensor, given: Mapping[str, Any] | None, seeds: Seeds, glance: Tensor | None
) -> Tensor:  # fmt: skip
    if isinstance(model, Translator):
        return model.translate(y, given, seeds=seeds, glance=glance)
    return model.sample(len(y), {**(given or {}), name: y}, seeds=seeds)
