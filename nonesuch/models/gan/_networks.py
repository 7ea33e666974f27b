"""The two players' networks: plain residual convolutions, without any normalisation.

    block(x) = x + W3 a(W2 a(W1 a(x)))       1x1 wide, 3x3 in groups, 1x1 back

Without normalisation the variance of a sum of L branches is kept by how they start: the last layer at zero and the two before
at L^(-1/4) of their usual scale (Fixup with three layers a branch), so that the update of the network's output does not grow
with depth. The activation is the leaky rectifier: its second derivative is zero, which keeps the penalties' second backward
pass as cheap as the first.

References:
    The GAN is dead; long live the GAN! A Modern GAN Baseline (Huang et al., 2025) arXiv:2501.05441, section 3
    Fixup Initialization: Residual Learning Without Normalization (Zhang, Dauphin, Ma, 2019) arXiv:1901.09321
    cGANs with Projection Discriminator (Miyato, Koyama, 2018) arXiv:1802.05637, Eq. 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from nonesuch.nn.conv import Linear, channels_last, downsample, upsample, zero
from nonesuch.nn.higher import Conv, leaky_relu

_SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + _SLOPE**2))  # keeps the variance through the rectifier


def activation(x: Tensor) -> Tensor:
    return leaky_relu(x, _SLOPE)


def gained(layer: nn.Module, gain: float) -> nn.Module:
    """The layer, to start at `gain` times the usual scale."""
    layer.gain = gain  # type: ignore[assignment]
    return layer


def halved(size: Sequence[int], times: int) -> tuple[int, ...]:
    """The size after so many halvings, each rounded up."""
    return tuple(-(-s // 2**times) for s in size)


@dataclass(frozen=True)
class Shape:
    """What the two networks share: image sizes, channels and blocks at each resolution (finest first), and a block's make."""

    size: tuple[int, ...]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    expansion: float
    group: int
    kernel: int

    @property
    def dims(self) -> int:
        return len(self.size)

    @property
    def coarsest(self) -> tuple[int, ...]:
        return halved(self.size, len(self.widths) - 1)

    def stage(self, level: int) -> nn.Sequential:
        """The blocks at one resolution."""
        return nn.Sequential(*[Block(self, self.widths[level]) for _ in range(self.blocks[level])])


class Block(nn.Module):
    """A residual bottleneck of (B, channels, *size) that is the identity at first."""

    def __init__(self, shape: Shape, channels: int) -> None:
        super().__init__()
        groups = max(1, round(channels * shape.expansion / shape.group))
        wide, gain = groups * shape.group, _GAIN * sum(shape.blocks) ** -0.25
        self.spread = gained(Conv(shape.dims, channels, wide, 1), gain)
        self.mix = gained(Conv(shape.dims, wide, wide, shape.kernel, groups=groups), gain)
        self.gather = zero(Conv(shape.dims, wide, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.gather(activation(self.mix(activation(self.spread(x)))))
        return out


class Synthesis(nn.Module):
    """Latents beside their condition's embedding (B, latent) -> images (B, out, *size), unbounded."""

    def __init__(self, latent: int, out: int, shape: Shape) -> None:
        super().__init__()
        widths, self.shape = shape.widths, shape
        self.enter = Linear(latent, 2 * widths[-1])
        self.start = gained(Linear(2 * widths[-1], widths[-1] * math.prod(shape.coarsest)), _GAIN)
        levels = list(reversed(range(len(widths))))
        self.stages = nn.ModuleList(shape.stage(level) for level in levels)
        self.change = nn.ModuleList(Conv(shape.dims, widths[level], widths[level - 1], 1) for level in levels[:-1])
        self.leave = gained(Conv(shape.dims, widths[0], out, shape.kernel), _GAIN)

    def forward(self, z: Tensor) -> Tensor:
        h = activation(self.start(activation(self.enter(z)))).view(len(z), *self.shape.coarsest, -1).movedim(-1, 1)
        for i, stage in enumerate(self.stages):
            if i:
                h = _crop(upsample(self.change[i - 1](h)), halved(self.shape.size, len(self.stages) - 1 - i))
            h = stage(h)
        out: Tensor = self.leave(activation(h))
        return out


class Critic(nn.Module):
    """Images (B, channels, *size) and embedded conditions c (B, embed) -> logits (B,): psi(h) + <c, h> / sqrt(embed)."""

    def __init__(self, embed: int, channels: int, shape: Shape) -> None:
        super().__init__()
        widths = shape.widths
        self.enter = Conv(shape.dims, channels, widths[0], shape.kernel)
        self.stages = nn.ModuleList(shape.stage(level) for level in range(len(widths)))
        self.change = nn.ModuleList(Conv(shape.dims, a, b, 1) for a, b in pairwise(widths))
        self.features = gained(Linear(widths[-1] * math.prod(shape.coarsest), embed), _GAIN)
        self.psi = gained(Linear(embed, 1, bias=False), _GAIN)  # a bias would cancel in every difference of logits

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = channels_last(self.enter(channels_last(x)))  # twice: with one channel, the first layout is none
        for i, stage in enumerate(self.stages):
            h = stage(self.change[i - 1](downsample(h)) if i else h)
        # In channels-last memory this is a view, and so is its gradient.
        h = activation(self.features(activation(h).movedim(1, -1).flatten(1)))
        return self.psi(h)[:, 0].float() + (h.float() * c).sum(1) / math.sqrt(h.shape[1])


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    for axis, s in enumerate(size):
        x = x.narrow(2 + axis, 0, s) if x.shape[2 + axis] != s else x
    return x
