"""`restore(model, y, degradation)`: pictures that a model finds likely and that explain what was measured of them.

    p(x | y) ~ p(x) p(y | x),        y = f(x) + noise                                                               (Bayes)

p(x) is any model, of any family, that was not trained for the job; f is a `Degradation`. Several draws of the posterior are
made, not one guess: their mean is the best guess in squared error, and their spread says where the model is sure.

    method       needs       in one line                                                   a draw of p(x | y)?
    complete     Completer   hidden pixels in reading order, after known ones            exactly
    gibbs        Completer   values one by one from their conditionals                     as sweeps grow
    twisted      Denoiser    guided particles with weights                                 as particles and steps grow
    pigdm        Denoiser    guidance by the pseudo-inverse                                approximately
    dps          Denoiser    guidance by the slope of the misfit                           approximately
    langevin     Energy      particles on E(x) + |y - f(x)|^2 / 2 n^2                      as particles grow
    langevin     Decoder     the same in the latents                                       as particles grow
    optimise     Decoder     the best latents of several starts                            no: its most likely latents

`_measured.py` holds the likelihood p(y | x), `_tempered.py` the particles; the other files are the methods, with their papers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from nonesuch.applications import Event, finish, require
from nonesuch.applications.restore import _completion, _diffusion, _energy, _latent
from nonesuch.applications.restore._measured import Measured, each
from nonesuch.applications.restore._task import Method, Task
from nonesuch.core.degradation import Degradation, Linear
from nonesuch.core.given import did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Completer, Decoder, Denoiser, Energy, Model
from nonesuch.core.seeds import Seeds

__all__ = ["Options", "Restored", "needs", "restore", "run"]

needs = (Completer, Denoiser, Energy, Decoder)
_EXACT, _LATER, _NEARLY = "exact", "asymptotically exact", "approximate"
METHODS: dict[str, tuple[Method, ...]] = {  # of a model that is several things, the first that fits is its own
    "complete": (Method((Completer,), _completion.complete, _EXACT, 1, fit=False, able=_completion.why_not_complete),),
    "gibbs": (Method((Completer,), _completion.gibbs, _LATER, 4, fit=False, able=_completion.why_not_gibbs),),
    "pigdm": (Method((Denoiser,), _diffusion.pigdm, _NEARLY, 40),),
    "twisted": (Method((Denoiser,), _diffusion.twisted, _LATER, 40, 16),),
    "dps": (Method((Denoiser,), _diffusion.dps, _NEARLY, 200),),
    "langevin": (
        Method((Energy,), _energy.langevin, _LATER, 3, 32),
        Method((Decoder,), _latent.langevin, _LATER, 3, 32, able=_latent.why_not),
    ),
    "optimise": (Method((Decoder,), _latent.optimise, _NEARLY, 200, 4, able=_latent.why_not),),
}
_CHUNK_VALUES = 1 << 17  # values of the pictures that are worked on at a time: their networks keep what gradients need
_FITS = 20


@dataclass(frozen=True)
class Options:
    """samples: draws a picture; seeds: as of `sample`, one a picture; method: a name of the table above, None: the model's own;
    steps: noise levels (pigdm, twisted, dps), sweeps (gibbs), moves at each weight (langevin) or descents (optimise);
    particles: of each draw (twisted, langevin), or starts (optimise); noise: deviation of y, in place of the degradation's.
    """

    samples: int = 4
    seeds: Seeds | int = 0
    method: str | None = None
    steps: int | None = None
    particles: int | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Restored:
    """x: draws (B, samples, C, *size) in [-1, 1], not rounded to levels; mean and spread (standard deviation, NaN of one draw)
    over them, (B, C, *size); error: root mean square (B, samples) of y - f(x) over what was measured; method; honest: "exact",
    "asymptotically exact" or "approximate", what the draws are to the model's posterior; seconds."""

    x: Tensor
    mean: Tensor
    spread: Tensor
    error: Tensor
    method: str
    honest: str
    seconds: float


def restore(
    model: Model, y: Tensor, degradation: Degradation, given: Any = None, *, progress: Callable[[Event], object] | None = None,
    **options: Any,
) -> Restored:  # fmt: skip
    """Draws of p(x | y, given) with the model as the prior.

    y: what `degradation` made of pictures (B, C, *size), (B, *degradation.output(model.spec).shape); given: as of `model.sample`;
    options: those of `Options`; progress: sees every event. Sample j of picture b depends on its own seed only.
    Raises ValueError for y or options that do not fit, and where no method serves this model and degradation.
    """
    known = [f.name for f in fields(Options)]
    for name in options:
        if name not in known:
            raise ValueError(f"restore takes no {name!r}; {did_you_mean(name, known)}")
    return finish(run(model, y, degradation, given, Options(**options)), progress)


