"""Convolution, linear maps and changes of resolution, computed in the dtype of their input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds, quick

_LARGE = 1 << 16  # values from which on a dropout is a pass of its own
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def zero(layer: nn.Module) -> nn.Module:
    """Mark a layer to start at zero, so that the block it ends is the identity at first."""
    layer.gain = 0.0  # type: ignore[assignment]
    return layer


class Linear(nn.Linear):
    """A linear map of the last axis, in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv(nn.modules.conv._ConvNd):
    """A same-size convolution of (B, C, *size) over `dims` spatial dimensions, in its input's dtype."""

    def __init__(
        self, dims: int, channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            channels, out, (kernel,) * dims, (stride,) * dims, (kernel // 2,) * dims, (1,) * dims,
            False, (0,) * dims, groups, bias, "zeros",
        )  # fmt: skip
        self.dims, self.pointwise = dims, (kernel, stride, groups) == (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.pointwise:  # a matrix product over the channels, whose backward pass is several times faster on a CPU
            return F.linear(x.movedim(1, -1), self.weight.to(x.dtype).flatten(1), bias).movedim(-1, 1)
        return _CONV[self.dims](x, self.weight.to(x.dtype), bias, self.stride, self.padding, self.dilation, self.groups)


def space_to_depth(x: Shaped[Tensor, "b c *size"], factor: int = 2) -> Shaped[Tensor, "b cells *smaller"]:
    """(B, C, s1, s2, ...) -> (B, C factor^d, s1/factor, ...): each cell of pixels becomes channels; exact, invertible."""
    b, c, *size = x.shape
    d = len(size)
    split = x.reshape(b, c, *[v for s in size for v in (s // factor, factor)])
    order = [0, 1, *range(3, 2 * d + 2, 2), *range(2, 2 * d + 2, 2)]
    return split.permute(order).reshape(b, c * factor**d, *[s // factor for s in size])


def depth_to_space(x: Shaped[Tensor, "b c *size"], factor: int = 2) -> Shaped[Tensor, "b pixels *larger"]:
    """The inverse of space_to_depth."""
    b, c, *size = x.shape
    d = len(size)
    split = x.reshape(b, c // factor**d, *[factor] * d, *size)
    order = [0, 1, *[v for i in range(d) for v in (2 + d + i, 2 + i)]]
    return split.permute(order).reshape(b, c // factor**d, *[s * factor for s in size])


def downsample(x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *half"]:
    """(B, C, *size) -> (B, C, *ceil(size / 2)): the mean of each cell of 2 pixels a side, or of what there is at an odd end."""
    if x.dim() < 5:
        pool = {1: F.avg_pool1d, 2: F.avg_pool2d}[x.dim() - 2]
        return pool(x, 2, ceil_mode=any(s % 2 for s in x.shape[2:]), count_include_pad=False)
    for axis in (2, 3, 4):  # torch pools no volume of bf16 on a CPU
        n = x.shape[axis]
        pairs = x.narrow(axis, 0, n // 2 * 2).unflatten(axis, (n // 2, 2)).mean(axis + 1)
        x = torch.cat([pairs, x.narrow(axis, n - 1, 1)], axis) if n % 2 else pairs
    return x


def upsample(x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *double"]:
    """(B, C, *size) -> (B, C, *2 size): nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def channels_last(x: Tensor) -> Tensor:
    """The same values laid out with channels innermost, which is what fast convolutions read."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if torch._C._functorch.is_functorch_wrapped_tensor(x):  # whose layout is vmap's own affair
        return x
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x


class Dropout(nn.Module):
    """Dropout of whole values with probability p, keyed: the same image at the same sight loses the same units.

    Without keys (sampling, scoring) it is the identity. `name` tells the draws of one network's dropouts apart. `shared`: the
    positions of a sequence (B, T, width) lose the same units, which costs next to nothing to draw (A Theoretically Grounded
    Application of Dropout in Recurrent Neural Networks (Gal, Ghahramani, 2015) arXiv:1512.05287).
    """

    def __init__(self, p: float, name: str, shared: bool = False) -> None:
        super().__init__()
        self.p, self.name, self.shared = p, name, shared

    def forward(self, x: Tensor, keys: Seeds | None) -> Tensor:
        """x (B, ...) with keys a seed an image, or None."""
        if keys is None or self.p == 0:
            return x
        plain = self.shared or x.numel() < _LARGE or torch.compiler.is_compiling() or not quick(x.numel() // 4, x.device)
        if plain or torch._C._functorch.is_functorch_wrapped_tensor(x):
            shape = (1, *x.shape[2:]) if self.shared else x.shape[1:]
            return x * keys.keep(self.name, self.p, *shape, device=x.device).to(x.dtype)
        out: Tensor = _Dropped.apply(x, keys, self.name, self.p)  # type: ignore[no-untyped-call]
        return out


class _Dropped(torch.autograd.Function):
    """Dropout whose mask is drawn again on the way back, not kept; linear, so that its derivative is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *how: Any) -> Tensor:
        ctx.how = how
        keys, name, p = how
        out: Tensor = keys.drop(x, name, p)
        return out

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropped.apply(dys[0], *ctx.how), None, None, None  # type: ignore[no-untyped-call]
