"""A picture in overlapping tiles: where they lie, the weights they are put together with, and noise that belongs to places.

Along an axis a tile counts with a weight w that is 1 in its middle, rises as (1 - cos) / 2 over each overlap, and is 0 within
`margin` of an edge that lies inside the picture: what a network computes there is wrong by what it could not see. At the
picture's own edges it is 1 to the end. The result is

    x(p) = sum_i w_i(p) x_i(p) / sum_i w_i(p),        w_i the product over the axes,                                       (1)

a partition of unity. If tiles agree where they count, it is what they agree on; where they do not, it changes over from one to
the next without an edge.

Tiles that are drawn must agree on what they draw. `Placed` seeds hand out noise by absolute place: a draw as large as a tile is
cut from blocks of `BLOCK` pixels a side, each keyed by its place in the picture, so the noise at a place is the same in every
tile that covers it, and is never held for the whole picture.

References:
    MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation (Bar-Tal et al., 2023) arXiv:2302.08113
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nonesuch.core.seeds import Seeds

BLOCK = 32


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most `tile` pixels a side over a picture of `size`, next ones at least `overlap` into each other.

    margin: pixels at a tile's inner edges that do not count, at most half of the overlap; multiple: of what corners are.
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    overlap: int
    margin: int = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.overlap < 0 or any(self.overlap + self.multiple > t for t in self.tile):
            raise ValueError(
                f"tiles of {' x '.join(map(str, self.tile))} cannot overlap by {self.overlap} pixels and go on; "
                "choose larger tiles or a smaller overlap."
            )
        assert 0 <= 2 * self.margin <= self.overlap

    def spans(self, axis: int) -> list[tuple[int, int]]:
        """First pixel and length of the tiles along an axis; all end within the picture, and the last one at its end."""
        size, tile = self.size[axis], self.tile[axis]
        if tile >= size:
            return [(0, size)]
        step = (tile - self.overlap) // self.multiple * self.multiple
        last = -(-(size - tile) // self.multiple) * self.multiple
        starts = [*range(0, size - tile, step), last]
        return [(a, min(tile, size - a)) for a in dict.fromkeys(starts)]

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Corner and size of each tile."""
        for spans in itertools.product(*(self.spans(axis) for axis in range(len(self.size)))):
            yield tuple(a for a, _ in spans), tuple(n for _, n in spans)

    def __len__(self) -> int:
        return math.prod(len(self.spans(axis)) for axis in range(len(self.size)))

    def weights(self, corner: Sequence[int], size: Sequence[int], ratio: int = 1) -> Tensor:
        """w of a tile, float32 (*ratio size), before it is divided by the sum."""
        out = torch.ones(())
        for axis, (a, n) in enumerate(zip(corner, size, strict=True)):
            place = (torch.arange(n * ratio) + 0.5) / ratio
            w = torch.ones(n * ratio)
            ramp = max(self.overlap - 2 * self.margin, 1)
            if a > 0:
                w = w * _rise((place - self.margin) / ramp)
            if a + n < self.size[axis]:
                w = w * _rise((n - place - self.margin) / ramp)
            out = out[..., None] * w
        return out


def _rise(t: Tensor) -> Tensor:
    """0 below 0, 1 above 1, and a half cosine between."""
    return (1 - torch.cos(t.clamp(0, 1) * math.pi)) / 2


class Mosaic:
    """Tiles being put together by Eq. 1 into pictures (n, C, *size) float32; holds these and the sum of the weights."""

    def __init__(self, n: int, channels: int, tiling: Tiling, ratio: int = 1) -> None:
        self.tiling, self.ratio = tiling, ratio
        size = [s * ratio for s in tiling.size]
        self.sum, self.weight = torch.zeros(n, channels, *size), torch.zeros(size)

    def add(self, tiles: Tensor, corner: Sequence[int], size: Sequence[int]) -> None:
        """Add the pictures' tiles (n, C, *ratio size) at a corner."""
        w = self.tiling.weights(corner, size, self.ratio)
        place = tuple(slice(a * self.ratio, (a + n) * self.ratio) for a, n in zip(corner, size, strict=True))
        self.sum[(..., *place)] += tiles.cpu().float() * w
        self.weight[place] += w

    def whole(self) -> Tensor:
        """The pictures, when all tiles are there."""
        return self.sum.div_(self.weight)


@dataclass(frozen=True)
class Placed(Seeds):
    """Seeds of tiles: draws of a tile's size come from blocks keyed by their place; all others are those of `Seeds`.

    corner, size: the tile in a draw's own pixels, for each ratio of a draw's size to the tile's that is a whole number.
    """

    corner: tuple[int, ...] = ()
    size: tuple[int, ...] = ()

    def __getitem__(self, which: slice | Sequence[int]) -> Placed:
        picked = super().__getitem__(which)
        return Placed(picked.seed, picked.index, self.corner, self.size)

    def normal(self, name: str, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        dims = len(self.size)
        if len(shape) <= dims or not dims:
            return super().normal(name, *shape, step=step, device=device)
        drawn = tuple(shape[-dims:])
        ratios = {d // s if d % s == 0 else 0 for d, s in zip(drawn, self.size, strict=True)}
        if len(ratios) != 1 or 0 in ratios:
            return super().normal(name, *shape, step=step, device=device)
        (ratio,) = ratios
        return self._cut(name, tuple(shape[:-dims]), tuple(a * ratio for a in self.corner), drawn, step, device)

    def _cut(
        self, name: str, channels: tuple[int, ...], corner: tuple[int, ...], size: tuple[int, ...], step: int,
        device: torch.device | str,
    ) -> Tensor:  # fmt: skip
        """The window of the endless field of blocks that begins at `corner`."""
        out = torch.empty(len(self), *channels, *size, device=device)
        plain = Seeds(self.seed, self.index)
        covered = [range(a // BLOCK, -(-(a + n) // BLOCK)) for a, n in zip(corner, size, strict=True)]
        for block in itertools.product(*covered):
            field = plain.normal(f"{name}@{','.join(map(str, block))}", *channels, *[BLOCK] * len(size), step=step, device=device)
            there, here = [], []
            for b, a, n in zip(block, corner, size, strict=True):
                first, last = max(b * BLOCK, a), min((b + 1) * BLOCK, a + n)
                there.append(slice(first - a, last - a))
                here.append(slice(first - b * BLOCK, last - b * BLOCK))
            out[(..., *there)] = field[(..., *here)]
        return out
