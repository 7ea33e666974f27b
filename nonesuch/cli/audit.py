"""`nonesuch audit`: does a model give its training images away?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nonesuch.cli._words import (
    FAILED,
    Checkpoint,
    Fit,
    Json,
    Pair,
    Seed,
    Source,
    app,
    examples,
    opened_for,
    print_json,
    require_place,
)

Samples = Annotated[Path | None, typer.Option(help="A folder or array file of samples; drawn from the model otherwise.")]


@app.command(epilog=examples("nonesuch audit runs/digits digits",
                              "nonesuch audit runs/photos photos/ --samples made/ --out audit.html",
                              "nonesuch audit runs/digits digits -n 5000 --out audit.json --json"))  # fmt: skip
def audit(
    checkpoint: Checkpoint, data: Source, samples: Samples = None,
    n: Annotated[int, typer.Option("-n", "--number", help="How many samples to draw.")] = 1000,
    out: Annotated[Path, typer.Option(help="A page with its numbers beside it, or a .json of them.")] = Path("audit.html"),
    pair: Pair = None, policy: Fit = None, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Look for training images among samples, for duplicates, and for leaks of who was trained on; 1 means do not release."""
    from nonesuch.applications import bar
    from nonesuch.applications.audit import audit as run
    from nonesuch.train.device import load

    require_place(out)
    model = load(checkpoint)
    real = opened_for(model, data, policy, pair)
    with bar("audit") as draw:
        found = run(model, real, n=n, seeds=seed, samples=samples, progress=draw)
    written = found.save(out)
    if as_json:
        print_json({**found.to_json(), "report": str(written)})
    else:
        print(found.text())
        print(f"To look at: {written}.")
    if not found.released:
        raise typer.Exit(FAILED)
