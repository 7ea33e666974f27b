"""Pictures changed at random in training: each sight of a picture (its place on the run's clock) has its own numbers.

All of these *leak*: the model is not told, so it learns p(x) of the changed pictures and will draw mirrored, shifted, zoomed or
tinted ones. Name one only where such a picture is as good as the original; none is on by default, and mirrored digits, letters
or organs with a left and a right are not. What does not leak is a model that is told how its picture was moved and is sampled at
"not moved" (`nonesuch.nn.moves`: the `augment` of a model's own Config), or a critic that sees real and drawn pictures through
the same window; prefer those when pictures are few.

    flip        mirrored along w, with probability 1/2; flip:hw along each named axis, by a coin an axis
    rotate90    0, 1, 2 or 3 quarter turns in the plane hw, equally likely: pictures without an up, as under a microscope
    shift       moved by whole pixels, up to an eighth of each side, edges reflected; shift:w along the named axes only
    crop        a window of 4/5 to all of each side, anywhere, resized to the whole by interpolation (not along time)
    colour      contrast by up to 1.25, a gain of each channel by up to 1.1, brightness by up to a tenth of the range

flip, rotate90 and shift move whole pixels, so they are done on levels and are exact; crop and colour come after them and end on
the grid again. A condition that is an image is flipped and turned with its picture.

The numbers of a sight s are words of a stream made a chunk of 2^14 sights at a time (counter = chunk, element = sight within it),
because one pass of the generator costs the same for a batch as for a chunk.

References:
    Training Generative Adversarial Networks with Limited Data (Karras et al., 2020) arXiv:2006.06676 (section 2.2: what leaks)
    Distribution Augmentation for Generative Modeling (Jun et al., 2020), ICML
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.given import Given, Image, Schema, did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

CHUNK = 1 << 14  # sights whose numbers are made at once
LEAKS = {
    "flip": "mirrored",
    "rotate90": "turned by quarter turns",
    "shift": "shifted",
    "crop": "zoomed",
    "colour": "of another brightness, contrast and tint",
}
_BY_AXES = ("flip", "shift")  # those that take ":axes"
_WINDOW = 0.8  # the smallest side of a crop
_CONTRAST, _GAIN, _BRIGHTNESS = 1.25, 1.1, 0.1


@dataclass(frozen=True)
class Augment:
    """The augmentations of a run, by name, in the order they are done: ("flip", "crop"), or ("flip:hw",) along named axes.

    Raises ValueError for a name that is unknown (the nearest one is suggested) or given twice.
    """

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: str | Sequence[str] | Augment) -> Augment:
        """Read "flip,crop", a sequence of names, or an Augment."""
        if isinstance(names, Augment):
            return names
        return cls(tuple(filter(None, (n.strip() for n in (names.split(",") if isinstance(names, str) else names)))))

    def __post_init__(self) -> None:
        bases = [name.partition(":")[0] for name in self.names]
        for name, base in zip(self.names, bases, strict=True):
            if base not in LEAKS:
                raise ValueError(f"there is no augmentation {base!r}; {did_you_mean(base, LEAKS)}")
            if ":" in name and base not in _BY_AXES:
                raise ValueError(f"{base!r} takes no axes; write {base!r} alone.")
            if bases.count(base) > 1:
                raise ValueError(f"the augmentation {base!r} is named twice; name it once, with all its axes, as in 'flip:hw'.")

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def remark(self) -> str:
        """What a report must say of a model trained so; "" without augmentation."""
        ways = [LEAKS[name.partition(":")[0]] for name in self.names]
        return f"Trained on augmented pictures: it will also draw pictures that are {', '.join(ways)}." if ways else ""

    def check(self, spec: ImageSpec, schema: Schema) -> Augment:
        """Return self if these can be done to such pictures and their conditions; raise ValueError with a sentence if not."""
        images = {name: column.spec for name, column in schema.columns.items() if isinstance(column, Image)}
        for name in self.names:
            base = name.partition(":")[0]
            _check(name, base, spec)
            for column, other in images.items():
                if base not in ("flip", "rotate90"):
                    raise ValueError(f"{base!r} would leave the image condition {column!r} behind its picture; use 'flip'.")
                if other.axes != spec.axes:
                    raise ValueError(f"{name!r} needs the image condition {column!r} to have the axes {spec.axes!r} too.")
                _check(name, base, other)
        return self

    def on_levels(
        self, k: Tensor, given: Given, spec: ImageSpec, schema: Schema, seed: int, sights: range
    ) -> tuple[Tensor, Given]:
        """The moves by whole pixels: levels (B, C, *size), written in place, and conditions whose images move with them."""
        pictures = {name: given.columns[name].clone() for name, column in schema.columns.items() if isinstance(column, Image)}
        for name in self.names:
            base, axes = name.partition(":")[0], axes_of(name, spec)
            if base == "flip":
                for axis in axes:
                    rows = coins(seed, f"augment/flip:{axis}", sights).nonzero()[:, 0]
                    for moved in (k, *pictures.values()):
                        _put(moved, rows, _mirrored(_rows(moved, rows), 2 + spec.axes.index(axis)))
            elif base == "rotate90":
                turns = (uniform(seed, "augment/rotate90", 1, sights)[:, 0] * 4).long()
                for turn in (1, 2, 3):
                    rows = (turns == turn).nonzero()[:, 0]
                    for moved in (k, *pictures.values()):
                        _put(moved, rows, _rows(moved, rows).rot90(turn, (-2, -1)))
            elif base == "shift":
                k = _shift(k, uniform(seed, "augment/shift", len(spec.size), sights), [2 + spec.axes.index(a) for a in axes])
        return k, Given(given.n, {**given.columns, **pictures})

    def inside(self, x: Tensor, spec: ImageSpec, seed: int, sights: range) -> Tensor:
        """The rest: x (B, C, *size) as models see it, in and out."""
        done = x
        if "crop" in self.names:
            done = _crop(done, uniform(seed, "augment/crop", 1 + len(spec.size), sights), spec)
        if "colour" in self.names:
            done = _colour(done, uniform(seed, "augment/colour", 2 + spec.channels, sights), spec)
        return x if done is x else spec.snap(done.clamp(-1, 1) if spec.kind == "ordinal" else done)


def axes_of(name: str, spec: ImageSpec) -> str:
    """The axes a name speaks of: those after its colon, else w for flip and all but time for the others."""
    base, colon, axes = name.partition(":")
    return axes if colon else "w" if base == "flip" else spec.axes.replace("t", "")


def _check(name: str, base: str, spec: ImageSpec) -> None:
    if "w" not in spec.axes:
        raise ValueError(f"{base!r} is for pictures, volumes and videos, not for vectors and sequences.")
    axes = axes_of(name, spec)
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= set(spec.axes):
        raise ValueError(f"{name!r} names axes {axes!r}; these pictures have {spec.axes!r}, each to be named once.")
    long = [s for s in (spec.size, *spec.sizes) if s[-1] != s[-2]] if base == "rotate90" else []
    if long:
        raise ValueError(f"'rotate90' needs square pictures, not {long[0][-2]} x {long[0][-1]}; 'flip:hw' does half turns.")
    if base == "crop" and spec.kind == "categorical":
        raise ValueError("'crop' interpolates between values, which categories do not allow; use 'shift'.")
    if base == "colour" and (spec.kind != "ordinal" or spec.channels < 3):
        raise ValueError(f"'colour' is for colour pictures; these are {spec.kind}, of {spec.channels} channel(s).")


# -- numbers of sights


def pieces(sights: range, size: int) -> Iterator[tuple[int, slice]]:
    """An ascending range cut at the multiples of `size`: which multiple, and the places after it."""
    while sights:
        which = sights[0] // size
        end = -(((which + 1) * size - sights[0]) // -sights.step)
        part, sights = sights[:end], sights[end:]
        yield which, slice(part[0] - which * size, part[-1] + 1 - which * size, part.step)


@lru_cache(maxsize=16)
def _coins(seed: int, name: str, chunk: int) -> Tensor:
    words = Seeds((seed,), (chunk,)).bits(name, CHUNK // 32)[0]
    return ((words[:, None] >> torch.arange(32)) & 1).bool().view(-1)


@lru_cache(maxsize=16)
def _uniform(seed: int, name: str, count: int, chunk: int) -> Tensor:
    return Seeds((seed,), (chunk,)).uniform(name, CHUNK, count)[0]


def coins(seed: int, name: str, sights: range) -> Tensor:
    """bool (n,): a fair coin for each sight; sight s has bit s mod 32 of word s // 32 of the stream `name`."""
    return torch.cat([_coins(seed, name, chunk)[at] for chunk, at in pieces(sights, CHUNK)])


