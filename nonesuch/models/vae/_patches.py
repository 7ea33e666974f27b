"""Convolutions that halve and double a picture; a doubling's gradients by matrix products where a processor is quicker at those.

With the patches P(y) of a picture, the values under a kernel laid side by side for each of its places, a transposed convolution
and its gradients are

    y = P^T(x W),      dx = P(dy) W^T,      dW = x^T P(dy),                                                               (1)

P^T, the adjoint, adding up what falls on one pixel. Over the small maps of an autoencoder a processor's own kernels for these two
gradients take half as long again as the products in bf16 (6.8 ms against 4.7 for 128 to 64 channels, 7 x 7 to 14 x 14 pixels, 64
pictures, one busy core, all included), so the products are taken there. For y, and for convolutions that halve, they won nothing.

Weights lie as kernels for channels-last pictures read them: (out, *kernel, in), and (in, *kernel, out) for the transposed.

References:
    A guide to convolution arithmetic for deep learning (Dumoulin, Visin, 2016) arXiv:1603.07285
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nonesuch.nn.conv import channels_last

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def by_products(x: Tensor) -> bool:
    """Whether products are the quicker way for this input: pictures in bf16 on a processor."""
    return x.dim() == 4 and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def patches(x: Tensor, kernel: Sequence[int], stride: int, out: Sequence[int]) -> Tensor:
    """P: x (B, H, W, C) -> (B * out, kernel * C), the values under the kernel at each of its `out` places; one pixel of zeros."""
    (b, *size, c), (kh, kw), (oh, ow) = x.shape, kernel, out
    after = [(o - 1) * stride + k - s - 1 for o, k, s in zip(out, kernel, size, strict=True)]
    padded = F.pad(x, (0, 0, 1, after[1], 1, after[0]))
    sb, sh, sw, _ = padded.stride()
    return padded.as_strided((b, oh, ow, kh, kw * c), (sb, sh * stride, sw * stride, sh, 1)).reshape(b * oh * ow, kh * kw * c)


class _Transpose(torch.autograd.Function):
    """(1) for x (B, C, h, w) in channels-last memory, w (C, 3, 3, out) and a bias -> (B, out, *size)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor, even: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, w)
        return channels_last(F.conv_transpose2d(x, w.movedim(-1, 1), bias, 2, 1, even))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        x, g = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grads[0]))
        seen = patches(g, (3, 3), 2, x.shape[1:3])
        gx = F.linear(seen, w.flatten(1)).view(x.shape).permute(0, 3, 1, 2)
        return gx, (x.flatten(0, 2).t() @ seen).view(w.shape), g.flatten(0, 2).sum(0), None


class Halve(nn.modules.conv._ConvNd):
    """(B, C, *size) -> (B, out, *ceil(size / 2)): kernels of 4 along even sides, of 3 along odd ones; or of 3 and no halving.

    The sizes it will see decide the kernel, so they are told beforehand.
    """

    def __init__(self, channels: int, out: int, size: Sequence[int], stride: int = 2) -> None:
        dims = len(size)
        kernel = tuple(4 if stride == 2 and s % 2 == 0 else 3 for s in size)
        super().__init__(
            channels, out, kernel, (stride,) * dims, (1,) * dims, (1,) * dims, False, (0,) * dims, 1, True, "zeros"
        )  # fmt: skip
        self.weight = nn.Parameter(torch.zeros(out, *kernel, channels))

    def forward(self, x: Tensor) -> Tensor:
        w, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # type: ignore[union-attr]
        return _CONV[x.dim() - 2](x, w.movedim(-1, 1), bias, self.stride, self.padding)


class Double(nn.modules.conv._ConvNd):
    """(B, C, *ceil(size / 2)) -> (B, out, *size): a transposed convolution by kernels of 3, whose size decides odd from even."""

    def __init__(self, channels: int, out: int, size: Sequence[int]) -> None:
        dims = len(size)
        even = tuple(1 - s % 2 for s in size)
        super().__init__(
            channels, out, (3,) * dims, (2,) * dims, (1,) * dims, (1,) * dims, True, even, 1, True, "zeros"
        )  # fmt: skip
        self.weight = nn.Parameter(torch.zeros(channels, *[3] * dims, out))
        # Weights are drawn for as many inputs as `weight[0]` has numbers; a pixel here has 3/2 of `channels` along each axis.
        self.gain = math.sqrt(self.weight[0].numel() / (1.5**dims * channels))

    def forward(self, x: Tensor) -> Tensor:
        w, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # type: ignore[union-attr]
        if by_products(x):
            doubled: Tensor = _Transpose.apply(x, w, bias, self.output_padding)  # type: ignore[no-untyped-call]
            return doubled
        y = _TRANSPOSED[x.dim() - 2](x, w.movedim(-1, 1), bias, self.stride, self.padding, self.output_padding)  # type: ignore[arg-type]
        return channels_last(y)
