"""The steps a run resumes from: `steps/<images>/`, a folder each, and `steps/LATEST`, the name of the one that counts.

A step is written beside, under another name, and takes its own by a rename when every byte of it is on the disk; then LATEST is
replaced. So at any moment, through any kill, LATEST names a whole step:

    write and fsync files  <  fsync folder  <  rename folder  <  fsync steps/  <  write, fsync and rename LATEST  <  remove old

The last `keep` steps and the best one are kept. A step holds `state.safetensors` and `state.json`: the clock, what run it is,
the version of this layout, and a digest of the tensors. Should LATEST's step be damaged all the same, the one before is taken.

References:
    All File Systems Are Not Created Equal: On the Complexity of Crafting Crash-Consistent Applications (Pillai et al., 2014)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nonesuch.core import artifact
from nonesuch.train.guard import set_rate
from nonesuch.train.identity import changes, identity, require_state

if TYPE_CHECKING:
    from nonesuch.train.run import Run

VERSION, KEEP = 2, 2
STEPS, LATEST, BEST = "steps", "LATEST", "BEST"
TENSORS, RECORD = "state.safetensors", "state.json"
_FIRST = "resume.safetensors"  # all that version 1 had
_NAME, _MAX_RECORD_BYTES = re.compile(r"\d{12}"), 16 << 20


class SaveFailed(ValueError):
    """The disk is full, or the folder cannot be written; what was saved before is unharmed."""


class Newer(ValueError):
    """Written by a later release."""


@dataclass(frozen=True)
class Record:
    """What `state.json` says.

    images, rounds: the clock; budget: as the caller gave it; identity: the model's description, the recipe and the data's
    fingerprint; digest: BLAKE2b of the tensors' file; rollbacks: what was undone because it was not finite, which halves the
    learning rate and changes the noise of what follows; changes: what was allowed to differ at a resume; made_with: versions, and
    what it was computed on.
    """

    version: int
    images: int
    rounds: int
    budget: str
    identity: dict[str, Any]
    digest: str = ""
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A step that was found: its record, its tensors, and what must be said about why it is this one."""

    path: Path
    record: Record
    tensors: dict[str, Tensor]
    remark: str = ""


# -- writing


def save(run: Run, folder: Path, keep: int = KEEP, best: bool = False, remarks: dict[str, Any] | None = None) -> None:
    """Write a step and, when it counts, the averaged model; best: this is the best so far; remarks: more for the model card.

    Raises SaveFailed if that is not possible; what was saved before is then as it was.
    """
    state, failed = run.state(), None  # of all processes, where they share the weights
    if run.ranks.first:
        try:
            _commit(run, state, folder, best)
            with suppress(OSError):
                _prune(folder, keep)
        except OSError as error:
            failed = f"the run cannot be saved to {folder}: {error.strerror or error}; the last save is unharmed."
    with run.averaged() as model:
        if run.ranks.first and not failed:
            try:
                artifact.save(model, folder, run.about(), remarks)
            except ValueError as error:
                failed = str(error)
    if failed:
        raise SaveFailed(failed)


def _commit(run: Run, state: dict[str, Tensor], folder: Path, best: bool) -> None:
    steps, name = folder / STEPS, f"{run.images:012d}"
    steps.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=steps))
    placed = False
    try:
        data = artifact.tensor_bytes(state, {"images": run.images})
        artifact.write_synced(temporary / TENSORS, data)
        artifact.write_synced(temporary / RECORD, _record(run, data))
        os.chmod(temporary, 0o755)
        artifact.sync_folder(temporary)
        if (steps / name).exists():  # a run that went back comes by a second time
            os.rename(steps / name, steps / f"{name}.old")
        os.rename(temporary, steps / name)
        placed = True
        artifact.sync_folder(steps)
        for pointer in (BEST, LATEST) if best else (LATEST,):
            artifact.write_atomic(steps / pointer, f"{name}\n".encode())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if placed and _pointed(steps, LATEST) != name:
            shutil.rmtree(steps / name, ignore_errors=True)
        with suppress(OSError):
            _put_back(steps)
        raise


def _record(run: Run, data: bytes) -> bytes:
    import torch

    release = ""
    with suppress(PackageNotFoundError):
        release = version("nonesuch")
    made_with = {"nonesuch": release, "torch": str(torch.__version__), **({"placed": run.placed} if run.placed else {})}
    record = Record(
        VERSION, run.images, run.rounds, run.budget, identity(run), hashlib.blake2b(data, digest_size=32).hexdigest(),
        run.rollbacks, run.changes, made_with,
    )  # fmt: skip
    return json.dumps(dataclasses.asdict(record), indent=1).encode()


def _prune(folder: Path, keep: int) -> None:
    """Remove all steps but the last ones up to LATEST, and the best; what lies after LATEST is of a course that was given up."""
    steps = folder / STEPS
    latest, names = _pointed(steps, LATEST), _names(steps)
    if latest is None or latest not in names:
        return
    kept = {*sorted(n for n in names if n <= latest)[-max(1, keep) :], _pointed(steps, BEST)}
    for name in [*names, *(p.name for p in steps.glob("*.old"))]:
        if name not in kept:
            gone = Path(tempfile.mkdtemp(prefix="tmp-", dir=steps))
            os.rename(steps / name, gone / name)  # so that a kill leaves no half of a step under a step's name
            shutil.rmtree(gone, ignore_errors=True)
    (folder / _FIRST).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a kill left half done. Only for the one who holds the folder's lock."""
    steps = folder / STEPS
    _require_plain_folder(steps)
    for left in [*folder.glob(".*.tmp"), *steps.glob(".*.tmp")]:
        left.unlink(missing_ok=True)
    for left in steps.glob("tmp-*"):
        left.unlink() if left.is_symlink() or left.is_file() else shutil.rmtree(left, ignore_errors=True)
    _put_back(steps)


