"""Images seen through an extractor, and the extractor: a small network trained on the real training images by a fixed recipe.

Distances of pixels say little about pictures; distances of a network's penultimate activations say more. Networks trained on
ImageNet are the custom for photographs and misjudge everything else, so the network here learns from the training split itself:
to tell its classes apart where there are classes, and otherwise which of the picture's mirror images it sees (all 2^d flips, with
the transpose for square pictures: 8 of them). It never sees validation or test images. Scores under two extractors are not
comparable, and the name and the hash of the weights stand in every score so that nobody compares them.

The recipe: images are averaged down to at most 64 pixels a side (32 for volumes), standardised by channel; convolutions of 32,
then 64 channels (128 above 32 pixels), halved until the shortest side is at most 4; two cells an axis; one hidden layer, whose
activations are the features; AdamW, one cycle, 24,000 images seen, batches of 64 shifted together by up to an eighth of the side.
Features are divided by their root mean square over the training images, so that the kernel distance has a scale.

References:
| Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion models (Stein et al., 2023)
| arXiv:2306.04675
| Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al., 2018) arXiv:1803.07728
"""

import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonesuch.core.seeds import Seeds, initialise, permutation
from nonesuch.evaluate.score import Array, keyed

__all__ = ["Extractor", "Features", "comparison", "fit_extractor", "floor_features", "pixel_features"]

IMAGES_SEEN = 24_000
BATCH = 64


@dataclass(frozen=True)
class Features:
    """Vectors of n images, float64 (n, d), the extractor they were seen through, and the split (or model) they come from."""

    array: Array
    extractor: str
    sha256: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        array = np.ascontiguousarray(self.array, dtype=np.float64)
        if array.ndim != 2 or not len(array):
            raise ValueError(f"Features are (n, d) with n >= 1, not of shape {array.shape}.")
        if not np.isfinite(array).all():
            raise ValueError(f"Features of {self.split or 'these images'} hold NaN or infinite values; look at the images first.")
        object.__setattr__(self, "array", array)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.array)

    def take(self, index: Any) -> "Features":
        """The features of some of the images."""
        return Features(self.array[index], self.extractor, self.sha256, self.split)


def comparison(samples: Features, reference: Features) -> dict[str, Any]:
    """What a score of samples against reference images says of itself; refuses two extractors, and names train as reference."""
    if (samples.extractor, samples.sha256) != (reference.extractor, reference.sha256):
        raise ValueError(
            f"Samples were seen through {samples.extractor} {samples.sha256[:8]} and the reference through {reference.extractor} "
            f"{reference.sha256[:8]}; use one extractor for both."
        )
    against = f"{samples.extractor}, against train" if reference.split == "train" else samples.extractor
    counts = {reference.split or "reference": reference.n}
    return {"n": samples.n, "extractor": against, "extractor_hash": samples.sha256, "counts": counts}


def floor_features(samples: Features, real: Features, seed: int = 0) -> Features:
    """As many real images as there are samples, drawn without replacement (all of them if there are fewer)."""
    comparison(samples, real)
    chosen = keyed("floor", seed).permutation(real.n)[: samples.n]
    return real.take(np.sort(chosen))


def pixel_features(x: Tensor, split: str = "") -> Features:
    """Pixels as features, (n, C, *size) -> (n, d)."""
    return Features(x.detach().flatten(1).double().cpu().numpy(), "pixels", "", split)


@dataclass(frozen=True)
class Extractor:
    """The trained network: `features` gives penultimate activations, `predict` the probabilities of its classes."""

    name: str
    sha256: str
    network: "ConvNet"
    device: torch.device

    @torch.no_grad()
    def features(self, x: Tensor, split: str = "", batch: int = 512) -> Features:
        """Features of images (n, C, *size) in [-1, 1]."""
        parts = [(self.network.hidden(part.to(self.device)) / self.network.rms).double().cpu() for part in x.split(batch)]
        return Features(torch.cat(parts).numpy(), self.name, self.sha256, split)

    @torch.no_grad()
    def predict(self, x: Tensor, batch: int = 512) -> Tensor:
        """Probabilities (n, classes) of images (n, C, *size) in [-1, 1]."""
        return torch.cat([self.network(part.to(self.device)).softmax(-1).cpu() for part in x.split(batch)])


