"""The U-Net of the DDPM paper as published: group normalisation and SiLU, strided convolutions down, one attended resolution.

    residual block   x' = x + conv(drop(silu(norm(conv(silu(norm x)) + W silu(e)))))        e: the embedding of time and condition
    attention        x' = x + W_o softmax(q k^T / sqrt(d)) v,    q, k, v = W norm(x) + b     over the pixels of a resolution
    downwards        a convolution of stride 2;       upwards   each pixel four times, then a convolution

Each resolution's blocks, its convolution downwards and the first convolution are kept, and each block of the way up reads one of
them beside its input, so the way up has one block more. In memory channels are innermost, which is what bf16 convolutions read.

References:
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239, appendix B
    Group Normalization (Wu, He, 2018) arXiv:1803.08494
    U-Net (Ronneberger, Fischer, Brox, 2015) arXiv:1505.04597
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.core.given import Given, Schema
from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Dropout, channels_last, upsample, zero
from nonesuch.nn.embed import GivenEmbedding


@dataclass(frozen=True)
class Form:
    """What all layers of one network agree on: groups and eps of its normalisation, channels of a head, padding downwards."""

    groups: int = 32
    eps: float = 1e-6
    head_dim: int = 0  # 0: one head
    pad_both: bool = False  # strided convolutions pad each side by a pixel; the published network pads only the far side
    frequency_shift: int = 1
    dropout: float = 0.1


class _Cast(nn.Module):
    """Weights in another dtype, kept between calls without gradients for as long as nothing writes to them."""

    def _in(self, name: str, dtype: torch.dtype) -> Tensor:
        weight: Tensor = getattr(self, name)
        if weight.dtype == dtype:
            return weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.distributed.is_initialized():
            return weight.to(dtype)  # (weights that several processes share are written to without a trace)
        kept, key = self.__dict__.setdefault("_casts", {}), (weight._version, weight.data_ptr(), dtype)
        if kept.get(name, (None,))[0] != key:
            kept[name] = (key, channels_last(weight.to(dtype)))
        return kept[name][1]


class Dense(nn.Linear, _Cast):
    """A linear map of the last axis, in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._in("weight", x.dtype), self._in("bias", x.dtype))


class Conv2d(nn.Conv2d, _Cast):
    """A convolution in its input's dtype; of one pixel, a matrix product over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._in("weight", x.dtype), self._in("bias", x.dtype)
        if self.kernel_size == (1, 1):
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with statistics in float32 and the result in the input's dtype; `silu` follows it with SiLU."""

    def forward(self, x: Tensor, silu: bool = True) -> Tensor:
        same = x.dtype if x.device.type != "cpu" else torch.float32  # a CPU takes float32 weights with bf16 values
        weight, bias = (p if x.dtype == torch.float64 else p.to(same) for p in (self.weight, self.bias))
        y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return F.silu(y, inplace=not y.requires_grad) if silu else y


