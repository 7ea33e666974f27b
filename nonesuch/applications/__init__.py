"""What models are for: a file a job, named for what it does.

Each file holds `needs`, the capabilities it asks of a model (types of nonesuch.core.model; () for any model), a frozen dataclass
`Options`, and `run(..., options) -> Iterator[Event]`, whose last event carries the job's `result`. Beside it stands a function of
that name which runs it to the end (`finish`). Nothing here prints: events are drawn by who asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nonesuch.core.model import Model


@dataclass(frozen=True)
class Event:
    """How far a job is: `done` of `total` units of work, a sentence, a preview x (n, C, *size), and at the end its `result`."""

    done: int
    total: int
    text: str = ""
    x: Tensor | None = None
    result: Any = None


def finish(events: Iterable[Event], draw: Callable[[Event], object] | None = None) -> Any:
    """Run a job to its end and return its result; `draw` sees every event on the way."""
    result = None
    for event in events:
        if draw:
            draw(event)
        result = event.result if event.result is not None else result
    return result


def require(model: Model, needs: tuple[type, ...], job: str) -> None:
    """Raise ValueError if the model has none of the capabilities in `needs`, one of which the job takes; () asks for nothing."""
    if needs and not isinstance(model, needs):
        able = " or ".join(need.__name__ for need in needs)
        raise ValueError(f"{job} needs a model that is a {able}; {type(model).__name__} is none (see nonesuch list).")


@contextmanager
def bar(title: str) -> Iterator[Callable[[Event], None]]:
    """A progress bar on standard error, as a function of events; drawn only where a person looks on (a terminal)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def draw(event: Event) -> None:
            progress.update(task, completed=event.done, total=event.total, description=f"{title} {event.text}".strip())

        yield draw
