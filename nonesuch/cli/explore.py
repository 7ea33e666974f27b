"""`nonesuch explore`: what a model has learned of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nonesuch.cli._words import Checkpoint, Fit, Json, Pair, Seed, Source, app, examples, opened_for, print_json, require_place

Label = Annotated[str | None, typer.Option(help="The column of classes; the first one by default.")]
Number = Annotated[int, typer.Option("-n", "--number", help="The most images of each split that are looked at.")]


@app.command(epilog=examples("nonesuch explore runs/vae digits --out explore.html",
                              "nonesuch explore runs/tokens photos/ --label place -n 5000"))  # fmt: skip
def explore(
    checkpoint: Checkpoint, data: Source, label: Label = None, n: Number = 2000,
    out: Annotated[Path, typer.Option(help="A page with its numbers beside it, or a .json of them.")] = Path("explore.html"),
    pair: Pair = None, policy: Fit = None, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Look at a model's latents of real images: probe, clusters, maps, walks and neighbours, beside PCA of pixels."""
    from nonesuch.applications import bar
    from nonesuch.applications.explore import explore as run
    from nonesuch.train.device import load

    require_place(out)
    model = load(checkpoint)
    real = opened_for(model, data, policy, pair)
    with bar("explore") as draw:
        found = run(model, real, n=n, label=label, seeds=seed, progress=draw)
    written = found.save(out)
    if as_json:
        return print_json({**found.to_json(), "report": str(written)})
    print(found.text())
    print(f"To look at: {written}.")
