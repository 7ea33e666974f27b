"""Enlarging by cubic convolution, the same everywhere in a picture.

    y[r i + k] = sum_t  W(p_k - t) x[i + t],     p_k = (k + 1/2) / r - 1/2,     k = 0, ..., r - 1                           (1)

with Keys' cubic W of a = -1/2, as MATLAB's imresize has it (torch's own has a = -3/4), and borders mirrored (... b a | a b ...).
The r phases' weights are constants and no coordinate is computed, so a pixel is the same number whatever part of the picture it
is computed in.

References:
    Cubic Convolution Interpolation for Digital Image Processing (Keys, 1981), IEEE TASSP 29(6), Eq. 15
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

REACH = 2  # pixels on either side that a new one depends on


def cubic(t: Tensor) -> Tensor:
    """Keys' kernel at distances t (Eq. 15 of the paper)."""
    t = t.abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))


@lru_cache(maxsize=16)
def _phases(ratio: int) -> Tensor:
    """W(p_k - t), float64 (2 REACH + 1, ratio)."""
    p = (torch.arange(ratio, dtype=torch.float64) + 0.5) / ratio - 0.5
    return cubic(p[None] - torch.arange(-REACH, REACH + 1, dtype=torch.float64)[:, None])


def enlarge(x: Tensor, ratio: int) -> Tensor:
    """(B, C, *size) -> (B, C, *ratio size), in x's dtype (Eq. 1 along each axis)."""
    if ratio == 1:
        return x
    weights = _phases(ratio).to(x)
    for axis in range(2, x.dim()):
        n = x.shape[axis]
        place = torch.arange(-REACH, n + REACH, device=x.device) % (2 * n)  # mirrored, and again where the picture is narrow
        padded = x.index_select(axis, torch.where(place < n, place, 2 * n - 1 - place))
        windows = padded.unfold(axis, 2 * REACH + 1, 1)  # (B, C, *size with n along the axis, 5)
        phases = (windows.reshape(-1, 2 * REACH + 1) @ weights).view(*windows.shape[:-1], ratio)
        x = phases.movedim(-1, axis + 1).flatten(axis, axis + 1)
    return x
