"""Chains of degradations: Compose of `core.degradation`, with the operator of the linear ones.

A chain of maps with one matrix an axis is another such map. After a mask, D A, the pseudo-inverse is that of least squares:
conjugate gradients on A* D A find it without a matrix, from zero and hence within the row space, where the smallest solution
lies (in float64, until the residual is 1e-8 of y). Where they are slow, after a strong blur, a picture of at most 1024 pixels
has its singular values taken instead, and a larger one gets what 1000 steps give.

Reference: Methods of Conjugate Gradients for Solving Linear Systems (Hestenes, Stiefel, 1952)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nonesuch.core._degradations_linear import CUTOFF, Degradation, Linear, Noise, Operator, Separable, SeparableOperator
from nonesuch.core._degradations_mask import Mask
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

_SHORT, _LONG, _ENOUGH = 100, 1000, 1e-8  # steps of conjugate gradients, and the residual that ends them
_FEW = 1024  # pixels whose map may stand as one matrix


@dataclass(frozen=True, init=False, repr=False)
class Compose(Degradation):
    """One degradation after another: Compose(Blur(1.0), Downsample(2), Noise(0.05)).

    It is `Linear` if every part is and its noise stays white: no noise before a Blur, Downsample or Grayscale. A Mask comes last.
    """

    parts: tuple[Degradation, ...] = field(default=())

    def __new__(cls, *parts: Any) -> Compose:
        return super().__new__(_LinearCompose if parts and _white(_parts(parts)) else cls)

    def __init__(self, *parts: Any) -> None:
        found = _parts(parts)
        if not found or not all(isinstance(p, Degradation) for p in found):
            raise ValueError("Compose takes degradations, such as Compose(Blur(1.0), Downsample(2)).")
        if any(isinstance(p, Mask) for p in found[:-1]):
            raise ValueError("a Mask comes last in a Compose: what follows it would blur which pixels are known.")
        object.__setattr__(self, "parts", found)

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.parts))})"

    @property
    def draws(self) -> str:
        return "degrade/compose"

    def output(self, spec: ImageSpec) -> ImageSpec:
        for part in self.parts:
            spec = part.output(spec)
        return spec

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        for i, part in enumerate(self.parts):
            x = part._spoil(x, seeds, f"{draw}/{i}")
        return x


def _parts(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The parts, chains within unfolded."""
    inside = tuple(parts[0]) if len(parts) == 1 and isinstance(parts[0], (list, tuple)) else parts
    return tuple(p for part in inside for p in (part.parts if isinstance(part, Compose) else (part,)))


def _white(parts: tuple[Any, ...]) -> bool:
    """Whether these are linear maps whose noises add up to white noise."""
    noisy = False
    for part in parts:
        if not isinstance(part, Linear) or (noisy and not isinstance(part, (Noise, Mask))):
            return False
        noisy = noisy or part.noise > 0
    return True


class _LinearCompose(Compose, Separable):
    """A Compose that is linear."""

    @property
    def noise(self) -> float:  # type: ignore[override]
        return math.sqrt(sum(part.noise**2 for part in self.parts if isinstance(part, Linear)))

    def factors(self, channels: int, size: tuple[int, ...]) -> list[Tensor | None]:
        whole: list[Tensor | None] = [None] * (1 + len(size))
        for part in self.parts:
            if isinstance(part, Separable):
                found = part.factors(channels, size)
                whole = [b if a is None else a if b is None else b @ a for a, b in zip(whole, found, strict=True)]
                shape = tuple(n if a is None else len(a) for n, a in zip((channels, *size), found, strict=True))
                channels, size = shape[0], shape[1:]
        return whole

    def operator(self, spec: ImageSpec, y: Tensor) -> Operator:
        y = self._measured(spec, y)
        if not isinstance(self.parts[-1], Mask):
            return super().operator(spec, y)
        if len(self.parts) == 1:
            return self.parts[-1].operator(spec, y)
        first, known = Compose(*self.parts[:-1]), (y[:, -1:] > 0).to(y.dtype)
        assert isinstance(first, Separable)
        whole = SeparableOperator(first, spec.channels, spec.size, y[:, :-1], 0.0)
        return _HiddenOperator(whole, known, y[:, :-1], self.noise)


@dataclass(frozen=True)
class _HiddenOperator(Operator):
    """D A: a separable map, then a mask."""

    of: SeparableOperator
    known: Tensor
    y: Tensor
    noise: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.of(x) * self.known.to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.of.adjoint(y * self.known.to(y.dtype))

    def pinv(self, y: Tensor) -> Tensor:
        """By conjugate gradients, each picture with steps of its own; by singular values where those are slow, if few pixels."""
        few = math.prod(self.of.size) <= _FEW
        if "dense" not in self.__dict__:
            found, done = self._conjugate(y.double(), _SHORT if few else _LONG)
            if done or not few:
                return found.to(y.dtype)
        z = (y.double() * self.known.double()).flatten(2) @ self.dense.mT  # the channels' own factor stands apart
        channels = self.of.matrices(torch.float64, y.device)[0]
        z = z if channels is None else torch.linalg.pinv(channels) @ z
        return z.view(len(y), -1, *self.of.size).to(y.dtype)

    @cached_property
    def dense(self) -> Tensor:
        """(D A)+ over the pixels (B, old, new), without what is weaker than the cutoff."""
        whole = torch.ones(1, 1, dtype=torch.float64, device=self.known.device)
        for n, a in zip(self.of.size, self.of.matrices(torch.float64, whole.device)[1:], strict=True):
            whole = torch.kron(whole, torch.eye(n, dtype=whole.dtype, device=whole.device) if a is None else a)
        hidden = [row[:, None] * whole for row in self.known.double().flatten(1)]
        return torch.stack([torch.linalg.pinv(one, rtol=CUTOFF) for one in hidden])

    def _conjugate(self, y: Tensor, steps: int) -> tuple[Tensor, bool]:
        """The solution after so many steps, and whether it is one: the residual is gone, or nothing of it can be explained."""
        b = y * self.known.double()

        def dot(u: Tensor, v: Tensor) -> Tensor:
            return (u * v).flatten(1).sum(1).view(-1, *[1] * (u.dim() - 1))

        s = self.adjoint(b)
        x, r, p, size = torch.zeros_like(s), b, s, dot(s, s)
        enough = _ENOUGH**2 * dot(b, b)
        for _ in range(steps):
            if ((dot(r, r) <= enough) | (size <= _ENOUGH**2 * dot(r, r))).all():
                return x, True
            q = self(p)
            step = size / dot(q, q).clamp_min(1e-300)
            x, r = x + step * p, r - step * q
            s = self.adjoint(r)
            size, before = dot(s, s), size
            p = s + size / before.clamp_min(1e-300) * p
        return x, False
