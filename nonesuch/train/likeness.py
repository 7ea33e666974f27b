"""How like the images a few samples are: cheap measures that serve while a model trains, never as a result.

Features are fixed before the first look: the leading principal components of the training images' pixels (averaged down to at
most `SIDE` a side), and, since averaging hides fine noise, the mean absolute difference of neighbours along each axis. Seen
through them and as Gaussians, two sets lie apart by

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2,                                              (1)

where the last trace is the nuclear norm of R1 R2^T for any R_i with R_i^T R_i = S_i. Classes are recognised by the nearest class
mean under the classes' common covariance (Fisher's linear discriminant). All in float64.

References:
| The Frechet distance between multivariate normal distributions (Dowson, Landau, 1982)
| The use of multiple measurements in taxonomic problems (Fisher, 1936)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

SIDE = {1: 256, 2: 16, 3: 8}  # pixels a side that are looked at, by the number of axes
PARTS, CODES, ROUGH = 32, 4, 0.5  # principal components; numbers that stand for a category; weight of roughness
EXPECTED = 10  # samples of a class below which nothing is said of it


def _pixels(x: Tensor, spec: ImageSpec) -> Tensor:
    """(n, C', *size) float64: the values themselves, or a fixed random code for each category."""
    if spec.kind != "categorical":
        return x.detach().double().cpu()
    code = Seeds.of(0, spec.levels or 2).normal("likeness/code", CODES).double()
    return code[x.detach().cpu()].movedim(-1, 2).flatten(1, 2)


def _pooled(x: Tensor) -> Tensor:
    axes = x.dim() - 2
    if not axes:
        return x
    pool: Callable[..., Tensor] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[axes - 1]
    return pool(x, tuple(min(s, SIDE[axes]) for s in x.shape[2:])).flatten(1)


def _roughness(x: Tensor) -> Tensor:
    """(n, C x axes): mean absolute difference of neighbours."""
    axes = [a for a in range(2, x.dim()) if x.shape[a] > 1]
    return torch.cat([x.diff(dim=a).abs().flatten(2).mean(2) for a in axes] or [x.new_zeros(len(x), 0)], 1)


@dataclass(frozen=True)
class Eye:
    """The fixed features, made once from training images; their total variance over these is 1 + ROUGH^2."""

    spec: ImageSpec
    mean: Tensor
    parts: Tensor
    rough_mean: Tensor
    rough_scale: Tensor

    @classmethod
    def of(cls, x: Tensor, spec: ImageSpec) -> Eye:
        """From training images x (n, C, *size), n >= 4."""
        pixels = _pixels(x, spec)
        flat, rough = _pooled(pixels), _roughness(pixels)
        centred = flat - flat.mean(0)
        if len(centred) < centred.shape[1]:  # the same directions from the smaller side
            values, vectors = torch.linalg.eigh(centred @ centred.T)
            vectors = centred.T @ vectors / values.clamp_min(1e-12).sqrt()
        else:
            values, vectors = torch.linalg.eigh(centred.T @ centred)
        keep = min(PARTS, max(1, len(x) // 4), len(values))
        total = (values[-keep:].sum() / len(x)).clamp_min(1e-12)
        scale = (rough - rough.mean(0)).square().mean(0).sqrt().clamp_min(1e-9) * max(1, rough.shape[1]) ** 0.5 / ROUGH
        return cls(spec, flat.mean(0), vectors[:, -keep:] / total.sqrt(), rough.mean(0), scale)

    def see(self, x: Tensor) -> Tensor:
        """Features (n, d) float64 of images (n, C, *size)."""
        pixels = _pixels(x, self.spec)
        rough = (_roughness(pixels) - self.rough_mean) / self.rough_scale
        return torch.cat([(_pooled(pixels) - self.mean) @ self.parts, rough], 1)


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance (Eq. 1) of features (n, d) and (m, d), both of at least two rows; NaN where one is not finite."""
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    roots = [torch.linalg.qr(x - x.mean(0), mode="r")[1] / math.sqrt(len(x) - 1) for x in (a, b)]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = roots[0].square().sum() + roots[1].square().sum() - 2 * cross
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + spread))


def variety(x: Tensor) -> float:
    """Mean distance of two different rows of features (n, d), n >= 2."""
    return float(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)))


@dataclass(frozen=True)
class Classes:
    """Fisher's linear discriminant of labelled features; labels (n,) int64, -1 where missing."""

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, names: tuple[str, ...]) -> Classes:
        """From labelled training features (n, d)."""
        features, labels = features[labels >= 0], labels[labels >= 0]
        there = F.one_hot(labels, len(names)).double()
        counts = there.sum(0)
        means = there.T @ features / counts.clamp_min(1)[:, None]
        within = features - means[labels]
        cov = within.T @ within / max(1, len(within) - len(names))
        ridge = 0.01 * cov.diagonal().mean().clamp_min(1e-9)
        weight = torch.linalg.solve(cov + ridge * torch.eye(len(cov), dtype=cov.dtype), means.T)
        bias = -0.5 * (means * weight.T).sum(1) + (counts / counts.sum().clamp_min(1)).clamp_min(1e-9).log()
        return cls(names, weight, bias.masked_fill(counts == 0, -math.inf))

    def recognise(self, features: Tensor) -> Tensor:
        """(n,) int64."""
        return (features @ self.weight + self.bias).argmax(1)

    def balance(self, samples: Tensor, asked: Tensor, real: Tensor, truth: Tensor) -> dict[str, float]:
        """ "class/NAME": recognised samples for each recognised image; "variety/NAME": that of samples asked for as a class.

        samples, real: features of equally many; asked, truth: their labels. Classes of too few images are left out.
        """
        found, expected = (torch.bincount(self.recognise(x), minlength=len(self.names)) for x in (samples, real))
        out = {}
        for c, name in enumerate(self.names):
            mine, theirs = samples[asked == c], real[truth == c]
            if min(len(mine), len(theirs), int(expected[c])) < EXPECTED:
                continue
            out[f"class/{name}"] = float(found[c] / expected[c])
            out[f"variety/{name}"] = variety(mine) / max(variety(theirs), 1e-12)
        return out