def uniform(seed: int, name: str, count: int, sights: range) -> Tensor:
    """float32 (n, count) in (0, 1) for each sight."""
    return torch.cat([_uniform(seed, name, count, chunk)[at] for chunk, at in pieces(sights, CHUNK)])


# -- moves


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows.to(x.device))


def _put(x: Tensor, rows: Tensor, new: Tensor) -> None:
    if x.device.type == "cpu":  # numpy copies whole rows; torch's index_copy_ takes ten times as long on bytes
        x.numpy()[rows.numpy()] = new.numpy()
    else:
        x.index_copy_(0, rows.to(x.device), new)


def _mirrored(x: Tensor, dim: int) -> Tensor:
    if dim < x.dim() - 1 or x.dim() < 4 or x.shape[-1] >= 64:
        return x.flip(dim)
    return (
        x.flatten(-2).flip(-1).view_as(x).flip(-2)
    )  # the same for narrow pictures: long runs go by vectors, and rows are copied


def _shift(k: Tensor, u: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        side = k.shape[dim]
        most = min(max(1, side // 8), side - 1)
        by = (u[:, dim - 2] * (2 * most + 1)).long() - most
        place = (torch.arange(side) - by[:, None]).abs()
        place = torch.where(place >= side, 2 * (side - 1) - place, place)  # reflected, the edge itself not repeated
        shape = [len(k), *[side if d == dim else 1 for d in range(1, k.dim())]]
        k = torch.take_along_dim(k, place.to(k.device).view(shape), dim)
    return k


def _crop(x: Tensor, u: Tensor, spec: ImageSpec) -> Tensor:
    """The window [t - s, t + s] of [-1, 1] along each axis but time; s in [_WINDOW, 1], and |t| <= 1 - s keeps it inside."""
    dims = len(spec.size)
    share = (_WINDOW + (1 - _WINDOW) * u[:, :1]).repeat(1, dims)
    if "t" in spec.axes:
        share[:, spec.axes.index("t")] = 1.0
    middle = (1 - share) * (2 * u[:, 1:] - 1)
    theta = torch.cat([torch.diag_embed(share.flip(1)), middle.flip(1)[..., None]], 2)  # affine_grid counts w, h, d
    grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colour(x: Tensor, u: Tensor, spec: ImageSpec) -> Tensor:
    """On [0, 1]: v -> c (g v - m) + m + b with m the picture's mean; a fourth channel is transparency and stays."""
    tinted = 3 if spec.channels == 4 else spec.channels
    u = (2 * u - 1).to(x.device).view(len(x), -1, *[1] * len(spec.size))
    contrast, gain = torch.exp(u[:, 1:2] * math.log(_CONTRAST)), torch.exp(u[:, 2 : 2 + tinted] * math.log(_GAIN))
    v = (x[:, :tinted] + 1) / 2 * gain
    middle = v.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1))
    v = contrast * (v - middle) + middle + _BRIGHTNESS * u[:, :1]
    return torch.cat([v.clamp(0, 1) * 2 - 1, x[:, tinted:]], 1)