class Residual(nn.Module):
    """A residual block from `channels` to `out`, told of the embedding e (B, width), which is silu(e) already."""

    def __init__(self, channels: int, out: int, width: int, form: Form, name: str) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(form.groups, channels, form.eps), Conv2d(channels, out, 3, padding=1)
        self.time = Dense(width, out)
        self.norm2, self.conv2 = GroupNorm(form.groups, out, form.eps), zero(Conv2d(out, out, 3, padding=1))
        self.skip = Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.drop = Dropout(form.dropout, name)

    def forward(self, x: Tensor, e: Tensor, keys: Seeds | None) -> Tensor:
        h = self.conv1(self.norm1(x)) + self.time(e)[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv2(self.drop(self.norm2(h), keys))
        return out


class PixelAttention(nn.Module):
    """Self-attention between the pixels of (B, C, H, W), with heads of `head_dim` channels (0: one), as a residual."""

    def __init__(self, channels: int, form: Form) -> None:
        super().__init__()
        self.num_heads = channels // (form.head_dim or channels)
        self.norm = GroupNorm(form.groups, channels, form.eps)
        self.qkv, self.out = Dense(channels, 3 * channels), zero(Dense(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, *size = x.shape
        tokens = self.norm(x, silu=False).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(b, -1, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(heads).transpose(1, 2).unflatten(2, size)


class Stage(nn.Module):
    """The blocks of one resolution, each followed by attention where it has that, and the convolution that leaves it."""

    def __init__(
        self, pairs: Sequence[tuple[int, int]], attend: bool, leave: nn.Module, width: int, form: Form, name: str
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(a, b, width, form, f"{name}.{i}") for i, (a, b) in enumerate(pairs))
        self.attention = nn.ModuleList(PixelAttention(b, form) if attend else nn.Identity() for _, b in pairs)
        self.leave = leave


class PublishedUNet(nn.Module):
    """(B, channels, H, W), timesteps (B,) from 0 and a condition -> (B, channels, H, W), what was added to the image.

    H and W must be multiples of 2^(len(mults) - 1).
    """

    def __init__(
        self, channels: int, base: int, mults: Sequence[int], blocks: int, attention: Sequence[bool], schema: Schema, form: Form
    ) -> None:
        super().__init__()
        sizes, width, last = [base * m for m in mults], 4 * base, len(mults) - 1
        self.base, self.form = base, form
        self.time1, self.time2 = Dense(base, width), Dense(width, width)
        self.condition = GivenEmbedding(schema, width)
        self.enter = Conv2d(channels, base, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, now = [base], base
        for level, size in enumerate(sizes):
            pairs = [(now if i == 0 else size, size) for i in range(blocks)]
            leave = Conv2d(size, size, 3, stride=2, padding=int(form.pad_both)) if level < last else nn.Identity()
            self.down.append(Stage(pairs, attention[level], leave, width, form, f"down{level}"))
            now = size
            skips += [size] * (blocks + (level < last))
        self.middle = Stage([(now, now)] * 2, False, nn.Identity(), width, form, "middle")
        self.middle.attention[0] = PixelAttention(now, form)
        for level, size in reversed(list(enumerate(sizes))):
            pairs = [((now if i == 0 else size) + skips.pop(), size) for i in range(blocks + 1)]
            leave = Conv2d(size, size, 3, padding=1) if level else nn.Identity()
            self.up.append(Stage(pairs, attention[level], leave, width, form, f"up{level}"))
            now = size
        self.norm, self.leave = GroupNorm(form.groups, now, form.eps), zero(Conv2d(now, channels, 3, padding=1))

    def embed(self, timestep: Tensor, given: Given, dtype: torch.dtype) -> Tensor:
        """silu of the embedding (B, width) of timesteps (B,), any real numbers, and of the condition."""
        half = self.base // 2
        ladder = torch.arange(half, device=timestep.device) / (half - self.form.frequency_shift)
        angle = timestep.float()[:, None] * torch.exp(-math.log(10_000) * ladder)
        features = F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, self.base % 2))
        e = self.time2(F.silu(self.time1(features.to(dtype))))
        return F.silu(e + self.condition(given, len(timestep), timestep.device).to(dtype))

    def forward(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, b], given: Given, keys: Seeds | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b c h w"]:  # fmt: skip
        """All in `dtype` but the ends, which are cheap and keep that of x: the embedding, the first and the last convolution."""
        e = self.embed(timestep, given, x.dtype).to(dtype)
        h = self.enter(channels_last(x)).to(dtype)
        skips = [h]
        for level, stage in enumerate(self.down):
            if level:
                leave = self.down[level - 1].leave
                h = leave(h if self.form.pad_both else F.pad(h, (0, 1, 0, 1)))  # type: ignore[operator]
                skips.append(h)
            for block, attend in zip(stage.blocks, stage.attention, strict=True):  # type: ignore[arg-type]
                h = attend(block(h, e, keys))
                skips.append(h)
        for block, attend in zip(self.middle.blocks, self.middle.attention, strict=True):
            h = attend(block(h, e, keys))
        for level, stage in enumerate(self.up):
            if level:
                h = self.up[level - 1].leave(upsample(h))  # type: ignore[operator]
            for block, attend in zip(stage.blocks, stage.attention, strict=True):  # type: ignore[arg-type]
                h = attend(block(torch.cat([h, skips.pop()], 1), e, keys))
        out: Tensor = self.leave(self.norm(h.to(x.dtype)))
        return out
