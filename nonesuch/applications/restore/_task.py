"""What every method of restoration is handed, and what it hands back: an iterator of Steps, the last with the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nonesuch.applications.restore._measured import Measured
from nonesuch.core.degradation import Degradation
from nonesuch.core.given import Given
from nonesuch.core.model import Model, Step
from nonesuch.core.seeds import Seeds


@dataclass(frozen=True)
class Task:
    """R draws to make: measurements y (R, ...), conditions and keys, one a row; `particles`, `steps`: a method's own."""

    model: Model
    degradation: Degradation
    y: Tensor
    given: Given
    seeds: Seeds
    particles: int
    steps: int
    noise: float | None = None

    def measured(self, times: int = 1) -> Measured:
        """The measurements, each row `times` times."""
        return Measured(self.degradation, self.model.spec, self.y.repeat_interleave(times, 0), self.noise)

    def rows(self, which: Tensor) -> Task:
        """The same for some rows."""
        which = which.cpu()
        picked = which.tolist()
        return Task(
            self.model, self.degradation, self.y[which], self.given[which], self.seeds[picked], self.particles, self.steps,
            self.noise,
        )  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A way to draw from p(x | y): what a model must be for it, its law in words, and its usual steps and particles.

    honest: "exact" (a draw from the model's own posterior), "asymptotically exact" (as steps or particles grow), "approximate".
    """

    needs: tuple[type, ...]
    draw: Callable[[Task], Iterator[Step]]
    honest: str
    steps: int
    particles: int = 1
    fit: bool = True  # whether noiseless measurements are met exactly at the end, by the pseudo-inverse
    able: Callable[[Task], str] = lambda task: ""  # why it cannot do this one


def flat(x: Tensor) -> Tensor:
    """(R, P, ...) -> (R P, ...)."""
    return x.flatten(0, 1)


def pick(x: Tensor, which: Tensor) -> Tensor:
    """Particles x (R, P, ...) at places which (R, P) or (R, 1)."""
    shape = (*which.shape, *[1] * (x.dim() - 2))
    return torch.gather(x, 1, which.view(shape).expand(*which.shape, *x.shape[2:]))
