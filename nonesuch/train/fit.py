"""`fit`: the one training loop. It knows objectives and a clock that counts images, and nothing about any family."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from nonesuch.core import artifact
from nonesuch.core.model import Model
from nonesuch.data.open import open as open_data
from nonesuch.train import checkpoint
from nonesuch.train.device import Precision, place
from nonesuch.train.log import Event, drawn, write_metrics
from nonesuch.train.plan import choose_model, plan
from nonesuch.train.recipe import Budget, Recipe
from nonesuch.train.run import Run, whole_rounds

_LOG_S, _PREVIEW_S, _SAVE_S = 1.0, 60.0, 60.0  # how often a run logs, shows samples, and saves


def train(run: Run, out: Path | None = None, preview: bool = False) -> Generator[Event, None, None]:
    """Step the run to its end, yielding events. With `out` it saves as it goes, at the end, and when interrupted."""
    start, first = time.perf_counter(), run.images
    last_log = last_preview = last_save = start
    terms: dict[str, torch.Tensor] = {}

    def event(kind: Any, **more: Any) -> Event:
        seconds = time.perf_counter() - start
        rate = (run.images - first) / max(seconds, 1e-9)
        return Event(kind, run.images, run.recipe.images, seconds, rate, {k: float(v) for k, v in terms.items()}, **more)

    plan_text = f"{run.recipe.images:,} images in batches of {run.recipe.batch}"
    yield event("start", text=plan_text + (f", resumed at {first:,}" if first else ""))
    try:
        while run.images < run.recipe.images:
            with whole_rounds():
                terms = run.step()
            now = time.perf_counter()
            if now - last_log > _LOG_S:
                last_log = now
                yield event("progress")
            if preview and now - last_preview > _PREVIEW_S:
                x = _preview(run)
                last_preview = time.perf_counter()
                yield event("preview", x=x)
            if out and now - last_save > _SAVE_S:
                checkpoint.save(run, out)
                last_save = time.perf_counter()
                yield event("saved")
    except (KeyboardInterrupt, GeneratorExit):  # Ctrl-C here, or anything at all in who takes the events
        if out:
            checkpoint.save(run, out)
        raise
    if out:
        checkpoint.save(run, out)
    yield event("done")


def _preview(run: Run) -> torch.Tensor:
    """16 pictures of the averaged weights, under the conditions of the first training images."""
    given = run.data.given[torch.arange(16) % len(run.data)]
    run.averages.swap()
    try:
        return run.model.sample(16, given)
    finally:
        run.averages.swap()


def fit(
    model: str | Path | Model,
    data: Any,
    *,
    given: str | Sequence[str] | None = None,
    budget: str | int | Budget = "5m",
    seed: int = 0,
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    precision: Precision = "auto",
    device: str | None = None,
    progress: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Model:
    """Train a model on images and return it with its averaged weights.

    model: a catalogue name ("diffusion", "gan/r3gan"), or a Model or checkpoint folder, of which a copy is trained further.
    data: Data, or what `nonesuch.data.open` takes; only its training split is seen. given: the condition's column, or columns.
    budget: images ("8Mi", 50000) or time ("5m"), which is turned into a number of images by a short measurement and recorded.
    preset, config: a size by name, and fields of the model's Config to replace; recipe: fields of Recipe to replace.
    out: a folder for the checkpoint, resume state and metrics.jsonl; the same call again takes the run up where it stopped.
    progress: draw a bar. Raises ValueError, with what to do: unknown names, unfit data, a loss that is not finite, a full disk.
    """
    length = Budget.parse(budget)
    opened = open_data(data)
    columns = [given] if isinstance(given, str) else list(given or ())
    opened = opened.select(columns)
    folder = Path(out) if out is not None else None
    built, defaults = choose_model(model, opened, preset, config or {}, seed)
    opened = opened.recoded(built.schema)
    merged = {**defaults, **(recipe or {}), "seed": seed, "images": length.images}
    placed = place(built, device, precision)
    run = plan(built, opened, artifact.read_dataclass(Recipe, merged, "the recipe"), length, str(budget), folder)
    with drawn(f"{artifact.model_name(type(built))} on {opened.name}: {placed}", opened.spec) if progress else _quiet() as draw:
        with closing(train(run, folder, preview=progress or on_event is not None)) as events:
            for event in events:
                draw(event)
                if on_event:
                    on_event(event)
                if folder:
                    write_metrics(folder, event, opened.spec)
    run.averages.swap()
    return run.model


@contextmanager
def _quiet() -> Iterator[Callable[[Event], None]]:
    yield lambda event: None
