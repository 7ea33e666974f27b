"""Invertible maps of (B, C, *size) with cheap determinants: squeeze, ActNorm, and coupling by splines.

A coupling keeps some values of z as they are and moves the others by one-dimensional bijections whose parameters a network reads
off the kept ones, so that its Jacobian is triangular:

    y_keep = z_keep,      y_move = spline(z_move; net(z_keep, c)),      log |det dy/dz| = sum log spline'(z_move)   (1)

and the inverse asks the same network the same question. Kept and moved take turns: halves of the channels, and the two colours of
a checkerboard of positions.

References:
    Density Estimation using Real NVP (Dinh, Sohl-Dickstein, Bengio, 2016) arXiv:1605.08803 (masks, squeeze, multi-scale)
    Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma, Dhariwal, 2018) arXiv:1807.03039, section 3.1 (ActNorm)
    Flow++ (Ho, Chen, Srinivas, Duan, Abbeel, 2019) arXiv:1902.00275, section 3.3 (residual and attention conditioners)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import permutation
from nonesuch.models.flow._spline import Spline
from nonesuch.nn.conv import Conv, Linear, channels_last, zero
from nonesuch.nn.norm import ChannelNorm
from nonesuch.nn.unet import PixelAttention


def squeeze(x: Tensor, factors: Sequence[int]) -> Tensor:
    """(B, C, s1, s2, ...) -> (B, C f1 f2 ..., s1/f1, s2/f2, ...): cells of pixels become channels, a factor 1 or 2 an axis."""
    b, c, *size = x.shape
    d = len(size)
    split = x.reshape(b, c, *[v for s, f in zip(size, factors, strict=True) for v in (s // f, f)])
    order = [0, 1, *range(3, 2 * d + 2, 2), *range(2, 2 * d + 2, 2)]
    return split.permute(order).reshape(b, c * math.prod(factors), *[s // f for s, f in zip(size, factors, strict=True)])


def unsqueeze(x: Tensor, factors: Sequence[int]) -> Tensor:
    """The inverse of squeeze."""
    b, c, *size = x.shape
    d = len(size)
    split = x.reshape(b, c // math.prod(factors), *factors, *size)
    order = [0, 1, *[v for i in range(d) for v in (2 + d + i, 2 + i)]]
    return split.permute(order).reshape(b, c // math.prod(factors), *[s * f for s, f in zip(size, factors, strict=True)])


def halving(size: Sequence[int]) -> tuple[int, ...]:
    """The factor of each axis: 2 where its size is even, 1 where it is odd."""
    return tuple(2 if s % 2 == 0 else 1 for s in size)


@dataclass(frozen=True)
class Networks:
    """What all conditioners of a flow share: sizes, and where which kind is used.

    hidden, blocks: of convolutional ones; dense: hidden units of dense ones, used up to `dense_values` values;
    width: of the condition's vector; heads: of attention, used up to `attention_px` pixels a side (0: never).
    """

    hidden: int
    blocks: int
    dense: int
    dense_values: int
    width: int
    heads: int = 0
    attention_px: int = 0

    def is_dense(self, shape: Sequence[int]) -> bool:
        return 1 < math.prod(shape) <= self.dense_values  # a single value leaves nothing to look at


class ActNorm(nn.Module):
    """An affine map a channel, so that the first data it sees has mean 0 and deviation 1. (B, C, *size) -> the same, log det."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, z: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (z.dim() - 2))
        shift, log_scale = self.shift.view(shape), self.log_scale.view(shape)
        log_det = self.log_scale.sum() * math.prod(z.shape[2:])
        if inverse:
            return z * (-log_scale).exp() - shift, -log_det.expand(len(z))
        return (z + shift) * log_scale.exp(), log_det.expand(len(z))

    @torch.no_grad()
    def adapt(self, z: Tensor) -> None:
        """Take the statistics of z."""
        values = z.movedim(1, 0).flatten(1).double()
        self.shift.copy_(-values.mean(1))
        self.log_scale.copy_(-values.var(1, unbiased=False).clamp_min(1e-12).log() / 2)


