"""The masks of `core.degradation`: which pixels of a picture are hidden.

A mask is a diagonal matrix D of zeros and ones: D* = D+ = D. Boxes and strokes of a pen that wanders are those of inpainting;
all places are in shares of the picture's sides, so that they fit every size and two or three axes alike.

Reference: Palette: Image-to-Image Diffusion Models (Saharia et al., 2021) arXiv:2111.05826 (boxes and free-form strokes)
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nonesuch.core._degradations_linear import Linear, Operator, not_negative, of_values, unbounded
from nonesuch.core.given import did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

_SHARES = {"random": 0.5, "rectangles": 0.5, "strokes": 0.5, "pixels": 0.5, "half": 0.5, "center": 0.25}
_MARKS = 64  # boxes or strokes at most in one mask


@dataclass(frozen=True)
class Mask(Linear):
    """Some pixels hidden: y is x with them at 0, and one more channel, 1 where a pixel is known and -1 where it is hidden.

    kind: "half" hides the end of the first axis (the lower half), "center" a box in the middle, "pixels" each pixel by chance,
    "rectangles" and "strokes" as many as it takes, "random" one of the last three for each picture; or a bool tensor (*size),
    True where known, the same for all. share: how much of the picture is hidden, the most of it for rectangles and strokes
    (each picture has its own share, from a fifth of it up); None is a quarter for "center" and half for the others.
    """

    kind: str = "random"
    share: float | None = None
    noise: float = 0.0
    known: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kind, Tensor):
            object.__setattr__(self, "known", _packed(self.kind))
            object.__setattr__(self, "kind", "given")
        if (self.kind == "given") != (self.known is not None):
            raise ValueError('a Mask is of a kind, Mask("half"), or a tensor that is True where pixels are known, Mask(tensor).')
        if self.known is not None:
            _unpacked(self.known)
        elif self.kind not in _SHARES:
            raise ValueError(f"there is no Mask {self.kind!r}; {did_you_mean(self.kind, _SHARES)}")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share is how much a Mask hides, between 0 and 1, not {self.share}.")
        not_negative(self.noise)

    def output(self, spec: ImageSpec) -> ImageSpec:
        of_values(spec, "Mask")
        if self.known is not None and any(size != _unpacked(self.known).shape for size in spec.sizes or (spec.size,)):
            said = " x ".join(map(str, _unpacked(self.known).shape))
            raise ValueError(f"this Mask is for pictures of {said}, not {' x '.join(map(str, spec.size))}.")
        found = replace(spec, channels=spec.channels + 1)
        return unbounded(found) if self.noise else found

    def draw(self, n: int, size: tuple[int, ...], seeds: Seeds | int = 0, draw: str = "") -> Tensor:
        """Which pixels are known (n, 1, *size), bool."""
        draw = draw or self.draws
        seeds, share = Seeds.of(seeds, n), self.share or _SHARES.get(self.kind, 0.5)
        if self.known is not None:
            return _unpacked(self.known).expand(n, 1, *size)
        if self.kind in ("half", "center"):
            return ~_FIXED[self.kind](size, share).expand(n, 1, *size)
        if self.kind != "random":
            return ~_DRAWN[self.kind](size, share, seeds, draw)[:, None]
        which = seeds.integers(f"{draw}/kind", len(_DRAWN))
        hidden = torch.zeros(n, *size, dtype=torch.bool)
        for i, one in enumerate(_DRAWN.values()):
            rows = (which == i).nonzero()[:, 0].tolist()
            if rows:
                hidden[rows] = one(size, share, seeds[rows], draw)
        return ~hidden[:, None]

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        known = self.draw(len(x), tuple(x.shape[2:]), seeds, draw).to(x.device, x.dtype)
        return torch.cat([self._noisy(x, seeds, draw) * known, known * 2 - 1], 1)

    def operator(self, spec: ImageSpec, y: Tensor) -> Operator:
        y = self._measured(spec, y)
        return _MaskOperator((y[:, -1:] > 0).to(y.dtype), y[:, :-1], self.noise)


@dataclass(frozen=True)
class _MaskOperator(Operator):
    known: Tensor
    y: Tensor
    noise: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.known.to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self(y)


def _packed(known: Tensor) -> str:
    """A mask as text, so that it can be compared and written as JSON."""
    plain = known.detach().cpu().bool().numpy()
    plain = plain[0] if plain.ndim > 1 and plain.shape[0] == 1 else plain
    bits = base64.b64encode(zlib.compress(np.packbits(plain).tobytes(), 9)).decode()
    return f"{'x'.join(map(str, plain.shape))}:{bits}"


def _unpacked(text: str) -> Tensor:
    try:
        size, bits = text.split(":")
        shape = tuple(int(s) for s in size.split("x"))
        count = math.prod(shape)
        if min(shape) < 1 or count > 1 << 32:
            raise ValueError
        data = zlib.decompressobj().decompress(base64.b64decode(bits, validate=True), -(-count // 8) + 1)
        found = np.unpackbits(np.frombuffer(data, np.uint8), count=count)
    except (ValueError, AttributeError, binascii.Error, zlib.error):
        raise ValueError("a Mask's known pixels cannot be read; give a bool tensor, True where they are known.") from None
    if len(data) != -(-count // 8):
        raise ValueError("a Mask's known pixels are not as many as their size says; give a bool tensor.")
    return torch.from_numpy(found.astype(bool)).view(shape)


def _half(size: tuple[int, ...], share: float) -> Tensor:
    out = torch.zeros(size, dtype=torch.bool)
    out[size[0] - max(1, round(size[0] * share)) :] = True
    return out


def _center(size: tuple[int, ...], share: float) -> Tensor:
    out = torch.zeros(size, dtype=torch.bool)
    sides = [max(1, round(n * share ** (1 / len(size)))) for n in size]
    out[tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(size, sides, strict=True))] = True
    return out


def _pixels(size: tuple[int, ...], share: float, seeds: Seeds, draw: str) -> Tensor:
    return seeds.uniform(f"{draw}/pixels", *size) < share


def _until(size: tuple[int, ...], share: float, seeds: Seeds, draw: str, mark: Callable[[int], Tensor]) -> Tensor:
    """Marks (n, *size) laid one over another in every picture until its own share is hidden."""
    target = share * (0.2 + 0.8 * seeds.uniform(f"{draw}/share"))
    hidden = mark(0)
    for i in range(1, _MARKS):
        short = hidden.flatten(1).float().mean(1) < target
        if not short.any():
            break
        hidden = torch.where(short.view(-1, *[1] * len(size)), hidden | mark(i), hidden)
    return hidden


def _grid(size: tuple[int, ...], dims: int) -> Tensor:
    """Places of pixels in [0, 1], (axes, *size); each axis in its own sides."""
    axes = [(torch.arange(n) + 0.5) / n for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).view(dims, *size)


def _rectangles(size: tuple[int, ...], share: float, seeds: Seeds, draw: str) -> Tensor:
    """Boxes with sides of an eighth to a half of the picture's."""
    dims = len(size)
    place = _grid(size, dims)[None]

    def mark(i: int) -> Tensor:
        u = seeds.uniform(f"{draw}/box", 2, dims, step=i)
        side = 0.125 + 0.375 * u[:, 0]
        low = u[:, 1] * (1 - side)
        at = [v.view(-1, dims, *[1] * dims) for v in (low, low + side)]
        return ((place >= at[0]) & (place < at[1])).all(1)

    return _until(size, share, seeds, draw, mark)


