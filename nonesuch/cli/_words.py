"""What the commands share: the app, the types of their arguments, how arguments are read and answers printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from nonesuch.core.degradation import Degradation
    from nonesuch.core.given import Image
    from nonesuch.core.model import Model
    from nonesuch.data.dataset import Data

FAILED, WRONG, INTERRUPTED = 1, 2, 130


def examples(*commands: str) -> str:
    """The end of a command's help: a line for each example."""
    return "\n\n".join(["[bold]Examples[/]", *(f"$ {c}" for c in commands)])


app = typer.Typer(
    help="Deep generative models of images: every family under one contract.", add_completion=False,
    rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]nonesuch demo[/]: it trains one model of every family on embedded digits and writes report.html.",
)  # fmt: skip

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of models or families.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
Pair = Annotated[str | None, typer.Option(metavar="INPUTS", help="Condition on the picture of the same name here.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Source = Annotated[str, typer.Argument(metavar="DATA", help="A name (digits), a folder of images, or a file of arrays.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A folder that nonesuch fit wrote.")]
Columns = Annotated[list[str] | None, typer.Option("--given", metavar="COLUMN", help="Condition on this column; repeatable.")]
Conditions = Annotated[
    list[str] | None,
    typer.Option("--given", metavar="COLUMN", help="Condition on a column, or a degradation ('Downsample(4)'); repeatable."),
]
Given = Annotated[list[str] | None, typer.Option("--given", help="Condition on this column, or 'none'; else on the categories.")]
Values = Annotated[list[str] | None, typer.Option("--given", help="label=3, label=0,1,2 in turn, source=FILE, or 'as trained'.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace one setting; repeatable.")]
Seed = Annotated[int, typer.Option(help="The same seed makes the same again.")]
Limit = Annotated[int, typer.Option(help="The most images that are sampled and scored.")]
Provenance = Annotated[bool, typer.Option("--provenance/--no-provenance", help="Say in each file what made it.")]
Report = Annotated[Path, typer.Option(help="The report; its numbers go beside it as JSON.")]
Runs = Annotated[Path | None, typer.Option(help="Where checkpoints and finished rows are kept.")]
BudgetText = Annotated[str, typer.Option("--budget", help="Training time (90s, 5m, 1h) or images seen (200k, 8Mi).")]
Fit = Annotated[str | None, typer.Option("--fit", help="crop (default), pad, resize, or bucket: a few sizes instead of one.")]
Size = Annotated[str | None, typer.Option(help="Size to bring images to: 64, or 48x64 (height x width).")]
Axes = Annotated[str | None, typer.Option(help="hw (images), dhw (volumes) or thw (clips); the files' own by default.")]
Families = Annotated[str | None, typer.Option(help="Comma-separated families, models or baselines; else one of every family.")]
Baselines = Annotated[bool, typer.Option("--baselines/--no-baselines", help="Also the three classical models.")]


def pairs(changes: Sequence[str] | None) -> list[tuple[str, Any]]:
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


def settings(changes: Sequence[str] | None, groups: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The pairs by group: config.width=64 is {"config": {"width": 64}}."""
    out: dict[str, dict[str, Any]] = {g: {} for g in groups}
    for path, value in pairs(changes):
        group, _, name = path.partition(".")
        if group not in out or not name:
            known = " or ".join(f"{g}." for g in groups)
            raise ValueError(f"--set {path} is not known; begin with {known}, such as {groups[0]}.width=64.")
        out[group][name] = value
    return out


def columns(given: Sequence[str] | None, known: Collection[str]) -> list[str | Degradation]:
    """What --given says in training: columns, and what reads like a degradation and is none of the known columns."""
    from nonesuch.core.degradation import CLASSES, parse

    words = {name.lower() for name in CLASSES}
    return [parse(one) if one not in known and ("(" in one or ":" in one or one.lower() in words) else one for one in given or ()]


def condition(model: Model, given: Sequence[str] | None, n: int) -> Any:
    """What --given says: None, "as trained", or {column: value or n values}; of a column of images, those of a file or folder."""
    from nonesuch.core.given import AS_TRAINED, Category, Image

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
        if isinstance(column, Image):
            shown = images_of(column, name, text)
            out[name] = [shown[i % len(shown)] for i in range(n)]
            continue
        whole = isinstance(column, Category) and text in column.names
        several = [text] if whole or "," not in text else text.split(",")
        out[name] = [several[i % len(several)].strip() for i in range(n)]
    return out


def how_many(model: Model, given: Sequence[str] | None, n: int | None, usual: int = 16) -> int:
    """n, or as many as there are pictures to be given, or the usual number. Raises ValueError for n below 1."""
    from nonesuch.applications.translate_files import paths_in
    from nonesuch.core.given import Image

    if n is not None:
        if n < 1:
            raise ValueError(f"-n must be at least 1, not {n}.")
        return n
    told = (one.partition("=") for one in given or ())
    counts = [len(paths_in(Path(t))) for name, _, t in told if t and isinstance(model.schema.columns.get(name), Image)]
    return max(counts, default=usual)


def images_of(column: Image, name: str, source: str) -> list[Tensor]:
    """The pictures of a file or a folder as a column takes them. Raises ValueError that begins with the file's name."""
    import torch

    from nonesuch.applications.translate_files import paths_in, read
    from nonesuch.core.degradation import Compose, Mask
    from nonesuch.core.degradation import read as made_by

    maker = made_by(column.made_by) if column.made_by else None
    holes = isinstance(maker.parts[-1] if isinstance(maker, Compose) else maker, Mask)
    found = []
    for path, _ in paths_in(Path(source)):
        y = read(path, column, column.spec).y[0]
        if tuple(y.shape[1:]) != column.spec.size and not column.spec.sizes:
            sizes = [" x ".join(map(str, size)) for size in (y.shape[1:], column.spec.size)]
            raise ValueError(f"{path} is {sizes[0]}, and this model's {name!r} takes pictures of {sizes[1]}.")
        if holes:  # where alpha is low a pixel is hidden, whatever colour stands there
            known = y[-1:] > 0
            y = torch.cat([y[:-1] * known, known * 2.0 - 1])
        found.append(y)
    return found


def opened(
    source: str, fit: str | None = None, size: str | None = None, axes: str | None = None, inputs: str | None = None
) -> Data:
    """The source, after a quick look at its files; what was noticed and what is done to them is told on standard error.

    inputs: a folder of pictures of which the source's are made, under the same names.
    """
    from nonesuch.data.doctor import quick
    from nonesuch.data.open import open as open_data
    from nonesuch.data.pair import pair

    noticed, wanted = quick(source), sides(size)
    if inputs is None:
        found = open_data(source, fit=fit, size=wanted, axes=axes)
    else:
        found = pair(inputs, source, fit=fit, size=wanted, axes=axes)
    for remark in dict.fromkeys((*noticed, *found.remarks)):
        print(remark, file=sys.stderr)
    return found


def opened_for(model: Model, source: str, fit: str | None = None, inputs: str | None = None) -> Data:
    """The source as the model takes it: a folder's pictures come to its size and axes; inputs: as in `opened`."""
    size = "x".join(map(str, model.spec.size)) if Path(source).is_dir() else None
    return opened(source, fit, size, model.spec.axes if size else None, inputs)


def sides(size: str | None) -> int | list[int] | None:
    """What --size says: a number, or one for each axis."""
    try:
        found = [int(s) for s in size.lower().split("x")] if size else []
    except ValueError:
        raise ValueError(f"--size takes a number of pixels, or one for each axis such as 48x64, not {size!r}.") from None
    return found[0] if len(found) == 1 else found or None


def require_place(out: Path) -> None:
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


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
