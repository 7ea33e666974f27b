"""A denoiser as the prior: noise is taken away level by level, leaning on the measurements; with particles, exactly so.

Let x_s = x + s eps and D = E[x | x_s]. From s to the next level s', with c = (s' / s)^2, the model's own step is

    x' ~ N((1 - c) D + c x, V),     V = s'^2 (1 - c) + (1 - c)^2 r^2,     r^2 = E|x - D|^2 / dimensions,              (1)

the mean and variance of the true one for round Gaussian pictures (Bao et al., Eq. 7; r^2 is measured here, on samples of the
model). What y says about x_s is taken to be that of x ~ N(D, r^2 I) (Song et al., Eq. 7),

    log p(y | x_s) = -|y - A D|^2 / 2 in the metric (n^2 I + r^2 A A*)^-1 =: l(x_s),                                  (2)
    grad l = (dD/dx)^T A* (n^2 I + r^2 A A*)^-1 (y - A D),                                                           (3)

with n the noise of y. **pigdm** moves the mean of Eq. 1 by d = (1 - c) s^2 grad l, as by Tweedie's formula E[x | x_s, y] =
D + s^2 grad log p(y | x_s), and stops there: Eq. 2 is a guess. **twisted** (Wu et al., Algorithm 1) lets P particles do so and
weighs each by what the guess got wrong,

    w' = w  N(x'; m, V) / N(x'; m + d, V)  exp(l(x') - l(x)),         and at the end  p(y | x) exp(-l),               (4)

so that the weighted particles are p(x | y) of the model's chain as P grows, whatever l is. One particle of them is the draw, and
every draw has its own particles, so draws are independent. **dps** (Chung et al., Algorithm 1) moves x' instead by
-zeta grad |y - A D|, which needs no more of f than a derivative; their zeta counts on 1,000 steps and on pictures of
3 x 256 x 256, and is shared out here over the steps and by the square root of the pictures' size.

References:
    Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023), openreview.net/forum?id=9_gsMA8MRKQ
    Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022) arXiv:2209.14687
    Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023) arXiv:2306.17775
    Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance (Bao et al., 2022) arXiv:2201.06503
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nonesuch.applications._noised import Noised
from nonesuch.applications.restore._measured import Measured, effective, resample
from nonesuch.applications.restore._task import Task, flat, pick
from nonesuch.core.model import Step
from nonesuch.core.seeds import Seeds

_JUDGED = 64  # samples of the model that its error is measured on
_ZETA, _THEIR_STEPS, _THEIR_SIZE = 2.0, 1000, 3 * 256 * 256  # of dps, chosen on digits, and what it counts on


def _errors(task: Task, levels: list[float]) -> list[float]:
    """r of Eq. 1 at each noise level, on samples of the model without a condition: the same for every picture."""
    model, n = task.model, _JUDGED
    keys = Seeds.of(0, n)
    x = model.sample(n, seeds=keys)
    denoise, found = Noised(model, model.schema.missing(n).to(x.device)), []
    with torch.no_grad():
        for i, s in enumerate(levels):
            noisy = x + s * keys.normal("restore/judge", *x.shape[1:], step=i, device=x.device).to(x.dtype)
            found.append(min(s, float((x - denoise(noisy, s)).square().mean().sqrt())))
    return found


def _lean(denoise: Noised, y: Measured, x: Tensor, s: float, n: float, r: float) -> tuple[Tensor, Tensor, Tensor]:
    """D, grad l (Eq. 3) and l (R,) (Eq. 2) at x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        d = denoise(leaf, s)
        at = d.detach()
        off = y.residual(at)
        white = y.whiten(off, n, r)
        (slope,) = torch.autograd.grad(d, leaf, y.pull(at, white))
    return at, slope, -0.5 * (off * white).flatten(1).sum(1)


