"""`nonesuch sample`: draw images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nonesuch.cli._words import (
    Changes,
    Checkpoint,
    Json,
    Provenance,
    Seed,
    Values,
    app,
    condition,
    examples,
    how_many,
    pairs,
    print_json,
    require_place,
    sides,
)


@app.command(epilog=examples("nonesuch sample runs/digits -n 16 --given label=3 --out threes.png",
                              "nonesuch sample runs/digits -n 1000 --given 'as trained' --out more/",
                              "nonesuch sample runs/larger --given downsample=small/ --out large/",
                              "nonesuch sample runs/photos --size 48x64 --out wide.png",
                              "nonesuch sample runs/digits --guidance 2 --set steps=20"))  # fmt: skip
def sample(
    checkpoint: Checkpoint,
    n: Annotated[int | None, typer.Option("-n", "--number", help="How many images: 16, or one a given picture.")] = None,
    given: Values = None, seed: Seed = 0,
    size: Annotated[str | None, typer.Option(help="64, or 48x64 (height x width), of a model fitted with --fit bucket.")] = None,
    out: Annotated[Path, typer.Option(help="A .png for one sheet, or a folder, with one folder a class.")] = Path("samples.png"),
    guidance: Annotated[float | None, typer.Option(help="Lean on the condition: uncond + w (cond - uncond).")] = None,
    changes: Changes = None, provenance: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Draw images from a trained model."""
    from nonesuch.applications.provenance import origins, stamping
    from nonesuch.core.model import guided
    from nonesuch.core.seeds import Seeds
    from nonesuch.data.pictures import save_images, save_sheet
    from nonesuch.train.device import load

    require_place(out)
    model = load(checkpoint)
    options = {k.removeprefix("options."): v for k, v in pairs(changes)}
    drawing = model if guidance is None else guided(model, guidance)
    model.require_fitted()
    asked = sides(size)
    wanted = model.spec.size if asked is None else (asked,) * len(model.spec.size) if isinstance(asked, int) else tuple(asked)
    n = how_many(model, given, n)
    told = model.schema.given(n, condition(model, given, n), Seeds.of(seed, n))
    start = time.perf_counter()
    try:
        x = drawing.sample(n, told, seeds=seed, size=wanted, **options)
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"{type(model).__name__} does not sample with {', '.join(options)}: {error}.") from None
    seconds = time.perf_counter() - start
    spec = model.spec.of_size(wanted)
    said = options if guidance is None else {**options, "guidance": guidance}
    write = stamping(origins(model, "sample", told, seed, said), spec) if provenance else None
    if out.suffix.lower() == ".png":
        save_sheet(x, spec, out, write=write)
    else:
        save_images(x, spec, model.schema, told, out, seed, write=write)
    if as_json:
        return print_json({"out": str(out), "images": n, "seconds": round(seconds, 3), "seed": seed})
    print(f"{n} images in {seconds:.1f} s: {out}")
