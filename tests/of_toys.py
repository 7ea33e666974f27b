"""Densities known exactly, as models: what a restoration is judged against (imported by tests and by the slow measurements)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.degradation import Linear, Operator
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Completer, Decoder, Denoiser, Energy, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data.toy import GaussianMixture, TableOfImages

LOW, HIGH = 0.02, 4.0  # noise levels of the toy denoiser


class Toy(Model):
    """A model whose config is a density, sampled exactly."""

    def objectives(self) -> list[Objective]:
        return []

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        x = self.config.sample(len(seeds), seeds)
        yield Step(1, 1, (x[0] if isinstance(x, tuple) else x).float())


class ToyDenoiser(Toy, Denoiser):
    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), LOW * (HIGH / LOW) ** t

    def denoise(self, x_t: Tensor, t: Tensor, given: Given | None = None) -> Tensor:
        return self.config.denoise(x_t, self.schedule(t.double())[1]).float()


class ToyPreserving(ToyDenoiser):
    """The same with variance preserved: x_t = alpha x + sigma eps, alpha^2 + sigma^2 = 1."""

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        level = super().schedule(t)[1]
        alpha = 1 / (1 + level**2).sqrt()
        return alpha, level * alpha

    def denoise(self, x_t: Tensor, t: Tensor, given: Given | None = None) -> Tensor:
        alpha, sigma = self.schedule(t.double())
        return self.config.denoise(x_t / alpha.view(-1, *[1] * (x_t.dim() - 1)), sigma / alpha).float()


class ToyEnergy(Toy, Energy):
    def energy(self, x: Tensor, given: Given | None = None) -> Tensor:
        return 3.0 - self.config.log_prob(x).float()


class ToyDecoder(Toy, Decoder):
    """x = m + L z of the first mode: a linear flow."""

    @property
    def latent_spec(self) -> ImageSpec:  # type: ignore[override]  # a property where the contract has a field
        return ImageSpec(math.prod(self.config.shape), (), "", "continuous", None)

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        root = torch.linalg.cholesky(self.config.covariances[0]).float()
        return self.config.means[0].float() + (z @ root.T).view(-1, *self.config.shape)


class ToyChain(Toy, Likelihood, Completer):
    """A table of images by the chain rule."""

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        return LogProb(self.config.log_prob(x), "exact")

    def _complete(self, x: Tensor, known: Tensor, given: Given, seeds: Seeds) -> Tensor:
        """Each hidden value given those before it, known or drawn."""
        table, spec = self.config.images.flatten(1), self.spec
        levels, k, known = spec.to_levels(table), spec.to_levels(x).flatten(1), known.flatten(1)
        alive = torch.ones(len(x), len(table), dtype=torch.bool)
        u = seeds.uniform("value", k.shape[1])
        for i in range(k.shape[1]):
            shares = torch.stack(
                [(self.config.probabilities * alive * (levels[:, i] == v)).sum(1) for v in range(spec.levels or 0)], 1
            )
            cdf = shares.cumsum(1)
            drawn = (u[:, i : i + 1] * cdf[:, -1:] > cdf).sum(1).clamp(max=(spec.levels or 1) - 1)
            k[:, i] = torch.where(known[:, i], k[:, i], drawn)
            alive &= levels[:, i] == k[:, i : i + 1]
        return spec.from_levels(k).view(x.shape)


def toy(cls: type[Toy], density: GaussianMixture | TableOfImages) -> Any:
    """The density as a fitted model of that class."""
    model = cls(density, density.spec, Schema())
    model.images_seen.fill_(1)
    return model


@dataclass(frozen=True)
class Dense(Linear):
    """Any matrix (M, D), as rows of numbers."""

    matrix: tuple[tuple[float, ...], ...]
    noise: float = 0.0

    @property
    def a(self) -> Tensor:
        return torch.tensor(self.matrix)

    def output(self, spec: ImageSpec) -> ImageSpec:
        return ImageSpec(len(self.matrix), (), "", "continuous", None)

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        return self._noisy(x.flatten(1) @ self.a.T.to(x.dtype), seeds, draw)

    def operator(self, spec: ImageSpec, y: Tensor) -> Operator:
        return DenseOperator(self.a, y, self.noise, spec.shape)


@dataclass(frozen=True)
class DenseOperator(Operator):
    a: Tensor
    y: Tensor
    noise: float
    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.a.T.to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.a.to(y.dtype)).view(-1, *self.shape)

    def pinv(self, y: Tensor) -> Tensor:
        return (y @ torch.linalg.pinv(self.a).T.to(y.dtype)).view(-1, *self.shape)


def shares(x: Tensor, truth: GaussianMixture) -> Tensor:
    """Weights (K,) of the modes among samples x (N, ...): the mean of P(mode | x) under the true posterior, unbiased for it."""
    return truth._terms(x, 0.0)[0].softmax(1).mean(0)


def compared(x: Tensor, truth: GaussianMixture) -> dict[str, float]:
    """How far samples x (N, ...) are from the truth: the mean, in the truth's deviation; covariance and weights, relative."""
    x = x.double()
    flat = x.flatten(1)
    off = (flat.mean(0) - truth.mean.flatten()).norm() / truth.covariance.diagonal().sum().sqrt()
    spread = (torch.cov(flat.T) - truth.covariance).norm() / truth.covariance.norm()
    seen = shares(x, truth)
    return {
        "mean": float(off),
        "covariance": float(spread),
        "weights": float(((seen - truth.weights).abs() / truth.weights)[truth.weights > 0.02].max()),
        "weights, absolute": float((seen - truth.weights).abs().max()),
    }


def main() -> None:
    """Print how far each method is from the posterior of two mixtures: python tests/of_toys.py [draws]."""
    import sys

    from nonesuch.applications.restore import restore
    from nonesuch.core.degradation import Mask

    n = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    known = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    degradation = Mask(known, noise=0.3)
    ways: list[tuple[str, type[Toy], dict[str, int]]] = [
        ("pigdm", ToyDenoiser, {"steps": 96}),
        ("dps", ToyDenoiser, {}),
        ("langevin", ToyEnergy, {"particles": 192}),
        ("twisted", ToyDenoiser, {"steps": 96, "particles": 16}),
        ("twisted", ToyDenoiser, {"steps": 96, "particles": 64}),
    ]
    for method, cls, options in ways[int(sys.argv[2]) : int(sys.argv[3])] if len(sys.argv) > 3 else ways:
        for seed, key in ((9, 2), (2, 1)):
            density = GaussianMixture.images(3, (1, 2, 4), seed)
            y = degradation(density.sample(1, 200 + key)[0].float(), key)
            truth = density.posterior(torch.eye(8)[known.flatten()], y[0, 0][known], 0.3)
            r = restore(toy(cls, density), y.expand(n, *y.shape[1:]), degradation, samples=1, method=method, **options)
            said = "  ".join(f"{k} {v:.3f}" for k, v in compared(r.x[:, 0], truth).items())
            print(f"{truth.weights.numpy().round(2)} {method} {options}  {said}  {r.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