class Conditioner(nn.Module):
    """(B, channels, *size) and c (B, width) -> (B, out, *size): residual convolutions; zero at first without `gain`.

    A learned value for every position and channel lets it tell positions apart. Dropout is of whole channels, by masks
    (B, `dropped` of all networks) drawn once a batch: this one's begin at `first`.
    """

    def __init__(self, channels: int, out: int, size: Sequence[int], nets: Networks, context: int = 0, gain: float = 0.0) -> None:
        super().__init__()
        dims, hidden = len(size), nets.hidden
        self.hidden, self.blocks, self.first, self.dropped = hidden, nets.blocks, 0, nets.blocks * hidden
        self.enter = Conv(dims, channels + context, hidden)
        self.position = nn.Parameter(torch.zeros(hidden, *size))
        self.modulation = Linear(nets.width, 2 * self.blocks * hidden)
        self.norms = nn.ModuleList(ChannelNorm(hidden, affine=False) for _ in range(self.blocks))
        self.convs = nn.ModuleList(Conv(dims, hidden, hidden) for _ in range(self.blocks))
        self.mixes = nn.ModuleList(zero(Conv(dims, hidden, hidden, 1)) for _ in range(self.blocks))
        attends = nets.heads and 1 < max(size) <= nets.attention_px
        self.attention = PixelAttention(hidden, nets.heads) if attends else nn.Identity()
        self.leave = Conv(dims, hidden, out, 1)
        self.leave.gain = gain  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Tensor | None, c: Tensor, masks: Tensor | None = None) -> Tensor:
        h = self.enter(channels_last(x if context is None else torch.cat([x, context], 1))) + self.position.to(x.dtype)
        ones = [1] * (x.dim() - 2)
        told = self.modulation(F.silu(c).to(x.dtype)).view(len(x), 2 * self.blocks, self.hidden, *ones).unbind(1)
        for i, (norm, conv, mix) in enumerate(zip(self.norms, self.convs, self.mixes, strict=True)):
            t = torch.addcmul(told[2 * i], norm(h), told[2 * i + 1] + 1)
            t = F.silu(conv(F.silu(t)))
            if masks is not None:
                at = self.first + i * self.hidden
                t = t * masks[:, at : at + self.hidden].to(t.dtype).view(len(x), self.hidden, *ones)
            h = h + mix(t)
        out: Tensor = self.leave(F.silu(self.attention(h)))
        return out


class DenseConditioner(nn.Module):
    """The same of (B, inputs) and context (B, width of it) -> (B, out): a residual perceptron, for pictures of few values."""

    def __init__(self, inputs: int, out: int, nets: Networks, context: int = 0, gain: float = 0.0) -> None:
        super().__init__()
        hidden = nets.dense
        self.hidden, self.blocks, self.first, self.dropped = hidden, nets.blocks, 0, nets.blocks * hidden
        self.enter = Linear(inputs + context, hidden)
        self.told = Linear(nets.width, hidden, bias=False)
        self.ins = nn.ModuleList(Linear(hidden, hidden) for _ in range(self.blocks))
        self.outs = nn.ModuleList(zero(Linear(hidden, hidden)) for _ in range(self.blocks))
        self.leave = Linear(hidden, out)
        self.leave.gain = gain  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Tensor | None, c: Tensor, masks: Tensor | None = None) -> Tensor:
        h = self.enter(x if context is None else torch.cat([x, context], 1)) + self.told(c.to(x.dtype))
        for i, (inward, outward) in enumerate(zip(self.ins, self.outs, strict=True)):
            t = F.silu(inward(F.silu(h)))
            if masks is not None:
                at = self.first + i * self.hidden
                t = t * masks[:, at : at + self.hidden].to(t.dtype)
            h = h + outward(t)
        out: Tensor = self.leave(F.silu(h))
        return out


