"""Augmentations that do not leak: the critic sees real and generated images through the same random window.

If the critic only ever sees T(x), with the same distribution of transformations T for both players, then matching the
distributions of T(x) matches those of x as long as x -> T(x) can be undone *as a map of distributions*; leaving each image
alone with a probability of 0.2 or more keeps it so. A critic of few images then cannot learn them by heart, and the generator
never draws a shifted or darkened image of its own accord.

All of it is differentiable in x, and keyed by uniform numbers: the pair of a real image and a generated one is seen through the
same window, which takes the window's own variance out of their comparison. Geometry is separable: along each axis a shift and
a scale are one matrix of linear interpolation, so it is the same code in 1, 2 and 3 dimensions. Pixels that come from outside
repeat the edge.

References:
    Training Generative Adversarial Networks with Limited Data (Karras et al., 2020) arXiv:2006.06676, section 2
    Differentiable Augmentation for Data-Efficient GAN Training (Zhao et al., 2020) arXiv:2006.10738
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHIFT, _SCALE, _LIGHT, _CONTRAST = 0.125, 0.15, 0.3, 0.25  # share of a side; log; of the range [-1, 1]; log


def numbers(dims: int) -> int:
    """How many uniform numbers the augmentation of an image of so many dimensions takes."""
    return 4 + 3 * dims + 2


def augment(x: Tensor, u: Tensor, p: float, colour: bool = True) -> Tensor:
    """Transform each image of x (B, C, *size), float32, in four ways, each with probability p; u (B, numbers) in (0, 1) says how.

    A shift, a scale and a cut-out (a block of half a side, at the image's own mean) in space, and light and contrast if `colour`.
    """
    dims = x.dim() - 2
    on, u = (u[:, :4] < p).float(), u[:, 4:] * 2 - 1
    shift, scale, corner = u[:, :dims], u[:, dims : 2 * dims], u[:, 2 * dims : 3 * dims]
    x = _resample(x, shift * _SHIFT * on[:, :1], torch.exp(scale * _SCALE * on[:, 1:2]))
    x = _cut_out(x, corner, on[:, 2])
    if not colour:
        return x
    light, contrast = (u[:, -2:] * on[:, 3:]).view(-1, 2, *[1] * (dims + 1)).unbind(1)
    return (x + light * _LIGHT) * torch.exp(contrast * _CONTRAST)


def _resample(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift by `shift` (B, dims) sides and magnify by `scale` (B, dims) about the middle, by linear interpolation."""
    for axis, size in enumerate(x.shape[2:]):
        if size == 1:
            continue
        place = torch.arange(size, device=x.device, dtype=x.dtype)
        middle = (size - 1) / 2
        source = (place - middle) / scale[:, axis, None] + middle - shift[:, axis, None] * size
        weights = (1 - (source.clamp(0, size - 1)[:, :, None] - place).abs()).clamp_min(0)  # (B, out, in): rows sum to 1
        moved = x.movedim(2 + axis, -1)
        flat = moved.flatten(1, -2) @ weights.mT
        x = flat.view(*moved.shape[:-1], size).movedim(-1, 2 + axis)
    return x


def _cut_out(x: Tensor, corner: Tensor, on: Tensor) -> Tensor:
    """Replace a block of half a side, at a place of `corner` (B, dims) in [-1, 1], by the image's mean."""
    inside = on.view(-1, *[1] * (x.dim() - 1))
    for axis, size in enumerate(x.shape[2:]):
        place = (torch.arange(size, device=x.device) + 0.5) / size * 2 - 1
        near = ((place - corner[:, axis, None]).abs() < 0.5).to(x.dtype)
        inside = inside * near.view(len(x), 1, *[size if a == axis else 1 for a in range(x.dim() - 2)])
    return torch.lerp(x, x.mean(list(range(1, x.dim())), keepdim=True), inside)
