"""`manifest.json`: what a data set was asked to be, what was fixed when it began, and which shards are done; each is done once.

A shard's files are written into the hidden folder .making, brought to the disk, renamed to their places, and then entered in the
manifest, which is itself written beside its place and renamed. A kill at any moment leaves a manifest that is true: what it names
is there in full; what it does not name yet is made again, and comes out as the same bytes under the same names.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonesuch.applications._dataset_files import digest
from nonesuch.applications._dataset_job import Shard
from nonesuch.core.artifact import sync_folder, write_atomic
from nonesuch.train.identity import differences
from nonesuch.train.lock import LOCK

FORMAT = 1
_FEW = 4
MANIFEST, CARD, TABLE, MAKING = "manifest.json", "README.md", "conditions.csv", ".making"


@dataclass
class Ledger:
    """The manifest of one folder. asked, fixed: see `_dataset_job.Job`; builds: what made shards; shards: entries by key."""

    folder: Path
    asked: dict[str, Any]
    fixed: dict[str, Any]
    builds: list[dict[str, str]] = field(default_factory=list)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def read(cls, folder: Path) -> Ledger | None:
        """The manifest of a folder; None where there is none. Raises ValueError for one that cannot be read."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            return None
        try:
            said = json.loads(path.read_bytes())
            if said["format"] > FORMAT:
                raise ValueError(f"{path} has format {said['format']}, newer than {FORMAT}: upgrade nonesuch.")
            kept = {k: said[k] for k in ("asked", "fixed", "builds", "shards", "complete")}
            if [type(v) for v in kept.values()] != [dict, dict, list, dict, bool]:
                raise TypeError("a field of another type")
            _require_sane(kept["asked"], kept["fixed"])
            for key, entry in kept["shards"].items():
                if not re.fullmatch(r"((train|test|validation)-)?\d{1,12}", key) or not _sane_entry(entry, len(kept["builds"])):
                    raise TypeError(f"a shard {key[:20]!r} of another form")
        except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no manifest of a data set ({type(error).__name__} {error}).") from None
        return cls(Path(folder), **kept)

    def write(self) -> None:
        """Bring it to the disk, its shards in their own order and not in that of their making."""
        self.shards = dict(sorted(self.shards.items(), key=lambda one: (len(one[0]), one[0])))
        kept = {k: v for k, v in vars(self).items() if k != "folder"}
        write_atomic(self.folder / MANIFEST, (json.dumps({"format": FORMAT, **kept}, indent=1) + "\n").encode())

    def begin(self) -> None:
        """Start a job in an empty folder. Raises ValueError if the folder holds anything else."""
        if others := [p.name for p in self.folder.iterdir() if not p.name.startswith(".") and p.name not in (LOCK, TABLE)]:
            raise ValueError(f"{self.folder} holds other files ({sorted(others)[0]}) and no {MANIFEST}; choose an empty folder.")
        self.write()

    def require(self, asked: Mapping[str, Any], date: str | None) -> None:
        """Raise ValueError, with what differs, if another job was asked for than the one in the folder."""
        found = differences(dict(self.asked), dict(asked))
        if date is not None and date != self.fixed["date"]:
            found.append(f"date: {self.fixed['date']} -> {date}")
        if found:
            raise ValueError(
                f"{self.folder} holds another job ({'; '.join(found[:8])}); choose another folder, or remove that one."
            )

    def sweep(self) -> None:
        """Remove what a kill left half-written."""
        shutil.rmtree(self.folder / MAKING, ignore_errors=True)
        for left in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()

    def put(self, key: str, shard: Shard) -> str:
        """Bring a shard to its place and enter it; says what must be said of it, "" as a rule."""
        place(self.folder, shard.files)
        entry = {"sha256": digest(shard.files), "count": shard.count, "bytes": sum(map(len, shard.files.values()))}
        blocked = {"blocked": shard.blocked} if shard.blocked else {}
        before = self.shards.get(key, {}).get("sha256", entry["sha256"])
        if shard.build is not None and dict(shard.build) not in self.builds:
            self.builds.append(dict(shard.build))
        made = {} if shard.build is None else {"build": self.builds.index(dict(shard.build))}
        self.shards[key] = {**entry, **blocked, **made}
        self.write()
        return "" if before == entry["sha256"] else f"shard {key} was made anew and is not, byte for byte, what was recorded."

    def lost(self, names: Callable[[str], list[str]]) -> list[str]:
        """The keys of finished shards whose files are not all there; `names`: a key -> its files."""
        found = []
        for key, entry in self.shards.items():
            try:
                there = sum((self.folder / name).stat().st_size for name in names(key))
            except OSError:
                there = -1
            found += [key] if there != entry["bytes"] else []
        return found


def _require_sane(asked: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raise TypeError for settings that none of ours has: a manifest may come from a stranger."""
    whole = [(asked["n"], 1 << 40), (asked["per_shard"], 1 << 40), (fixed["threads"], 1 << 12), (fixed["batch"], 1 << 40)]
    words = [(asked["as"], r"\w{1,20}"), (fixed["suffix"], r"(\.\w{1,8}){1,2}"), (fixed["date"], r"[\d:TZ-]{10,20}")]
    lists = all(isinstance(b, str) for b in asked["balance"]) and isinstance(asked["sampling"], dict)
    if (
        not lists
        or type(asked["seed"]) is not int
        or type(fixed["fused"]) is not bool
        or fixed["precision"] not in ("fp32", "bf16")
    ):
        raise TypeError("a setting of another kind")
    if any(type(n) is not int or not 1 <= n <= most for n, most in whole):
        raise TypeError("a number out of its range")
    if any(not isinstance(text, str) or not re.fullmatch(form, text) for text, form in words):
        raise TypeError("a word of another form")


def _sane_entry(entry: Any, builds: int) -> bool:
    if not isinstance(entry, dict) or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))):
        return False
    numbers = [entry.get("count"), entry.get("bytes"), entry.get("blocked", 0), entry.get("build", 0)]
    return all(type(n) is int and n >= 0 for n in numbers) and entry.get("build", 0) < max(1, builds)


def place(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that are on the disk, and in their places, when this returns; until then nothing stands in a place half."""
    making = folder / MAKING
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    opened = []
    for number, data in enumerate(files.values()):
        opened.append(making / str(number))
        opened[-1].write_bytes(data)
    _sync(opened, making)
    places = {(folder / name).parent for name in files}
    for parent in places:
        parent.mkdir(parents=True, exist_ok=True)
    for path, name in zip(opened, files, strict=True):
        os.replace(path, folder / name)
    for parent in {*places, folder}:
        sync_folder(parent)
    making.rmdir()


def _sync(files: Sequence[Path], folder: Path) -> None:
    """Have the files on the disk: all that the file system holds at once where there are many (8 ms a file, or 12 for 1,000)."""
    if len(files) > _FEW and sys.platform == "linux":
        handle = os.open(folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None).syncfs(handle) == 0:
                return
        finally:
            os.close(handle)
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def told(folder: Path, kept: Callable[[], str]) -> Iterator[None]:
    """A full disk, and anything else that the system refuses, as one sentence that says what is `kept`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        shutil.rmtree(folder / MAKING, ignore_errors=True)
        why = (error.strerror or str(error)).lower()
        raise ValueError(f"{folder} cannot be written: {why}; {kept()}, and the same command goes on from there.") from None
