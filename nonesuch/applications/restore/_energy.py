"""An energy as the prior: the posterior's own energy is known up to its constant, and Langevin dynamics samples it.

    -log p(x | y) = E(x) + |y - f(x)|^2 / (2 n^2) + const                                                            (Bayes)

The particles of `_tempered` start from the model's samples, so the model's own annealing, where it has one, is what finds the
modes; from there the measurements are turned on by degrees.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nonesuch.applications.restore._measured import Measured, particles_of
from nonesuch.applications.restore._task import Task, pick
from nonesuch.applications.restore._tempered import Potentials, temper
from nonesuch.core.given import Given
from nonesuch.core.model import Energy, Step

_LEAPS = 3


def langevin(task: Task) -> Iterator[Step]:
    """Metropolis-adjusted Hamiltonian moves on E(x) + |y - f(x)|^2 / 2 n^2, by way of rising weights of its second term."""
    p, spec, runs = task.particles, task.model.spec, len(task.seeds)
    model = task.model
    assert isinstance(model, Energy)

    def potentials(which: Tensor) -> Potentials:
        part = task.rows(which)
        y, given = part.measured(p), part.given.repeat(p)
        return lambda x: _both(model, y, given, x)

    keys = particles_of(task.seeds, p)
    start = model.sample(len(keys), task.given.repeat(p), seeds=keys).view(runs, p, *spec.shape)
    total = 100
    for done, x in temper(start, potentials, task.seeds, task.steps, _LEAPS):
        yield Step(min(total - 1, int(done * total)), total, x[:, 0])
    which = task.seeds.integers("restore/which", p, 1, device=x.device)
    yield Step(total, total, pick(x, which)[:, 0])


def _both(model: Energy, y: Measured, given: Given, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        u = model.energy(leaf, given)
        (du,) = torch.autograd.grad(u.sum(), leaf)
    n, off = y.least(), y.residual(x)
    return u.detach(), off.flatten(1).square().sum(1) / (2 * n**2), du, -y.pull(x, off) / n**2