class ConvNet(nn.Module):
    """The network of the recipe at the head of this file, for 1, 2 or 3 spatial dimensions."""

    mean: Tensor
    std: Tensor
    rms: Tensor

    def __init__(self, channels: int, size: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
        self.pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
        limit = {1: 1024, 2: 64, 3: 32}[len(size)]
        self.size = tuple(min(s, limit) for s in size)
        width = 64 if max(self.size) <= 32 else 128
        halvings = max(1, math.ceil(math.log2(min(self.size) / 4)))
        widths = [channels, 32, *[width] * (halvings + 1)]
        strides = [1, *[2] * halvings, 1]
        self.convs = nn.ModuleList(
            conv(a, b, 3, stride=s, padding=1) for a, b, s in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.dense = nn.Linear(width * 2 ** len(size), width)
        self.out = nn.Linear(width, outputs)
        self.register_buffer("mean", torch.zeros(1, channels, *[1] * len(size)))
        self.register_buffer("std", torch.ones(1, channels, *[1] * len(size)))
        self.register_buffer("rms", torch.ones(()))

    def hidden(self, x: Tensor) -> Tensor:
        """The features: activations of the last hidden layer, (B, C, *size) -> (B, width)."""
        h = (self.pool(x.float(), self.size) - self.mean) / self.std
        for conv in self.convs:
            h = F.gelu(F.group_norm(conv(h), 8))
        return F.gelu(self.dense(self.pool(h, (2,) * len(self.size)).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))


def mirrored(x: Tensor, code: int) -> Tensor:
    """Mirror image number `code` of (B, C, *size): one bit an axis, and one more for the transpose of square pictures."""
    axes = x.dim() - 2
    x = x.flip([2 + a for a in range(axes) if code >> a & 1])
    return x.transpose(2, 3) if code >> axes & 1 else x


def mirror_count(size: tuple[int, ...]) -> int:
    """How many mirror images the self-supervised task tells apart."""
    return 2 ** len(size) * (2 if len(size) == 2 and size[0] == size[1] else 1)


def shifted(x: Tensor, steps: list[int]) -> Tensor:
    """All images moved by `steps` pixels along their axes; what comes in repeats the edge."""
    for axis, step in enumerate(steps, start=2):
        index = (torch.arange(x.shape[axis], device=x.device) + step).clamp(0, x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x


def fit_extractor(x: Tensor, labels: Tensor | None = None, *, name: str = "images", seed: int = 0, classes: int = 0) -> Extractor:
    """Train the extractor on real training images by the recipe of this file.

    x: (n, C, *size) in [-1, 1], at least 8 pixels a side, 1 to 3 axes. labels: (n,) int64 in [0, classes), -1 where missing;
    None, or fewer than two classes, means to learn to tell mirror images apart. name: of the data; the extractor is `name`-cnn.
    """
    size = tuple(x.shape[2:])
    if not 1 <= len(size) <= 3 or min(size) < 8:
        raise ValueError(
            f"The feature network takes images of 1 to 3 axes and at least 8 pixels a side, not {tuple(x.shape[1:])}."
        )
    if labels is not None:
        x, labels = x[labels >= 0], labels[labels >= 0]
    if len(x) < 2:
        raise ValueError("The feature network needs at least two training images; give more.")
    if labels is not None and len(labels.unique()) < 2:
        labels = None
    outputs = mirror_count(size) if labels is None else max(classes, int(labels.max()) + 1)
    with torch.device("meta"):  # torch's own initialisation would move its global generator
        network = ConvNet(x.shape[1], size, outputs)
    network = network.to_empty(device=x.device)
    initialise(network, seed)
    dims = [0, *range(2, x.dim())]
    network.mean.copy_(x.float().mean(dims, keepdim=True))
    network.std.copy_(x.float().std(dims, keepdim=True).clamp_min(1e-3))
    network.rms.fill_(1)
    train(network, x, labels, seed)
    with torch.no_grad():
        network.rms.copy_(torch.stack([network.hidden(part).square().mean() for part in x[:4096].split(512)]).mean().sqrt())
    digest = hashlib.sha256(f"{name} {tuple(x.shape[1:])} {outputs}".encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().numpy().tobytes())
    kind = "cnn" if labels is not None else "mirror-cnn"
    return Extractor(f"{name}-{kind}", digest.hexdigest(), network.eval().requires_grad_(False), x.device)


@torch.enable_grad()
def train(network: ConvNet, x: Tensor, labels: Tensor | None, seed: int) -> None:
    """One cycle of AdamW over `IMAGES_SEEN` images; every draw is keyed by the seed and the step."""
    steps, batch = math.ceil(IMAGES_SEEN / BATCH), min(BATCH, len(x))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05, betas=(0.9, 0.99))
    reach = [max(1, s // 8) for s in x.shape[2:]]
    moves = Seeds.of(seed, 1).uniform("extractor/shift", steps, len(reach))[0]
    count = mirror_count(tuple(x.shape[2:]))
    order = itertools.chain.from_iterable(permutation(seed, "extractor/order", len(x), e).split(batch) for e in itertools.count())
    full = (rows for rows in order if len(rows) == batch)
    for step, rows in enumerate(itertools.islice(full, steps)):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 10 * done + 0.02) * 0.5 * (1 + math.cos(math.pi * done))
        rows = rows.to(x.device)
        images = shifted(x[rows], [round(float(u - 0.5) * 2 * r) for u, r in zip(moves[step], reach, strict=True)])
        if labels is None:
            parts = images.tensor_split(count)  # every mirror image has its share of every batch
            images = torch.cat([mirrored(part, code) for code, part in enumerate(parts)])
            target = torch.cat([torch.full((len(part),), code, device=x.device) for code, part in enumerate(parts)])
        else:
            target = labels[rows].to(x.device)
        loss = F.cross_entropy(network(images), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
