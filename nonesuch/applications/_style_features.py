"""Feature maps of a VGG network whose weights the caller has: read from a safetensors file of torchvision's names.

The file says the architecture: `features.<i>.weight` is a 3 x 3 convolution followed by relu at i + 1, and where the next one is
at i + 3 instead of i + 2, a pooling stands between. Nothing is fetched; the file's sha256 is told with the result.

References: Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan, Zisserman, 2014) arXiv:1409.1556
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = list[tuple[Tensor, Tensor, bool]]  # weight, bias, and whether a pooling stands before

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours on [0, 1]
_MOST_POOLINGS = 3  # up to relu4_1; deeper maps of small pictures hold few numbers


def read_vgg(path: Path) -> tuple[Layers, str]:
    """The convolutions up to the first after the third pooling, and the file's sha256. Raises ValueError for other files."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}; give a safetensors file of a VGG network's weights, or none.")
    found: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        with safe_open(str(path), "pt") as opened:
            names = set(opened.keys())
            for name in names:
                said = re.fullmatch(r"features\.(\d{1,3})\.weight", name)
                if said and f"features.{said[1]}.bias" in names:
                    found[int(said[1])] = (opened.get_tensor(name).float(), opened.get_tensor(f"features.{said[1]}.bias").float())
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}.") from None
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _layers(found, path), digest


def _layers(found: dict[int, tuple[Tensor, Tensor]], path: Path) -> Layers:
    layers: Layers = []
    channels, before, poolings = 3, -2, 0
    for place in sorted(found):
        weight, bias = found[place]
        fits = weight.dim() == 4 and weight.shape[1:] == (channels, 3, 3) and bias.shape == weight.shape[:1]
        if place - before not in (2, 3) or not fits or not torch.isfinite(weight).all():
            break
        pooled = place - before == 3
        poolings += pooled
        layers.append((weight, bias, pooled))
        channels, before = len(weight), place
        if poolings == _MOST_POOLINGS:
            return layers
    if not layers:
        raise ValueError(f"{path} does not hold the weights of a VGG network; its names begin with features.0.weight.")
    return layers


def maps(layers: Layers, x: Tensor) -> list[Tensor]:
    """relu1_1, relu2_1, ... of x (1, 1 or 3, H, W) on [-1, 1]: the first maps, and the first after each pooling that fits."""
    x = (x + 1) / 2
    x = (x.expand(-1, 3, -1, -1) - x.new_tensor(_MEAN).view(3, 1, 1)) / x.new_tensor(_DEVIATION).view(3, 1, 1)
    out = []
    for i, (weight, bias, pooled) in enumerate(layers):
        if pooled:
            if min(x.shape[2:]) < 4:
                break
            x = F.avg_pool2d(x, 2)  # smoother than the largest of four (Gatys et al., section 2)
        x = F.conv2d(x, weight, bias, padding=1).relu()
        if i == 0 or pooled:
            out.append(x)
    return out
