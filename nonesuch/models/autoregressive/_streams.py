"""The two streams of PixelCNN++ as a U with skips, over a whole picture at once and walked pixel by pixel.

At each resolution `blocks` pairs of gated blocks go down, and as many, one more but at the coarsest, come up; each pair that
comes up reads the activation of one that went down. Stream `above` holds at (i, j) what the rows before i say, stream `corner`
what all pixels before (i, j) say; the second reads the first. Halving keeps row 2 r of row r's cell as the last that is read and
doubling gives row r to rows 2 r and 2 r + 1, so nothing looks ahead at any resolution: the pixel (r, c) of resolution l is
computed once, when (i, j) = 2^l (r, c) is due.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._shifted import (
    ABOVE,
    CORNER,
    Corner,
    EnlargeAbove,
    EnlargeCorner,
    Gated,
    GatedPixels,
    GatedRows,
    Rows,
    Shifted,
    concat_elu,
    move_down,
    move_right,
)


class Streams(nn.Module):
    """(B, H, W, channels) -> (B, H, W, width), of which pixel (i, j) is a function of the input's pixels before it."""

    def __init__(self, channels: int, width: int, blocks: int, resolutions: int, given: bool, dropout: float) -> None:
        super().__init__()
        self.width, self.levels = width, resolutions
        self.enter_above = Shifted(channels, width, ABOVE)
        self.enter_row = Shifted(channels, width, (1, 3))
        self.enter_column = Shifted(channels, width, (2, 1), bias=False)

        def pairs(count: int, skip: bool, name: str) -> nn.ModuleList:
            def one(corner: bool, i: int) -> Gated:
                return Gated(width, corner, corner, skip, given, dropout, f"{name}.{i}.{'corner' if corner else 'above'}")

            return nn.ModuleList(nn.ModuleList([one(False, i), one(True, i)]) for i in range(count))

        last = resolutions - 1
        self.down = nn.ModuleList(pairs(blocks, False, f"down{level}") for level in range(resolutions))
        self.up = nn.ModuleList(pairs(blocks + (level < last), True, f"up{level}") for level in range(resolutions))
        self.halve_above = nn.ModuleList(Shifted(width, width, ABOVE, 2) for _ in range(last))
        self.halve_corner = nn.ModuleList(Shifted(width, width, CORNER, 2) for _ in range(last))
        self.double_above = nn.ModuleList(EnlargeAbove(width, width) for _ in range(last))
        self.double_corner = nn.ModuleList(EnlargeCorner(width, width) for _ in range(last))

    def forward(self, x: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        under, right = move_down(x), move_right(x)
        u, v = self.enter_above(under), self.enter_row(under) + self.enter_column(right)  # above, corner
        skips: list[tuple[Tensor, Tensor]] = []
        sizes = []
        for level, stage in enumerate(self.down):
            if level:
                sizes.append(v.shape[1:3])
                u, v = self.halve_above[level - 1](u), self.halve_corner[level - 1](v)
            eu, ev = concat_elu(u), concat_elu(v)
            skips.append((eu, ev))
            for above, corner in stage:  # type: ignore[misc]
                u = above(u, eu, c, keys)
                eu = concat_elu(u)
                v = corner(v, ev, c, keys, eu)
                ev = concat_elu(v)
                skips.append((eu, ev))
        eu, ev = skips.pop()
        for level in reversed(range(self.levels)):
            if level < self.levels - 1:
                rows, columns = sizes.pop()
                u = self.double_above[level](u)[:, :rows, :columns]
                v = self.double_corner[level].picture(v)[:, :rows, :columns]  # type: ignore[operator]
                eu, ev = concat_elu(u), concat_elu(v)
            for above, corner in self.up[level]:  # type: ignore[misc]
                skip_u, skip_v = skips.pop()
                u = above(u, eu, c, keys, skip=skip_u)
                eu = concat_elu(u)
                v = corner(v, ev, c, keys, eu, skip_v)
                ev = concat_elu(v)
        return ev


class Walk:
    """`Streams` of a picture that becomes known pixel by pixel: every activation is computed once, when first needed.

    `row` begins row i, `pixel` gives the output (n, 2 width) at (i, j), and `tell` says what the input at (i, j) became.
    """

    def __init__(self, net: Streams, c: Tensor, size: tuple[int, int], dtype: torch.dtype) -> None:
        n, last = len(c), net.levels - 1
        self.net, self.last, self.dtype = net, last, dtype
        widths = [size[1]]
        for _ in range(last):
            widths.append(-(-widths[-1] // 2))
        self.down_rows = [[GatedRows(p[0], c, w, dtype) for p in s] for s, w in zip(net.down, widths, strict=True)]  # type: ignore[index, union-attr]
        self.down = [[GatedPixels(p[1], c, w, dtype) for p in s] for s, w in zip(net.down, widths, strict=True)]  # type: ignore[index, union-attr]
        self.up_rows = [[GatedRows(p[0], c, w, dtype) for p in s] for s, w in zip(net.up, widths, strict=True)]  # type: ignore[index, union-attr]
        self.up = [[GatedPixels(p[1], c, w, dtype) for p in s] for s, w in zip(net.up, widths, strict=True)]  # type: ignore[index, union-attr]
        self.halve_rows = [Rows(m, n, w, dtype) for m, w in zip(net.halve_above, widths[:-1], strict=True)]  # type: ignore[arg-type]
        self.halve = [Corner(m, n, w, dtype) for m, w in zip(net.halve_corner, widths[:-1], strict=True)]  # type: ignore[arg-type]
        # what each coarser resolution, doubled, hands to this one: two rows of it
        room = [c.new_zeros(n, 2, 2 * w, net.width, dtype=dtype) for w in widths[1:]]
        self.doubled_rows, self.doubled = room, [torch.zeros_like(r) for r in room]
        self.double = [(m.weight.to(dtype), m.bias.to(dtype)) for m in net.double_corner]  # type: ignore[union-attr, operator]
        self.enter = Rows(net.enter_above, n, size[1], dtype)
        self.column = net.enter_column.weight[..., 0].to(dtype).permute(2, 1, 0).contiguous()  # (rows, channels, width)
        self.seen = c.new_zeros(n, size[1], net.enter_above.in_channels, dtype=dtype)  # the row being told
        self.widths, self.i = widths, -1

    def row(self) -> None:
        """Begin the next row: the whole `above` stream of it, and what the row before says to the `corner` stream."""
        self.i += 1
        i, net, before = self.i, self.net, self.seen
        self.enter.put(before)
        self.start = net.enter_row(before[:, None])[:, 0] + F.pad(before, (0, 0, 1, 0))[:, :-1] @ self.column[0]
        u, skips, depth = self.enter.out(), [], _depth(i, self.last)
        for level in range(depth + 1):
            if level:
                u = self.halve_rows[level - 1].out()
            e = concat_elu(u)
            skips.append(e)
            for rows, pixels in zip(self.down_rows[level], self.down[level], strict=True):
                u = rows.next(u, e, None)
                e = concat_elu(u)
                pixels.begin(e)
                skips.append(e)
            if level < self.last:
                self.halve_rows[level].put(u)
                if level < depth:
                    self.halve[level].begin()
        if depth == self.last:
            skips.pop()
        for level in range(depth, -1, -1):
            if level < self.last:
                u = self.doubled_rows[level][:, i >> level & 1, : self.widths[level]]
                e = concat_elu(u)
            for rows, pixels in zip(self.up_rows[level], self.up[level], strict=True):
                u = rows.next(u, e, skips.pop())
                e = concat_elu(u)
                pixels.begin(e)
            if level:
                self.doubled_rows[level - 1] = net.double_above[level - 1](u[:, None])
        assert not skips

    def pixel(self, j: int) -> Tensor:
        """concat_elu of the network's output at column j of this row: (n, 2 width)."""
        i, skips = self.i, []
        v = self.start[:, j]
        if j:
            v = torch.addmm(v, self.seen[:, j - 1], self.column[1])
        depth = min(_depth(i, self.last), _depth(j, self.last))
        for level in range(depth + 1):
            if level:
                v = self.halve[level - 1].out(j >> level - 1)
            e = concat_elu(v)
            skips.append(e)
            for block in self.down[level]:
                v = block.next(j >> level, v, e, None)
                e = concat_elu(v)
                skips.append(e)
            if level < self.last:
                self.halve[level].put(j >> level, v)
        if depth == self.last:
            skips.pop()
        for level in range(depth, -1, -1):
            if level < self.last:
                v = self.doubled[level][:, i >> level & 1, j >> level]
                e = concat_elu(v)
            for block in self.up[level]:
                v = block.next(j >> level, v, e, skips.pop())
                e = concat_elu(v)
            if level:
                weight, bias = self.double[level - 1]
                cell, at = F.linear(v, weight, bias).view(len(v), 2, 2, -1), 2 * (j >> level)
                self.doubled[level - 1][:, :, at : at + 2] = cell
        return e

    def tell(self, j: int, x: Tensor) -> None:
        """The input (n, channels) at column j of this row."""
        self.seen[:, j] = x


def _depth(i: int, most: int) -> int:
    """How many times i can be halved evenly, at most `most`: the coarsest resolution that has a pixel due at i."""
    return next((d for d in itertools.count() if d == most or i >> d & 1), most)
