"""Style: the colours and textures of one picture on the things of another, without a trained network.

Style is the distribution of a picture's small patches at several sizes, content is where its structures are. So the pixels x of
the result are moved, from coarse to fine, to a low value of

    L(x) = SW(patches of x, patches of the reference) + keep * (1 - s(x, content)),

where SW is the sliced Wasserstein distance: under a random direction v, patches become numbers, and the distance of two sets of
numbers is that of their sorted lists,

    SW(P, Q) = E_v mean_i |sort(P v)_i - sort(Q v)_i|^2,                                                           (Heitz, Eq. 3)

a guess of which needs no more than a convolution with random filters and a sort. s is the structure term of SSIM on the mean of
the channels, the local correlation in windows of 7 x 7, which does not mind another brightness or contrast:

    s = mean (cov + c) / (sd_x sd_content + c),                                                                    (Wang, Eq. 10)

The descent is Adam's with one step size for all pixels: scaled one by one, hues that nothing pulls at would wander. Each size
starts from what the coarser one changed, put on the content after plain colour transfer, so details are never blurred, and its
steps are half as long, or single pixels would jump from one hue of the reference to another.
With weights of a VGG network (a safetensors file that the caller points to) the same distance is taken between its feature maps
too, which knows larger motifs; it is never fetched, and its hash is told. Two errors say what came of it: `content_error` is
1 - s, and `gram_error` the distance of Gram matrices of a network of random filters that nothing was optimised for.

References:
    A Sliced Wasserstein Loss for Neural Texture Synthesis (Heitz, Vanhoey, Chambon, Belcour, 2021) arXiv:2006.07229
    Generating natural images with direct Patch Distributions Matching (Elnekave, Weiss, 2022) arXiv:2203.11862
    A Neural Algorithm of Artistic Style (Gatys, Ecker, Bethge, 2015) arXiv:1508.06576
    Texture Synthesis Using Shallow Convolutional Networks with Random Filters (Ustyuzhaninov et al., 2016) arXiv:1606.00021
    Color Transfer between Images (Reinhard, Ashikhmin, Gooch, Shirley, 2001), IEEE CG&A 21(5)
    Image Quality Assessment: From Error Visibility to Structural Similarity (Wang, Bovik, Sheikh, Simoncelli, 2004)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nonesuch.applications import Event, finish
from nonesuch.applications._style_features import Layers, maps, read_vgg
from nonesuch.core.seeds import Seeds

needs: tuple[type, ...] = ()
SMALLEST_SIDE = 16

_WINDOW, _C = 7, 5e-3
_MOST_SIZES = 4
_MOST_PATCHES = 1 << 14  # a step; a grid of them at a random place


@dataclass(frozen=True)
class Options:
    """keep: weight of the content's structure, 0.05 (loose) to 1 (close); steps: of descent at each size; patch: side in pixels;
    directions: a step; lr: of pixels on [-1, 1]; features: a safetensors file of a VGG network; seed: of the directions."""

    keep: float = 0.15
    steps: int = 120
    patch: int = 7
    directions: int = 48
    lr: float = 0.06
    features: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.keep < math.inf or not 0 < self.lr < 1:
            raise ValueError(f"keep takes a number from 0 up and lr one between 0 and 1, not {self.keep} and {self.lr}.")
        if self.steps < 1 or self.directions < 1 or not 3 <= self.patch <= SMALLEST_SIDE:
            raise ValueError(f"style takes at least 1 step and 1 direction, and patches of 3 to {SMALLEST_SIDE} pixels.")


@dataclass(frozen=True)
class Styled:
    """x: the result (1, C, H, W); errors: {"content", "gram"} of it, "colour content" and "colour gram" of plain colour transfer;
    colour: that transfer; features: sha256 of the network's file, or ""."""

    x: Tensor
    colour: Tensor
    errors: dict[str, float]
    features: str = ""


def style(
    content: Tensor, reference: Tensor, options: Options | None = None, draw: Callable[[Event], object] | None = None
) -> Styled:
    """The content (1, C, H, W) in the reference's style, both on [-1, 1], of any two sizes; C is 1 or 3.

    draw: is shown the progress. Raises ValueError for pictures smaller than 16 pixels, of other channels or of two kinds.
    """
    found: Styled = finish(run(content, reference, options or Options()), draw)
    return found


