"""The two networks of the KL-regularised autoencoder: residual convolutions between a picture and a smaller map of latents.

    residual block   x' = x + conv(silu(norm(conv(silu(norm x)))))                     norm: of groups of channels
    downwards        a convolution of stride 2, the far sides padded by a pixel
    upwards          each pixel four times, then a convolution
    in the middle    two blocks, and between them attention from every position to every other

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021) arXiv:2112.10752, appendix E
    Taming Transformers for High-Resolution Image Synthesis (Esser, Rombach, Ommer, 2020) arXiv:2012.09841, table 7
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.nn.conv import Conv, Linear, channels_last, upsample, zero
from nonesuch.nn.fused import Fusible, normalise


class GroupNorm(nn.GroupNorm, Fusible):
    """Group normalisation with statistics in float32, then SiLU if `silu`; in its input's dtype."""

    def forward(self, x: Tensor, silu: bool = True) -> Tensor:
        if self.fused:
            return normalise([x], self.num_groups, self.weight, self.bias, self.eps, silu=silu)
        weight, bias = (
            p if x.dtype == torch.float64 or x.device.type == "cpu" else p.to(x.dtype) for p in (self.weight, self.bias)
        )
        y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return F.silu(y) if silu else y


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(groups, channels, eps), Conv(2, channels, out)
        self.norm2, self.conv2 = GroupNorm(groups, out, eps), zero(Conv(2, out, out))
        self.skip = Conv(2, channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return out


class PixelAttention(nn.Module):
    """Self-attention of one head between all positions, as a residual."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps)
        self.qkv, self.out = Linear(channels, 3 * channels), zero(Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x, silu=False).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, -1)
        found = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.out(found).transpose(1, 2).unflatten(2, x.shape[2:])


class _Halve(Conv):
    def __init__(self, channels: int) -> None:
        super().__init__(2, channels, channels, stride=2)
        self.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class _Double(Conv):
    def __init__(self, channels: int) -> None:
        super().__init__(2, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(upsample(x))


def _middle(channels: int, groups: int, eps: float, attention: bool) -> nn.Sequential:
    between = [PixelAttention(channels, groups, eps)] if attention else []
    return nn.Sequential(Residual(channels, channels, groups, eps), *between, Residual(channels, channels, groups, eps))


def _stages(widths: Sequence[int], blocks: int, groups: int, eps: float, change: type[nn.Module]) -> nn.ModuleList:
    """Blocks at each resolution, with the change to the next one after all but the last."""
    stages, now = nn.ModuleList(), widths[0]
    for i, width in enumerate(widths):
        layers: list[nn.Module] = [Residual(now if j == 0 else width, width, groups, eps) for j in range(blocks)]
        stages.append(nn.Sequential(*layers, *([change(width)] if i + 1 < len(widths) else [])))
        now = width
    return stages


class Down(nn.Module):
    """(B, channels, H, W) -> (B, out, h, w), each side halved len(widths) - 1 times."""

    def __init__(
        self, channels: int, out: int, widths: Sequence[int], blocks: int, groups: int, eps: float, attention: bool
    ) -> None:
        super().__init__()
        self.enter, self.stages = Conv(2, channels, widths[0]), _stages(widths, blocks, groups, eps, _Halve)
        self.middle = _middle(widths[-1], groups, eps, attention)
        self.norm, self.leave = GroupNorm(groups, widths[-1], eps), Conv(2, widths[-1], out)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """All in `dtype` but the ends, which are cheap and keep that of x: the first and the last convolution."""
        h = channels_last(self.enter(channels_last(x))).to(dtype)
        for stage in self.stages:
            h = stage(h)
        out: Tensor = self.leave(self.norm(self.middle(h).to(x.dtype)))
        return out


class Up(nn.Module):
    """(B, channels, h, w) -> (B, out, H, W), the way back; `widths` finest first, as for `Down`."""

    def __init__(
        self, channels: int, out: int, widths: Sequence[int], blocks: int, groups: int, eps: float, attention: bool
    ) -> None:
        super().__init__()
        widths = list(reversed(widths))
        self.enter, self.middle = Conv(2, channels, widths[0]), _middle(widths[0], groups, eps, attention)
        self.stages = _stages(widths, blocks, groups, eps, _Double)
        self.norm, self.leave = GroupNorm(groups, widths[-1], eps), Conv(2, widths[-1], out)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As for `Down`."""
        h = self.middle(channels_last(self.enter(channels_last(x))).to(dtype))
        for stage in self.stages:
            h = stage(h)
        out: Tensor = self.leave(self.norm(h.to(x.dtype)))
        return out