class Coupling(nn.Module):
    """Eq. 1 on (B, C, *size): values whose place is true in `moved` (bool, (C, *size)) are moved, the rest kept."""

    keep: Tensor
    kept: Tensor
    moved: Tensor
    place: Tensor
    back: Tensor

    def __init__(self, moved: Tensor, spline: Spline, nets: Networks, context: int = 0) -> None:
        super().__init__()
        size = moved.shape[1:]
        flat = moved.flatten()
        used = moved.flatten(1).any(1)
        self.spline = spline
        self.dense = nets.is_dense(moved.shape)
        constants = {
            "keep": (~moved).float(),
            "moved": flat.nonzero()[:, 0],
            "kept": (~flat).nonzero()[:, 0],
            "place": moved[used].flatten().nonzero()[:, 0],  # of the moved values among the channels the network speaks of
            "back": torch.cat([(~flat).nonzero()[:, 0], flat.nonzero()[:, 0]]).argsort(),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        count = spline.count
        self.net = (
            DenseConditioner(len(self.kept), count * len(self.moved), nets, context)
            if self.dense
            else Conditioner(len(moved), count * int(used.sum()), size, nets, context)
        )

    def forward(
        self, z: Tensor, c: Tensor, dtype: torch.dtype, context: Tensor | None = None, masks: Tensor | None = None,
        inverse: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """z and the log det (B,); the network computes in `dtype`, and from the kept values alone."""
        flat = z.flatten(1)
        kept = flat.index_select(1, self.kept)
        if self.dense:
            raw = self.net(kept.to(dtype), context, c, masks).view(len(z), self.spline.count, -1).to(z.dtype)
        else:
            raw = self.net((z * self.keep).to(dtype), context, c, masks).to(z.dtype).reshape(len(z), self.spline.count, -1)
            raw = raw if raw.shape[2] == len(self.moved) else raw.index_select(2, self.place)
        y, log_slope = self.spline(flat.index_select(1, self.moved), raw, inverse)
        return torch.cat([kept, y], 1).index_select(1, self.back).view(z.shape), log_slope.sum(1)


def colourings(channels: int, size: Sequence[int], pairs: int, name: str) -> list[Tensor]:
    """Masks (C, *size) of what each of 2 x pairs couplings moves: channel halves and checkerboards in turn, with complements.

    A single value has nothing to be conditioned on and is moved alone.
    """
    board = torch.zeros(1, dtype=torch.int64).view([1] * len(size))
    for axis, s in enumerate(size):
        board = board + torch.arange(s).view([-1 if i == axis else 1 for i in range(len(size))])
    kinds = [k for k, many in (("channels", channels > 1), ("board", math.prod(size) > 1)) if many]
    out: list[Tensor] = []
    for i in range(pairs):
        if not kinds:
            return [torch.ones(channels, *size, dtype=torch.bool)]
        if kinds[i % len(kinds)] == "channels":
            half = permutation(0, f"{name}/{i}", channels) < channels // 2
            moved = half.view(-1, *[1] * len(size)).expand(channels, *size)
        else:
            moved = (board % 2 == 1).expand(channels, *size)
        out += [moved.clone(), ~moved]
    return out


class Scale(nn.Module):
    """ActNorm and `pairs` x 2 couplings at one resolution."""

    def __init__(
        self, channels: int, size: Sequence[int], pairs: int, spline: Spline, nets: Networks, name: str, context: int = 0
    ) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        masks = colourings(channels, size, pairs, name)
        self.couplings = nn.ModuleList(Coupling(m, spline, nets, context) for m in masks)

    def forward(
        self, z: Tensor, c: Tensor, dtype: torch.dtype, context: Tensor | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z and the log det (B,)."""
        z, total = self.norm(z)
        for coupling in self.couplings:
            z, log_det = coupling(z, c, dtype, context, masks)
            total = total + log_det
        return z, total

    def inverse(self, z: Tensor, c: Tensor, dtype: torch.dtype, context: Tensor | None = None) -> Tensor:
        """z before `forward`."""
        for coupling in reversed(self.couplings):
            z, _ = coupling(z, c, dtype, context, inverse=True)
        return self.norm(z, inverse=True)[0]


class MultiScale(nn.Module):
    """A flow of (B, C, *size) to (B, C x pixels): squeeze, couplings, half of the channels leave; then again, coarser.

    It ends when `pairs` (couplings pairs at each scale) does, or when no axis is even.
    """

    def __init__(self, channels: int, size: Sequence[int], pairs: Sequence[int], spline: Spline, nets: Networks) -> None:
        super().__init__()
        self.factors: list[tuple[int, ...]] = []
        self.leaving: list[tuple[int, ...]] = []  # the shape that leaves after each scale
        self.scales = nn.ModuleList()
        for i, n in enumerate(pairs):
            factors = halving(size)
            channels, size = channels * math.prod(factors), tuple(s // f for s, f in zip(size, factors, strict=True))
            self.scales.append(Scale(channels, size, n, spline, nets, f"scale{i}"))
            self.factors.append(factors)
            last = i + 1 == len(pairs) or max(halving(size)) == 1
            leaves = channels if last else channels // 2
            self.leaving.append((leaves, *size))
            channels -= leaves
            if last:
                break

    def forward(self, x: Tensor, c: Tensor, dtype: torch.dtype, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, C x pixels) and the log det (B,)."""
        gone: list[Tensor] = []
        total = x.new_zeros(len(x))
        for scale, factors, leaving in zip(self.scales, self.factors, self.leaving, strict=True):
            x, log_det = scale(squeeze(x, factors), c, dtype, None, masks)
            total = total + log_det
            gone.append(x[:, : leaving[0]].flatten(1))
            x = x[:, leaving[0] :]
        return torch.cat(gone, 1), total

    def inverse(self, z: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
        """x (B, C, *size) of latents."""
        parts = z.split([math.prod(s) for s in self.leaving], 1)
        x: Tensor | None = None
        steps = list(zip(self.scales, self.factors, self.leaving, parts, strict=True))
        for scale, factors, shape, part in reversed(steps):
            here = part.view(-1, *shape)
            x = unsqueeze(scale.inverse(here if x is None else torch.cat([here, x], 1), c, dtype), factors)
        assert x is not None
        return x

    def adapt(self, x: Tensor, c: Tensor, dtype: torch.dtype) -> None:
        """Set every ActNorm to the statistics of what reaches it."""
        for scale, factors, leaving in zip(self.scales, self.factors, self.leaving, strict=True):
            x = squeeze(x, factors)
            scale.norm.adapt(x)
            x = scale(x, c, dtype)[0][:, leaving[0] :]
