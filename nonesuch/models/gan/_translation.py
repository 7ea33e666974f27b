"""The two players' networks where a picture is made of a picture: a residual U-Net that enlarges, and a critic of patches.

    x = enlarge(y) + T(y, noise, c)

T works on y's own grid, which is cheap where y is small, and coarser ones below it: residual blocks of two 3x3 convolutions
without normalisation, as in EDSR, whose last layers start at zero, so that at first x is y enlarged by cubic convolution. Sides
grow by pixel shuffle at the end. Everything is convolution, so any size goes through; sides that halve unevenly are rounded up on
the way down and cut on the way up.

The critic sees x beside y and gives a logit for each patch: what is far apart is judged apart; the pixel loss sees to the rest.

References:
    Enhanced Deep Residual Networks for Single Image Super-Resolution (Lim et al., 2017) arXiv:1707.02921, section 3
    Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network
    (Shi et al., 2016) arXiv:1609.05158
    Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2016) arXiv:1611.07004, section 3.2
    Fixup Initialization: Residual Learning Without Normalization (Zhang, Dauphin, Ma, 2019) arXiv:1901.09321
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from nonesuch.core.given import Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.models.gan._networks import _GAIN, Shape, _crop, activation, gained
from nonesuch.nn.bicubic import REACH, enlarge
from nonesuch.nn.conv import Conv, Linear, channels_last, depth_to_space, downsample, upsample, zero
from nonesuch.nn.higher import Conv as HigherConv

_VALUES, _KNOTS = 32, 12  # of a picture's distribution function, and of the curves


def picture_column(schema: Schema, spec: ImageSpec, model: str) -> tuple[str, ImageSpec, int, Schema]:
    """The one Image column: its name, its spec, how many times larger `spec` is, and the schema of all other columns.

    Raises ValueError, with what to do, for none or several, and for a column whose pictures do not enlarge to `spec`.
    """
    pictures = {name: column.spec for name, column in schema.columns.items() if isinstance(column, Image)}
    if len(pictures) != 1:
        have = f"these are {', '.join(pictures)}" if pictures else "there is none"
        raise ValueError(
            f"{model} makes pictures of pictures and takes one column of them, and {have}: fit(given=Downsample(4)), say, or "
            "give it paired folders; for pictures out of nothing choose another model."
        )
    ((name, given),) = pictures.items()
    if spec.kind == "categorical" or given.kind == "categorical" or not spec.axes or given.axes != spec.axes:
        raise ValueError(f"{model} takes and makes pictures of numbers with the same axes, not {name!r} of {given.axes!r}.")
    ratios = {a // b for a, b in zip(spec.size, given.size, strict=True)}
    ratio = ratios.pop()
    if ratios or ratio < 1 or any(a != ratio * b for a, b in zip(spec.size, given.size, strict=True)):
        theirs, ours = (" x ".join(map(str, size)) for size in (given.size, spec.size))
        raise ValueError(
            f"{model} enlarges every side of {name!r} alike and by a whole number; {theirs} does not go into {ours}."
        )
    return name, given, ratio, Schema({k: c for k, c in schema.columns.items() if k != name})


def primes(ratio: int) -> list[int]:
    """The prime factors, smallest first."""
    found, p = [], 2
    while ratio > 1:
        while ratio % p == 0:
            found.append(p)
            ratio //= p
        p += 1
    return found


@dataclass(frozen=True)
class Plan:
    """The make of a `Translation`: channels and blocks at y's grid and at each coarser one, and channels after enlarging.

    skips: whether y and what was found on its way down are added on the way up; without, all goes through the coarsest grid.
    """

    dims: int
    channels: int
    out: int
    ratio: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    tail: int
    noise: int = 0
    skips: bool = True

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ValueError("give as many blocks as widths, one number for each resolution.")

    @property
    def multiple(self) -> int:
        """Corners that are multiples of it lie on all grids."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def reach(self) -> int:
        """A bound on how far a pixel looks, in pixels of y: each 3x3 convolution adds a pixel of its grid, each grid its cell."""
        last = len(self.widths) - 1
        trunk = sum((2 if level < last else 1) * 2 * b * 2**level for level, b in enumerate(self.blocks))
        grids = 2 * (self.multiple - 1)
        factors = primes(self.ratio)
        tail = sum(1 / math.prod(factors[:i]) for i in range(len(factors) + 1))
        return max(REACH, 1 + trunk + grids + math.ceil(tail))