def _put_back(steps: Path) -> None:
    """A step that was set aside gets its name back, unless another has taken it."""
    for old in steps.glob("*.old"):
        if (steps / old.stem).exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, steps / old.stem)


# -- reading


def find(folder: Path) -> Saved | None:
    """The step that a run in this folder resumes from; None if nothing was saved. Raises ValueError if none can be read."""
    steps, first = folder / STEPS, ""
    _require_plain_folder(steps)
    names, latest = sorted(_names(steps), reverse=True), _pointed(steps, LATEST)
    if latest is not None and latest not in names:
        first = f"{steps / LATEST} names {latest}, which is not there."
    for name in sorted(names, key=lambda n: n != latest):
        try:
            return dataclasses.replace(read(steps / name), remark=first and f"{first} The step before it is taken.")
        except Newer:
            raise
        except ValueError as error:
            first = first or str(error)
    if first:
        raise ValueError(f"no step in {steps} can be read: {first}")
    return _read_first(folder / _FIRST) if (folder / _FIRST).is_file() else None


def read(step: Path) -> Saved:
    """One step folder, checked. Raises ValueError with what is wrong with it."""
    _require_plain_folder(step)
    for name in (TENSORS, RECORD):
        if not stat.S_ISREG(os.lstat(step / name).st_mode) if os.path.lexists(step / name) else True:
            raise ValueError(f"{step / name} is not there, or is no plain file.")
    if (step / RECORD).stat().st_size > _MAX_RECORD_BYTES:
        raise ValueError(f"{step / RECORD} is too long for a record of a run.")
    try:
        said = json.loads((step / RECORD).read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{step / RECORD} cannot be read as JSON.") from None
    record = _migrated(said, str(step / RECORD))
    with (step / TENSORS).open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest() != record.digest:
            raise ValueError(f"{step / TENSORS} is damaged: it is not what was written.")
    return Saved(step, record, artifact.load_tensors(step / TENSORS)[0])


def load(run: Run, folder: Path, allowed: Sequence[str] = ()) -> None:
    """Take up the run where the folder has it. Raises ValueError if it is another run, with what differs."""
    saved = find(folder)
    if saved is None:
        raise ValueError(f"there is no saved run in {folder}.")
    take_up(run, saved, folder, allowed)


def take_up(run: Run, saved: Saved, folder: Path, allowed: Sequence[str] = ()) -> None:
    """Put a saved state into a run of the same model, recipe and data; allowed: fields of Recipe, or "data", that may differ."""
    record = saved.record
    differ = changes(record.identity, run, allowed, str(folder))
    require_state(run, saved.tensors, str(saved.path))
    run.restore(saved.tensors)
    run.images, run.rounds = record.images, record.rounds
    run.rollbacks, run.changes = list(record.rollbacks), list(record.changes)
    if differ:
        run.changes.append({"images": run.images, "changed": differ})
    set_rate(run)


def latest(folder: Path) -> int:
    """The clock of the step that counts; -1 if there is none."""
    return int(_pointed(folder / STEPS, LATEST) or -1)


def _migrated(said: Any, where: str) -> Record:
    """A record of any version up to ours, as ours; each release that changes the layout adds one function to `_MIGRATIONS`."""
    layout = said.get("version") if isinstance(said, dict) else None
    if not isinstance(layout, int) or isinstance(layout, bool) or layout < 1:
        raise ValueError(f"{where} is no record of a run.")
    if layout > VERSION:
        raise Newer(f"{where} has version {layout} of the layout, and this release reads up to {VERSION}: upgrade nonesuch.")
    while said["version"] < VERSION:
        said = _MIGRATIONS[said["version"]](said)
    record: Record = artifact.read_dataclass(Record, said, where)
    if record.images < 0 or record.rounds < 0 or not {"model", "recipe", "data"} <= record.identity.keys():
        raise ValueError(f"{where} is no record of a run.")
    return record


def _from_1(said: dict[str, Any]) -> dict[str, Any]:
    """Version 1: model, recipe and data stood beside the clock, in the header of the tensors' file."""
    kept = {k: said.get(k) for k in ("images", "rounds", "budget")}
    return {"version": 2, **kept, "identity": {k: said.get(k) for k in ("model", "recipe", "data")}}


_MIGRATIONS = {1: _from_1}


def _read_first(path: Path) -> Saved:
    tensors, about = artifact.load_tensors(path)
    return Saved(path, _migrated({**about, "version": 1}, str(path)), tensors)


def _names(steps: Path) -> list[str]:
    return [p.name for p in steps.iterdir() if _NAME.fullmatch(p.name)] if steps.is_dir() else []


def _pointed(steps: Path, pointer: str) -> str | None:
    """The name in LATEST or BEST, if it is the name of a step."""
    with suppress(OSError, ValueError):
        with (steps / pointer).open("rb") as file:
            said = file.read(64).decode("ascii").strip()
        return said if _NAME.fullmatch(said) else None
    return None


def _require_plain_folder(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is a link or a file where a folder must be: it was not written by nonesuch.")
