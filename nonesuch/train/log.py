"""What a run tells: events, for the command line, a notebook or a server to draw, and `metrics.jsonl` beside the checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from nonesuch.core.artifact import write_atomic
from nonesuch.core.image import ImageSpec
from nonesuch.data.pictures import half_blocks, png_bytes, sheet
from nonesuch.train.verdicts import Look, count

_SHOWN_PX = 16  # pictures up to so wide are drawn in the terminal; all are in samples.png


@dataclass(frozen=True)
class Event:
    """kind: "start" (the plan, in `text`), "progress" (terms), "preview" (x: a sample grid's images), "watch" (look: what was
    measured, in `text` what it means, x: some of the samples), "saved", "rollback" (what was not finite and undone), "warning"
    or "done"."""

    kind: Literal["start", "progress", "preview", "watch", "saved", "rollback", "warning", "done"]
    images: int
    total: int
    seconds: float = 0.0
    images_per_s: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    text: str = ""
    x: Tensor | None = None
    look: Look | None = None

    @property
    def seconds_left(self) -> float:
        return (self.total - self.images) / self.images_per_s if self.images_per_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the pictures; what is not finite becomes None, for JSON has no word for it."""
        named = {"kind": self.kind, "images": self.images, "total": self.total, "seconds": round(self.seconds, 3)}
        terms = {k: v if math.isfinite(v) else None for k, v in self.terms.items()}
        said = {"text": self.text} if self.text else {}
        look = {"look": self.look.to_json()} if self.look else {}
        return {**named, "images_per_s": round(self.images_per_s, 1), **terms, **said, **look}


def write_metrics(folder: Path, event: Event, spec: ImageSpec) -> None:
    """Append an event to metrics.jsonl, and its pictures, if it has any, to the folder as samples.png."""
    if event.x is not None:
        grid = event.x[: len(event.x) // 4 * 4].unflatten(0, (4, -1))
        write_atomic(folder / "samples.png", png_bytes(sheet(grid, spec), max(1, 64 // max(spec.size, default=1))))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event.to_json(), allow_nan=False) + "\n")


@contextmanager
def drawn(title: str, spec: ImageSpec) -> Iterator[Any]:
    """A progress bar with samples now and then, in a terminal or notebook; yields a function that takes events."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal and not console.is_jupyter) as progress:
        task = progress.add_task(title, total=None, rate="", terms="")

        def draw(event: Event) -> None:
            if event.kind == "start":
                console.print(f"{title}: {event.text}", highlight=False)
            if event.kind in ("rollback", "warning"):
                console.print(event.text, highlight=False, markup=False, soft_wrap=True)
            if event.kind == "watch":
                console.print(f"{count(event.images)} images: {event.text}", highlight=False, markup=False, soft_wrap=True)
            if (
                event.kind == "preview"
                and event.x is not None
                and not progress.disable
                and max(spec.size, default=1) <= _SHOWN_PX
            ):
                progress.console.print(half_blocks(sheet(event.x[None, :8], spec)), highlight=False)
            terms = "  ".join(f"{k} {v:.3g}" for k, v in list(event.terms.items())[:4])
            progress.update(
                task, total=event.total, completed=event.images, rate=f"{event.images_per_s:,.0f} images/s", terms=terms
            )

        yield draw
