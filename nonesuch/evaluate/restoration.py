"""How near restored pictures are to the true ones: PSNR and SSIM, as papers on restoration measure them.

    PSNR = 10 log10(255^2 / mean (x - y)^2)                                                                              (1)
    SSIM = mean (2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2)),                               (2)
    C1 = (0.01 255)^2, C2 = (0.03 255)^2

The custom, without which numbers of two papers do not compare: colour pictures are measured on their luma alone,

    Y = 16 + 65.481 R + 128.553 G + 24.966 B,        R, G, B in [0, 1]  (ITU-R BT.601, as MATLAB's rgb2ycbcr),            (3)

after rounding to 256 levels, and a border as wide as the factor of enlarging is cut off. Means, variances and covariances of
SSIM are those of Gaussian windows (11 pixels, deviation 1.5) that lie wholly within the picture. The score of a set is the mean
over its pictures, with a bootstrap interval over them.

Neither asks whether a picture looks real: both are best at the blurred middle of all possible pictures. Put a distance of
distributions (frechet.py) beside them.

References:
| Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004), IEEE TIP 13(4), Eqs. 13-17
| Enhanced Deep Residual Networks for Single Image Super-Resolution (Lim et al., 2017) arXiv:1707.02921 (borders, luma)
| The Perception-Distortion Tradeoff (Blau, Michaeli, 2017) arXiv:1711.06077
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from nonesuch.evaluate.score import Score, bootstrap_mean

__all__ = ["luma", "psnr", "ssim"]

_LUMA = (65.481, 128.553, 24.966)
_WINDOW, _DEVIATION = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(x: Tensor) -> Tensor:
    """The pictures (..., 3, *size) on [-1, 1] as Y in [16, 235], float64 (..., 1, *size), of their 256 levels (Eq. 3)."""
    k = ((x.double() + 1) * 127.5).round().clamp(0, 255) / 255
    axis = -3 if x.dim() > 3 or x.shape[0] != 3 else 0
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=x.device)
    return 16 + (k.movedim(axis, -1) @ weights)[..., None].movedim(-1, axis)


def psnr(restored: Iterable[Tensor], truth: Iterable[Tensor], *, border_px: int = 0, luma_only: bool = True) -> Score:
    """The mean PSNR in dB (Eq. 1) of pictures (C, *size) in [-1, 1], of any sizes; of colour pictures on luma ("PSNR-Y").

    border_px: pixels that are left out at every side. luma_only: false where colour itself is what was restored. A picture equal
    to the true one counts as infinitely good.
    Raises ValueError for pictures without a counterpart of the same shape, and for a border that leaves nothing.
    """
    return _scored("PSNR", _psnr, restored, truth, border_px, "dB", luma_only)


def ssim(restored: Iterable[Tensor], truth: Iterable[Tensor], *, border_px: int = 0, luma_only: bool = True) -> Score:
    """The mean structural similarity in [-1, 1] (Eq. 2) of the same; of colour pictures on luma ("SSIM-Y").

    Raises ValueError as `psnr` does, and for pictures that are narrower than the window of 11 pixels.
    """
    return _scored("SSIM", _ssim, restored, truth, border_px, "", luma_only)


def _scored(
    name: str,
    measure: Callable[[Tensor, Tensor], float],
    restored: Iterable[Tensor],
    truth: Iterable[Tensor],
    border_px: int,
    unit: str,
    luma_only: bool,
) -> Score:
    values, colour = [], False
    restored, truth = list(restored), list(truth)
    if len(restored) != len(truth) or not restored:
        raise ValueError(f"{name} compares each picture with its true one; here are {len(restored)} and {len(truth)}.")
    for x, y in zip(restored, truth, strict=True):
        if x.shape != y.shape or x.dim() < 2:
            raise ValueError(f"{name} compares pictures of one shape, not {tuple(x.shape)} with {tuple(y.shape)}.")
        colour = luma_only and x.shape[0] == 3 and x.dim() == 3
        a, b = (_levels(v.detach().cpu(), colour) for v in (x, y))
        for axis in range(1, a.dim()):
            if a.shape[axis] <= 2 * border_px:
                raise ValueError(f"a border of {border_px} pixels leaves nothing of a picture of {tuple(x.shape[1:])}.")
            a, b = (v.narrow(axis, border_px, v.shape[axis] - 2 * border_px) for v in (a, b))
        values.append(measure(a, b))
    found = np.array(values)
    interval = bootstrap_mean(found, name) if np.isfinite(found).all() else None
    title = f"{name}-Y" if colour else name
    return Score(float(found.mean()), title, len(found), interval=interval, resampled="pictures", better="higher", unit=unit)


def _levels(x: Tensor, colour: bool) -> Tensor:
    """What is measured of a picture (C, *size): luma of colour, levels of all others, float64 in [0, 255]."""
    return luma(x) if colour else ((x.double() + 1) * 127.5).round().clamp(0, 255)


def _psnr(a: Tensor, b: Tensor) -> float:
    error = float((a - b).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)  # Eq. 1


def _ssim(a: Tensor, b: Tensor) -> float:
    if min(a.shape[1:]) < _WINDOW:
        raise ValueError(f"SSIM looks through windows of {_WINDOW} pixels; {tuple(a.shape[1:])} is too narrow.")
    mean_a, mean_b = _windowed(a), _windowed(b)
    var_a, var_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    both = _windowed(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)  # Eq. 2
    return float((likeness / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))).mean())


def _windowed(x: Tensor) -> Tensor:
    """Gaussian means of every window within (C, *size), axis by axis."""
    place = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-place.square() / (2 * _DEVIATION**2))
    weights = weights / weights.sum()
    for axis in range(1, x.dim()):
        x = x.unfold(axis, _WINDOW, 1) @ weights
    return x
