"""The command line: list, fit, sample, score, compare, demo, cite, with the words of the library.

Results go to standard output (as JSON with --json), progress to standard error. Exit codes: 0; 1, it ran and the answer is no;
2, the input is at fault, and one sentence says what to do; 130, interrupted. torch is imported by the commands that need it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nonesuch.core.model import Model
    from nonesuch.evaluate.compare import Progress
    from nonesuch.evaluate.comparison import Comparison

DEMO_BUDGET = "45s"
FAILED, WRONG, INTERRUPTED = 1, 2, 130


def _examples(*commands: str) -> str:
    """The end of a command's help: a line for each example."""
    return "\n\n".join(["[bold]Examples[/]", *(f"$ {c}" for c in commands)])


app = typer.Typer(
    help="Deep generative models of images: every family under one contract.", add_completion=False,
    rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]nonesuch demo[/]: it trains one model of every family on embedded digits and writes report.html.",
)  # fmt: skip
_UsageError = typer.BadParameter.__mro__[2]  # click's ClickException, wherever typer keeps click

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of models or families.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Source = Annotated[str, typer.Argument(metavar="DATA", help="A name (digits), a folder of images, or a file of arrays.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A folder that nonesuch fit wrote.")]
Columns = Annotated[list[str] | None, typer.Option("--given", metavar="COLUMN", help="Condition on this column; repeatable.")]
Given = Annotated[list[str] | None, typer.Option("--given", help="Condition on this column, or 'none'; else on the categories.")]
Values = Annotated[list[str] | None, typer.Option("--given", help="label=3, or label=0,1,2 in turn, or 'as trained'.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace one setting; repeatable.")]
Seed = Annotated[int, typer.Option(help="The same seed makes the same again.")]
Limit = Annotated[int, typer.Option(help="The most images that are sampled and scored.")]
Report = Annotated[Path, typer.Option(help="The report; its numbers go beside it as JSON.")]
Runs = Annotated[Path | None, typer.Option(help="Where checkpoints and finished rows are kept.")]
BudgetText = Annotated[str, typer.Option("--budget", help="Training time (90s, 5m, 1h) or images seen (200k, 8Mi).")]
Families = Annotated[str | None, typer.Option(help="Comma-separated families, models or baselines; else one of every family.")]
Baselines = Annotated[bool, typer.Option("--baselines/--no-baselines", help="Also the three classical models.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; mistakes of the caller become one sentence on standard error."""
    try:
        code = app(args=None if argv is None else list(argv), prog_name="nonesuch", standalone_mode=False)
        if code == INTERRUPTED:  # typer's word for KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        return _complain(error.format_message())  # type: ignore[attr-defined]
    except ValueError as error:
        return _complain(str(error))
    except (typer.Abort, KeyboardInterrupt):
        print("Interrupted; what was saved is kept, and the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `nonesuch list | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}.")


def _complain(sentence: str) -> int:
    print(f"nonesuch: {' '.join(sentence.split())}", file=sys.stderr)
    return WRONG


# -- commands ----------------------------------------------------------------------------------------------------------


@app.command("list", epilog=_examples("nonesuch list", "nonesuch list --json"))
def list_models(as_json: Json = False) -> None:
    """Draw the families, their laws, and the models in each, with paper and capabilities."""
    from nonesuch import catalog
    from nonesuch.evaluate.comparison import LAWS

    found = {f: [_about(n) for n in catalog.names() if n.startswith(f"{f}/")] for f in catalog.FAMILIES}
    if as_json:
        families = [{"family": f, "law": LAWS[f][0], "directness": LAWS[f][1], "models": models} for f, models in found.items()]
        return _print_json({"families": families})
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree("[bold]P(x | given)[/]  deep generative models of images")
    for family, models in found.items():
        branch = tree.add(f"[bold]{family}[/]  [italic]{escape(LAWS[family][0])}[/]  [dim]{LAWS[family][1]}[/]")
        for m in models:
            paper = f"{m['title']} ({m['authors'].split(',')[0]}, {m['year']})"
            branch.add(f"[cyan]{m['name']}[/]  {escape(paper)}\n[dim]{', '.join(m['capabilities']) or 'samples only'}[/]")
    Console(width=None if sys.stdout.isatty() else 160).print(tree)


def _about(name: str) -> dict[str, Any]:
    """A model's name, card and capabilities."""
    from nonesuch import catalog
    from nonesuch.core import model as contract

    cls = catalog.get(name)
    kinds = ("Likelihood", "Decoder", "Encoder", "Denoiser", "Completer", "Energy", "Guidable")
    card = {k: getattr(cls.card, k) for k in ("title", "authors", "year", "arxiv", "summary")}
    can = [k for k in kinds if issubclass(cls, getattr(contract, k))]
    return {"name": name, **card, "capabilities": can, "presets": list(cls.presets)}


@app.command(epilog=_examples("nonesuch fit diffusion digits --given label --budget 5m --out runs/digits",
                              "nonesuch fit gan photos/ --set config.width=64 --set recipe.lr=2e-4"))  # fmt: skip
def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A family, a model (vae/vdvae), or a checkpoint to train on.")],
    data: Source, given: Columns = None, budget: BudgetText = "5m",
    out: Annotated[Path | None, typer.Option(help="Where the checkpoint goes; the same command takes it up again.")] = None,
    preset: Annotated[str | None, typer.Option(help="A size by name, such as tiny.")] = None, changes: Changes = None,
    seed: Seed = 0, precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Train a model on your images."""
    from nonesuch.core import artifact
    from nonesuch.train.fit import fit as train
    from nonesuch.train.recipe import Budget

    Budget.parse(budget)
    settings = _settings(changes, ("config", "recipe"))
    folder = out or Path("runs") / re.sub(r"[^\w.-]+", "-", f"{Path(model).name}-{Path(data).name}")
    start = time.perf_counter()
    trained = train(
        model, data, given=given, budget=budget, seed=seed, preset=preset, config=settings["config"], recipe=settings["recipe"],
        out=folder, precision=precision, progress=True,  # type: ignore[arg-type]
    )  # fmt: skip
    name, images, seconds = artifact.model_name(type(trained)), int(trained.images_seen), time.perf_counter() - start
    size = sum(p.numel() for p in trained.parameters())
    if as_json:
        said = {"checkpoint": str(folder), "model": name, "images": images, "parameters": size, "seconds": round(seconds, 2)}
        return _print_json(said)
    print(f"{name}, {size:,} parameters, has seen {images:,} images in {seconds:.0f} s: {folder}")
    print(f"Next: nonesuch sample {folder}")


@app.command(epilog=_examples("nonesuch sample runs/digits -n 16 --given label=3 --out threes.png",
                              "nonesuch sample runs/digits -n 1000 --given 'as trained' --out more/",
                              "nonesuch sample runs/digits --guidance 2 --set steps=20"))  # fmt: skip
def sample(
    checkpoint: Checkpoint, n: Annotated[int, typer.Option("-n", "--number", help="How many images.")] = 16,
    given: Values = None, seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="A .png for one sheet, or a folder, with one folder a class.")] = Path("samples.png"),
    guidance: Annotated[float | None, typer.Option(help="Lean on the condition: uncond + w (cond - uncond).")] = None,
    changes: Changes = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Draw images from a trained model."""
    from nonesuch.core.model import guided
    from nonesuch.core.seeds import Seeds
    from nonesuch.data.pictures import save_images, save_sheet
    from nonesuch.train.device import load

    _require_place(out)
    model = load(checkpoint)
    options = {k.removeprefix("options."): v for k, v in _pairs(changes)}
    drawing = model if guidance is None else guided(model, guidance)
    model.require_fitted()
    if n < 1:
        raise ValueError(f"-n must be at least 1, not {n}.")
    condition = model.schema.given(n, _condition(model, given, n), Seeds.of(seed, n))
    start = time.perf_counter()
    try:
        x = drawing.sample(n, condition, seeds=seed, **options)
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"{type(model).__name__} does not sample with {', '.join(options)}: {error}.") from None
    seconds = time.perf_counter() - start
    if out.suffix.lower() == ".png":
        save_sheet(x, model.spec, out)
    else:
        save_images(x, model.spec, model.schema, condition, out, seed)
    if as_json:
        return _print_json({"out": str(out), "images": n, "seconds": round(seconds, 3), "seed": seed})
    print(f"{n} images in {seconds:.1f} s: {out}")


@app.command(epilog=_examples("nonesuch score runs/digits digits", "nonesuch score runs/digits digits --json"))
def score(checkpoint: Checkpoint, data: Source, limit: Limit = 2000, seed: Seed = 0, as_json: Json = False) -> None:
    """Measure a model: bits per dimension, quality, usefulness and memorization, each with its interval."""
    from rich.console import Console

    from nonesuch.data.open import open as open_data
    from nonesuch.evaluate.panel import VERDICTS, Panel, subject_of_model
    from nonesuch.train.device import load

    model = load(checkpoint)
    opened = open_data(data)
    mine, theirs = ((s.shape, s.levels) for s in (model.spec, opened.spec))
    if mine != theirs:
        raise ValueError(f"the model draws {mine[0]} with {mine[1]} levels, and {data} has {theirs[0]} with {theirs[1]}.")
    with Console(stderr=True).status("training the feature network on the real images") as status:
        panel = Panel.of(opened, tuple(model.schema.columns), limit=limit, seed=seed)
        measured = panel.measure(subject_of_model(model, panel, str(checkpoint)), tell=status.update)
    if as_json:
        scores = {"scores": {k: s.to_json() for k, s in measured.scores.items()}, "notes": measured.notes}
        return _print_json({"checkpoint": str(checkpoint), "data": opened.name, **scores, "verdict": measured.verdict})
    for one in measured.scores.values():
        print(one)
    for name, note in measured.notes.items():
        print(f"no {name}: {note}")
    if measured.verdict:
        print(f"memorization: {measured.verdict}: {VERDICTS[measured.verdict]}")


@app.command(epilog=_examples("nonesuch compare photos/ --budget 10m",
                              "nonesuch compare digits --families diffusion,gan,kernel-density --out few.html"))  # fmt: skip
def compare(
    data: Source, budget: BudgetText = "5m", families: Families = None, given: Given = None, out: Report = Path("report.html"),
    runs: Runs = None, baselines: Baselines = True, limit: Limit = 2000, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Train every family on the same images with the same budget, and write one report."""
    columns = "auto" if not given else None if given == ["none"] else given
    asked = {"budget": budget, "given": columns, "baselines": baselines, "limit": limit, "seeds": seed}
    _compare(data, out, runs, as_json, families, asked)


@app.command(epilog=_examples("nonesuch demo", "nonesuch demo --budget 2m --out digits.html"))
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

    _require_place(out)
    name = re.sub(r"[^\w.-]+", "-", Path(data).name)
    place = runs or Path("runs") / f"compare-{name}-{digest_of_code(json.dumps([data, asked]))}"
    with _compared() as draw:
        found = run(data, families=families.split(",") if families else None, out=place, on_event=draw, **asked)
    if _report(found, found.save(out), place, as_json):
        raise typer.Exit(FAILED)


def _report(found: Comparison, written: Path, place: Path, as_json: bool) -> bool:
    failed = [r for r in found.rows if r.failed]
    if as_json:
        _print_json({**found.to_json(), "report": str(written), "runs": str(place)})
    else:
        print(found.table())
        took = found.protocol["seconds"]
        print(f"\n{took:.0f} s. To look at: {written}. The numbers: {written.with_suffix('.json')}. The models: {place}.")
    for r in failed:
        print(f"nonesuch: {r.name} failed: {r.failed}", file=sys.stderr)
    return bool(failed)


@app.command(epilog=_examples("nonesuch cite diffusion", "nonesuch cite gan/r3gan vae"))
def cite(models: Models, as_json: Json = False) -> None:
    """Print BibTeX for the papers behind models."""
    from nonesuch import catalog

    entries = {catalog.resolve_name(m): catalog.get(m).card.bibtex() for m in models}
    return _print_json(entries) if as_json else print("\n\n".join(entries.values()))


@app.callback(invoke_without_command=True)
def options(context: typer.Context, version: Version = False) -> None:
    """Deep generative models of images: every family under one contract."""
    if version:
        from nonesuch import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


# -- reading arguments -------------------------------------------------------------------------------------------------


def _pairs(changes: Sequence[str] | None) -> list[tuple[str, Any]]:
    """ "path=value" with the value read as JSON where it is JSON, and as text otherwise."""
    out = []
    for change in changes or ():
        path, separator, text = change.partition("=")
        if not separator or not path:
            raise ValueError(f"--set takes path=value, such as recipe.lr=2e-4, not {change!r}.")
        try:
            out.append((path.strip(), json.loads(text)))
        except json.JSONDecodeError:
            out.append((path.strip(), text))
    return out


def _settings(changes: Sequence[str] | None, groups: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The pairs by group: config.width=64 is {"config": {"width": 64}}."""
    out: dict[str, dict[str, Any]] = {g: {} for g in groups}
    for path, value in _pairs(changes):
        group, _, name = path.partition(".")
        if group not in out or not name:
            known = " or ".join(f"{g}." for g in groups)
            raise ValueError(f"--set {path} is not known; begin with {known}, such as {groups[0]}.width=64.")
        out[group][name] = value
    return out


def _condition(model: Model, given: Sequence[str] | None, n: int) -> Any:
    """What --given says: None, "as trained", or {column: value or n values}."""
    from nonesuch.core.given import AS_TRAINED, Category

    if not given:
        return None
    if list(given) == [AS_TRAINED]:
        return AS_TRAINED
    out: dict[str, Any] = {}
    for one in given:
        name, separator, text = one.partition("=")
        if not separator:
            raise ValueError(f"--given takes column=value, such as label=3, or 'as trained', not {one!r}.")
        if not model.schema:
            raise ValueError(f"this model is unconditional and cannot be given {name}; fit it with --given {name}.")
        column = model.schema[name]
        whole = isinstance(column, Category) and text in column.names
        several = [text] if whole or "," not in text else text.split(",")
        out[name] = [several[i % len(several)].strip() for i in range(n)]
    return out


def _require_place(out: Path) -> None:
    """Find out now, not after an hour, that nothing can be written there."""
    folder = out.parent if out.suffix else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if out.suffix and out.is_dir():
            raise ValueError(f"{out} is a folder; give the name of a file.")
        probe = folder / f".nonesuch-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder}: {error.strerror or error}; choose another place.") from None


# -- drawing -----------------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


@contextlib.contextmanager
def _compared() -> Iterator[Any]:
    """A bar for the row under way, and a line for every finished one, on standard error."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    text, bar, clock = rich_progress.TextColumn, rich_progress.BarColumn(), rich_progress.TimeElapsedColumn()
    columns = (text("{task.description}"), bar, text("{task.fields[what]}"), clock)
    with rich_progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("", total=None, what="")

        def draw(progress: Progress) -> None:
            name = f"{progress.place}/{progress.total} {progress.row}" if progress.row else progress.text
            event = progress.event
            if event is not None:
                terms = "  ".join(f"{k} {v:.3g}" for k, v in list(event.terms.items())[:2])
                what = f"{event.images_per_s:,.0f} images/s  {terms}"
                bars.update(task, description=name, total=event.total, completed=event.images, what=what)
            elif progress.stage in ("done", "kept", "failed"):
                said = (progress.text.strip() or progress.stage).splitlines()[-1]
                console.print(f"{name}: {said}", highlight=False, markup=False, soft_wrap=True)
            else:
                bars.update(task, description=name, total=None, what=progress.text)

        yield draw
