"""What a file's bytes are, without reading them twice: an index of (path, size, times, inode) -> hash, beside the cache.

A row of the index counts only while size, both times and inode are as they were, and was not written if the file had changed in
the last tenth of a second before it was read: clocks of file systems tick coarsely, so a later change might bear the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from nonesuch.core.artifact import write_atomic
from nonesuch.data import cache
from nonesuch.data.formats import printable as shown
from nonesuch.data.items import Part

A, B = TypeVar("A"), TypeVar("B")
_RACY_NS = 100_000_000
_INDEXED = 32  # files; hashing fewer is quicker than looking


def in_threads(work: Callable[[A], B], jobs: Iterable[A]) -> Iterator[B]:
    """work(job) of each job, in order, a few ahead in threads (decoders and hashes let go of the interpreter)."""
    workers = max(1, min(8, os.cpu_count() or 1))
    rest = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(work, job) for job in islice(rest, 4 * workers)]
        try:
            while ahead:
                yield ahead.pop(0).result()
                ahead += [pool.submit(work, job) for job in islice(rest, 1)]
        finally:
            for future in ahead:
                future.cancel()


def hash_of(source: Path | bytes, name: str) -> str:
    """blake2b of a file's bytes, hexadecimal."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}.") from None


def part_hashes(parts: Sequence[Part], root: Path | None) -> list[str]:
    """The hash of each part's bytes; those of files that the index of `root` knows are not read."""
    known = file_hashes([p.path for p in parts if p.path is not None], root)
    bare = [p for p in parts if p.path is None]
    held = dict(zip(map(id, bare), in_threads(lambda p: hash_of(p.source(), p.name), bare), strict=True))
    found = (held[id(p)] if p.path is None else known[p.path] for p in parts)
    return [h if p.length is None else f"{h}:{p.offset}:{p.length}" for h, p in zip(found, parts, strict=True)]


def file_hashes(paths: Iterable[Path], root: Path | None) -> dict[Path, str]:
    """The hash of each file's bytes; without a root there is no index."""
    before = {path: _facts(path) for path in paths}
    if root is None:
        return dict(zip(before, in_threads(lambda p: hash_of(p, shown(p)), before), strict=True))
    place = cache.folder() / "index" / f"{hashlib.blake2b(os.fsencode(root.absolute()), digest_size=16).hexdigest()}.json"
    index = _read(place) if len(before) >= _INDEXED else {}
    found = {p: str(row[4]) for p, facts in before.items() if len(row := index.get(str(p), [])) == 5 and row[:4] == facts}
    now, new = time.time_ns(), [p for p in before if p not in found]
    found |= zip(new, in_threads(lambda p: hash_of(p, shown(p)), new), strict=True)
    sure = {p: [*before[p], found[p]] for p in new if max(before[p][1:3]) < now - _RACY_NS and _facts(p) == before[p]}
    if len(before) >= _INDEXED and (sure or len(index) != len(before)):
        rows = {str(p): index.get(str(p)) for p in before if p not in sure}
        rows |= {str(p): row for p, row in sure.items()}
        with contextlib.suppress(OSError):
            place.parent.mkdir(exist_ok=True)
            write_atomic(place, json.dumps({k: v for k, v in rows.items() if v}).encode())
    return found


def _facts(path: Path) -> list[int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(place: Path) -> dict[str, list[object]]:
    try:
        found = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, list)} if isinstance(found, dict) else {}
