"""Pictures brought to one size, antialiased: crop, pad or resize, in two or three axes, at full depth.

Each spatial axis of n values becomes one of m by cubic interpolation whose kernel is widened by n / m when n > m, so that what
is finer than the new grid is averaged away rather than folded back (aliasing). Results are rounded for integers and kept
within the values the picture had, so that nothing overshoots. Along t nothing is interpolated: clips are cut, or hold their
last frame.

References: Cubic Convolution Interpolation for Digital Image Processing (Keys, 1981)
            On Aliased Resizing and Surprising Subtleties in GAN Evaluation (Parmar et al., 2022) arXiv:2104.11222
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch.nn import functional as F

Fit = Literal["crop", "pad", "resize", "bucket"]  # bucket: a crop to one of a few sizes, see buckets.py
FITS: tuple[str, ...] = get_args(Fit)
_MAX_SIDE, _MAX_SIDE_3D, _GRID = 256, 64, 8  # of sizes chosen by us


def fitted(values: np.ndarray, size: Sequence[int], fit: str, axes: str = "hw") -> np.ndarray:
    """A picture (channels, *old) as (channels, *size), of the same type.

    crop: the side that is short for it is brought to the target, then the middle is cut out. pad: all of it is fitted inside,
    the rest filled with black (the smallest value, where values can be negative). resize: each axis on its own.
    """
    if axes.startswith("t"):
        values, old, new = _frames(values, size[0]), values.shape[2:], tuple(size[1:])
        whole = (size[0],)
    else:
        old, new, whole = values.shape[1:], tuple(size), ()
    scaled = resized(values, (*whole, *scaled_size(old, new, fit)))
    return _framed(scaled, tuple(size))


def scaled_size(old: Sequence[int], new: Sequence[int], fit: str) -> tuple[int, ...]:
    """The size before cutting or padding."""
    if fit == "resize":
        return tuple(new)
    scales = [n / o for n, o in zip(new, old, strict=True)]
    scale = max(scales) if fit == "crop" else min(scales)
    bound = max if fit == "crop" else min
    return tuple(bound(n, max(1, round(o * scale))) for n, o in zip(new, old, strict=True))


def resized(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(channels, *old) as (channels, *size), antialiased; two or three axes."""
    if values.shape[1:] == tuple(size):
        return values
    if values.dtype == np.uint8 and len(size) == 2:  # torch has a path of its own for these, ten times as quick
        found = _plane(torch.from_numpy(np.array(values))[None], size)[0].numpy()  # a copy: decoders' own are read-only
        return np.clip(found, values.min(), values.max())
    large = values.dtype.itemsize > 4 or (values.dtype.kind in "ui" and values.dtype.itemsize > 2)
    wide = torch.float64 if large else torch.float32
    x = torch.from_numpy(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))).to(wide)
    if len(size) == 2:
        x = _plane(x[None], size)[0]
    else:  # one axis after another: the kernel is a product
        x = _plane(x.transpose(0, 1), size[1:]).transpose(0, 1)
        if x.shape[1] != size[0]:
            x = _plane(x.flatten(2)[None], (size[0], math.prod(size[1:])))[0].unflatten(2, tuple(size[1:]))
    found = np.clip(x.numpy(), values.min(), values.max())
    return (np.rint(found) if values.dtype.kind in "ui" else found).astype(values.dtype)


def chosen_size(sizes: Sequence[tuple[int, ...]], axes: str) -> tuple[int, ...]:
    """The size for pictures that differ when none is asked for.

    The size that at least half of them have. Or else the median of their shorter sides, down to a multiple of 8, at most 256 (64
    for volumes); square, unless all have one aspect within 5 %, which is then kept. Clips are cut to the shortest.
    """
    usual, most = Counter(sizes).most_common(1)[0]
    if 2 * most >= len(sizes):
        return usual
    spatial = np.array([s[1:] if axes.startswith("t") else s for s in sizes], dtype=float)
    first = (int(min(s[0] for s in sizes)),) if axes.startswith("t") else ()
    short = float(np.median(spatial.min(1)))
    side = min(short, _MAX_SIDE if spatial.shape[1] == 2 else _MAX_SIDE_3D)
    aspects = spatial / spatial.min(1, keepdims=True)
    aspect = np.median(aspects, axis=0)
    if (np.abs(aspects / aspect - 1) > 0.05).any():
        aspect = np.ones_like(aspect)
    return (*first, *(_multiple(side * a) for a in aspect))


def asked_size(size: int | Sequence[int], axes: str, sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What a caller's size= means: one number for all axes of space; clips keep the shortest one's frames unless told."""
    wanted = (int(size),) if isinstance(size, int) else tuple(int(s) for s in size)
    space = len(axes) - axes.startswith("t")
    wanted = wanted * space if len(wanted) == 1 else wanted
    if axes.startswith("t") and len(wanted) == space:
        wanted = (min(s[0] for s in sizes), *wanted)
    if len(wanted) != len(axes) or min(wanted) < 1:
        raise ValueError(
            f"size {size!r} does not fit images along {axes!r}; give one number, or one for each of {len(axes)} axes."
        )
    return wanted


def _multiple(side: float) -> int:
    return max(1, int(side)) if side < _GRID else int(side // _GRID * _GRID)


def _plane(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, *size)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bicubic", antialias=True, align_corners=False)


def _frames(values: np.ndarray, t: int) -> np.ndarray:
    """(channels, T, h, w) with t frames: the first ones, or the last one held."""
    return values[:, np.minimum(np.arange(t), values.shape[1] - 1)]


def _framed(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The middle cut out where the picture is larger than `size`, and filled around where it is smaller."""
    for axis, wanted in enumerate(size, start=1):
        spare = values.shape[axis] - wanted
        if spare > 0:
            values = np.take(values, range(spare // 2, spare // 2 + wanted), axis)
        elif spare < 0:
            around = [(0, 0)] * values.ndim
            around[axis] = (-spare // 2, -spare - -spare // 2)
            black = 0 if values.dtype.kind == "u" else values.min()
            values = np.pad(values, around, constant_values=black)
    return values
