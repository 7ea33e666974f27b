"""Draws from exp(-U(s) - L(s)) by particles that start as draws of the prior exp(-U) and are led over by degrees.

    pi_b(s) ~ exp(-U(s) - b L(s)),        b from 0 to 1,        L = -log p(y | s)                                      (1)

At b = 0 the P particles of a run are the model's own samples. b grows by as much as keeps half of them effective under the
weights exp(-(b' - b) L); they are resampled by those weights, and each is moved by Hamiltonian dynamics at b', which keeps pi_b'
exactly because every move is accepted or refused by Metropolis's rule (one leap a move is Langevin's). As P grows the particles
are a sample of the posterior, the shares of its modes included, which no chain finds by itself (Del Moral, Doucet, Jasra). One
particle of the last ones is the draw, and every draw has its own run.

Steps are measured in each coordinate's deviation over the run's particles, and their length follows the acceptance of the run.

References:
    Sequential Monte Carlo Samplers (Del Moral, Doucet, Jasra, 2006)
    Annealed Importance Sampling (Neal, 1998) arXiv:physics/9803008
    MCMC Using Hamiltonian Dynamics (Neal, 2011) arXiv:1206.1901
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nonesuch.applications.restore._measured import effective, resample
from nonesuch.applications.restore._task import flat, pick
from nonesuch.core.seeds import Seeds

_STAGES = 200  # of b, at most; then what is left of it is taken at once
_WANTED = 0.75  # share of moves that are accepted
_LAST = 4  # times as many moves at b = 1

Potentials = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]  # s (N, ...) -> U (N,), L (N,), grad U, grad L


@dataclass
class Particles:
    """s (R, P, ...) with the potentials U, L (R, P) and their gradients, where they are; b (R,) and the length of steps (R,)."""

    s: Tensor
    u: Tensor
    l: Tensor  # noqa: E741 (the paper's word)
    du: Tensor
    dl: Tensor
    b: Tensor
    eps: Tensor

    def rows(self, which: Tensor) -> Particles:
        return Particles(*(v[which] for v in vars(self).values()))

    def put(self, which: Tensor, some: Particles) -> None:
        for name, value in vars(some).items():
            getattr(self, name)[which] = value


def temper(
    start: Tensor, potentials: Callable[[Tensor], Potentials], seeds: Seeds, moves: int, leaps: int
) -> Iterator[tuple[float, Tensor]]:
    """Lead particles (R, P, ...) from the prior to the posterior; yields how far it is in [0, 1] and the particles.

    potentials(rows (N,)): those of particles of these runs, R P rows wide for all. moves: of each particle at each b.
    """
    runs, p = start.shape[:2]
    every = torch.arange(runs, device=start.device)
    found = potentials(every)(flat(start))
    state = Particles(start, *(v.view(runs, p, *v.shape[1:]) for v in found), start.new_zeros(runs), start.new_full((runs,), 0.5))
    for stage in range(_STAGES):
        todo = (state.b < 1).nonzero()[:, 0]
        if not len(todo):
            break
        some, keys = state.rows(todo), seeds[todo.tolist()]
        _reweigh(some, keys, stage, final=stage == _STAGES - 1)
        times = torch.where(some.b < 1, moves, _LAST * moves)
        for k in range(int(times.max())):
            now = (times > k).nonzero()[:, 0]
            part, their = some.rows(now), keys[now.tolist()]
            _move(part, potentials(todo[now]), their, stage * _LAST * moves + k, leaps)
            some.put(now, part)
        state.put(todo, some)
        yield float(state.b.mean()), state.s
    yield 1.0, state.s


def _reweigh(state: Particles, seeds: Seeds, stage: int, final: bool) -> None:
    """Let b grow and draw the particles anew by their weights."""
    low, high = torch.zeros_like(state.b), 1 - state.b
    p = state.l.shape[1]
    if final or p < 2:  # one particle is no sample: b grows evenly
        step = high if final else torch.minimum(high, torch.full_like(high, 0.05))
    else:
        whole = effective(-high[:, None] * state.l) >= p / 2
        for _ in range(40):
            middle = (low + high) / 2
            good = effective(-middle[:, None] * state.l) >= p / 2
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        step = torch.where(whole, 1 - state.b, low.clamp_min(1e-7))
    where = resample(-step[:, None] * state.l, seeds.uniform("restore/resample", 1, step=stage, device=step.device))
    for name in ("s", "u", "l", "du", "dl"):
        setattr(state, name, pick(getattr(state, name), where))
    state.b = torch.where(step >= 1 - state.b, torch.ones_like(state.b), state.b + step)


def _move(state: Particles, potentials: Potentials, seeds: Seeds, step: int, leaps: int) -> None:
    """One Hamiltonian move of every particle, in place."""
    runs, p = state.s.shape[:2]
    shape = [-1, 1, *[1] * (state.s.dim() - 2)]
    b = state.b.view(shape)
    scale = _scale(state.s)
    spread = scale * state.eps.view(shape) * (0.5 + seeds.uniform("restore/length", 1, step=step, device=b.device).view(shape))
    momentum = seeds.normal("restore/momentum", *state.s.shape[1:], step=step, device=b.device)
    s, slope, kinetic = state.s, state.du + b * state.dl, momentum
    for _ in range(leaps):
        kinetic = kinetic - 0.5 * spread * slope
        s = s + spread * kinetic
        u, l, du, dl = (v.view(runs, p, *v.shape[1:]) for v in potentials(flat(s)))  # noqa: E741
        slope = du + b * dl
        kinetic = kinetic - 0.5 * spread * slope
    before = state.u + state.b[:, None] * state.l + 0.5 * momentum.flatten(2).square().sum(2)
    after = u + state.b[:, None] * l + 0.5 * kinetic.flatten(2).square().sum(2)
    chance = (before - after).nan_to_num(-math.inf).clamp(max=0).exp()
    taken = seeds.uniform("restore/accept", p, step=step, device=b.device) < chance
    for name, new in (("s", s), ("u", u), ("l", l), ("du", du), ("dl", dl)):
        old = getattr(state, name)
        setattr(state, name, torch.where(taken.view(*taken.shape, *[1] * (old.dim() - 2)), new, old))
    state.eps = (state.eps * torch.exp(0.3 * (chance.mean(1) - _WANTED))).clamp(1e-4, 2.0)


def _scale(s: Tensor) -> Tensor:
    """The deviation of each coordinate over the particles (R, 1, ...), drawn towards their mean; 1 for one particle."""
    p = s.shape[1]
    if p < 2:
        return torch.ones_like(s)
    variance = s.var(1, keepdim=True)
    overall = variance.flatten(1).mean(1).view(-1, *[1] * (s.dim() - 1))
    return ((p * variance + 4 * overall) / (p + 4)).sqrt().clamp_min(1e-6)
