"""A chain of pixels as the prior: completed where what is known comes first, and otherwise drawn pixel by pixel, again and again.

**complete** draws the hidden pixels in reading order given those before them. Where the known pixels all come first and have no
noise, that is a draw from P(hidden | known), exactly, in one pass (van den Oord et al., section 5.3).

**gibbs** serves every other degradation, linear or not, for the exact likelihood P(x) is all it needs. A value x_i is drawn anew
given all others,

    P(x_i = k | rest, y) ~ P(x with x_i = k) p(y | x with x_i = k),                                                    (1)

by trying the levels; of more than 8 levels, those of a random cell of them, near ones and far ones in turn. The cells divide the
levels without regard to x, so that Eq. 1 within a cell keeps the posterior (Geman, Geman). A sweep visits each value that is not
known in an order of its own; the chain begins at the pseudo-inverse's picture, or at a completion of the known pixels.

References:
    Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016) arXiv:1601.06759
    Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of Images (Geman, Geman, 1984)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nonesuch.applications.restore._measured import Measured
from nonesuch.applications.restore._task import Task
from nonesuch.core.degradation import Mask
from nonesuch.core.model import Completer, Likelihood, Step
from nonesuch.core.seeds import Seeds

_TRIED = 8  # levels at once


def complete(task: Task) -> Iterator[Step]:
    """One pass in reading order."""
    y, model = task.measured(), task.model
    assert isinstance(model, Completer)
    yield Step(0, 1, y.y)
    known = y.known.expand(len(y.y), *task.model.spec.shape)
    yield Step(1, 1, model.complete(model.spec.snap(y.y), known, task.given, seeds=task.seeds))


def why_not_complete(task: Task) -> str:
    """What speaks against it: an operator other than a mask, or noise."""
    if not isinstance(task.degradation, Mask):
        return "completion takes a Mask, and this is none; restore with method='gibbs'."
    if task.measured().noise > 0:
        return "completion keeps the known pixels as they are, and these have noise; restore with method='gibbs'."
    return ""


def in_order(task: Task) -> bool:
    """Whether the known pixels of every picture come before the hidden ones, in reading order."""
    if why_not_complete(task):
        return False
    known = task.measured().known.flatten(1).int()
    return bool((known.diff(dim=1) <= 0).all())


def why_not_gibbs(task: Task) -> str:
    """What speaks against it: no likelihood, or one that is a bound."""
    model = task.model
    if not isinstance(model, Likelihood) or model.spec.levels is None:
        return f"Gibbs sampling needs the exact likelihood of pictures on a grid; {type(model).__name__} has none."
    return ""


def gibbs(task: Task) -> Iterator[Step]:
    """Sweeps of single values from their conditional distributions."""
    y = task.measured()
    free, x = _start(task, y)
    n = y.least()
    places = [free[:, i].nonzero()[:, 0] for i in range(free.shape[1])]  # rows in which value i is not known
    for sweep in range(task.steps):
        for j, order in enumerate(_order(task.seeds, free.shape[1], sweep)):
            rows = places[order]
            if len(rows):
                x[rows] = _drawn(task.rows(rows), x[rows], order, n, sweep * free.shape[1] + j)
        yield Step(sweep + 1, task.steps, x.clone())


def _order(seeds: Seeds, values: int, sweep: int) -> list[int]:
    """The order of a sweep, one for all pictures, so that they can be drawn together."""
    return Seeds((sweep,), (0,)).uniform("restore/order", values)[0].argsort().tolist()


def _start(task: Task, y: Measured) -> tuple[Tensor, Tensor]:
    """Which values are to be drawn (R, values), and pictures on the grid to begin with."""
    spec, model = task.model.spec, task.model
    free = torch.ones(len(y.y), *spec.shape, dtype=torch.bool, device=y.y.device)
    if isinstance(task.degradation, Mask):
        known = y.known.expand_as(free)
        free = ~known if y.noise == 0 else free
        x = torch.where(known, spec.snap(y.y), 0.0)
        if isinstance(model, Completer):
            x = model.complete(x, known, task.given, seeds=task.seeds)
        return free.flatten(1), x
    if y.operator is not None:
        return free.flatten(1), spec.snap(y.operator.pinv(y.y))
    same = y.y.shape[1:] == spec.shape
    return free.flatten(1), spec.snap(y.y) if same else model.sample(len(y.y), task.given, seeds=task.seeds)


def _drawn(task: Task, x: Tensor, place: int, n: float, step: int) -> Tensor:
    """x with the value at `place` drawn from Eq. 1."""
    model, spec = task.model, task.model.spec
    assert isinstance(model, Likelihood)
    assert spec.levels
    now = spec.to_levels(x).flatten(1)[:, place]
    tried = _cell(now, spec.levels, task.seeds, step)  # (R, K), -1 where there is none
    k = tried.shape[1]
    many = x.flatten(1).repeat_interleave(k, 0)
    many[:, place] = spec.from_levels(tried.clamp_min(0).flatten()).to(x.dtype)
    many = many.view(-1, *spec.shape)
    nats = model.log_prob(many, task.given.repeat(k)).nats.double() + task.measured(k).log_likelihood(many, n).double()
    logits = nats.view(-1, k).masked_fill(tried < 0, -torch.inf)
    chosen = task.seeds.categorical(logits, "restore/value", step=step)
    x = x.flatten(1).clone()
    x[:, place] = spec.from_levels(tried.gather(1, chosen[:, None])[:, 0]).to(x.dtype)
    return x.view(-1, *spec.shape)


def _cell(now: Tensor, levels: int, seeds: Seeds, step: int) -> Tensor:
    """The levels (R, K) of the cell that `now` (R,) lies in, -1 beyond the last; the cells do not depend on `now`."""
    if levels <= _TRIED:
        return torch.arange(levels, device=now.device).expand(len(now), -1)
    every = torch.arange(_TRIED, device=now.device)
    shift = seeds.integers("restore/cell", _TRIED, 1, step=step, device=now.device)
    if step % 2:  # every so many-th level
        stride = -(-levels // _TRIED)
        found = now[:, None] % stride + stride * every
    else:
        found = (now[:, None] + shift) // _TRIED * _TRIED - shift + every
    return torch.where((found >= 0) & (found < levels), found, -1)
