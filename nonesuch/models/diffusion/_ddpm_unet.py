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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.nn import attention, packed
from nonesuch.nn.condition import ImageCondition
from nonesuch.nn.conv import Dropout, channels_last, upsample, zero
from nonesuch.nn.embed import GivenEmbedding
from nonesuch.nn.fused import Fusible, normalise


@dataclass(frozen=True)
class Form:
    """What all layers of one network agree on: groups and eps of its normalisation, channels of a head, padding downwards."""

    groups: int = 32
    eps: float = 1e-6
    head_dim: int = 0  # 0: one head
    pad_both: bool = False  # strided convolutions pad each side by a pixel; the published network pads only the far side
    frequency_shift: int = 1
    dropout: float = 0.1


class _Kept(dict[str, tuple[tuple[object, ...], Tensor]]):
    """What is made of weights and kept; a copy of the network makes its own."""

    def __deepcopy__(self, memo: object) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Kept, ()


class _Cast(Fusible):
    """Weights in another dtype, kept between calls without gradients for as long as nothing writes to them."""

    def _in(self, name: str, dtype: torch.dtype) -> Tensor:
        """The weight of that name."""
        weight: Tensor = getattr(self, name)
        if weight.dtype == dtype:
            return weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.distributed.is_initialized():
            return weight.to(dtype)  # (weights that several processes share are written to without a trace)
        return self._kept(name, (weight,), dtype, lambda: channels_last(weight.to(dtype)))

    def _kept(self, name: str, of: Sequence[Tensor], dtype: torch.dtype, made: Callable[[], Tensor]) -> Tensor:
        """What `made` gives, made again if a tensor it is made `of` was written to."""
        kept: _Kept = self.__dict__.get("_casts") or self.__dict__.setdefault("_casts", _Kept())
        key = (dtype, *[v for w in of for v in (w._version, w.data_ptr())])
        found = kept.get(name)
        if found is None or found[0] != key:
            found = kept[name] = (key, made())
        return found[1]

    def _packs(self, x: Tensor) -> bool:
        """Whether bf16 weights are kept packed, for an input such as x."""
        quick = self.fused and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
        return quick and not torch.compiler.is_compiling() and not torch.distributed.is_initialized() and packed.usable()


