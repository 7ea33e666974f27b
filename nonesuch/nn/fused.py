"""Group normalisation with all that stands around it in a residual block, reading memory once, forwards and backwards.

    y = act(v),    v = (w n + b) (1 + scale) + offset,    n = (x + shift - mean) / sqrt(variance + eps)                (1)

with mean and variance over the pixels and channels of a group of one image; w, b (C,) learned; shift, scale, offset (B, C) of an
image, such as the embedding of time; act SiLU or nothing; x the channels of one or two tensors, which are not joined first. As
each channel of an image has one a and one b with v = a x + b, and g = dy act'(v), the way back needs two sums,

    G = sum g,  H = sum g n;     db = (1 + scale) G,  dw = (1 + scale) H  over images,  dscale = w H + b G,  doffset = G
    dx = r (W g - A - n B),      W = w (1 + scale),  r = 1 / sqrt(variance + eps),  A, B the group's means of W G and W H     (2)

Here this is compiled code (fused.cpp: bf16, float32 and float64 on the CPU) or, on other devices, in float16, or without
a compiler, the eager formula of Eq. 1, whose derivatives are autograd's. Both take statistics in float32 (float64), and agree to
1e-6 in float32 and to the rounding of the result in bf16. A backward pass that is itself to be differentiated (create_graph=True:
gradient penalties, divergences) is that of the eager formula, so that any order of derivative exists, where torch.compile would
have none (it has no double backward).

References:
    Group Normalization (Wu, He, 2018) arXiv:1803.08494
    FiLM: Visual Reasoning with a General Conditioning Layer (Perez et al., 2017) arXiv:1709.07871
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.nn import native
from nonesuch.nn.conv import channels_last


class Fusible(nn.Module):
    """Has a path of fused operations beside its eager one; `fused` says which it takes, and train/device.py decides it."""

    fused = False


def normalise(
    parts: Sequence[Tensor], groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *,
    shift: Tensor | None = None, scale: Tensor | None = None, offset: Tensor | None = None, silu: bool = False,
) -> Tensor:  # fmt: skip
    """Eq. 1 of one or two tensors (B, C_i, *size), of one dtype, whose channels count as C = sum C_i -> (B, C, *size).

    weight, bias (C,); shift, scale, offset (B, C). The result is of the parts' dtype and channels-last.
    """
    wide = torch.float64 if parts[0].dtype == torch.float64 else torch.float32
    rest = [
        t if t is None or (t.dtype == wide and t.is_contiguous()) else t.to(wide).contiguous()
        for t in (weight, bias, shift, scale, offset)
    ]
    first, second = channels_last(parts[0]), channels_last(parts[1]) if len(parts) > 1 else None
    if first.dim() < 4 or not native.takes(first) or torch.compiler.is_compiling():
        return eager(groups, eps, silu, first, second, *rest)
    if not torch.is_grad_enabled():
        return _forward(groups, eps, silu, first, second, rest)[0]
    out: Tensor = _Normalise.apply(groups, eps, silu, first, second, *rest)  # type: ignore[no-untyped-call]
    return out


def _forward(
    groups: int, eps: float, silu: bool, first: Tensor, second: Tensor | None, rest: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor], list[int]]:
    """y; the means of channels and groups and the groups' 1 / deviations; and the sizes that the backward pass needs too."""
    n, c, *size = first.shape
    total = c + (0 if second is None else second.shape[1])
    sizes = [n, math.prod(size), total, groups, c, int(silu), torch.get_num_threads()]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    y = first.new_empty(n, *size, total).movedim(-1, 1)
    about = [torch.empty(n, k, dtype=wide) for k in (total, groups, groups)]
    native.normalise(first.dtype, [*sizes, 0], eps, [*rest, first, second, y, *about])
    return y, about, sizes


def eager(
    groups: int, eps: float, silu: bool, first: Tensor, second: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    shift: Tensor | None, scale: Tensor | None, offset: Tensor | None,
) -> Tensor:  # fmt: skip
    """Eq. 1 as torch says it."""
    x = first if second is None else torch.cat([first, second], 1)
    pixels = [1] * (x.dim() - 2)
    v = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if shift is not None:
        v = v + shift.view(*shift.shape, *pixels)
    v = F.group_norm(v, groups, weight, bias, eps)
    if scale is not None:
        v = v * (1 + scale.view(*scale.shape, *pixels))
    if offset is not None:
        v = v + offset.view(*offset.shape, *pixels)
    return (F.silu(v) if silu else v).to(x.dtype)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: int, eps: float, silu: bool, *tensors: Tensor | None) -> Tensor:
        first, second, *rest = tensors
        assert first is not None
        ctx.law = (groups, eps, silu)
        y, about, ctx.sizes = _forward(groups, eps, silu, first, second, rest)
        ctx.save_for_backward(*tensors, *about)
        return y

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mean, middle, rate = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return (None, None, None, *_differentiable(ctx.law, tensors, needed, dys[0]))
        first, second, weight, bias, shift, scale, offset = tensors
        dx, dsecond = torch.empty_like(first), None if second is None else torch.empty_like(second)
        g, h, d = (torch.empty_like(mean) for _ in range(3))
        arrays = [
            weight,
            bias,
            shift,
            scale,
            offset,
            first,
            second,
            channels_last(dys[0]),
            mean,
            middle,
            rate,
            dx,
            dsecond,
            g,
            h,
            d,
        ]
        native.normalise(first.dtype, [*ctx.sizes, 1], ctx.law[1], arrays)
        one = 1 if scale is None else 1 + scale  # Eq. 2
        return (
            None, None, None, dx, dsecond,
            (one * h).sum(0) if needed[2] else None,
            (one * g).sum(0) if needed[3] else None,
            d if needed[4] else None,
            (h if weight is None else weight * h) + (0 if bias is None else bias * g) if needed[5] else None,
            g if needed[6] else None,
        )  # fmt: skip


def _differentiable(
    law: tuple[int, float, bool], tensors: Sequence[Tensor | None], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """The gradients as functions of the inputs and of dy, to be differentiated further."""
    alias = [None if t is None else t.view_as(t) for t in tensors]  # one input may be a function of another
    asked = [t for t, need in zip(alias, needed, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(eager(*law, *alias), asked, dy, create_graph=True))  # type: ignore[arg-type]
    return [next(found) if need and t is not None else None for t, need in zip(alias, needed, strict=True)]
