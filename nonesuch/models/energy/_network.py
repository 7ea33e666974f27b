"""A scalar network: images and a noise level in, one number an image out, smooth enough to be differentiated twice.

Convolutions at falling resolutions, then a residual network on the flattened grid, then a linear readout. Its backward pass is
the decoder: an image-shaped gradient costs about two evaluations. There is no normalisation: second derivatives through one
cost more than the convolutions beside it, and at this depth residual branches that start at zero train as well without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Conv, Dropout, Linear, channels_last, space_to_depth, zero


class ConvBlock(nn.Module):
    """h + conv(silu(conv(silu h) (1 + scale) + shift)), with scale and shift from c (B, width)."""

    def __init__(self, dims: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(dims, channels, channels), zero(Conv(dims, channels, channels))
        self.modulation = Linear(width, 2 * channels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c.to(h.dtype)).view(len(h), -1, *[1] * (h.dim() - 2)).chunk(2, 1)
        return h + self.conv2(F.silu(self.conv1(F.silu(h)) * (1 + scale) + shift))


class DenseBlock(nn.Module):
    """The same with linear maps, on (B, hidden), and dropout of the hidden units."""

    def __init__(self, hidden: int, width: int, dropout: float, name: str) -> None:
        super().__init__()
        self.map1, self.map2 = Linear(hidden, hidden), zero(Linear(hidden, hidden))
        self.modulation = Linear(width, 2 * hidden)
        self.drop = Dropout(dropout, name)

    def forward(self, h: Tensor, c: Tensor, keys: Seeds | None) -> Tensor:
        scale, shift = self.modulation(c.to(h.dtype)).chunk(2, 1)
        return h + self.map2(self.drop(F.silu(self.map1(F.silu(h)) * (1 + scale) + shift), keys))


class ScalarNetwork(nn.Module):
    """u (B, channels, *size) and c (B, width) -> (B,) float32.

    `channels_at` are the channels of the convolutional resolutions, each half the one before; the first works on cells of
    `patch` pixels a side. A size that does not divide is padded with zeros. It computes in u's dtype, and reads out in float32.
    """

    def __init__(
        self, channels: int, size: tuple[int, ...], patch: int, channels_at: Sequence[int], blocks: int,
        hidden: int, depth: int, width: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        dims = len(size)
        cell = patch * 2 ** max(0, len(channels_at) - 1)
        self.patch, self.pad = patch, [v for s in reversed(size) for v in (0, -s % cell)]
        grid = math.prod(math.ceil(s / cell) for s in size)
        self.enter, self.stages = nn.ModuleList(), nn.ModuleList()
        now = channels * patch**dims
        for i, out in enumerate(channels_at):
            self.enter.append(Conv(dims, now * (2**dims if i else 1), out, 1 if i else 3))
            self.stages.append(nn.ModuleList(ConvBlock(dims, out, width) for _ in range(blocks)))
            now = out
        self.flat = Linear(now * grid, hidden)
        self.tail = nn.ModuleList(DenseBlock(hidden, width, dropout, f"energy{i}") for i in range(depth))
        self.readout = zero(Linear(hidden, 1, bias=False))

    def forward(self, u: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        h = space_to_depth(F.pad(u, self.pad), self.patch)
        for i, (enter, stage) in enumerate(zip(self.enter, self.stages, strict=True)):
            h = enter(channels_last(space_to_depth(h) if i else h))
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, c)
        h = self.flat(h.flatten(1))
        for block in self.tail:
            h = block(h, c, keys)
        out: Tensor = self.readout(F.silu(h.float()))[:, 0]
        return out
