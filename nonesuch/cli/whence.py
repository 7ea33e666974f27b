"""`nonesuch whence`: what made a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nonesuch.cli._words import FAILED, Json, app, examples, print_json

if TYPE_CHECKING:
    from nonesuch.applications.provenance import Origin

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures: PNG, JPEG, TIFF, WebP, MP4, NIfTI, .npz.")]

_MOST_BYTES = 1 << 28  # of a file whose signature is checked, which reads all of it


@app.command(epilog=examples("nonesuch whence samples.png", "nonesuch whence out/*/*.png --json",
                              "nonesuch whence more/manifest.json   # of a data set"))  # fmt: skip
def whence(files: Files, as_json: Json = False) -> None:
    """Say what made each file: the metadata this library wrote, and its invisible mark. Exit code 1 if some say nothing."""
    for file in files:
        if not file.is_file():
            raise ValueError(f"there is no file {file}; name pictures, such as out/*.png.")
    found = []
    for file in files:
        found.append(_asked(file))
        if not as_json:
            print(_sentence(found[-1]))
    if as_json:
        print_json(found)
    if any(one["origin"] is None and not (one["mark"] or {}).get("found") for one in found):
        raise typer.Exit(FAILED)


def _asked(path: Path) -> dict[str, Any]:
    """One file's origin, and the test for the mark; the reason where it cannot be tested."""
    from nonesuch.applications._mark import SIDE, detect
    from nonesuch.applications.provenance import SEAL, signature
    from nonesuch.data.formats import head, printable, read

    origin, name = _origin(path), printable(path)
    mark: dict[str, Any] | None = None
    note = ""
    try:
        said = head(path)
        if said.axes != "hw" or said.dtype != "uint8" or min(said.size) < SIDE:
            note = f"no mark looked for: only in pictures of 8 bits from {SIDE}x{SIDE} up"
        else:
            tested = detect(read(path).values)
            mark = {"found": tested.found, "p": float(f"{tested.p:.3g}"), "z": round(tested.z, 2)}
    except ValueError as error:
        note = str(error).removeprefix(f"{name} ").rstrip(".")
    beside = path.with_name(path.name + SEAL)
    files = [path, beside] if beside.is_file() else [path]
    small = sum(file.stat().st_size for file in files) < _MOST_BYTES
    store = beside.read_bytes() if small and beside in files else None
    seal = signature(path.read_bytes(), path.suffix, store) if small else None
    said = {"file": name, "origin": None if origin is None else origin.to_json(), "mark": mark, "note": note}
    return said if seal is None else {**said, "signature": asdict(seal)}


def _origin(path: Path) -> Origin | None:
    """What a file says made it, or what the manifest of a data set says made that."""
    from nonesuch.applications._dataset_job import origin_of
    from nonesuch.applications._dataset_ledger import MANIFEST, Ledger
    from nonesuch.applications.provenance import read_origin

    if path.name != MANIFEST:
        return read_origin(path)
    try:
        ledger = Ledger.read(path.parent)
        return origin_of(ledger.asked, ledger.fixed) if ledger and ledger.asked["provenance"] else None
    except (ValueError, KeyError, TypeError):  # another program's manifest, or a stranger's: no origin, as of any other file
        return None


def _sentence(one: dict[str, Any]) -> str:
    origin, mark = one["origin"], one["mark"]
    said = "no origin in its metadata"
    if origin is not None:
        which = ", ".join(f"{k} {origin[k]}" for k in ("seed", "index") if k in origin)
        given = "given " + ", ".join(f"{k}={json.dumps(v)}" for k, v in origin["given"].items()) if "given" in origin else ""
        weights = f"(weights {origin['weights'][:12]})" if "weights" in origin else ""
        made = " ".join(w for w in (origin["job"], "by", origin.get("model", "no model"), weights) if w)
        said = ", ".join(w for w in (made, which, given, origin.get("date", ""), origin.get("library", "")) if w)
    if "signature" in one:
        said += f"; signature {one['signature']['state']}, of {one['signature']['signer'] or 'nobody named'}"
    if mark is None:
        return f"{one['file']}: {said}; {one['note']}"
    seen = f"marked (a false alarm: at most {mark['p']:.1g})" if mark["found"] else "no mark found"
    return f"{one['file']}: {said}; {seen}"
