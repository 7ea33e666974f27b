"""`nonesuch fit`: train a model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from nonesuch.cli._words import BudgetText, Changes, Columns, Json, Seed, Source, app, examples, print_json, settings


@app.command(epilog=examples("nonesuch fit diffusion digits --given label --budget 5m --out runs/digits",
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
    asked = settings(changes, ("config", "recipe"))
    folder = out or Path("runs") / re.sub(r"[^\w.-]+", "-", f"{Path(model).name}-{Path(data).name}")
    start = time.perf_counter()
    trained = train(
        model, data, given=given, budget=budget, seed=seed, preset=preset, config=asked["config"], recipe=asked["recipe"],
        out=folder, precision=precision, progress=True,  # type: ignore[arg-type]
    )  # fmt: skip
    name, images, seconds = artifact.model_name(type(trained)), int(trained.images_seen), time.perf_counter() - start
    size = sum(p.numel() for p in trained.parameters())
    if as_json:
        said = {"checkpoint": str(folder), "model": name, "images": images, "parameters": size, "seconds": round(seconds, 2)}
        return print_json(said)
    print(f"{name}, {size:,} parameters, has seen {images:,} images in {seconds:.0f} s: {folder}")
    print(f"Next: nonesuch sample {folder}")
