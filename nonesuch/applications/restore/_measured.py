"""What was measured of pictures, as a likelihood of them: y = f(x) + noise, with log p(y | x) = -|y - f(x)|^2 / (2 s^2) + const.

f is a linear operator A, of which adjoint and pseudo-inverse are known, or any degradation that is the same at every call. Of the
second kind the methods ask two things: f itself, and J^T r, what a residual r of the measurements says about the pictures. Where
f gives pictures of x's own shape (a JPEG's coding), J is taken for the identity, which is what Song et al. do; otherwise f is
differentiated.

References:
    Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023), sections 3.2 and 3.3
    Methods of Conjugate Gradients for Solving Linear Systems (Hestenes, Stiefel, 1952)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nonesuch.core.degradation import Degradation, Linear
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

_TURNS, _ENOUGH = 64, 1e-6  # of conjugate gradients: at most, and the relative residual at which they stop
_UNSAID = 0.05  # deviation of measurements whose degradation does not say one, on the inside scale


class Measured:
    """Measurements y of R pictures of `spec`, one a row. Raises ValueError for y that the degradation does not make of them."""

    def __init__(self, degradation: Degradation, spec: ImageSpec, y: Tensor, noise: float | None = None) -> None:
        wanted, name = degradation.output(spec).shape, type(degradation).__name__
        if not isinstance(y, Tensor) or not y.is_floating_point() or tuple(y.shape[1:]) != wanted:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"y is {found}; {name} makes floats (batch, {', '.join(map(str, wanted))}) of this model's pictures."
            )
        if not len(y):
            raise ValueError("y holds no pictures; give one at least.")
        if not torch.isfinite(y).all():
            raise ValueError("y holds NaN or infinite values; clean the pictures first.")
        self.degradation, self.spec = degradation, spec
        self.operator = degradation.operator(spec, y) if isinstance(degradation, Linear) else None
        self.y = y if self.operator is None else self.operator.y
        said = self.operator.noise if self.operator is not None else _UNSAID
        self.noise = said if noise is None else float(noise)
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise is a standard deviation on the inside scale, 0 or more, not {noise}.")
        masked = self.y.shape[1] < y.shape[1]  # the last channel says which are known
        self.known = y[:, -1:] > 0 if masked else torch.ones_like(y[:, :1], dtype=torch.bool)  # (R, 1, ...)
        self.count = self.known.flatten(1).sum(1) * self.y.shape[1]

    def least(self, floor: float = 0.0) -> float:
        """The deviation that methods reckon with: the noise, but not below that of rounding to levels, or `floor`."""
        rounding = self.spec.step / math.sqrt(12) if self.spec.levels and self.spec.kind == "ordinal" else 1e-3
        return max(self.noise, rounding, floor)

    def __call__(self, x: Tensor) -> Tensor:
        """f(x), without noise."""
        return self.operator(x) if self.operator is not None else self.degradation(x, 0)

    def residual(self, x: Tensor) -> Tensor:
        """y - f(x)."""
        return self.y - self(x)

    def log_likelihood(self, x: Tensor, s: float) -> Tensor:
        """log p(y | x) (R,) up to a constant, for measurements of deviation s."""
        return -self.misfit(x) / (2 * s**2)

    def misfit(self, x: Tensor) -> Tensor:
        """|y - f(x)|^2 (R,)."""
        return self.residual(x).flatten(1).square().sum(1)

    def error(self, x: Tensor) -> Tensor:
        """Root mean square (R,) of y - f(x) over what was measured."""
        return (self.misfit(x) / self.count.clamp_min(1)).sqrt()

    def pull(self, x: Tensor, r: Tensor) -> Tensor:
        """J^T r (R, C, *size) at x."""
        if self.operator is not None:
            return self.operator.adjoint(r)
        if r.shape == x.shape:
            return r
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            made = self.degradation(leaf, 0)
            if not made.requires_grad:
                raise ValueError(
                    f"{type(self.degradation).__name__} can be neither inverted nor differentiated, so nothing can restore it."
                )
            (slope,) = torch.autograd.grad(made, leaf, r)
        return slope

    def whiten(self, r: Tensor, s: float, spread: float) -> Tensor:
        """(s^2 I + spread^2 A A*)^-1 r: a residual r (R, ...) in units of its covariance, where x has deviation `spread`."""
        if self.operator is None:
            return r / (s**2 + spread**2)
        a = self.operator

        def through(u: Tensor) -> Tensor:
            return s**2 * u + spread**2 * a(a.adjoint(u))

        u, left = torch.zeros_like(r), r.clone()
        way, size = left, _dot(left, left)
        enough = size * _ENOUGH**2
        for _ in range(_TURNS):
            if bool((size <= enough).all()):
                break
            ahead = through(way)
            step = torch.where(size > enough, size / _dot(way, ahead).clamp_min(1e-30), 0)
            u, left = u + step * way, left - step * ahead
            after = _dot(left, left)
            way, size = left + after / size.clamp_min(1e-30) * way, after
        return u

    def fitted(self, x: Tensor) -> Tensor:
        """The nearest pictures to x that explain y exactly, where it was measured by an operator and without noise; else x."""
        if self.operator is None or self.noise > 0:
            return x
        return x + self.operator.pinv(self.residual(x))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.dim() - 1))


def each(seeds: Seeds, samples: int) -> Seeds:
    """A key for each of `samples` draws of each picture, neighbours together; the first is the picture's own."""
    return _further(seeds, samples, 32)


def particles_of(seeds: Seeds, particles: int) -> Seeds:
    """A key for each particle of each draw, neighbours together, for what is keyed by a picture and not by a draw's name."""
    return _further(seeds, particles, 48)


def _further(seeds: Seeds, times: int, bit: int) -> Seeds:
    """Keys beyond those of pictures, whose indices are below 2^32."""
    if not 1 <= times < 1 << 16:
        raise ValueError(f"a picture is restored 1 to {(1 << 16) - 1} times, by as many particles at most, not {times}.")
    places = [(s, i + (k << bit)) for s, i in zip(seeds.seed, seeds.index, strict=True) for k in range(times)]
    return Seeds(tuple(s for s, _ in places), tuple(i for _, i in places))


def resample(log_weight: Tensor, u: Tensor) -> Tensor:
    """Systematic resampling: (R, P) places of P particles with log weights (R, P), from one uniform a row u (R, 1)."""
    p = log_weight.shape[1]
    edges = log_weight.double().softmax(1).cumsum(1)
    points = (torch.arange(p, device=u.device) + u.double()) / p
    return torch.searchsorted(edges, points.contiguous()).clamp_(max=p - 1)


def effective(log_weight: Tensor) -> Tensor:
    """Effective number (R,) of particles with log weights (R, P): 1 / sum w^2."""
    return 1 / log_weight.double().softmax(1).square().sum(1)
