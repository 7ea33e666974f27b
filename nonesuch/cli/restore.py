"""`nonesuch restore` and `inpaint`: spoiled pictures made good by a model that was not trained for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nonesuch.cli._words import (
    Checkpoint,
    Json,
    Provenance,
    Seed,
    Values,
    app,
    condition,
    examples,
    print_json,
    require_place,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nonesuch.core.degradation import Degradation
    from nonesuch.core.model import Model

Pictures = Annotated[str, typer.Argument(metavar="PICTURES", help="A picture, a folder of them, or data by name (with --spoil).")]
Out = Annotated[Path, typer.Option(help="The folder to write to: samples, mean and spread of each picture, and sheet.png.")]
Samples = Annotated[int, typer.Option(help="How many restorations of each picture.")]
Method = Annotated[str | None, typer.Option(help="complete, gibbs, twisted, pigdm, dps, langevin or optimise; else the model's.")]
Most = Annotated[int, typer.Option("-n", "--number", help="At most so many pictures.")]
Noise = Annotated[float | None, typer.Option(help="Deviation of the noise in them, where 2 is from black to white.")]


@app.command(epilog=examples("nonesuch restore runs/faces small/ --by 'Downsample(2)' --out large/",
                              "nonesuch restore runs/faces grainy.png --by noise:0.2 --samples 8",
                              "nonesuch restore runs/digits digits --spoil --by 'Compose(Blur(1),Noise(.1))'"))  # fmt: skip
def restore(
    checkpoint: Checkpoint, pictures: Pictures,
    by: Annotated[str, typer.Option("--by", help="What spoiled them: Downsample(2), noise:0.2, Compose(Blur(1), Noise(0.1)).")],
    out: Out = Path("restored"), samples: Samples = 4, method: Method = None, given: Values = None, seed: Seed = 0,
    spoil: Annotated[bool, typer.Option("--spoil", help="The pictures are good: spoil them first, and measure.")] = False,
    noise: Noise = None, number: Most = 16, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Restore pictures that something known has spoiled, with any model of such pictures as the prior."""
    from nonesuch.applications.restore import files
    from nonesuch.core.degradation import parse

    degradation = parse(by)
    model = _fitted(checkpoint, out)
    x = None
    if spoil:
        x, names = files.good(pictures, model, number)
        y = degradation(x, seed)
    else:
        y, names = files.measured(pictures, degradation, model, number)
    _run("restore", model, degradation, (x, y, names), out, given, seed, provenance, as_json,
         samples=samples, method=method, noise=noise)  # fmt: skip


@app.command(epilog=examples("nonesuch inpaint runs/faces torn.png --mask holes.png", "nonesuch inpaint runs/faces cut-out.png",
                              "nonesuch inpaint runs/digits digits --hide half --samples 8"))  # fmt: skip
def inpaint(
    checkpoint: Checkpoint, pictures: Pictures,
    mask: Annotated[Path | None, typer.Option(help="A picture, white where to fill them; else their alpha says.")] = None,
    hide: Annotated[str | None, typer.Option(help="Hide half, center or random of good pictures, and measure.")] = None,
    out: Out = Path("inpainted"), samples: Samples = 4, method: Method = None, given: Values = None, seed: Seed = 0,
    number: Most = 16, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Fill the holes of pictures, with any model of such pictures as the prior."""
    from nonesuch.applications.restore import files
    from nonesuch.core.degradation import Mask

    if mask is not None and hide is not None:
        raise ValueError("--mask and --hide both say where the holes are; give one of them.")
    degradation = Mask(hide or "random")
    model = _fitted(checkpoint, out)
    x = None
    if hide is not None:
        x, names = files.good(pictures, model, number)
        y = degradation(x, seed)
    else:
        y, names = files.with_holes(pictures, mask, model, number)
    _run("inpaint", model, degradation, (x, y, names), out, given, seed, provenance, as_json, samples=samples, method=method)


def _fitted(checkpoint: Path, out: Path) -> Model:
    from nonesuch.train.device import load

    if out.suffix or out.is_file():
        raise ValueError(f"{out} is no folder to write to; samples, mean and spread are written into one.")
    fresh = not out.exists()
    require_place(out)
    if fresh:
        out.rmdir()  # until there is something to write
    return load(checkpoint)


def _run(
    job: str, model: Model, degradation: Degradation, pictures: tuple[Tensor | None, Tensor, list[str]], out: Path,
    given: list[str] | None, seed: int, provenance: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """The job, with a bar on standard error, its files and its answer."""
    from nonesuch.applications import bar, finish
    from nonesuch.applications.restore import Options, run
    from nonesuch.applications.restore.files import report, write

    x, y, names = pictures
    told = model.schema.given(len(y), condition(model, given, len(y)), seed)
    with bar(job) as draw:
        found = finish(run(model, y, degradation, told, Options(seeds=seed, **options)), draw)
    if not provenance:
        job = ""
    write(found, y, x, names, model, degradation, told, out, seed, job)
    said = report(found, x)
    if as_json:
        return print_json({"out": str(out), "pictures": len(y), "samples": options["samples"], "seed": seed, **said})
    error = f", off by {said['error']:.3f}" if x is not None else ""
    print(f"{len(y)} pictures by {said['method']} ({said['honest']}) in {said['seconds']:.1f} s: {out}")
    print(f"consistency {said['consistency']:.3f}{error} (root mean square, where 2 is from black to white)")
