"""A decoder as the prior: pictures are G(z) of latents z ~ N(m, I), and what is looked for is z.

    -log p(z | y) = |z - m|^2 / 2 + |y - f(G(z))|^2 / (2 n^2) + const                                                 (1)

**langevin** samples Eq. 1 by the particles of `_tempered`, from draws of the prior: a posterior of latents, whatever the decoder
is. For a flow it is the posterior of the pictures, for a VAE that of E[x | z], for a GAN that of its generator's pictures.
**optimise** (Bora et al.) goes down Eq. 1 from several draws of the prior, with n falling to its value so that the coarse is
fitted before the fine, and keeps the best: one good guess a start, no measure of what else it might have been.

A decoder seldom reaches measurements to the last level, so n is 0.05 at least (a fortieth of the range); what is then left of
noiseless ones is met by the pseudo-inverse.

References:
    Compressed Sensing using Generative Models (Bora, Jalal, Price, Dimakis, 2017) arXiv:1703.03208
    Adam: A Method for Stochastic Optimization (Kingma, Ba, 2014) arXiv:1412.6980
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nonesuch.applications.restore._measured import Measured, particles_of
from nonesuch.applications.restore._task import Task, pick
from nonesuch.applications.restore._tempered import Potentials, temper
from nonesuch.core.given import Given
from nonesuch.core.model import Decoder, Model, Step

_LEAPS = 3
_FLOOR = 0.05  # least deviation of measurements
_DRAWS = 256  # of the prior, to find its centre
_RATE, _COARSE = 0.1, 1.0  # Adam's step, and the deviation that optimising begins with


def langevin(task: Task) -> Iterator[Step]:
    """Metropolis-adjusted Hamiltonian moves on Eq. 1, by way of rising weights of its second term."""
    p, runs = task.particles, len(task.seeds)
    z = _starts(task)
    centre = _centre(task)

    def potentials(which: Tensor) -> Potentials:
        part = task.rows(which)
        y, given = part.measured(p), part.given.repeat(p)
        middle = centre[which].repeat_interleave(p, 0)
        n = y.least(_FLOOR)

        def both(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            off = z - middle
            l, dl, _ = _misfit(task.model, y, given, z, n)  # noqa: E741
            return 0.5 * off.flatten(1).square().sum(1), l, off, dl

        return both

    total = 100
    for done, now in temper(z.view(runs, p, *z.shape[1:]), potentials, task.seeds, task.steps, _LEAPS):
        if done < 1:
            yield Step(int(done * total), total, _pictures(task, now[:, 0]))
    which = task.seeds.integers("restore/which", p, 1, device=z.device)
    yield Step(total, total, _pictures(task, pick(now, which)[:, 0]))


def optimise(task: Task) -> Iterator[Step]:
    """The best of several ways down Eq. 1."""
    p, runs = task.particles, len(task.seeds)
    z, centre = _starts(task), _centre(task).repeat_interleave(p, 0)
    y, given = task.measured(p), task.given.repeat(p)
    last, first, second = y.least(_FLOOR), torch.zeros_like(z), torch.zeros_like(z)
    for i in range(task.steps):
        n = max(last, _COARSE * (last / _COARSE) ** min(1.0, 2 * i / task.steps))
        _, slope, x = _misfit(task.model, y, given, z, n)
        slope = slope + z - centre
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope.square()
        mean, size = first / (1 - 0.9 ** (i + 1)), second / (1 - 0.99 ** (i + 1))
        z = z - _RATE * (1 - i / task.steps) * mean / (size.sqrt() + 1e-8)
        if (i + 1) % 10 == 0 and i + 1 < task.steps:
            yield Step(i + 1, task.steps, x.view(runs, p, *x.shape[1:])[:, 0])
    cost, _, x = _misfit(task.model, y, given, z, last)
    cost = cost + 0.5 * (z - centre).flatten(1).square().sum(1)
    best = cost.nan_to_num(torch.inf).view(runs, p).argmin(1, keepdim=True)
    yield Step(task.steps, task.steps, pick(x.view(runs, p, *x.shape[1:]), best)[:, 0])


def why_not(task: Task) -> str:
    """What speaks against it: latents that are categories have no slope."""
    model = task.model
    if isinstance(model, Decoder) and model.latent_spec.kind == "categorical":
        return (
            f"the latents of {type(model).__name__} are numbers of codes, without a slope to follow; restore with another model."
        )
    return ""


def _decoder(model: Model) -> Decoder:
    assert isinstance(model, Decoder)
    return model


def _starts(task: Task) -> Tensor:
    """P draws of the prior for every run, (R P, ...)."""
    keys = particles_of(task.seeds, task.particles)
    return _decoder(task.model).prior(len(keys), task.given.repeat(task.particles), seeds=keys)


def _centre(task: Task) -> Tensor:
    """m (R, ...): the mean of draws of the prior, or 0 where nothing speaks against that."""
    found: list[Tensor] = []
    for i in range(len(task.seeds)):
        same = i and all(torch.equal(v[i].nan_to_num(), v[i - 1].nan_to_num()) for v in task.given.columns.values())
        if not same:
            z = _decoder(task.model).prior(_DRAWS, task.given[[i] * _DRAWS], seeds=0)
            mean = z.mean(0)
            mean = torch.where(mean.square().mean().sqrt() < 1.5 / _DRAWS**0.5, torch.zeros_like(mean), mean)
        found.append(mean)
    return torch.stack(found)


def _misfit(model: Model, y: Measured, given: Given, z: Tensor, n: float) -> tuple[Tensor, Tensor, Tensor]:
    """|y - f(G(z))|^2 / (2 n^2) (N,), its gradient in z, and G(z)."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        x = _decoder(model).decode(leaf, given)
        at = x.detach()
        off = y.residual(at)
        (slope,) = torch.autograd.grad(x, leaf, -y.pull(at, off) / n**2)
    return off.flatten(1).square().sum(1) / (2 * n**2), slope, at


def _pictures(task: Task, z: Tensor) -> Tensor:
    with torch.no_grad():
        return _decoder(task.model).decode(z, task.given)