def run(model: Model, y: Tensor, degradation: Degradation, given: Any = None, options: Options | None = None) -> Iterator[Event]:
    """`restore`, an event a step: previews x of the first draws, and at the end the `Restored` as its result."""
    options, begin = options or Options(), time.perf_counter()
    task = _asked(model, y, degradation, given, options)
    name, method = _method(task, options.method)
    task = replace(task, steps=options.steps or method.steps, particles=options.particles or method.particles)
    if reason := method.able(task):
        raise ValueError(reason)
    runs, found = len(task.seeds), []
    chunk = max(1, _CHUNK_VALUES // (model.spec.numel * task.particles))
    parts = [torch.arange(i, min(i + chunk, runs)) for i in range(0, runs, chunk)]
    for i, rows in enumerate(parts):
        for step in method.draw(task.rows(rows)):
            last = _bounded(step.x, model.spec)
            yield Event(i * step.total + step.step, len(parts) * step.total, name, last)
        found.append(last)
    measured = task.measured()
    x = torch.cat(found)
    if method.fit and measured.noise == 0:
        for _ in range(_FITS):  # projections in turn onto what explains y and what is a picture
            x = _bounded(measured.fitted(x), model.spec)
    yield Event(1, 1, name, result=_restored(x, measured, options.samples, name, method, task, time.perf_counter() - begin))


def _asked(model: Model, y: Tensor, degradation: Degradation, given: Any, options: Options) -> Task:
    """A caller's words, checked: one row a draw."""
    require(model, needs, "restoring")
    model.require_fitted()
    for word in ("samples", "steps", "particles"):
        value = getattr(options, word)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{word} must be a whole number, at least 1, not {value!r}.")
    if not isinstance(degradation, Degradation):
        raise ValueError(f"degradation must be a Degradation, such as Downsample(2), not {degradation!r}.")
    Measured(degradation, model.spec, y, options.noise)
    _require_known(degradation, model.spec)
    n, samples = len(y), options.samples
    keys = Seeds.of(options.seeds, n)
    told = model.schema.given(n, given, keys).to(model.device).repeat(samples)
    y = y.to(model.device, torch.float32).repeat_interleave(samples, 0)
    return Task(model, degradation, y, told, each(keys, samples), 1, 1, options.noise)


def _require_known(degradation: Degradation, spec: ImageSpec) -> None:
    """ValueError for a degradation that draws anew what it does to each picture, for then nobody knows what it did to y."""
    if isinstance(degradation, Linear):
        return
    ramp = torch.linspace(-1, 1, spec.numel).view(1, *spec.shape)
    if not torch.equal(degradation(ramp, 0), degradation(ramp, 1)):
        name = type(degradation).__name__
        raise ValueError(
            f"{name} does something else to every picture, so what it did to y is unknown; fit(given={name}()) learns to undo it."
        )


def _method(task: Task, asked: str | None) -> tuple[str, Method]:
    """The method of that name for this model, or the model's own."""
    if asked is None:
        asked = _usual(task)
    if asked not in METHODS:
        raise ValueError(f"there is no method {asked!r}; {did_you_mean(asked, METHODS)}")
    for method in METHODS[asked]:
        if isinstance(task.model, method.needs):
            return asked, method
    able = [name for name, ways in METHODS.items() if any(isinstance(task.model, way.needs) for way in ways)]
    what = " or ".join(n.__name__ for way in METHODS[asked] for n in way.needs)
    raise ValueError(f"{asked} needs a {what}, and {type(task.model).__name__} is none; it restores by {', '.join(able)}.")


def _usual(task: Task) -> str:
    if isinstance(task.model, Completer):
        return "complete" if _completion.in_order(task) or _completion.why_not_gibbs(task) else "gibbs"
    return "pigdm" if isinstance(task.model, Denoiser) else "langevin"


def _bounded(x: Tensor, spec: ImageSpec) -> Tensor:
    return x.clamp(-1, 1) if spec.kind == "ordinal" else x


def _restored(x: Tensor, y: Measured, samples: int, name: str, method: Method, task: Task, seconds: float) -> Restored:
    honest = method.honest
    if name == "complete" and not _completion.in_order(task):
        honest = _NEARLY  # known pixels further on did not speak for those before them
    draws = x.unflatten(0, (-1, samples))
    spread = draws.std(1) if samples > 1 else torch.full_like(draws[:, 0], math.nan)
    return Restored(draws, draws.mean(1), spread, y.error(x).unflatten(0, (-1, samples)), name, honest, seconds)
