"""Normalisation, with statistics in float32 and the result in the dtype of the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last axis; statistics in float32.

    References: Root Mean Square Layer Normalization (Zhang, Sennrich, 2019) arXiv:1910.07467
    """
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    """(x - mean) / deviation over the last axis, without weights: one fused pass, where rms_norm takes four on a CPU."""
    return F.layer_norm(x, x.shape[-1:])


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis with a learned scale (and shift)."""

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, (self.width,), weight, bias)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel of (B, C, *size): no statistic crosses pixels or images.

    In channels-last memory it reads one contiguous run a pixel, where group normalisation would stride (decisions.md).
    """

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.norm = LayerNorm(channels, affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
