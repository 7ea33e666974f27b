"""The encoder and the decoder of a VQ-VAE: convolutions that halve and double, and residual blocks on the smallest map.

    encoder    halve, ..., halve, residual blocks, a map to the codes' width                 halvings may be followed by ReLU
    decoder    a map from the codes' width, [double, ReLU], residual blocks, ReLU, [double, ReLU], ..., double

References:
    Neural Discrete Representation Learning (van den Oord et al., 2017) arXiv:1711.00937, section 4.1
    Pythae: Unifying Generative Autoencoders in Python (Chadebec, Vincent, Allassonniere, 2022) arXiv:2206.08309 (`inner` false)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.models.vae._patches import Double, Halve
from nonesuch.nn.conv import Conv, channels_last


class Residual(nn.Module):
    """x + W relu(conv(relu x)), the inner map `inner` channels wide."""

    def __init__(self, channels: int, inner: int, size: Sequence[int]) -> None:
        super().__init__()
        self.enter, self.leave = Halve(channels, inner, size, stride=1), Conv(len(size), inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.leave(F.relu(self.enter(F.relu(x))))
        return x + h


class Down(nn.Module):
    """Pictures (B, C, *size) -> (B, out, *smallest); `sizes` from the picture's to the smallest, each half of the one before."""

    def __init__(
        self, channels: int, out: int, widths: Sequence[int], sizes: Sequence[tuple[int, ...]], blocks: int, inner: int,
        active: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        ins = [channels, *widths[:-1]]
        self.halve = nn.ModuleList(Halve(a, b, size) for a, b, size in zip(ins, widths, sizes[:-1], strict=True))
        self.blocks = nn.ModuleList(Residual(widths[-1], inner, sizes[-1]) for _ in range(blocks))
        self.leave, self.active = Conv(len(sizes[0]), widths[-1], out, 1), active

    def forward(self, x: Tensor) -> Tensor:
        h = channels_last(x)
        for layer in self.halve:
            h = F.relu(layer(h)) if self.active else layer(h)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.leave(h)
        return out


class Up(nn.Module):
    """(B, channels, *smallest) -> (B, out, *size). With `early`, the first doubling comes before the residual blocks."""

    def __init__(
        self, channels: int, out: int, widths: Sequence[int], sizes: Sequence[tuple[int, ...]], blocks: int, inner: int,
        early: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        outs = [*reversed(widths[:-1]), out]
        steps = list(zip([widths[-1], *outs[:-1]], outs, list(reversed(sizes))[1:], strict=True))
        self.early = int(early)
        self.enter = Conv(len(sizes[0]), channels, widths[-1], 1)
        self.grow = nn.ModuleList(Double(*one) for one in steps)
        width, size = steps[0][1:] if early else (widths[-1], sizes[-1])
        self.blocks = nn.ModuleList(Residual(width, inner, size) for _ in range(blocks))

    def forward(self, z: Tensor) -> Tensor:
        h = self.enter(channels_last(z))
        for layer in self.grow[: self.early]:
            h = layer(h)
        for block in self.blocks:
            h = block(h)
        for layer in self.grow[self.early :]:
            h = layer(F.relu(h))
        out: Tensor = h
        return out
