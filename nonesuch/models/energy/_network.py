"""A scalar network: images and a noise level in, one number an image out, smooth enough to be differentiated twice.

Convolutions at falling resolutions, then a residual network on the flattened grid, then a linear readout. Its backward pass is
the decoder: an image-shaped gradient costs about two evaluations. There is no normalisation: second derivatives through one
cost more than the convolutions beside it, and at this depth residual branches that start at zero train as well without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Conv, Dropout, Linear, channels_last, depth_to_space, space_to_depth, zero

Frozen = dict[str, Tensor]  # weights by name, outside of any graph


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

    def frozen(self, dtype: torch.dtype) -> Frozen:
        """The weights as a chain uses them, cast once and not at each step; the readout stays float32."""
        named = self.named_parameters()
        return {n: p.detach() if n.startswith("readout") else p.detach().to(dtype) for n, p in named}

    def told(self, c: Tensor, weights: Frozen) -> list[tuple[Tensor, Tensor]]:
        """1 + scale and shift of each dense block under c: what a chain whose c stays the same needs once."""
        found = []
        for i in range(len(self.tail)):
            name = f"tail.{i}.modulation"
            scale, shift = F.linear(c.to(self._dtype(weights)), weights[f"{name}.weight"], weights[f"{name}.bias"]).chunk(2, 1)
            found.append((scale + 1, shift))
        return found

    def slope(self, u: Tensor, c: Tensor, weights: Frozen, told: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The gradient in u of `forward`'s sum, without a graph where the network is dense, by the chain rule written out.

        Chains are many calls on few images, whose time is that of keeping the books of automatic differentiation.
        """
        if self.stages:
            with torch.enable_grad():
                leaf = u.detach().requires_grad_()
                (grad,) = torch.autograd.grad(functional_call(self, weights, (leaf, c)).sum(), leaf)
            return grad
        told = self.told(c, weights) if told is None else told
        x = space_to_depth(F.pad(u, self.pad), self.patch)
        h = F.linear(x.flatten(1).to(self._dtype(weights)), weights["flat.weight"], weights["flat.bias"])
        kept: list[tuple[Tensor, Tensor]] = []
        for i, (scale, shift) in enumerate(told):
            w1, b1, w2, b2 = (weights[f"tail.{i}.{n}"] for n in ("map1.weight", "map1.bias", "map2.weight", "map2.bias"))
            inner = torch.addcmul(shift, F.linear(F.silu(h), w1, b1), scale)
            kept.append((h, inner))
            h = h + F.linear(F.silu(inner), w2, b2)
        back = torch.ops.aten.silu_backward
        g = back(weights["readout.weight"].expand(len(h), -1), h.float()).to(h.dtype)
        for i in reversed(range(len(told))):
            h, inner = kept[i]
            d = back(g @ weights[f"tail.{i}.map2.weight"], inner).mul_(told[i][0])
            g = g + back(d @ weights[f"tail.{i}.map1.weight"], h)
        d = (g @ weights["flat.weight"]).view(x.shape)
        return depth_to_space(d, self.patch)[(..., *[slice(s) for s in u.shape[2:]])].to(u.dtype)

    @staticmethod
    def _dtype(weights: Frozen) -> torch.dtype:
        return weights["flat.weight"].dtype