def run(content: Tensor, reference: Tensor, options: Options) -> Iterator[Event]:
    """An event each ten steps, with the picture so far; the last carries a `Styled`."""
    _check(content, reference)
    layers, digest = read_vgg(options.features) if options.features is not None else ([], "")
    content, reference = content.detach().float(), reference.detach().float()
    levels = min(_MOST_SIZES, max(1, int(math.log2(min(*content.shape[2:], *reference.shape[2:]) / SMALLEST_SIDE))))
    change: Tensor | None = None
    total = levels * options.steps
    colour = colour_transfer(content, reference)
    for level in range(levels):
        scale = 2.0 ** (level + 1 - levels)
        here, there = _resized(content, scale), _resized(reference, scale)
        start = _resized(colour, scale)
        x = start if change is None else start + F.interpolate(change, here.shape[2:], mode="bicubic")
        for step, now in _descended(x, here, there, options, level, layers):
            x = now
            if step % 10 == 0 or step == options.steps:
                yield Event(level * options.steps + step, total, f"{here.shape[-1]}x{here.shape[-2]}", x=x)
        change = x - start
    x = x.clamp(-1, 1)
    errors = {
        "content": content_error(x, content), "gram": gram_error(x, reference),
        "colour content": content_error(colour, content), "colour gram": gram_error(colour, reference),
    }  # fmt: skip
    yield Event(total, total, "done", x=x, result=Styled(x, colour, errors, digest))


def _descended(
    x: Tensor, content: Tensor, reference: Tensor, options: Options, level: int, layers: Layers
) -> Iterator[tuple[int, Tensor]]:
    """Steps down L at one size; (how many, x so far)."""
    x = x.clamp(-1, 1)
    mean, size = torch.zeros_like(x), 0.0  # of the slope, and of its square over all pixels
    structure = _Structure(content)
    theirs = maps(layers, reference) if layers else []
    for step in range(options.steps):
        key = Seeds((options.seed,), (level * options.steps + step,))
        x.requires_grad_(True)
        loss = _patches_apart(x, reference, options, key)
        for i, (mine, other) in enumerate(zip(maps(layers, x) if layers else (), theirs, strict=True)):
            directions = key.normal(f"style/layer{i}", options.directions, mine.shape[1])[0]
            loss = loss + _apart(_unit(directions) @ mine[0].flatten(1), _unit(directions) @ other[0].flatten(1)) / len(theirs)
        loss = loss + options.keep * (1 - structure(x))
        (slope,) = torch.autograd.grad(loss, x)
        mean = 0.9 * mean + 0.1 * slope
        size = 0.95 * size + 0.05 * float(slope.square().mean())
        rate = options.lr / 2**level * (1 - 0.9 * step / options.steps) / (1 - 0.9 ** (step + 1))
        x = (x.detach() - rate * mean / math.sqrt(size / (1 - 0.95 ** (step + 1)) + 1e-20)).clamp(-1, 1)
        yield step + 1, x


def _patches_apart(x: Tensor, reference: Tensor, options: Options, key: Seeds) -> Tensor:
    """SW of the patches, on a grid at a random place so fine that _MOST_PATCHES are compared."""
    p = min(options.patch, *x.shape[2:], *reference.shape[2:])
    filters = _directions(key, options.directions, x.shape[1], p)
    sides = []
    for picture, name in ((x, "x"), (reference, "reference")):
        stride = max(1, math.ceil(math.sqrt((picture.shape[2] - p + 1) * (picture.shape[3] - p + 1) / _MOST_PATCHES)))
        stride = min(stride, p)  # every pixel is in a patch
        down, across = (int(v) for v in key.integers(f"style/{name}", stride, 2)[0])
        sides.append(F.conv2d(picture[..., down:, across:], filters, stride=stride)[0].flatten(1))
    return _apart(*sides)


def _directions(key: Seeds, n: int, channels: int, p: int) -> Tensor:
    """n unit filters (n, channels, p, p), each a pattern times a colour: in turn brightness, a hue, and a patch's mean colour.

    Were all mixed at random, as in the papers, noise in the hues would stand in for textures that the content forbids.
    """
    patterns = key.normal("style/patterns", n, p, p)[0]
    if channels == 1:
        return _unit(patterns.flatten(1)).view(n, 1, p, p)
    colours = key.normal("style/colours", n, 3)[0]
    colours[0::3] = 1.0
    colours[1::3] -= colours[1::3].mean(1, keepdim=True)
    patterns[2::3] = 1.0
    return _unit((colours[:, :, None, None] * patterns[:, None]).flatten(1)).view(n, 3, p, p)


def _apart(mine: Tensor, other: Tensor) -> Tensor:
    """Eq. 3 of Heitz, in units of the other's variance: rows (directions, n) and (directions, m), m brought to n by quantiles."""
    order = torch.from_numpy(np.argsort(mine.detach().numpy(), axis=1))  # several times as fast as torch's sort
    ours, theirs = mine.gather(1, order), torch.from_numpy(np.sort(other.detach().numpy(), axis=1))
    if theirs.shape[1] != ours.shape[1]:
        theirs = F.interpolate(theirs[None], ours.shape[1], mode="linear", align_corners=True)[0]
    return (ours - theirs).square().mean() / other.detach().var(1).mean().clamp_min(1e-6)


