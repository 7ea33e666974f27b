"""Residual blocks and a U-Net over (B, C, *size), modulated by a vector; a few channels and an odd size are welcome.

References:
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239, appendix B
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.nn.attention import Attention
from nonesuch.nn.conv import Conv, Dropout, Linear, channels_last, zero
from nonesuch.nn.norm import ChannelNorm, LayerNorm


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x))) (1 + scale) + shift)), with scale and shift from c (B, width)."""

    def __init__(
        self, dims: int, channels: int, out: int, width: int, dropout: float = 0.0, name: str = "block", kernel: int = 3
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(channels), Conv(dims, channels, out, kernel)
        self.norm2, self.conv2 = ChannelNorm(out, affine=False), zero(Conv(dims, out, out, kernel))
        self.modulation = Linear(width, 2 * out)
        self.skip = Conv(dims, channels, out, 1) if channels != out else nn.Identity()
        self.drop = Dropout(dropout, name)

    def forward(
        self, x: Float[Tensor, "b channels *size"], c: Float[Tensor, "b width"], keys: Seeds | None = None
    ) -> Float[Tensor, "b out *size"]:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(c.to(x.dtype)).view(*c.shape[:1], -1, *[1] * (x.dim() - 2)).chunk(2, 1)
        h = self.drop(F.silu(torch.addcmul(shift, self.norm2(h), scale + 1)), keys)
        out: Tensor = self.skip(x) + self.conv2(h)
        return out


class PixelAttention(nn.Module):
    """Self-attention between the pixels of (B, C, *size), as a residual."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm, self.attention = LayerNorm(channels), Attention(channels, num_heads)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        tokens = x.flatten(2).transpose(1, 2)
        out = self.attention(self.norm(tokens)).transpose(1, 2).reshape(x.shape)
        return x + channels_last(out)


class UNet(nn.Module):
    """(B, channels, *size) and c (B, width) -> (B, out, *size): `blocks` residual blocks at each of len(mults) resolutions.

    A size that a level cannot halve evenly is rounded up on the way down and cut on the way up. Attention stands at the
    resolutions where `attention` is true.
    """

    def __init__(
        self, dims: int, channels: int, out: int, base: int, mults: Sequence[int], blocks: int, attention: Sequence[bool],
        width: int, dropout: float = 0.0, num_heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [base * m for m in mults]
        self.enter = Conv(dims, channels, base)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips: list[int] = []
        now = base

        def block(a: int, b: int, level: int, name: str) -> nn.ModuleList:
            tail = PixelAttention(b, num_heads) if attention[level] else nn.Identity()
            return nn.ModuleList([ResBlock(dims, a, b, width, dropout, name), tail])

        for level, size in enumerate(sizes):
            stage = nn.ModuleList()
            for i in range(blocks):
                stage.append(block(now, size, level, f"down{level}.{i}"))
                now = size
                skips.append(now)
            self.down.append(stage)
        self.middle = block(now, now, len(sizes) - 1, "middle")
        for level, size in reversed(list(enumerate(sizes))):
            stage = nn.ModuleList()
            for i in range(blocks):
                stage.append(block(now + skips.pop(), size, level, f"up{level}.{i}"))
                now = size
            self.up.append(stage)
        self.norm, self.leave = ChannelNorm(now + base), zero(Conv(dims, now + base, out))

    def forward(
        self, x: Float[Tensor, "b channels *size"], c: Float[Tensor, "b width"], keys: Seeds | None = None
    ) -> Float[Tensor, "b out *size"]:
        h = self.enter(channels_last(x))
        first, skips, sizes = h, [], []
        for level, stage in enumerate(self.down):
            if level:
                sizes.append(h.shape[2:])
                h = (
                    F.interpolate(h, [math.ceil(s / 2) for s in h.shape[2:]], mode="area")
                    if any(s > 1 for s in h.shape[2:])
                    else h
                )
            for block, tail in stage:  # type: ignore[misc]
                h = tail(block(h, c, keys))
                skips.append(h)
        block, tail = self.middle
        h = tail(block(h, c, keys))
        for level, stage in enumerate(self.up):
            if level:
                h = F.interpolate(h, sizes.pop(), mode="nearest")
            for block, tail in stage:  # type: ignore[misc]
                h = tail(block(torch.cat([h, skips.pop()], 1), c, keys))
        out: Tensor = self.leave(F.silu(self.norm(torch.cat([h, first], 1))))
        return out
