"""Decoded pictures kept between runs: memory-mapped `.npy` files in a folder named by what is in them.

    $NONESUCH_CACHE or ~/.cache/nonesuch
        <key>/train.npy, test.npy, ...   key = blake2b of the hashes of all files' bytes, what was done to them, and VERSION
        <key>/about.json                 what was learned on the way, digests of the .npy files' blocks, and its own digest
        index/<folder>.json              (path, size, times, inode) -> hash of a file's bytes, so that they need not be read again

A key names its content, so an entry is never stale. It is written into a folder beside, fsynced, and renamed: readers see all of
it or nothing. A changed byte is noticed: files up to 256 MiB are checked whole at every opening, larger ones whole if their
times changed and in 16 blocks if not. All entries together stay under 16 GiB ($NONESUCH_CACHE_GIB), those not used for longest go
first, the newest stays. Where nothing can be written, a temporary folder takes its place until the process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1  # of what decoding gives; another one decodes anew
MAX_GIB = 16.0
_BLOCK_BYTES, _WHOLE_BYTES, _CHECKED_BLOCKS = 4 << 20, 256 << 20, 16
_LEFTOVER_S = 3600.0  # a folder being written, untouched for so long, was left by a kill
_MAX_INDEXES = 100


@dataclass(frozen=True)
class Entry:
    """arrays: memory-mapped, copied where written to; about: JSON values."""

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]


def folder() -> Path:
    """Where entries lie; a temporary folder if that cannot be written."""
    asked = os.environ.get("NONESUCH_CACHE")
    try:
        place = Path(asked) if asked else Path.home() / ".cache" / "nonesuch"
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return _temporary()


def load(key: str) -> Entry | None:
    """The entry of that key, checked; None where there is none, and a damaged one is removed."""
    place = folder() / key
    try:
        about = json.loads((place / "about.json").read_bytes())
        said = about.pop("digest")
        if said != _digest(about) or about["version"] != VERSION:
            raise ValueError("about.json was changed")
        arrays = {name: _mapped(place / f"{name}.npy", facts) for name, facts in about["files"].items()}
        os.utime(place / "about.json")  # used now
        return Entry(arrays, about["about"])
    except FileNotFoundError as error:
        if place.exists():
            _damaged(place, error)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _damaged(place, error)
        return None


@contextlib.contextmanager
def writing(key: str) -> Iterator[Path]:
    """A folder to write an entry's files into, gone afterwards; `commit` makes it the entry."""
    place = folder()
    sweep(place)
    temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=place))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit(temporary: Path, key: str, names: tuple[str, ...], about: Mapping[str, Any]) -> Entry:
    """Make the files written into `temporary` the entry of that key, and open it."""
    files = {name: _facts(temporary / f"{name}.npy") for name in names}
    whole: dict[str, Any] = {"version": VERSION, "files": files, "about": dict(about)}
    data = json.dumps({**whole, "digest": _digest(json.loads(json.dumps(whole)))}).encode()
    _write(temporary / "about.json", data)
    for other in temporary.iterdir():
        if other.name not in ("about.json", *(f"{n}.npy" for n in names)):
            other.unlink()
    _sync_folder(temporary)
    with contextlib.suppress(OSError):  # another process was quicker: the same content
        os.rename(temporary, temporary.with_name(key))
    _sync_folder(temporary.parent)
    prune(temporary.parent, key)
    made = load(key)
    if made is None:
        raise ValueError(f"the decoded images in {temporary.parent} cannot be read again; set NONESUCH_CACHE to another disk.")
    return made


def write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Iterator[np.ndarray]) -> None:
    """An .npy file from its rows, chunk after chunk; synced to the disk. (Not through a map: a full disk must be an error.)"""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path) -> np.ndarray:
    """An .npy file as an array that is read when it is looked at; writing to it changes the copy in memory only."""
    return np.load(path, mmap_mode="c", allow_pickle=False)


def sweep(place: Path) -> None:
    """Remove what killed processes left half written."""
    for leftover in place.glob("tmp-*"):
        with contextlib.suppress(OSError):
            newest = max(p.stat().st_mtime for p in (leftover, *leftover.iterdir()))
            if time.time() - newest > _LEFTOVER_S:
                shutil.rmtree(leftover, ignore_errors=True)


def prune(place: Path, keep: str) -> None:
    """Remove the entries used longest ago until the rest is under the limit; the one of key `keep` stays."""
    limit = float(os.environ.get("NONESUCH_CACHE_GIB") or MAX_GIB) * 2**30
    used = []
    for about in place.glob("*/about.json"):
        with contextlib.suppress(OSError):
            size = sum(p.stat().st_size for p in about.parent.iterdir())
            used.append((about.parent.name == keep, about.stat().st_mtime_ns, size, about.parent))
    total = sum(size for _, _, size, _ in used)
    for kept, _, size, entry in sorted(used):
        if total > limit and not kept and not entry.name.startswith("tmp-"):
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
    with contextlib.suppress(OSError):
        for old in sorted(place.glob("index/*.json"), key=lambda p: p.stat().st_mtime_ns)[:-_MAX_INDEXES]:
            old.unlink(missing_ok=True)


@cache
def _temporary() -> Path:
    import atexit

    place = tempfile.mkdtemp(prefix="nonesuch-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    logging.getLogger("nonesuch").info("nothing can be written to the cache; decoded images are kept in %s for now", place)
    return Path(place)


def _damaged(place: Path, error: Exception) -> None:
    logging.getLogger("nonesuch").info("%s is damaged and decoded again: %s", place, error)
    shutil.rmtree(place, ignore_errors=True)


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    """The size, times and block digests of a file."""
    with path.open("rb") as file:
        blocks = [hashlib.blake2b(b, digest_size=16).hexdigest() for b in iter(lambda: file.read(_BLOCK_BYTES), b"")]
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "blocks": blocks}


def _mapped(path: Path, facts: Mapping[str, Any]) -> np.ndarray:
    found, blocks = path.stat(), facts["blocks"]
    if found.st_size != facts["size"]:
        raise ValueError(f"{path.name} has another size")
    which = range(len(blocks))
    if found.st_size > _WHOLE_BYTES and found.st_mtime_ns == facts["mtime_ns"]:
        which = range(0, len(blocks), max(1, len(blocks) // _CHECKED_BLOCKS))
    with path.open("rb") as file:
        for i in which:
            file.seek(i * _BLOCK_BYTES)
            if hashlib.blake2b(file.read(_BLOCK_BYTES), digest_size=16).hexdigest() != blocks[i]:
                raise ValueError(f"{path.name} was changed")
    return mapped(path)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
