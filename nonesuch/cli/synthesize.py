"""`nonesuch synthesize`: a data set drawn from a model."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nonesuch.cli._words import (
    FAILED,
    Changes,
    Checkpoint,
    Json,
    Provenance,
    Seed,
    Values,
    app,
    examples,
    opened,
    pairs,
    print_json,
)

if TYPE_CHECKING:
    from nonesuch.core.model import Model

Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder; the same command takes it up again.")]


@app.command(epilog=examples("nonesuch synthesize runs/digits --n 20000 --balance label --out more/",
                              "nonesuch synthesize runs/digits --n 5000 --given label=0,1,2 --as webdataset --out some/",
                              "nonesuch synthesize runs/scans --table conditions.csv --as nifti --out scans/",
                              "nonesuch synthesize runs/digits --n 100000 --engine ray --out more/   # on $RAY_ADDRESS",
                              "nonesuch synthesize runs/digits --n 5000 --out more/ --sign certificates.pem key.pem",
                              "nonesuch synthesize runs/digits --out more/ --verify 5"))  # fmt: skip
def synthesize(
    checkpoint: Checkpoint, out: Folder,
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many; by default what --table or DIR's own job says.")] = None,
    layout: Annotated[str, typer.Option("--as", help="folder (one a class), webdataset, parquet or nifti.")] = "folder",
    given: Values = None,
    balance: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Its categories equally often; repeatable.")] = None,
    table: Annotated[Path | None, typer.Option(help="A CSV of conditions, a row a picture or with a column count.")] = None,
    seed: Seed = 0,
    per_shard: Annotated[int | None, typer.Option(help="Pictures a shard: 1000, or 256 MB of them.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Lean on the condition: uncond + w (cond - uncond).")] = None,
    changes: Changes = None,
    block: Annotated[str | None, typer.Option("--block-memorized", metavar="DATA", help="Draw copies of these anew.")] = None,
    provenance: Provenance = True,
    date: Annotated[str | None, typer.Option(help="The date written into files, such as 2026-11-28; today in UTC.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    sign: Annotated[tuple[Path, Path] | None, typer.Option(
        metavar="CERTIFICATES KEY", help="Sign the manifest by C2PA, with these PEM files.")] = None,
    verify: Annotated[int | None, typer.Option(help="Make so many of DIR's shards again and compare; 1 if they differ.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Draw a data set from a model: shards with a manifest that any machine makes the same, and a card."""
    from nonesuch.applications.dataset import Options
    from nonesuch.train.device import load

    if n is not None and n < 1:
        raise ValueError(f"--n must be at least 1, not {n}.")
    keys = _keys(sign)
    model = load(checkpoint)
    refuses, words = _blocking(model, block, out)
    if verify is not None:
        return _verify(model, out, verify, refuses, as_json)
    options = Options(
        n, layout, seed, per_shard, spoken(given), tuple(balance or ()), table, guidance,
        {k.removeprefix("options."): v for k, v in pairs(changes)}, provenance, date, words, engine,
    )  # fmt: skip
    from nonesuch.applications import bar, dataset, finish

    with bar("pictures") as draw, redirect_stdout(sys.stderr):  # Ray tells of lost machines on standard output
        made = finish(dataset.run(model, out, options, refuses, trained(checkpoint)), draw)
    if keys:
        dataset.sign(out, *keys)
    for remark in made.remarks:
        print(remark, file=sys.stderr)
    about = {"out": str(out), "images": made.n, "shards": made.shards, "made_now": made.now, "blocked": made.blocked}
    if as_json:
        return print_json({**about, "seconds": round(made.seconds, 3), "remarks": list(made.remarks)})
    kept = f" ({made.now} made now)" if made.now < made.shards else ""
    again = f", {made.blocked:,} blocked and drawn again" if made.blocked else ""
    print(f"{made.n:,} pictures in {made.shards:,} shards{kept}{again}, {made.seconds:.1f} s: {out}")


def spoken(given: list[str] | None) -> Any:
    """What --given says: None, "as trained", or {column: [values in turn]}; a value with a comma in it stands in a --table."""
    from nonesuch.core.given import AS_TRAINED

    if not given or given == [AS_TRAINED]:
        return given[0] if given else None
    out: dict[str, list[str]] = {}
    for one in given:
        name, separator, text = one.partition("=")
        if not separator:
            raise ValueError(f"--given takes column=value, such as label=0,1,2, or 'as trained', not {one!r}.")
        out.setdefault(name, []).extend(v.strip() for v in text.split(","))
    return out


def trained(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of the model's training."""
    from nonesuch.core.artifact import WEIGHTS, load_tensors

    file = checkpoint / WEIGHTS if checkpoint.is_dir() else checkpoint
    about = load_tensors(file)[1].get("about")
    return about if isinstance(about, dict) else {}


def _keys(files: tuple[Path, Path] | None) -> tuple[bytes, bytes] | None:
    """The certificates and the key, once they have signed something: better now than when all is made."""
    if files is None:
        return None
    from nonesuch.applications.provenance import Origin, sealed

    for file in files:
        if not file.is_file():
            raise ValueError(f"there is no file {file}; --sign takes the certificates and the private key, both PEM.")
    certificates, key = (file.read_bytes() for file in files)
    sealed(b"{}", Origin("synthesize"), certificates, key)
    return certificates, key


def _blocking(model: Model, source: str | None, out: Path) -> tuple[Any, str | None]:
    """What refuses copies of these images, in the threads of the job that it is for, and in words."""
    if source is None:
        return None, None
    import torch

    from nonesuch.applications._dataset_ledger import Ledger
    from nonesuch.applications.audit import blocker

    if (ledger := Ledger.read(out)) is not None:
        torch.set_num_threads(ledger.fixed["threads"])
    spec = model.spec
    size = "x".join(map(str, spec.size)) if Path(source).is_dir() else None
    data = opened(source, size=size, axes=spec.axes if size else None)
    return blocker(model, data), f"copies of images of {Path(data.name).name} ({data.fingerprint})"


def _verify(model: Model, out: Path, shards: int, refuses: Any, as_json: bool) -> None:
    from nonesuch.applications import bar, finish
    from nonesuch.applications._dataset_verify import run

    with bar("pictures") as draw:
        found = finish(run(model, out, shards, refuses), draw)
    if as_json:
        print_json(found.to_json())
    else:
        print("\n".join(found.lines()))
    if not found.same:
        raise typer.Exit(FAILED)
