"""`nonesuch augment`: real training pictures and synthetic ones, in a stated ratio."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nonesuch.cli._words import (
    Axes,
    Changes,
    Fit,
    Json,
    Provenance,
    Seed,
    Size,
    Source,
    app,
    examples,
    opened,
    pairs,
    print_json,
)


@app.command(epilog=examples("nonesuch augment digits runs/digits --ratio 1.0 --out both/",
                              "nonesuch augment photos/ runs/photos --ratio 0.5 --guidance 2 --out both/"))  # fmt: skip
def augment(
    data: Source,
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that nonesuch fit wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder; the same command takes it up again.")],
    ratio: Annotated[float, typer.Option(help="Synthetic pictures for one real training picture, in each class.")] = 1.0,
    seed: Seed = 0,
    per_shard: Annotated[int | None, typer.Option(help="Pictures that are written and recorded at a time.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Lean on the condition: uncond + w (cond - uncond).")] = None,
    changes: Changes = None,
    provenance: Provenance = True,
    date: Annotated[str | None, typer.Option(help="The date written into files, such as 2026-11-28; today in UTC.")] = None,
    policy: Fit = None, size: Size = None, axes: Axes = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Add synthetic pictures to real training pictures; the test split stays real."""
    from nonesuch.applications import bar, finish
    from nonesuch.applications.augment import Options, run
    from nonesuch.cli.synthesize import trained
    from nonesuch.train.device import load

    model = load(checkpoint)
    sampling = {k.removeprefix("options."): v for k, v in pairs(changes)}
    options = Options(ratio, seed, per_shard, guidance, sampling, provenance, date)
    with bar("pictures") as draw:
        made = finish(run(opened(data, policy, size, axes), model, out, options, trained(checkpoint)), draw)
    for remark in made.remarks:
        print(remark, file=sys.stderr)
    if as_json:
        about = {"out": str(out), "images": made.n, "shards": made.shards, "made_now": made.now}
        return print_json({**about, "seconds": round(made.seconds, 3), "remarks": list(made.remarks)})
    print(f"{made.n:,} pictures, real and synthetic, {made.seconds:.1f} s: {out}")
