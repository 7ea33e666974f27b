"""`nonesuch doctor`: what is wrong with a source of pictures, and what to choose for it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from nonesuch.cli._words import FAILED, Json, Source, app, examples, print_json

if TYPE_CHECKING:
    from nonesuch.data.doctor import Progress

PATIENCE_S = 2.0  # before progress is drawn
FixList = Annotated[bool, typer.Option("--fix-list", help="Print only paths of what must be fixed; printf %b undoes escapes.")]
_LOOP = r'while IFS= read -r p; do mv -- "$(printf %b "$p")" aside/; done'
_EXAMPLES = ("nonesuch doctor photos/", "nonesuch doctor photos/ --json", f"nonesuch doctor photos/ --fix-list | {_LOOP}")


@app.command(epilog=examples(*_EXAMPLES))
def doctor(data: Source, as_json: Json = False, fix_list: FixList = False) -> None:
    """Read all images once: what must be fixed, what reading will do, duplicates, and what to choose.

    Exits with 1 if anything must be fixed.
    """
    from nonesuch import catalog
    from nonesuch.data.doctor import escaped, examine

    if as_json and fix_list:
        raise ValueError("--json holds the paths too; give either --json or --fix-list.")
    with _drawn() as draw:
        models = {} if fix_list else {catalog.resolve_name(f): catalog.get(f) for f in catalog.FAMILIES}
        found = examine(data, models=models, progress=draw)
    if fix_list:
        for path in found.to_fix():
            print(escaped(os.path.join(found.source, path)))
    elif as_json:
        print_json(found.to_json())
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(soft_wrap=True, highlight=False)
        for style, line in found.lines():
            console.print(Text(line, style))
    if not found.ok:
        raise typer.Exit(FAILED)


@contextlib.contextmanager
def _drawn() -> Iterator[Progress]:
    """A bar on standard error, from the second second on."""
    from rich import progress as rich
    from rich.console import Console

    console, start = Console(stderr=True), time.monotonic()
    columns = ("reading", rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn())
    bar = rich.Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=None)

    def draw(done: int, of: int) -> None:
        if time.monotonic() - start > PATIENCE_S and console.is_terminal:
            bar.start()
            bar.update(task, completed=done, total=of)

    try:
        yield draw
    finally:
        if bar.live.is_started:
            bar.stop()