def _walk(task: Task, weigh: bool) -> Iterator[Step]:
    """Both pigdm and twisted; without weights the particles are one."""
    p, runs, spec = task.particles if weigh else 1, len(task.seeds), task.model.spec
    y, given = task.measured(p), task.given.repeat(p)
    denoise, n = Noised(task.model, given), y.least()
    levels = denoise.levels(task.steps)
    errors = _errors(task, levels)

    def noise(step: int) -> Tensor:
        return flat(task.seeds.normal("restore/noise", p, *spec.shape, step=step, device=y.y.device))

    with torch.no_grad():
        x = math.hypot(levels[0], errors[0]) * noise(0)  # as wide as the noise and the pictures together
        x = x + denoise(torch.zeros_like(x), levels[0])  # about their mean
    log_weight = x.new_zeros(runs, p, dtype=torch.float64)
    for i, (s, after, r) in enumerate(zip(levels, [*levels[1:], 0.0], errors, strict=True)):
        d, slope, guess = _lean(denoise, y, x, s, n, r)
        if weigh:
            log_weight = log_weight + guess.view(runs, p)
            x, d, slope, guess, log_weight = _thinned(task, log_weight, i, x, d, slope, guess)
        c = (after / s) ** 2
        variance = max(after**2 * (1 - c) + (1 - c) ** 2 * r**2, 1e-12)
        eps, shift = noise(i + 1), (1 - c) * s**2 * slope
        x = d + c * (x - d) + shift + math.sqrt(variance) * eps
        cost = (shift.square() / (2 * variance) + shift * eps / math.sqrt(variance)).flatten(1).sum(1)
        log_weight = log_weight - (cost + guess).view(runs, p)  # Eq. 4, but for what x' says of itself
        yield Step(i + 1, task.steps, d.view(runs, p, *spec.shape)[:, 0])
    log_weight = log_weight + y.log_likelihood(x, n).view(runs, p)
    yield Step(task.steps, task.steps, _one(task, x.view(runs, p, *spec.shape), log_weight))


def _thinned(task: Task, log_weight: Tensor, i: int, *state: Tensor) -> tuple[Tensor, ...]:
    """Particles drawn anew where fewer than half are effective; the weights come last."""
    runs, p = log_weight.shape
    poor = effective(log_weight) < p / 2
    where = resample(log_weight, task.seeds.uniform("restore/resample", 1, step=i, device=log_weight.device))
    where = torch.where(poor[:, None], where, torch.arange(p, device=where.device))
    kept = tuple(flat(pick(v.view(runs, p, *v.shape[1:]), where)) for v in state)
    return (*kept, torch.where(poor[:, None], 0.0, log_weight))


def _one(task: Task, x: Tensor, log_weight: Tensor) -> Tensor:
    """One of the particles x (R, P, ...) by their weights."""
    which = task.seeds.categorical(log_weight, "restore/which")
    return pick(x, which[:, None])[:, 0]


def pigdm(task: Task) -> Iterator[Step]:
    """Pseudo-inverse guidance."""
    yield from _walk(task, weigh=False)


def twisted(task: Task) -> Iterator[Step]:
    """The twisted diffusion sampler."""
    yield from _walk(task, weigh=True)


def dps(task: Task) -> Iterator[Step]:
    """Diffusion posterior sampling."""
    y, spec = task.measured(), task.model.spec
    denoise = Noised(task.model, task.given)
    levels = denoise.levels(task.steps)
    zeta = _ZETA * _THEIR_STEPS / task.steps * math.sqrt(spec.numel / _THEIR_SIZE)
    x = levels[0] * task.seeds.normal("restore/noise", *spec.shape, device=y.y.device)
    for i, (s, after) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            d = denoise(leaf, s)
            off = y.residual(d.detach())
            (slope,) = torch.autograd.grad(d, leaf, y.pull(d.detach(), off))
        d, c = d.detach(), (after / s) ** 2
        size = off.flatten(1).norm(dim=1).clamp_min(1e-6).view(-1, *[1] * (x.dim() - 1))
        noise = task.seeds.normal("restore/noise", *spec.shape, step=i + 1, device=x.device)
        led = zeta * (1 + s**2) * slope / size  # their x_t is ours over sqrt(1 + s^2)
        x = d + c * (x - d) + after * math.sqrt(1 - c) * noise + led
        yield Step(i + 1, task.steps, d)
    yield Step(task.steps, task.steps, x)
