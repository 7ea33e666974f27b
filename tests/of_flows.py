"""What the tests of the flow family share: weights for networks that start silent, keyed numbers, determinants by autograd."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds, initialise


def shake(model: nn.Module, scale: float = 1.0, seed: int = 0) -> nn.Module:
    """Random weights by key, the silent layers included; less in a dequantizer, so that importance weights have few outliers."""
    with torch.no_grad():
        initialise(model, seed)  # what torch's own generator gave a bare network depends on the tests before
        for i, (name, p) in enumerate(model.named_parameters()):
            here = scale * (0.3 if name.startswith("dequantizer") else 1.0)
            fan_in = p[0].numel() if p.dim() > 1 else 4
            p.add_(Seeds((seed,), (i,)).normal(name, *p.shape)[0] * 0.4 * here / math.sqrt(max(1, fan_in)))
    return model


def normals(name: str, *shape: int) -> Tensor:
    return Seeds((0,), (0,)).normal(name, *shape)[0]


def continuous(channels: int, size: tuple[int, ...], axes: str = "hw") -> ImageSpec:
    return ImageSpec(channels, size, axes, "continuous", None)


def log_abs_det(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log |det df/dx| of f at each x[i], by autograd."""
    jacobians = [torch.autograd.functional.jacobian(lambda v: f(v[None])[0].flatten(), v).reshape(v.numel(), -1) for v in x]
    return torch.linalg.slogdet(torch.stack(jacobians))[1]
