"""`nonesuch upscale`, `colorize`, `translate` and `enhance`: pictures made of your pictures, of any size."""

from __future__ import annotations

from collections.abc import Callable
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
    from nonesuch.core.given import Image
    from nonesuch.core.model import Model

Pictures = Annotated[Path, typer.Argument(metavar="PICTURES", help="A picture, or a folder of them: 8 or 16 bits, of any size.")]
Out = Annotated[Path, typer.Option(help="The folder to write to: the pictures under their names, and sheet.png.")]
Tile = Annotated[int | None, typer.Option(help="Side of the tiles that pictures are cut into; less takes less memory.")]
Overlap = Annotated[int | None, typer.Option(help="How far tiles lie in each other; twice the model's reach is exact.")]
Fits = Callable[["Model", "Image", int], bool]


@app.command(epilog=examples("nonesuch upscale runs/x4 photos/ --out large/", "nonesuch upscale runs/x4 small.png --tile 128"))
def upscale(
    checkpoint: Checkpoint, pictures: Pictures, out: Out = Path("upscaled"), tile: Tile = None, overlap: Overlap = None,
    given: Values = None, seed: Seed = 0, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Enlarge pictures with a model that was given smaller ones: fit(given=Downsample(4))."""
    fits = ("was given smaller pictures than it makes, as by --given downsample:4", lambda model, column, ratio: ratio > 1)
    _run("upscale", fits, checkpoint, pictures, out, (tile, overlap), given, seed, provenance, as_json)


@app.command(epilog=examples("nonesuch colorize runs/colour album/ --out coloured/"))
def colorize(
    checkpoint: Checkpoint, pictures: Pictures, out: Out = Path("colorized"), tile: Tile = None, overlap: Overlap = None,
    given: Values = None, seed: Seed = 0, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Colour grey pictures with a model that was given these: fit(given=Grayscale()). Of colour pictures the luma is taken."""

    def colours(model: Model, column: Image, ratio: int) -> bool:
        return column.spec.channels == 1 and model.spec.channels == 3

    fits = ("was given grey pictures and makes colour, as by --given grayscale", colours)
    _run("colorize", fits, checkpoint, pictures, out, (tile, overlap), given, seed, provenance, as_json)


@app.command(epilog=examples("nonesuch translate runs/zebras horses/ --given kind=zebra --out zebras/",
                              "nonesuch translate runs/maps aerial/ --seed 3",
                              "nonesuch translate runs/diffusion horses/ --source label=horse --given label=zebra",
                              "nonesuch translate runs/zebras horses/ --source-model runs/horses"))  # fmt: skip
def translate(
    checkpoint: Checkpoint, pictures: Pictures, out: Out = Path("translated"), tile: Tile = None, overlap: Overlap = None,
    given: Values = None,
    source: Annotated[list[str] | None, typer.Option(help="column=value: what the pictures are, to a diffusion model.")] = None,
    source_model: Annotated[Path | None, typer.Option(help="The diffusion model of pictures such as these.")] = None,
    seed: Seed = 0, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Turn pictures of one kind into another, with any model that is given pictures: learned from pairs or without.

    A diffusion model that is given none bridges: told what the pictures are (--source) or shown a model of them (--source-model),
    it takes them to noise and comes back as what is --given.
    """

    def bridged(model: Model) -> Model:
        from nonesuch.applications.bridge import bridge
        from nonesuch.train.device import load

        if source is None and source_model is None:
            return model
        start = None if source_model is None else load(source_model)
        return bridge(model, start, condition(start or model, source, 1))

    fits = ("is given pictures", lambda model, column, ratio: True)
    _run("translate", fits, checkpoint, pictures, out, (tile, overlap), given, seed, provenance, as_json, bridged)


@app.command(epilog=examples("nonesuch enhance runs/better dark/ --strength 0.8 --out bright/"))
def enhance(
    checkpoint: Checkpoint, pictures: Pictures, out: Out = Path("enhanced"),
    strength: Annotated[float | None, typer.Option(help="How spoiled they are, 0 to 1; left out, the model judges.")] = None,
    tile: Tile = None, overlap: Overlap = None, seed: Seed = 0, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Improve poor pictures (dark, flat, noisy, compressed) with a model that was given such: recipes/enhance.py."""

    def same(model: Model, column: Image, ratio: int) -> bool:
        return ratio == 1 and column.spec.channels == model.spec.channels

    given = None if strength is None else [f"strength={strength}"]
    fits = ("was given spoiled pictures of the size and channels that it makes", same)
    _run("enhance", fits, checkpoint, pictures, out, (tile, overlap), given, seed, provenance, as_json)


def _run(
    job: str, fits: tuple[str, Fits], checkpoint: Path, pictures: Path, out: Path, tiles: tuple[int | None, int | None],
    given: list[str] | None, seed: int, provenance: bool, as_json: bool, made_of: Callable[[Model], Model] = lambda model: model,
) -> None:  # fmt: skip
    """The job, with a bar on standard error, and its answer; made_of: what translates, of the model that is loaded."""
    from nonesuch.applications import bar, finish
    from nonesuch.applications.translate import Options, picture_of
    from nonesuch.applications.translate_files import paths_in, run
    from nonesuch.train.device import load

    if out.suffix or out.is_file():
        raise ValueError(f"{out} is no folder to write to; pictures are written into one under their own names.")
    fresh = not out.exists()
    require_place(out)
    if fresh:
        out.rmdir()  # until there is something to write
    n = len(paths_in(pictures))
    model = made_of(load(checkpoint))
    _, column, ratio = picture_of(model)
    what, able = fits
    if not able(model, column, ratio):
        given_and_made = f"is given {column.spec.shape} and makes {model.spec.shape}"
        raise ValueError(f"{job} takes a model that {what}; {checkpoint} {given_and_made}.")
    told: dict[str, Any] | None = condition(model, given, n)
    with bar(job) as draw:
        found = finish(run(model, pictures, out, job, told, seed, Options(*tiles), provenance), draw)
    if as_json:
        return print_json({"job": job, "seed": seed, **found})
    for one in found["pictures"]:
        print(f"{one['picture']} -> {one['out']}, {' x '.join(map(str, one['size']))}, {one['seconds']:.1f} s")
    if found["sheet"]:
        print(f"before and after: {found['sheet']}")