class Dense(nn.Linear, _Cast):
    """A linear map of the last axis, in its input's dtype."""

    def forward(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """W x + b, or base + W x + b."""
        if self._packs(x):
            weight = self._kept("packed", (self.weight,), x.dtype, lambda: packed.pack_linear(self.weight.to(x.dtype), x))
            return packed.linear(x, weight, self._in("bias", x.dtype), base)
        out = F.linear(x, self._in("weight", x.dtype), self._in("bias", x.dtype))
        return out if base is None else base + out


class Conv2d(nn.Conv2d, _Cast):
    """A convolution in its input's dtype; of one pixel, a matrix product over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1):
            weight = self._in("weight", x.dtype).flatten(1)
            return F.linear(x.movedim(1, -1), weight, self._in("bias", x.dtype)).movedim(-1, 1)
        if self._packs(x):
            return self._convolve(x, self._in("bias", x.dtype))
        return F.conv2d(x, self._in("weight", x.dtype), self._in("bias", x.dtype), self.stride, self.padding)

    def _convolve(self, x: Tensor, bias: Tensor, base: Tensor | None = None) -> Tensor:
        form = self.stride[0], int(self.padding[0])
        weight = self._kept("packed", (self.weight,), x.dtype, lambda: packed.pack(self.weight.to(x.dtype), x, *form))
        return packed.convolve(x, weight, bias, *form, base)

    def doubled(self, x: Tensor) -> Tensor:
        """The convolution of x with each pixel four times, which need not be written where weights are packed."""
        if not self._packs(x) or min(x.shape[2:]) < 8:
            return self(upsample(x))
        kept = []
        for i in range(4):
            made = lambda i=i: packed.pack(packed.phases(self.weight)[i].to(x.dtype), x)  # noqa: E731
            kept.append(self._kept(f"phase {i}", (self.weight,), x.dtype, made))
        return packed.double(x, kept, self._in("bias", x.dtype))

    def after(self, parts: Sequence[Tensor], skip: nn.Module, h: Tensor) -> Tensor:
        """skip(parts) + conv(h), where skip is the identity or a convolution of one pixel over the channels of all parts."""
        if not isinstance(skip, Conv2d):
            if not self._packs(h):
                return parts[0] + self(h)
            return self._convolve(h, self._in("bias", h.dtype), parts[0].clone())
        weight, done, base = skip._in("weight", h.dtype).flatten(1), 0, None
        for x in parts:  # products into one sum, instead of one over channels that were joined first
            rows, w = x.movedim(1, -1).flatten(0, -2), weight[:, done : done + x.shape[1]]
            done += x.shape[1]
            if base is None:
                base = F.linear(rows, w)
            else:
                base = torch.addmm(base, rows, w.t()) if torch.is_grad_enabled() else base.addmm_(rows, w.t())
        assert base is not None
        base = base.view(len(h), *h.shape[2:], -1).movedim(-1, 1)
        if self._packs(h):
            both = (self.bias, skip.bias)
            bias = self._kept("both", both, h.dtype, lambda: (both[0] + both[1]).to(h.dtype))  # type: ignore[operator,arg-type]
            return self._convolve(h, bias, base)
        bias = (self.bias + skip.bias).to(h.dtype)  # type: ignore[operator]
        return base + F.conv2d(h, self._in("weight", h.dtype), bias, self.stride, self.padding)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with statistics in float32 and the result in the input's dtype; `silu` follows it with SiLU."""

    def forward(self, x: Tensor, silu: bool = True) -> Tensor:
        same = x.dtype if x.device.type != "cpu" else torch.float32  # a CPU takes float32 weights with bf16 values
        weight, bias = (p if x.dtype == torch.float64 else p.to(same) for p in (self.weight, self.bias))
        y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return F.silu(y, inplace=not y.requires_grad) if silu else y

    def of(self, parts: Sequence[Tensor], shift: Tensor | None = None, silu: bool = True) -> Tensor:
        """The same of the channels of all parts, after adding shift (B, C); one pass."""
        return normalise(parts, self.num_groups, self.weight, self.bias, self.eps, shift=shift, silu=silu)


class Residual(Fusible):
    """A residual block from `channels` to `out`, told of the embedding e (B, width), which is silu(e) already.

    It reads the channels of one tensor, or of two: what comes up and what was kept on the way down.
    """

    def __init__(self, channels: int, out: int, width: int, form: Form, name: str) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(form.groups, channels, form.eps), Conv2d(channels, out, 3, padding=1)
        self.time = Dense(width, out)
        self.norm2, self.conv2 = GroupNorm(form.groups, out, form.eps), zero(Conv2d(out, out, 3, padding=1))
        self.skip = Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.drop = Dropout(form.dropout, name)

    def forward(self, e: Tensor, keys: Seeds | None, *parts: Tensor) -> Tensor:
        if not self.fused:
            x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            h = self.conv1(self.norm1(x)) + self.time(e)[:, :, None, None]
            out: Tensor = self.skip(x) + self.conv2(self.drop(self.norm2(h), keys))
            return out
        h = self.conv1(self.norm1.of(parts))
        h = self.drop(self.norm2.of([h], self.time(e)), keys)
        return self.conv2.after(parts, self.skip, h)


class PixelAttention(Fusible):
    """Self-attention between the pixels of (B, C, H, W), with heads of `head_dim` channels (0: one), as a residual."""

    def __init__(self, channels: int, form: Form) -> None:
        super().__init__()
        self.num_heads = channels // (form.head_dim or channels)
        self.norm = GroupNorm(form.groups, channels, form.eps)
        self.qkv, self.out = Dense(channels, 3 * channels), zero(Dense(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, *size = x.shape
        tokens = (self.norm.of([x], silu=False) if self.fused else self.norm(x, silu=False)).flatten(2).transpose(1, 2)
        heads = [self.num_heads, c // self.num_heads]
        if self.fused and self.num_heads == 1 and tokens.dtype == torch.bfloat16:
            return self._one_head(x, tokens).transpose(1, 2).unflatten(2, size)
        if self.fused:
            q, k, v = (p.unflatten(2, heads).transpose(1, 2) for p in self.qkv(tokens).chunk(3, -1))
            found = attention.attend(q, k, v).transpose(1, 2).flatten(2)
            return self.out(found, x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size)
        q, k, v = self.qkv(tokens).view(b, -1, 3, *heads).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(found).transpose(1, 2).unflatten(2, size)

    def _one_head(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x + attention with two projections instead of four: with one head their products are as small as they are.

        (t Wq + bq)(t Wk + bk)^T is (t A + a) t^T, A = Wq Wk^T, a = bq Wk^T, but for what is equal along a row, which a
        softmax does not see; and P (t Wv + bv) Wo + bo is (P t) B + b, B = Wv Wo, b = bv Wo + bo, since the rows of P sum to one.
        """
        of = (self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias)  # type: ignore[union-attr]
        dtype, base = tokens.dtype, x.flatten(2).transpose(1, 2)
        if not self.qkv._packs(tokens):
            first, a, second, b = (t.to(dtype) for t in _products(*of))  # type: ignore[arg-type]
            q = F.linear(tokens, first, a)
            return base + F.linear(attention.attend(q[:, None], tokens[:, None], tokens[:, None])[:, 0], second, b)

        def kept(i: int) -> Tensor:
            def made() -> Tensor:
                found = _products(*of)[i].to(dtype)  # type: ignore[arg-type]
                return found if i % 2 else packed.pack_linear(found.contiguous(), tokens)

            return self.qkv._kept(f"head {i}", of, dtype, made)

        q = packed.linear(tokens, kept(0), kept(1))
        found = attention.attend(q[:, None], tokens[:, None], tokens[:, None])[:, 0]
        return packed.linear(found, kept(2), kept(3), base)


def _products(weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, a, B, b of one head, transposed as linear maps have them, in the weights' own precision."""
    q, k, v = weight.chunk(3)
    bq, _, bv = bias.chunk(3)
    return k.t() @ q, k.t() @ bq, out @ v, out @ bv + out_bias


class Stage(nn.Module):
    """The blocks of one resolution, each followed by attention where it has that, and the convolution that leaves it."""

    def __init__(
        self, pairs: Sequence[tuple[int, int]], attend: bool, leave: nn.Module, width: int, form: Form, name: str
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(a, b, width, form, f"{name}.{i}") for i, (a, b) in enumerate(pairs))
        self.attention = nn.ModuleList(PixelAttention(b, form) if attend else nn.Identity() for _, b in pairs)
        self.leave = leave


class PublishedUNet(Fusible):
    """(B, channels, H, W), timesteps (B,) from 0 and a condition -> (B, channels, H, W), what was added to the image of `spec`.

    H and W must be multiples of 2^(len(mults) - 1).
    """

    def __init__(
        self, spec: ImageSpec, base: int, mults: Sequence[int], blocks: int, attention: Sequence[bool], schema: Schema, form: Form
    ) -> None:
        super().__init__()
        sizes, width, last = [base * m for m in mults], 4 * base, len(mults) - 1
        self.base, self.form = base, form
        self.time1, self.time2 = Dense(base, width), Dense(width, width)
        self.condition, self.images = GivenEmbedding(schema, width, images=True), ImageCondition(schema, spec)
        self.enter = Conv2d(spec.channels + self.images.channels, base, 3, padding=1)
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
        self.norm, self.leave = GroupNorm(form.groups, now, form.eps), zero(Conv2d(now, spec.channels, 3, padding=1))

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
        whole = torch.cat([x, self.images(given).to(x.dtype)], 1) if self.images.channels else x
        h = self.enter(channels_last(whole)).to(dtype)
        skips = [h]
        for level, stage in enumerate(self.down):
            if level:
                leave = self.down[level - 1].leave
                h = leave(h if self.form.pad_both else F.pad(h, (0, 1, 0, 1)))  # type: ignore[operator]
                skips.append(h)
            for block, attend in zip(stage.blocks, stage.attention, strict=True):  # type: ignore[arg-type]
                h = attend(block(e, keys, h))
                skips.append(h)
        for block, attend in zip(self.middle.blocks, self.middle.attention, strict=True):
            h = attend(block(e, keys, h))
        for level, stage in enumerate(self.up):
            if level:
                h = self.up[level - 1].leave.doubled(h)  # type: ignore[union-attr,operator]
            for block, attend in zip(stage.blocks, stage.attention, strict=True):  # type: ignore[arg-type]
                h = attend(block(e, keys, h, skips.pop()))
        h = h.to(x.dtype)
        out: Tensor = self.leave(self.norm.of([h]) if self.fused else self.norm(h))
        return out
