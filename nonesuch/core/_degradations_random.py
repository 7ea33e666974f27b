"""Degradations that are not linear: compression, Real-ESRGAN's chain, and the light of a poor photograph.

Real-ESRGAN spoils a picture twice in a row by blur, resize, noise and JPEG, each of a random kind and strength, and brings it to
the size asked for, with a filter that rings, before or after the second JPEG (section 3.2, figure 2; the ranges of its training).

References: Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data (Wang et al., 2021) arXiv:2107.10833
            Deep Retinex Decomposition for Low-Light Enhancement (Wei et al., 2018) arXiv:1808.04560
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nonesuch.core._degradations_linear import Degradation, of_values
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds


def _eight_bits(spec: ImageSpec, name: str) -> ImageSpec:
    """The spec, if a JPEG file can hold its pictures."""
    if spec.kind == "ordinal" and spec.levels != 256:
        raise ValueError(f"{name} compresses 8-bit pictures, and these have {spec.levels} levels.")
    if of_values(spec, name).channels not in (1, 3) or len(spec.size) != 2:
        said = f"{spec.channels} x {' x '.join(map(str, spec.size))}"
        raise ValueError(f"{name} compresses flat pictures of 1 or 3 channels, not {said}.")
    return replace(spec, kind="ordinal", levels=256)


def _pair(value: float | tuple[float, float]) -> tuple[float, float]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


def compressed(x: Tensor, quality: int) -> Tensor:
    """One picture (C, h, w) on [-1, 1] through a JPEG file."""
    from PIL import Image

    k = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    picture = Image.fromarray((k[0] if len(k) == 1 else k.permute(1, 2, 0)).contiguous().numpy())
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        found = torch.from_numpy(np.array(opened)).float()
    return (found[None] if len(k) == 1 else found.permute(2, 0, 1)).div_(127.5).sub_(1).to(x.device, x.dtype)


@dataclass(frozen=True)
class Jpeg(Degradation):
    """Through a JPEG file of `quality` 1 to 95, or of one drawn between two for each picture; 8 bits, 1 or 3 channels."""

    quality: int | tuple[int, int] = 50

    def __post_init__(self) -> None:
        if isinstance(self.quality, list):
            object.__setattr__(self, "quality", tuple(self.quality))
        pair = _pair(self.quality)
        if any(isinstance(q, bool) or not isinstance(q, int) for q in pair) or not 1 <= pair[0] <= pair[1] <= 95:
            raise ValueError(f"Jpeg takes a quality from 1 to 95, or two of them, the lower first, not {self.quality}.")

    def output(self, spec: ImageSpec) -> ImageSpec:
        return _eight_bits(spec, "Jpeg")

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        low, high = (int(q) for q in _pair(self.quality))
        qualities = (low + seeds.integers(f"{draw}/quality", high - low + 1)).tolist()
        return torch.stack([compressed(one, q) for one, q in zip(x, qualities, strict=True)])


@dataclass(frozen=True)
class SecondOrder(Degradation):
    """Real-ESRGAN's random chain of second order: blur, resize, noise and JPEG, twice; sides become ceil(side / factor).

    The last resize, with a filter that rings, comes before the second JPEG or after it. 8 bits, 1 or 3 channels.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 1:
            raise ValueError(f"SecondOrder takes a whole factor, at least 1, not {self.factor!r}.")

    def output(self, spec: ImageSpec) -> ImageSpec:
        spec = _eight_bits(spec, "SecondOrder")
        if any(min(size) < max(4, self.factor) for size in spec.sizes or (spec.size,)):
            raise ValueError(f"SecondOrder({self.factor}) leaves nothing of a picture of {' x '.join(map(str, spec.size))}.")
        sizes = tuple(dict.fromkeys(tuple(-(-n // self.factor) for n in size) for size in spec.sizes))
        spacing = spec.spacing and tuple(s * self.factor for s in spec.spacing)
        return replace(spec, size=tuple(-(-n // self.factor) for n in spec.size), spacing=spacing, sizes=sizes)

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        numbers = seeds.uniform(f"{draw}/chain", 64).tolist()
        return torch.stack([self._one(x[i], iter(numbers[i]), seeds[[i]], draw) for i in range(len(x))])

    def _one(self, x: Tensor, u: Iterator[float], seed: Seeds, draw: str) -> Tensor:
        """One picture (C, h, w); the ranges are those of the paper's training."""
        final = tuple(-(-n // self.factor) for n in x.shape[1:])
        size = tuple(x.shape[1:])
        x = _blurred(x, u, (0.2, 3.0), 0.1)
        x = _resized(x, _scaled(size, u, (0.2, 0.7, 0.1), (0.15, 1.5)), u)
        x = _noisy(x, u, seed, f"{draw}/first", (1, 30), (0.05, 3.0))
        x = compressed(x.clamp(-1, 1), _between(u, 30, 95))
        if next(u) < 0.8:
            x = _blurred(x, u, (0.2, 1.5), 0.1)
        x = _resized(x, _scaled(final, u, (0.3, 0.4, 0.3), (0.3, 1.2)), u)
        x = _noisy(x, u, seed, f"{draw}/second", (1, 25), (0.05, 2.5))
        ringing = _sinc(next(u) * (math.pi * 2 / 3) + math.pi / 3) if next(u) < 0.8 else None
        before, quality, kind = next(u) < 0.5, _between(u, 30, 95), next(u)
        if not before:
            x = compressed(x.clamp(-1, 1), quality)
        x = _resized(x, final, iter([kind]))
        x = x if ringing is None else _convolved(x, ringing)
        x = x.clamp(-1, 1)
        return compressed(x, quality) if before else ((x + 1) * 127.5).round().div(127.5).sub(1)


def _between(u: Iterator[float], low: float, high: float) -> int:
    return round(low + next(u) * (high - low))


def _scaled(
    size: tuple[int, ...], u: Iterator[float], chances: tuple[float, float, float], ends: tuple[float, float]
) -> tuple[int, ...]:
    """A size larger, smaller or the same, by these chances, at most by these factors."""
    kind, share = next(u), next(u)
    if kind < chances[0]:
        scale = 1 + share * (ends[1] - 1)
    else:
        scale = ends[0] + share * (1 - ends[0]) if kind < chances[0] + chances[1] else 1.0
    return tuple(max(2, round(n * scale)) for n in size)


def _resized(x: Tensor, size: tuple[int, ...], u: Iterator[float]) -> Tensor:
    """By area, a bilinear or a bicubic kernel, as it falls; without antialiasing, as in the paper's code."""
    mode = ("area", "bilinear", "bicubic")[min(2, int(next(u) * 3))]
    if tuple(x.shape[1:]) == size:
        return x
    return F.interpolate(x[None], size, mode=mode, align_corners=None if mode == "area" else False)[0]


def _noisy(x: Tensor, u: Iterator[float], seed: Seeds, draw: str, sigma: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """Gaussian noise, or photons' (by its Gaussian limit), the same in all channels for two pictures of five."""
    gaussian, strength, gray = next(u) < 0.5, next(u), next(u) < 0.4
    noise = seed.normal(draw, *x.shape[1:] if gray else x.shape)[0].to(x.device, x.dtype)
    if gaussian:
        return x + noise * (sigma[0] + strength * (sigma[1] - sigma[0])) / 127.5
    light = ((x.mean(0, keepdim=True) if gray else x) + 1).clamp_min(0) / 2  # a variance of its own mean, in 1/256
    return x + 2 * (scale[0] + strength * (scale[1] - scale[0])) * (light / 256).sqrt() * noise


def _blurred(x: Tensor, u: Iterator[float], sigma: tuple[float, float], sinc: float) -> Tensor:
    """A random kernel of 7 to 21 pixels: a (generalised, plateau-shaped) Gaussian, turned and stretched, or a sinc."""
    side = 7 + 2 * min(7, int(next(u) * 8))
    ring, cut, form, shape = next(u) < sinc, next(u), next(u), next(u)
    one, two, turn = next(u), next(u), next(u)
    if ring:
        low = math.pi / 3 if side < 13 else math.pi / 5
        return _convolved(x, _sinc(low + cut * (math.pi - low), side))
    s1, s2 = (sigma[0] + v * (sigma[1] - sigma[0]) for v in (one, two))
    isotropic = form < 0.45 or 0.7 <= form < 0.82 or 0.85 <= form < 0.97
    s2, turn = (s1, 0.0) if isotropic else (s2, turn * math.pi)
    at = torch.arange(side, dtype=torch.float64) - side // 2
    a, b = at[:, None] * math.cos(turn) + at * math.sin(turn), at * math.cos(turn) - at[:, None] * math.sin(turn)
    q = (a / s1) ** 2 + (b / s2) ** 2
    if form < 0.7:
        kernel = torch.exp(-0.5 * q)
    elif form < 0.85:
        kernel = torch.exp(-0.5 * q ** (0.5 + shape * 3.5))  # generalised, beta in [0.5, 4]
    else:
        kernel = 1 / (1 + q ** (1 + shape))  # plateau, beta in [1, 2]
    return _convolved(x, kernel)


def _sinc(cut: float, side: int = 21) -> Tensor:
    """The ideal low-pass filter of the plane, cut at `cut` in radians a pixel (equation 6): ringing and overshoot."""
    at = torch.arange(side, dtype=torch.float64) - side // 2
    r = (at[:, None] ** 2 + at**2).sqrt()
    bessel = torch.special.bessel_j1(cut * r)
    return torch.where(r > 0, cut * bessel / (2 * math.pi * r.clamp_min(1e-9)), torch.full_like(r, cut**2 / (4 * math.pi)))


def _convolved(x: Tensor, kernel: Tensor) -> Tensor:
    kernel = (kernel / kernel.sum()).to(x.device, x.dtype)
    reach = len(kernel) // 2
    while reach >= min(x.shape[1:]):  # a picture smaller than the kernel takes its middle
        kernel, reach = kernel[1:-1, 1:-1] / kernel[1:-1, 1:-1].sum(), reach - 1
    padded = F.pad(x[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None])[:, 0]


# -- light


class _Strength(Degradation):
    """One whose strength in [0, 1] is drawn for each picture between two ends."""

    strength: float | tuple[float, float]

    def __post_init__(self) -> None:
        if isinstance(self.strength, list):
            object.__setattr__(self, "strength", tuple(self.strength))
        low, high = _pair(self.strength)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"strength lies between 0 and 1: one number, or two, the lower first, not {self.strength}.")

    def output(self, spec: ImageSpec) -> ImageSpec:
        return of_values(spec, type(self).__name__)

    def strengths(self, n: int, seeds: Seeds | int = 0, draw: str = "") -> Tensor:
        """The strengths (n,) that the pictures of these seeds are spoiled with."""
        low, high = _pair(self.strength)
        return low + (high - low) * Seeds.of(seeds, n).uniform(f"{draw or self.draws}/strength")


@dataclass(frozen=True)
class LowLight(_Strength):
    """A photograph taken in the dark: v -> gain v^gamma + offset, with the noise of few photons and of the sensor.

    v is the value from 0 (black) to 1. At strength 1 gain is 0.1, gamma 2, offset 0.02, and the noise's deviation
    sqrt(0.02 v + 0.0004) after the gain of 0.1 has been taken; at 0 the picture is as it was.
    """

    strength: float | tuple[float, float] = (0.2, 1.0)

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        s = self.strengths(len(x), seeds, draw).to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))
        dark = 0.1**s * ((x + 1) / 2).clamp(0, 1) ** (1 + s)
        noise = seeds.normal(f"{draw}/noise", *x.shape[1:], device=x.device).to(x.dtype)
        grain = s * (0.02 * dark + 0.0004).sqrt() * noise
        return (2 * (dark + 0.02 * s + grain) - 1).clamp(-1, 1)


@dataclass(frozen=True)
class LowContrast(_Strength):
    """A flat photograph: v -> gain (v - 1/2) + 1/2 + offset, offset of either sign, with a little noise.

    v is the value from 0 (black) to 1. At strength 1 gain is 0.2, offset within 0.3 and the noise's deviation 0.01.
    """

    strength: float | tuple[float, float] = (0.2, 1.0)

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        s = self.strengths(len(x), seeds, draw).to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))
        offset = seeds.uniform(f"{draw}/offset", *[1] * (x.dim() - 1)).to(x.device, x.dtype) * 1.2 - 0.6
        noise = seeds.normal(f"{draw}/noise", *x.shape[1:], device=x.device).to(x.dtype)
        return (x * 0.2**s + s * offset + 0.02 * s * noise).clamp(-1, 1)