def _unit(directions: Tensor) -> Tensor:
    return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)


class _Structure:
    """s of Wang's Eq. 10 with one picture, whose half is computed once."""

    def __init__(self, content: Tensor) -> None:
        self.mean, self.deviation, self.luma = _moments(content)

    def __call__(self, x: Tensor) -> Tensor:
        mean, deviation, luma = _moments(x)
        covariance = _windowed(luma * self.luma) - mean * self.mean
        return ((covariance + _C) / (deviation * self.deviation + _C)).mean()


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    luma = x.mean(1, keepdim=True)
    mean = _windowed(luma)
    return mean, (_windowed(luma * luma) - mean * mean).clamp_min(1e-8).sqrt(), luma


def _windowed(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, min(_WINDOW, *x.shape[2:]), stride=1)


def content_error(x: Tensor, content: Tensor) -> float:
    """1 - s: 0 where every structure stayed, about 1 where none did. Both (1, C, H, W) of one size, on [-1, 1]."""
    return float(1 - _Structure(content.float())(x.float()))


def gram_error(x: Tensor, reference: Tensor) -> float:
    """|G(x) - G(reference)| / |G(reference)| of the mean Gram matrix of 256 random filters, at three sizes; 0 for the same style.

    Features are relu of filters of 3, 5, 7 and 11 pixels, centred and of unit norm (Ustyuzhaninov et al.), keyed by 0.
    """
    apart = together = 0.0
    for scale in (1.0, 0.5, 0.25):
        mine, theirs = (_gram(_resized(p.detach().float(), scale)) for p in (x, reference))
        apart += float((mine - theirs).square().sum())
        together += float(theirs.square().sum())
    return math.sqrt(apart / max(together, 1e-12))


def _gram(x: Tensor) -> Tensor:
    found = []
    for side in (3, 5, 7, 11):
        drawn = Seeds((0,), (0,)).normal(f"style/gram{side}", 64, x.shape[1] * side * side)[0]
        filters = _unit(drawn - drawn.mean(1, keepdim=True)).view(64, x.shape[1], side, side)
        padded = F.pad(x, [side // 2] * 4, mode="reflect" if min(x.shape[2:]) > side // 2 else "replicate")
        found.append(F.conv2d(padded, filters).relu()[0].flatten(1))
    features = torch.cat(found)
    return features @ features.T / features.shape[1]


def colour_transfer(content: Tensor, reference: Tensor) -> Tensor:
    """Reinhard's: each channel of l alpha beta (of grey, the one) gets the reference's mean and deviation."""
    mine, theirs = _opponent(content.float()), _opponent(reference.float())
    mean, deviation = mine.mean((2, 3), keepdim=True), mine.std((2, 3), keepdim=True)
    wanted = (mine - mean) / deviation.clamp_min(1e-6) * theirs.std((2, 3), keepdim=True) + theirs.mean((2, 3), keepdim=True)
    return _colours(wanted).clamp(-1, 1)


_LMS = torch.tensor([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])  # Reinhard, Eq. 4
_AXES = torch.diag(torch.tensor([3.0, 6.0, 2.0]).rsqrt()) @ torch.tensor([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])  # Eq. 6


def _opponent(x: Tensor) -> Tensor:
    """[-1, 1] -> l alpha beta of the logarithms of cone responses; a grey picture as it is."""
    if x.shape[1] == 1:
        return x
    cones = torch.einsum("ij,bjhw->bihw", _LMS, (x + 1) / 2)
    return torch.einsum("ij,bjhw->bihw", _AXES, (cones + 1 / 255).log10())


def _colours(opponent: Tensor) -> Tensor:
    if opponent.shape[1] == 1:
        return opponent
    cones = 10 ** torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_AXES), opponent) - 1 / 255
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_LMS), cones) * 2 - 1


def _resized(x: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return x
    size = [max(SMALLEST_SIDE, round(s * scale)) for s in x.shape[2:]]
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def _check(content: Tensor, reference: Tensor) -> None:
    for name, x in (("the content", content), ("the reference", reference)):
        if x.dim() != 4 or len(x) != 1 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"{name} must be one picture (1, 1 or 3, H, W) of {SMALLEST_SIDE} pixels or more a side, not {tuple(x.shape)}."
            )
        if not x.is_floating_point() or not torch.isfinite(x).all() or x.abs().max() > 1 + 1e-4:
            raise ValueError(f"{name} must be float on [-1, 1].")
    if content.shape[1] != reference.shape[1]:
        raise ValueError("the content and the reference must both be grey or both be of colour.")
