"""`nonesuch score`, `compare` and `demo`: how good models are."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nonesuch.cli._words import (
    FAILED,
    Baselines,
    BudgetText,
    Checkpoint,
    Families,
    Fit,
    Given,
    Json,
    Limit,
    Pair,
    Report,
    Runs,
    Seed,
    Size,
    Source,
    app,
    examples,
    opened_for,
    print_json,
    require_place,
    sides,
)

if TYPE_CHECKING:
    from nonesuch.evaluate.compare import Progress
    from nonesuch.evaluate.comparison import Comparison

DEMO_BUDGET = "45s"


@app.command(epilog=examples("nonesuch score runs/digits digits", "nonesuch score runs/digits digits --json"))
def score(
    checkpoint: Checkpoint, data: Source, pair: Pair = None, policy: Fit = None, limit: Limit = 2000, seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure a model: bits per dimension, quality, usefulness and memorization, each with its interval."""
    from rich.console import Console

    from nonesuch.evaluate.panel import VERDICTS, Panel, subject_of_model
    from nonesuch.train.device import load

    model = load(checkpoint)
    real = opened_for(model, data, policy, pair)
    mine, theirs = ((s.shape, s.levels) for s in (model.spec, real.spec))
    if mine != theirs:
        raise ValueError(f"the model draws {mine[0]} with {mine[1]} levels, and {data} has {theirs[0]} with {theirs[1]}.")
    with Console(stderr=True).status("training the feature network on the real images") as status:
        panel = Panel.of(real.made_as(model.schema), tuple(model.schema.columns), limit=limit, seed=seed)
        measured = panel.measure(subject_of_model(model, panel, str(checkpoint)), tell=status.update)
    if as_json:
        scores = {"scores": {k: s.to_json() for k, s in measured.scores.items()}, "notes": measured.notes}
        return print_json({"checkpoint": str(checkpoint), "data": real.name, **scores, "verdict": measured.verdict})
    for one in measured.scores.values():
        print(one)
    for name, note in measured.notes.items():
        print(f"no {name}: {note}")
    if measured.verdict:
        print(f"memorization: {measured.verdict}: {VERDICTS[measured.verdict]}")


@app.command(epilog=examples("nonesuch compare photos/ --budget 10m",
                              "nonesuch compare digits --families diffusion,gan,kernel-density --out few.html"))  # fmt: skip
def compare(
    data: Source, budget: BudgetText = "5m", families: Families = None, given: Given = None, policy: Fit = None,
    size: Size = None, out: Report = Path("report.html"), runs: Runs = None, baselines: Baselines = True, limit: Limit = 2000,
    seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Train every family on the same images with the same budget, and write one report."""
    columns = "auto" if not given else None if given == ["none"] else given
    asked = {"budget": budget, "given": columns, "baselines": baselines, "limit": limit, "seeds": seed, "fit": policy,
             "size": sides(size)}  # fmt: skip
    _compare(data, out, runs, as_json, families, asked)


@app.command(epilog=examples("nonesuch demo", "nonesuch demo --budget 2m --out digits.html"))
def demo(
    budget: BudgetText = DEMO_BUDGET, families: Families = None, out: Report = Path("report.html"), runs: Runs = None,
    baselines: Baselines = True, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Compare every family on 1,797 scans of handwritten digits, in a few minutes and without a network."""
    asked = {"budget": budget, "given": "label", "baselines": baselines, "seeds": seed}
    _compare("digits", out, runs, as_json, families, asked)


def _compare(data: str, out: Path, runs: Path | None, as_json: bool, families: str | None, asked: dict[str, Any]) -> None:
    """Compare, draw the progress, write the report, and exit with 1 if a row failed."""
    from nonesuch.evaluate.compare import compare as run
    from nonesuch.evaluate.compare import digest_of_code

    require_place(out)
    name = re.sub(r"[^\w.-]+", "-", Path(data).name)
    place = runs or Path("runs") / f"compare-{name}-{digest_of_code(json.dumps([data, asked]))}"
    with _compared() as draw:
        found = run(data, families=families.split(",") if families else None, out=place, on_event=draw, at_once=None, **asked)
    if _report(found, found.save(out), place, as_json):
        raise typer.Exit(FAILED)


def _report(found: Comparison, written: Path, place: Path, as_json: bool) -> bool:
    failed = [r for r in found.rows if r.failed]
    if as_json:
        print_json({**found.to_json(), "report": str(written), "runs": str(place)})
    else:
        print(found.table())
        took = found.protocol["seconds"]
        print(f"\n{took:.0f} s. To look at: {written}. The numbers: {written.with_suffix('.json')}. The models: {place}.")
    for r in failed:
        print(f"nonesuch: {r.name} failed: {r.failed}", file=sys.stderr)
    return bool(failed)


@contextlib.contextmanager
def _compared() -> Iterator[Any]:
    """A bar for each row under way, and a line for every finished one, on standard error."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    text, bar, clock = rich_progress.TextColumn, rich_progress.BarColumn(), rich_progress.TimeElapsedColumn()
    columns = (text("{task.description}"), bar, text("{task.fields[what]}"), clock)
    with rich_progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def draw(progress: Progress) -> None:
            name = f"{progress.place}/{progress.total} {progress.row}" if progress.row else progress.text
            event, ended = progress.event, progress.stage in ("done", "kept", "failed")
            if progress.row:  # what was prepared for all is over
                for key in [k for k in tasks if not k]:
                    bars.remove_task(tasks.pop(key))
            if ended:
                if progress.row in tasks:
                    bars.remove_task(tasks.pop(progress.row))
                said = (progress.text.strip() or progress.stage).splitlines()[-1]
                console.print(f"{name}: {said}", highlight=False, markup=False, soft_wrap=True)
                return
            if progress.row not in tasks:
                tasks[progress.row] = bars.add_task(name, total=None, what="")
            task = tasks[progress.row]
            if event is not None:
                terms = "  ".join(f"{k} {v:.3g}" for k, v in list(event.terms.items())[:2])
                what = f"{event.images_per_s:,.0f} images/s  {terms}"
                bars.update(task, description=name, total=event.total, completed=event.images, what=what)
            else:
                bars.update(task, description=name, total=None, what=progress.text)

        yield draw
