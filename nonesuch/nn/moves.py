"""Pictures moved about in training, with the model told how: distribution augmentation.

The model learns p(x | given, moved how), and is sampled and scored at "not moved". However strange the moved pictures are, they
teach it what pictures are made of, and the likelihood stays one of the data as they are.

References:
    Distribution Augmentation for Generative Modeling (Jun et al., 2020), ICML
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364 (appendix F.2)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

BEND = 0.15  # the largest entry of U below: turns of about 9 degrees


def told(dims: int) -> int:
    """How many numbers say how a picture was moved: a shift and a matrix; all zero when it was not."""
    return dims + dims * dims


def move(x: Tensor, spec: ImageSpec, keys: Seeds, share: float) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, *size) on the grid, a `share` of them moved, and how, (B, told(dims)), in units of the largest move.

    A moved picture is shifted by whole pixels, up to an eighth of each side and at least one; half of the moved ones are also
    resampled about their middle by the matrix 1 + BEND U with U uniform in [-1, 1], which turns, scales and shears. Edges are
    repeated. Categories and lines are only shifted.
    """
    dims = x.dim() - 2
    most = torch.tensor([max(1, side // 8) for side in x.shape[2:]], device=x.device)
    u = keys.uniform("move", 2 + told(dims), device=x.device)
    shift = ((u[:, 2 : 2 + dims] * (2 * most + 1)).floor() - most) * (u[:, :1] < share)
    matrix = (u[:, 2 + dims :] * 2 - 1) * (u[:, :1] < share / 2)
    for axis, side in enumerate(x.shape[2:]):
        index = (torch.arange(side, device=x.device) - shift[:, axis, None].long()).clamp(0, side - 1)
        shape = [len(x), *[side if a == axis else 1 for a in range(-1, dims)]]
        x = torch.take_along_dim(x, index.view(shape), axis + 2)
    if spec.kind != "categorical" and dims > 1:
        theta = BEND * matrix.view(-1, dims, dims) + torch.eye(dims, device=x.device)
        grid = F.affine_grid(F.pad(theta, (0, 1)), list(x.shape), align_corners=False)
        bent = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        bent = spec.snap(bent.clamp(-1, 1) if spec.kind == "ordinal" else bent)
        x = torch.where((u[:, 0] < share / 2).view(-1, *[1] * (dims + 1)), bent, x)
    return x, torch.cat([shift / most, matrix], 1)
