"""`fit`: from what a caller says to a trained model. The loop itself is in `loop.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nonesuch.core import artifact
from nonesuch.core.degradation import Degradation
from nonesuch.core.given import Image
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.data.doctor import quick
from nonesuch.data.open import open as open_data
from nonesuch.train import checkpoint, lock
from nonesuch.train.device import Precision, place
from nonesuch.train.identity import permitted
from nonesuch.train.log import Event, drawn, write_metrics
from nonesuch.train.loop import train
from nonesuch.train.plan import choose_model, coded_as_recorded, plan
from nonesuch.train.private_limits import require, uncounted
from nonesuch.train.ranks import join
from nonesuch.train.recipe import Budget, Recipe
from nonesuch.train.watch import Watch, hold_out, kept_looks


def fit(
    model: str | Path | Model,
    data: Any,
    *,
    given: str | Degradation | Sequence[str | Degradation] | None = None,
    budget: str | int | Budget = "5m",
    seed: int = 0,
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    keep: int = checkpoint.KEEP,
    allow_change: Sequence[str] = (),
    precision: Precision = "auto",
    device: str | None = None,
    compile: bool | None = None,
    shard: bool = False,
    workers: int = 0,
    progress: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Model:
    """Train a model on images and return it with its averaged weights.

    model: a catalogue name ("diffusion", "gan/r3gan"), or a Model or checkpoint folder, of which a copy is trained further.
    data: Data, or what `nonesuch.data.open` takes; only its training split is seen. given: the condition: a column, a
    Degradation such as Downsample(4), whose column is made of each picture anew at each sight, or a list of them.
    budget: images ("8Mi", 50000) or time ("5m"), which is turned into a number of images by a short measurement and recorded.
    preset, config: a size by name, and fields of the model's Config to replace; recipe: fields of Recipe to replace.
    out: a folder for the checkpoint, the steps to resume from and metrics.jsonl; the same call again takes the run up where it
    stopped. keep: how many steps are kept, beside the best. allow_change: fields of the recipe, or "data", that may differ from
    what the folder records. compile: whether
    fused kernels are used (None: where they pay). shard: cut the weights up over the processes of torchrun. workers: threads that
    make batches ahead, which changes nothing but speed. progress: draw a bar.
    Raises ValueError, with what to do: unknown names, unfit data, another run or writer in the folder, a full disk;
    NonFinite (an ArithmeticError) if going back three times did not keep the loss finite; Terminated (a SystemExit) on SIGTERM.
    """
    length, allowed = Budget.parse(budget), permitted(allow_change)
    if keep < 1:
        raise ValueError(f"keep at least 1 step, not {keep}.")
    columns = [given] if isinstance(given, (str, Degradation)) else list(given or ())
    folder = Path(out) if out is not None else None
    remarks = quick(data) if isinstance(data, (str, Path)) else ()
    found = open_data(data)
    opened = coded_as_recorded(found.select(columns), folder, allowed)
    opened = uncounted(opened) if (recipe or {}).get("private") else opened
    built, defaults = choose_model(model, opened, preset, config or {}, seed)
    opened = opened.recoded(built.schema)
    asked = artifact.read_dataclass(Recipe, {**defaults, **(recipe or {}), "seed": seed, "images": length.images}, "the recipe")
    if asked.private:  # fused kernels know no vmap, and bf16 is slow in it
        precision, compile = "fp32" if precision == "auto" else precision, False
    placed, ranks = place(built, device, precision, compile), join(device)
    if asked.private:
        require(built, opened, asked, source=model, allowed=allowed, shard=shard, world=ranks.world)
    seen = ranks.first and (progress or on_event is not None or folder is not None)
    trained, held_out = hold_out(opened, 0.0 if asked.private else asked.held_out)
    with lock.held(folder if ranks.first else None):
        if folder and ranks.first:
            checkpoint.sweep(folder)
        ranks.barrier()
        saved = checkpoint.find(folder) if folder else None
        ranks.alike(opened.fingerprint, asked, saved and saved.record.images)
        run = plan(built, replace(opened, train=trained), asked, length, str(budget), saved, folder, allowed, shard, workers)
        run.placed = placed
        watched = seen and not run.sharded and not asked.private
        watch = Watch.of(run, held_out, kept_looks(folder, run.images)) if watched else None
        told = (*remarks, *(found.remarks if found is not data else ()), saved.remark if saved else "")
        said = tuple(dict.fromkeys(t for t in told if t))
        shown = ranks.first and not run.sharded and (progress or on_event is not None)
        shown = shown and not (asked.private and any(isinstance(c, Image) for c in opened.schema.columns.values()))
        events = train(run, folder, preview=shown, watch=watch, keep=keep, remarks=said)
        title = f"{artifact.model_name(type(built))} on {opened.name}: {placed}"
        with drawn(title, opened.spec) if progress and ranks.first else _quiet() as draw, closing(events):
            for event in events:
                draw(event)
                if on_event and ranks.first:
                    on_event(event)
                if folder and ranks.first:
                    _written(folder, event, opened.spec, draw)
        return run.finish()


def _written(folder: Path, event: Event, spec: ImageSpec, draw: Callable[[Event], None]) -> None:
    """Write the event to metrics.jsonl; a full disk is told and does not end the run, for only a line of the log is lost."""
    try:
        write_metrics(folder, event, spec)
    except OSError as error:
        draw(replace(event, kind="warning", text=f"{folder / 'metrics.jsonl'} cannot be written: {error.strerror or error}."))


@contextmanager
def _quiet() -> Iterator[Callable[[Event], None]]:
    yield lambda event: None