def _strokes(size: tuple[int, ...], share: float, seeds: Seeds, draw: str) -> Tensor:
    """A pen that wanders: segments of up to a third of the picture with round ends, 1/40 to 1/12 of it in radius."""
    dims = len(size)
    place = _grid(size, dims)[None]
    pen = [seeds.uniform(f"{draw}/pen", dims)]
    radius = (0.025 + 0.06 * seeds.uniform(f"{draw}/radius")).clamp_min(0.5 / max(size)).view(-1, *[1] * dims)

    def mark(i: int) -> Tensor:
        start = pen[0]
        end = (start + 0.33 * (2 * seeds.uniform(f"{draw}/stroke", dims, step=i) - 1)).clamp(0, 1)
        pen[0] = end
        wide = (-1, dims, *[1] * dims)
        a, along = start.view(wide), (end - start).view(wide)
        where = ((place - a) * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True).clamp_min(1e-12)
        return (place - a - where.clamp(0, 1) * along).square().sum(1).sqrt() <= radius

    return _until(size, share, seeds, draw, mark)


_FIXED: dict[str, Callable[[tuple[int, ...], float], Tensor]] = {"half": _half, "center": _center}
_DRAWN: dict[str, Callable[[tuple[int, ...], float, Seeds, str], Tensor]] = {
    "rectangles": _rectangles,
    "strokes": _strokes,
    "pixels": _pixels,
}