class Residual(nn.Module):
    """x + W2 a(W1 x) on (B, channels, *size), the identity at first; `among` blocks that stand in one chain."""

    def __init__(self, dims: int, channels: int, among: int) -> None:
        super().__init__()
        self.first = gained(Conv(dims, channels, channels), _GAIN * among**-0.5)
        self.second = zero(Conv(dims, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(activation(self.first(x)))
        return out


class Translation(nn.Module):
    """y (B, channels, *size) float32, noise of that size and c (B, widths[0]) -> (B, out, *ratio size) float32, unbounded."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        dims, widths, last = plan.dims, plan.widths, len(plan.widths) - 1
        among = max(1, 2 * sum(plan.blocks) - plan.blocks[-1])
        self.enter = gained(Conv(dims, plan.channels + plan.noise, widths[0]), _GAIN)
        self.down = nn.ModuleList(self._stage(level, among) for level in range(last + 1))
        self.up = nn.ModuleList(self._stage(level, among) for level in reversed(range(last)))
        self.finer = nn.ModuleList(Conv(dims, a, b, 1) for a, b in pairwise(widths))
        self.coarser = nn.ModuleList(Conv(dims, b, a, 1) for a, b in reversed([*pairwise(widths)]))
        factors = primes(plan.ratio)
        sides = [widths[0], *[plan.tail] * len(factors)]
        self.grow = nn.ModuleList(gained(Conv(dims, sides[i], sides[i + 1] * p**dims), _GAIN) for i, p in enumerate(factors))
        self.leave = zero(Conv(dims, sides[-1], plan.out))

    def _stage(self, level: int, among: int) -> nn.Sequential:
        plan = self.plan
        return nn.Sequential(*[Residual(plan.dims, plan.widths[level], among) for _ in range(plan.blocks[level])])

    def forward(self, y: Tensor, noise: Tensor | None, c: Tensor, dtype: torch.dtype) -> Tensor:
        h = channels_last((y if noise is None else torch.cat([y, noise], 1)).to(dtype))
        h = self.enter(h) + c.to(dtype).view(*c.shape, *[1] * self.plan.dims)
        skips = []
        for level, stage in enumerate(self.down):
            if level:
                skips.append(h)
                h = self.finer[level - 1](downsample(h))
            h = stage(h)
        for change, stage in zip(self.coarser, self.up, strict=True):
            skip = skips.pop()
            h = _crop(upsample(change(h)), skip.shape[2:])
            h = stage(skip + h if self.plan.skips else h)
        for factor, grow in zip(primes(self.plan.ratio), self.grow, strict=True):
            h = depth_to_space(grow(activation(h)), factor)
        x = self.leave(activation(h)).float()
        return self.base(y) + x if self.plan.skips else x

    def base(self, y: Tensor) -> Tensor:
        """What x is at first: y enlarged, its first channels where it has more, the one it has where it has one."""
        out = self.plan.out
        if y.shape[1] < out and y.shape[1] > 1:
            return y.new_zeros(len(y), out, *[s * self.plan.ratio for s in y.shape[2:]])
        return enlarge(y[:, :out], self.plan.ratio).expand(-1, out, *[-1] * self.plan.dims)


class Glance(nn.Module):
    """What a whole picture y says of itself, and what that and c mean for every part of it.

    `look`: y (B, channels, *size) on [-1, 1], of any size -> (B, features + 32 channels) float32: the mean over the picture of
    what a few strided convolutions find, by which grain and the edges of blocks show, and the distribution function of each
    channel at evenly spread values less that of even light, which is what histogram equalisation goes by. `forward`: y, that and
    c (B, width) -> another c, and y with all channels sent through one curve: y + a piecewise linear function, zero at first. It
    is one curve because light and contrast are what the whole picture tells; a curve for each channel learns casts of colour.

    References: Deep Bilateral Learning for Real-Time Image Enhancement (Gharbi et al., 2017) arXiv:1707.02880, section 3.1
                (global features)
                Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement (Guo et al., 2020) arXiv:2001.06826 (curves)
    """

    def __init__(self, dims: int, channels: int, features: int, width: int) -> None:
        super().__init__()
        self.width = width
        widths = (channels, max(8, features // 4), max(8, features // 2), features)
        self.convs = nn.ModuleList(gained(Conv(dims, a, b, stride=2), _GAIN) for a, b in pairwise(widths))
        self.first = gained(Linear(features + channels * _VALUES + width, 2 * features), _GAIN)
        self.second = zero(Linear(2 * features, width + _KNOTS))

    def look(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        counts = torch.stack([torch.histc(v.float(), _VALUES, -1, 1) for v in y.detach().clamp(-1, 1).flatten(2).flatten(0, 1)])
        below = (counts / math.prod(y.shape[2:])).cumsum(1) - torch.linspace(1 / _VALUES, 1, _VALUES, device=y.device)
        h = channels_last(y.to(dtype))
        for conv in self.convs:
            h = activation(conv(h))
        return torch.cat([h.float().flatten(2).mean(2), below.view(len(y), -1)], 1)

    def forward(self, y: Tensor, looked: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        out = self.second(activation(self.first(torch.cat([looked, c], 1))))
        return c + out[:, : self.width], curved(y, out[:, self.width :])


def curved(y: Tensor, knots: Tensor) -> Tensor:
    """y (B, C, *size) plus the piecewise linear function with values `knots` (B, K) at K even places of [-1, 1]."""
    at = (y.clamp(-1, 1) + 1).flatten(1) * ((knots.shape[1] - 1) / 2)
    hats = (1 - (at[..., None] - torch.arange(knots.shape[1], device=y.device)).abs()).clamp_min(0)
    return y + (hats @ knots[..., None]).view_as(y)


class PatchCritic(nn.Module):
    """Pictures (B, channels, *size) and c (B, widths[-1]) -> logits (B, patches) float32, and the features of each stage."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        widths = shape.widths
        self.enter = HigherConv(shape.dims, channels, widths[0], shape.kernel)
        self.stages = nn.ModuleList(shape.stage(level) for level in range(len(widths)))
        self.change = nn.ModuleList(HigherConv(shape.dims, a, b, shape.kernel) for a, b in pairwise(widths))
        self.psi = gained(Linear(widths[-1], 1, bias=False), _GAIN)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = channels_last(self.enter(channels_last(x)))
        features = []
        for i, stage in enumerate(self.stages):
            h = stage(self.change[i - 1](downsample(activation(h))) if i else h)
            features.append(h)
        h = activation(h).movedim(1, -1).flatten(1, -2)  # (B, patches, width)
        return self.psi(h)[..., 0].float() + (h.float() * c[:, None]).sum(-1) / math.sqrt(h.shape[-1]), features


def matching(mine: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of features, stage by stage: the feature-matching term, without any other network.

    References: High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs (Wang et al., 2017)
                arXiv:1711.11585, Eq. 4
    """
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(mine, real, strict=True)]).mean()
