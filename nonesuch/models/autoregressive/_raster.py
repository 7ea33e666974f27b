"""A picture as a sequence: tokens in raster order, what a network may see of them, and where their causal neighbours are.

The order is that of reading: the last axis runs fastest. A token is a pixel with all its channels (`joint`), or a single value,
channels innermost (a categorical sub-pixel). Token i may be predicted from tokens j < i only.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.image import ImageSpec

ONE_HOT_LEVELS = 64  # up to so many levels an ordinal pixel is seen, and predicted, level by level


class Raster:
    """Tokens of pictures of `spec`: `length` of them, each of `values` numbers (the channels, or one)."""

    def __init__(self, spec: ImageSpec, joint: bool) -> None:
        self.spec, self.joint = spec, joint
        self.values = spec.channels if joint else 1
        self.length = spec.numel // self.values
        self.row = (spec.size[-1] if spec.size else 1) * (1 if joint else spec.channels)  # tokens of the innermost axis

    def tokens(self, x: Tensor) -> Tensor:
        """Pictures (B, C, *size) -> levels (B, length, values) int64."""
        return self.flatten(self.spec.to_levels(x))

    def flatten(self, x: Tensor) -> Tensor:
        """(B, C, *size) of anything -> (B, length, values)."""
        return x.movedim(1, -1).reshape(len(x), self.length, self.values)

    def picture(self, k: Tensor) -> Tensor:
        """Levels (B, length, values) -> pictures (B, C, *size)."""
        grid = k.reshape(len(k), *self.spec.size, self.spec.channels).movedim(-1, 1)
        return self.spec.from_levels(grid).contiguous()

    def neighbours(self, reach: int) -> Tensor:
        """(length, M) int64: for each token its M earlier neighbours at most `reach` away along each axis; `length` = outside.

        In three dimensions the reach is at most 1. A vector (no axes) is taken for a line of its channels.
        """
        line = not self.spec.size
        size = (self.spec.channels,) if line else self.spec.size
        channels = 1 if line or self.joint else self.spec.channels
        reach = min(reach, 1) if len(size) > 2 else reach
        here = (0,) * len(size)
        offsets = [o for o in itertools.product(range(-reach, reach + 1), repeat=len(size)) if o <= here]
        place = torch.cartesian_prod(*[torch.arange(s) for s in size]).view(-1, len(size))  # (pixels, dims)
        strides = torch.tensor([math.prod(size[i + 1 :]) for i in range(len(size))])
        columns = []
        for offset, channel in itertools.product(offsets, range(channels)):
            if offset == here and channel == channels - 1:
                continue
            at = place + torch.tensor(offset)
            inside = ((at >= 0) & (at < torch.tensor(size))).all(1)[:, None]
            if offset == here:
                inside = inside & (torch.arange(channels) > channel)
            index = ((at * strides).sum(1) * channels + channel)[:, None]
            columns.append(torch.where(inside, index, self.length).expand(-1, channels).reshape(-1))
        return torch.stack(columns, 1) if columns else torch.full((self.length, 1), self.length)


class Sight(nn.Module):
    """What a network sees of tokens k (B, T, values): (B, T, `size`) numbers, where zero throughout means "outside".

    A pixel of few levels is a thermometer of signs, sign(k > l) for each level l, so that neighbouring levels look alike; one of
    many levels is its value with sines and cosines of it; a category is a learned vector.
    """

    thresholds: Tensor

    def __init__(self, spec: ImageSpec, values: int) -> None:
        super().__init__()
        assert spec.levels is not None
        self.spec, self.embedding = spec, None
        if spec.kind == "categorical":
            self.embedding, self.size = nn.Embedding(spec.levels, 32), 32 * values
        elif spec.levels <= ONE_HOT_LEVELS:
            self.size = (spec.levels - 1) * values
        else:
            self.size = 8 * values
        self.register_buffer("thresholds", torch.arange(spec.levels - 1), persistent=False)

    def forward(self, k: Tensor) -> Tensor:
        levels = self.spec.levels
        assert levels is not None
        if self.embedding is not None:
            return self.embedding(k).flatten(2)
        if levels <= ONE_HOT_LEVELS:
            return ((k[..., None] > self.thresholds).float() * 2 - 1).flatten(2)
        x = self.spec.from_levels(k)[..., None]
        angle = x * torch.tensor([1.0, 4.0, 16.0], device=x.device) * (math.pi / 2)
        return torch.cat([x, torch.ones_like(x), angle.sin(), angle.cos()], -1).flatten(2)


def gather(seen: Tensor, neighbours: Tensor) -> Tensor:
    """Features (B, T, F) and a table (T, M) -> those of each token's neighbours (B, T, M F), zeros for the outside."""
    padded = F.pad(seen, (0, 0, 0, 1))
    return padded[:, neighbours.reshape(-1)].view(len(seen), len(neighbours), -1)
