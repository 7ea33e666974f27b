"""Pictures moved about in training, with the model told how: distribution augmentation.

The model learns p(x | given, moved how), and is sampled and scored at "not moved". However strange the moved pictures are, they
teach it what pictures are made of, and the likelihood stays one of the data as they are.

References:
    Distribution Augmentation for Generative Modeling (Jun et al., 2020), ICML
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds


def told(dims: int) -> int:
    """How many numbers say how a picture was moved: a shift and a matrix; all zero when it was not."""
    return dims + dims * dims


def move(x: Tensor, spec: ImageSpec, keys: Seeds, share: float, shift_px: int, bend: float) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, *size) on the grid, a `share` of them moved, and how (B, told(dims)), in units of the largest move.

    A moved picture is shifted by whole pixels, up to shift_px along each axis; half of the moved ones are also resampled about
    their middle by the matrix 1 + bend U with U uniform in [-1, 1], which turns, scales and shears. Edges are repeated.
    Categories are only shifted.
    """
    dims = x.dim() - 2
    u = keys.uniform("move", 2 + told(dims), device=x.device)
    shift = ((u[:, 2 : 2 + dims] * (2 * shift_px + 1)).floor() - shift_px) * (u[:, :1] < share)
    matrix = (u[:, 2 + dims :] * 2 - 1) * (u[:, :1] < share / 2)
    for axis, size in enumerate(x.shape[2:]):
        index = (torch.arange(size, device=x.device) - shift[:, axis, None].long()).clamp(0, size - 1)
        shape = [len(x), *[size if a == axis else 1 for a in range(-1, dims)]]
        x = torch.take_along_dim(x, index.view(shape), axis + 2)
    if bend > 0 and spec.kind == "ordinal" and dims > 1:
        theta = bend * matrix.view(-1, dims, dims) + torch.eye(dims, device=x.device)
        grid = F.affine_grid(F.pad(theta, (0, 1)), list(x.shape), align_corners=False)
        bent = spec.snap(F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(-1, 1))
        x = torch.where((u[:, 0] < share / 2).view(-1, *[1] * (dims + 1)), bent, x)
    return x, torch.cat([shift / max(1, shift_px), matrix], 1)
