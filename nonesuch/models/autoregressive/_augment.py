"""Pictures moved about in training, with the model told how: distribution augmentation.

The model learns p(x | given, moved how), and scoring and sampling fix "not moved". So the likelihood stays that of the data as
it is, however strange the moved pictures are, while they teach what strokes look like.

References: Distribution Augmentation for Generative Modeling (Jun et al., 2020), ICML
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

TOLD = 7  # numbers that say how a picture was moved; all zero: not at all


def move(x: Tensor, spec: ImageSpec, keys: Seeds, p: float) -> tuple[Tensor, Tensor]:
    """Pictures x (B, C, H, W) in [-1, 1], each moved with probability p; and how, (B, TOLD).

    A moved picture is shifted by whole pixels, at most one on a small picture and an eighth of its side on a large one, and
    half of the moved ones are also turned, scaled and sheared a little. What comes in is the lowest level.
    """
    u = keys.uniform("move", 8, device=x.device)
    moved, bent = u[:, 0] < p, u[:, 0] < p / 2
    side = torch.tensor([x.shape[3], x.shape[2]], device=x.device)
    most = (side // 8).clamp_min(1)
    shift = ((u[:, 1:3] * (2 * most + 1)).floor() - most) * moved[:, None]
    most_bent = torch.tensor([0.25, 0.15, 0.1, 0.15], device=x.device)  # radians, and shares
    turn, log_zoom, aspect, shear = ((u[:, 3:7] * 2 - 1) * most_bent * bent[:, None]).unbind(1)
    cos, sin, wide, tall = turn.cos(), turn.sin(), torch.exp(log_zoom + aspect), torch.exp(log_zoom - aspect)
    ratio = x.shape[2] / x.shape[3]
    rows = [
        torch.stack([wide * cos, (shear * wide - sin * tall) * ratio, 2 * shift[:, 0] / side[0]], 1),
        torch.stack([sin * wide / ratio, tall * cos, 2 * shift[:, 1] / side[1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    out = F.grid_sample(x + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
    told = torch.cat([shift / most, torch.stack([turn * 4, log_zoom * 6, aspect * 10, shear * 6, bent.float()], 1)], 1)
    keep = moved[:, None, None, None]
    return torch.where(keep, spec.snap(out.clamp(-1, 1)), x), told
