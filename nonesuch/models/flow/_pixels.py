"""Pictures on a grid as points of the line, and back: each pixel's own distribution function, then a place inside its cell.

Eq. 1 and 2 of `_dequantize`, with cells by `_marginal`; q is a learned density, or uniform inside the cell where there is none.
Then w is the noise itself, and the bound is that of uniform dequantization (A note on the evaluation of generative models (Theis,
van den Oord, Bethge, 2015) arXiv:1511.01844, section 3.1).

The even cells of Glow (Kingma, Dhariwal, 2018) arXiv:1807.03039 are the same for all pixels:  z_0 = (k + u) / levels - 1/2.   (3)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nonesuch.core.given import Given
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.flow._dequantize import Dequantizer, into_cell
from nonesuch.models.flow._marginal import Histogram


def into_cells(
    x: Tensor, shape: tuple[int, ...], spec: ImageSpec, histogram: Histogram, dequantizer: Dequantizer | None, given: Given,
    c: Tensor, keys: Seeds, step: int, dtype: torch.dtype, masks: Tensor | None = None, own: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A point z_0 (B, *shape) in the picture's cell, drawn with `keys` at `step`, and log 1/q(z_0 | x) (B,) in float64.

    It lacks the constant of the normal, which cancels that of the flow's. own: of counted pictures, as training sees them.
    """
    n = len(x)
    low, length = histogram.cells(spec.to_levels(x).view(n, *shape), histogram.rows(given, n), own)
    low, length = low.view(n, *shape), length.view(n, *shape)
    w = noise = keys.normal("dequantize", *shape, step=step, device=x.device)
    log_det: Tensor | float = 0.0
    if dequantizer is not None:
        middle = into_cell(torch.zeros_like(low), low, length).float()
        w, log_det = dequantizer(torch.cat([x.view(n, *shape), middle], 1), noise, c, dtype, masks)
    z = into_cell(w, low, length)
    # log(m N(w) / N(z_0)) - log N(noise) + log |dw/dnoise|: the constants of two normals cancel (Eq. 2 of _dequantize).
    volume = (length.log() + (z.square() - w.double().square() + noise.double().square()) / 2).flatten(1).sum(1)
    return z.float(), volume + log_det


def out_of_cells(z: Tensor, spec: ImageSpec, histogram: Histogram, given: Given) -> Tensor:
    """Pictures (B, C, *size) in [-1, 1] of points z (B, C, ...): within half a step of the level, so that spec.snap finds it.

    Differentiable: within a cell the picture rises with z.
    """
    assert spec.levels is not None
    k, u = histogram.find(torch.special.ndtr(z.double()).flatten(2), histogram.rows(given, len(z)))
    first, last = k == 0, k == spec.levels - 1
    off = torch.where(first, u / 2, torch.where(last, (u - 1) / 2, u - 0.5)) * (1 - 1e-4)
    return ((k + off) * spec.step - 1).float().view(len(z), *spec.shape)


def into_even_cells(x: Tensor, shape: tuple[int, ...], spec: ImageSpec, keys: Seeds, step: int) -> tuple[Tensor, Tensor]:
    """The point z_0 (B, *shape) of Eq. 3 and log 1/q(z_0 | x) (B,), which here holds the constant of the flow's normal too."""
    assert spec.levels is not None
    u = keys.uniform("dequantize", *shape, step=step, device=x.device)
    z = (spec.to_levels(x).view(len(x), *shape) + u) / spec.levels - 0.5  # Eq. 3
    volume = -spec.numel * (math.log(spec.levels) + math.log(2 * math.pi) / 2)
    return z, torch.full((len(x),), volume, dtype=torch.float64, device=x.device)


def out_of_even_cells(z: Tensor, spec: ImageSpec) -> Tensor:
    """Pictures (B, C, *size) in [-1, 1] of points z (B, C, ...): within half a step of the level that Eq. 3 names."""
    assert spec.levels is not None
    k = (z + 0.5) * spec.levels - 0.5
    return (k.clamp(0, spec.levels - 1) * spec.step - 1).view(len(z), *spec.shape)
