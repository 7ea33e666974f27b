"""`nonesuch fit`: train a model."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nonesuch.cli._words import (
    Axes,
    BudgetText,
    Changes,
    Conditions,
    Fit,
    Json,
    Pair,
    Seed,
    Size,
    Source,
    app,
    columns,
    examples,
    opened,
    print_json,
    settings,
)

Allowed = Annotated[list[str] | None, typer.Option("--allow-change", help="What may differ when a run goes on: lr, data, ...")]


@app.command(epilog=examples("nonesuch fit diffusion digits --given label --budget 5m --out runs/digits",
                              "nonesuch fit vae scans/ --given age --given sex --size 64 --fit pad",
                              "nonesuch fit diffusion photos/ --fit bucket --size 64",
                              "nonesuch fit diffusion photos/ --given 'Downsample(4)' --out runs/larger",
                              "nonesuch fit diffusion photos/ --pair drawings/ --out runs/drawn",
                              "nonesuch fit gan photos/ --set config.width=64 --set recipe.lr=2e-4",
                              "nonesuch fit vae photos/ --private epsilon=8",
                              "torchrun --nproc-per-node 2 -m nonesuch fit diffusion photos/ --budget 8Mi"))  # fmt: skip
def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A family, a model (vae/vdvae), or a checkpoint to train on.")],
    data: Source, given: Conditions = None, budget: BudgetText = "5m",
    out: Annotated[Path | None, typer.Option(help="Where the checkpoint goes; the same command takes it up again.")] = None,
    preset: Annotated[str | None, typer.Option(help="A size by name, such as tiny.")] = None, changes: Changes = None,
    pair: Pair = None,
    policy: Fit = None, size: Size = None, axes: Axes = None, seed: Seed = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    keep: Annotated[int, typer.Option(help="How many steps to keep beside the best.")] = 2, allowed: Allowed = None,
    workers: Annotated[int, typer.Option(help="Threads that prepare batches; the images do not depend on it.")] = 0,
    private: Annotated[str | None, typer.Option(help="Bound what it says of any one picture: epsilon=8,delta=1e-5.")] = None,
    shard: Annotated[bool, typer.Option("--shard", help="Cut the weights up over the processes of torchrun.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a model on your images."""
    from nonesuch.core import artifact
    from nonesuch.data.pair import SOURCE
    from nonesuch.train.fit import fit as train
    from nonesuch.train.log import Event
    from nonesuch.train.ranks import join
    from nonesuch.train.recipe import Budget, Private

    Budget.parse(budget)
    asked = settings(changes, ("config", "recipe"))
    if private:
        asked["recipe"]["private"] = asdict(Private.parse(private))
    folder = out or Path("runs") / re.sub(r"[^\w.-]+", "-", f"{Path(model).name}-{Path(data).name}")
    start, looks = time.perf_counter(), []

    def note(event: Event) -> None:
        if event.look is not None:
            looks.append(event.look)

    found = opened(data, policy, size, axes, pair)
    told = [*columns(given, found.schema.columns), *([SOURCE] if pair and SOURCE not in (given or ()) else [])]
    trained = train(
        model, found, given=told, budget=budget, seed=seed, preset=preset, config=asked["config"],
        recipe=asked["recipe"], out=folder, keep=keep, allow_change=allowed or (), workers=workers, shard=shard,
        precision=precision, progress=True, on_event=note,  # type: ignore[arg-type]  # typer checks no Literal
    )  # fmt: skip
    if not join().first:  # of several processes, one speaks
        return None
    name, images, seconds = artifact.model_name(type(trained)), int(trained.images_seen), time.perf_counter() - start
    count = sum(p.numel() for p in trained.parameters())
    about: dict[str, Any] = {"checkpoint": str(folder), "model": name, "images": images, "parameters": count}
    if as_json:
        last = {"verdicts": list(looks[-1].verdicts), "watch": looks[-1].to_json()} if looks else {"verdicts": []}
        return print_json({**about, "seconds": round(seconds, 2), **last})
    print(f"{name}, {count:,} parameters, has seen {images:,} images in {seconds:.0f} s: {folder}")
    if looks:
        print(looks[-1].text)
    print(f"Next: nonesuch sample {folder}")
