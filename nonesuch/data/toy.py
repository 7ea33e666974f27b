"""Densities known exactly, to test models and samplers against truth instead of against each other.

`GaussianMixture` is p(x) = sum_k w_k N(x; m_k, S_k) of images of any shape. Noise keeps it one: x + sigma eps has covariances
S_k + sigma^2 I, so log density, score and the posterior mean of the clean image are closed forms at every noise level,

    E[x | x + sigma eps = y] = y + sigma^2 grad log p_sigma(y)        (Robbins, 1956; Tweedie's formula).          (1)

Measured by y = A x + noise eps, it is one again, each mode by the rule of normals and its weight by Bayes',

    m_k' = m_k + G_k (y - A m_k),  S_k' = S_k - G_k A S_k,  G_k = S_k A^T C_k^-1,  C_k = A S_k A^T + noise^2 I,
    w_k' ~ w_k N(y; A m_k, C_k),                                                                                   (2)

so that samplers of posteriors have a truth too. `TableOfImages` gives each of the levels^numel images of a tiny spec its own
probability, so that P, entropy and posterior means are sums. Everything is float64. `as_data` makes a `Data` of either, to
train on.

References:
    An Empirical Bayes Approach to Statistics (Robbins, 1956)
    Tweedie's Formula and Selection Bias (Efron, 2011)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, fingerprint, split_by_content


@dataclass(frozen=True)
class GaussianMixture:
    """weights (K,), means (K, *shape) and covariances (K, D, D) with D = prod(shape), all float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def normal(cls, mean: Tensor, covariance: Tensor) -> GaussianMixture:
        """A single normal with that mean (*shape) and covariance (D, D)."""
        return cls(torch.ones(1, dtype=torch.float64), mean.double()[None], covariance.double()[None])

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 0.8, deviation: float = 0.1) -> GaussianMixture:
        """Equal round modes on a circle in the plane: the usual picture of mode collapse."""
        angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
        means = radius * torch.stack([angle.cos(), angle.sin()], 1)
        weights = torch.full((modes,), 1 / modes, dtype=torch.float64)
        return cls(weights, means, deviation**2 * torch.eye(2).double().repeat(modes, 1, 1))

    @classmethod
    def images(cls, modes: int = 3, shape: tuple[int, ...] = (1, 4, 4), seed: int = 0) -> GaussianMixture:
        """Smooth random modes of small images within about [-1, 1], with correlated pixels."""
        draw, d = Seeds.of(seed, modes), math.prod(shape)
        place = torch.cartesian_prod(*[torch.arange(s).double() for s in shape]).view(d, -1)
        near = torch.exp(-(torch.cdist(place, place) ** 2) / 4) + 1e-3 * torch.eye(d)
        means = draw.normal("toy/mean", d).double() @ torch.linalg.cholesky(near).T * 0.4
        scale = 0.05 + 0.15 * draw.uniform("toy/scale", 1, 1).double()
        weights = draw.uniform("toy/weight").double() + 0.5
        return cls(weights / weights.sum(), means.view(modes, *shape), scale**2 * near)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.means.shape[1:])

    @property
    def spec(self) -> ImageSpec:
        """A continuous spec of such images: (C, H, W), or a vector."""
        return ImageSpec(self.shape[0], self.shape[1:], {1: "", 2: "l", 3: "hw", 4: "dhw"}[len(self.shape)], "continuous", None)

    @cached_property
    def mean(self) -> Tensor:
        """(*shape)."""
        return torch.einsum("k,k...->...", self.weights, self.means)

    @cached_property
    def covariance(self) -> Tensor:
        """(D, D), of the whole mixture."""
        off = (self.means - self.mean).flatten(1)
        return torch.einsum("k,kij->ij", self.weights, self.covariances + off[:, :, None] * off[:, None])

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Variances (K, D) along the principal axes (K, D, D) of each mode, which noise only adds to."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values, vectors

    def _terms(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; m_k, S_k + sigma^2) (B, K), and each mode's score (B, K, D)."""
        values, vectors = self._axes
        variance = values + torch.as_tensor(sigma, dtype=torch.float64).view(-1, 1, 1) ** 2  # (1 or B, K, D)
        off = torch.einsum("bkd,kde->bke", (self.means - x.double()[:, None]).flatten(2), vectors)  # m_k - x
        scores = torch.einsum("bke,kde->bkd", off / variance, vectors)
        logs = (off.square() / variance + variance.log()).sum(-1) + off.shape[-1] * math.log(2 * math.pi)
        return self.weights.log() - 0.5 * logs, scores

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """log p (B,) in nats of x (B, *shape), or of x as noisy as sigma, a number or one an image (B,)."""
        return self._terms(x, sigma)[0].logsumexp(1)

    def score(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """grad log p (B, *shape)."""
        logs, scores = self._terms(x, sigma)
        return torch.einsum("bk,bkd->bd", logs.softmax(1), scores).view(x.shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[clean image | x] (B, *shape) for x = clean + sigma eps (Eq. 1)."""
        rows = [-1, *[1] * len(self.shape)]
        return x.double() + torch.as_tensor(sigma, dtype=torch.float64).view(rows) ** 2 * self.score(x, sigma)

    def posterior(self, a: Tensor, y: Tensor, noise: float) -> GaussianMixture:
        """p(x | y) for y (M,) = a x + noise eps with a matrix a (M, D): again a mixture, of the same modes (Eq. 2)."""
        a, off = a.double(), y.double() - self.means.flatten(1) @ a.double().T
        spread = a @ self.covariances @ a.T + noise**2 * torch.eye(len(a), dtype=torch.float64)
        gain = torch.linalg.solve(spread, a @ self.covariances).mT  # (K, D, M)
        fit = torch.distributions.MultivariateNormal(torch.zeros_like(off), spread).log_prob(off)
        means = self.means + torch.einsum("kdm,km->kd", gain, off).view(self.means.shape)
        return GaussianMixture((self.weights.log() + fit).softmax(0), means, self.covariances - gain @ a @ self.covariances)

    def sample(self, n: int, seeds: Seeds | int = 0) -> tuple[Tensor, Tensor]:
        """n images (n, *shape) float64, and the modes (n,) they came from."""
        draw = Seeds.of(seeds, n)
        mode = draw.categorical(self.weights.log().expand(n, -1), "toy/mode")
        eps = draw.normal("toy/x", math.prod(self.shape)).double()
        root = torch.linalg.cholesky(self.covariances)[mode]
        return self.means[mode] + torch.einsum("bij,bj->bi", root, eps).view(n, *self.shape), mode


@dataclass(frozen=True)
class TableOfImages:
    """Every image of a tiny grid with its probability (levels^numel,), in the order of `images`."""

    spec: ImageSpec
    probabilities: Tensor

    @classmethod
    def uniform(cls, spec: ImageSpec) -> TableOfImages:
        """All images alike: log2(levels) bits a dimension, on any image."""
        n = (spec.levels or 0) ** spec.numel
        return cls(spec, torch.full((n,), 1 / n, dtype=torch.float64))

    @classmethod
    def random(cls, spec: ImageSpec, seed: int = 0, sharpness: float = 2.0) -> TableOfImages:
        """Log-normal random probabilities: correlated in every way a tiny image can be."""
        draw = Seeds.of(seed, 1).normal("toy/table", (spec.levels or 0) ** spec.numel)[0].double()
        return cls(spec, (sharpness * draw).softmax(0))

    @cached_property
    def images(self) -> Tensor:
        """All images (levels^numel, C, *size), inside values."""
        assert self.spec.levels is not None
        rows = torch.tensor(list(itertools.product(range(self.spec.levels), repeat=self.spec.numel)))
        return self.spec.from_levels(rows.view(-1, *self.spec.shape))

    @property
    def entropy(self) -> float:
        """In nats an image: what the best model scores on average."""
        return float(-torch.special.xlogy(self.probabilities, self.probabilities).sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """log P (B,) in nats of images x (B, C, *size)."""
        assert self.spec.levels is not None
        base = self.spec.levels ** torch.arange(self.spec.numel - 1, -1, -1)
        return self.probabilities[(self.spec.to_levels(x).flatten(1) * base).sum(1)].log()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[clean image | x] (B, C, *size) float64 for x = clean + sigma eps, by summing over all images."""
        return (self.posterior(x, sigma) @ self.images.flatten(1).double()).view(x.shape)

    def posterior(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """P(clean image | x) (B, levels^numel) for x = clean + sigma eps."""
        distance = ((x.double().flatten(1)[:, None] - self.images.flatten(1).double()) ** 2).sum(-1)
        variance = torch.as_tensor(sigma, dtype=torch.float64).view(-1, 1) ** 2
        return (self.probabilities.log() - distance / (2 * variance)).softmax(1)

    def sample(self, n: int, seeds: Seeds | int = 0) -> Tensor:
        """n images (n, C, *size)."""
        logits = self.probabilities.log().expand(n, -1)
        return self.images[Seeds.of(seeds, n).categorical(logits, "toy/which")]


def uniform_noise(spec: ImageSpec, n: int, seeds: Seeds | int = 0) -> Tensor:
    """n images (n, C, *size) of independent uniform levels: nothing can score them below log2(levels) bits on average."""
    assert spec.levels is not None
    return spec.from_levels(Seeds.of(seeds, n).integers("toy/noise", spec.levels, *spec.shape))


def as_data(density: GaussianMixture | TableOfImages, n: int = 1024, test: int = 256, seed: int = 0) -> Data:
    """n drawn images as opened data; a mixture's modes are the column "mode"."""
    if isinstance(density, GaussianMixture):
        x, mode = density.sample(n, seed)
        schema = Schema({"mode": Category(tuple(map(str, range(len(density.weights)))), tuple(density.weights.tolist()))})
        everything = Images(density.spec, schema, x.float(), Given(n, {"mode": mode}))
    else:
        levels = density.spec.to_levels(density.sample(n, seed)).to(torch.uint8)
        everything = Images(density.spec, Schema(), levels, Given(n))
    train, held_out = split_by_content(everything, test)
    return Data("toy", train, held_out, fingerprint(everything))
