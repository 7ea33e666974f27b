"""Which pictures a folder holds: an item is one file, the slices of one series, or the frames of one clip.

Files are found by walking, in the order of their names; hidden files, links (also loops of them), pipes and devices, and files
of other kinds are left out and counted. Nothing is opened here but files that may be slices.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from nonesuch.data import formats
from nonesuch.data.formats import Head, Picture
from nonesuch.data.formats import printable as shown

_ALONE = threading.Lock()
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Part:
    """Where bytes are: a file, `length` bytes of it from `offset`, or whatever `load` returns. name: for a sentence."""

    name: str
    path: Path | None = None
    offset: int = 0
    length: int | None = None
    load: Callable[[], bytes] | None = None

    def source(self) -> Path | bytes:
        """What `nonesuch.data.formats` reads."""
        if self.load is not None:
            return self.load()
        assert self.path is not None
        if self.length is None:
            return self.path
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True)
class Item:
    """One picture: its place below the root, its bytes' places, and whether those are a "file", "series" or "frames"."""

    place: tuple[str, ...]
    parts: tuple[Part, ...]
    kind: str = "file"

    @property
    def name(self) -> str:
        return self.parts[0].name if self.kind == "file" else os.path.dirname(self.parts[0].name) or self.parts[0].name


def head_of(item: Item, axes: str | None) -> Head:
    """What an item says it holds, all its parts together. Raises ValueError, beginning with its name."""
    first = item.parts[0]
    if item.kind == "series":  # how its slices lie, and so their size, is known when they are joined
        joined = picture_of(item, axes)
        return replace(_head(first), axes=joined.axes, size=joined.values.shape[1:], dtype=str(joined.values.dtype))
    said = _head(first)
    if item.kind == "frames":
        return replace(said, axes="thw", size=(len(item.parts), *said.size))
    every = axes in ("thw", "dhw") and said.axes == "hw" and said.frames > 1
    return replace(said, axes=axes, size=(said.frames, *said.size)) if every and axes else said


def picture_of(item: Item, axes: str | None) -> Picture:
    """An item's values at full depth. Raises ValueError, beginning with its name."""
    if item.kind == "series":
        return _joined(item.parts)
    if item.kind == "file":
        return _picture(item.parts[0], axes)
    frames = [_picture(p, None) for p in item.parts]
    for part, frame in zip(item.parts, frames, strict=True):
        if (frame.values.shape, frame.values.dtype) != (frames[0].values.shape, frames[0].values.dtype):
            raise ValueError(f"{part.name} is not of the size and type of {item.parts[0].name}, the first frame of its clip.")
    remarks = tuple(dict.fromkeys(r for f in frames for r in f.remarks))
    return Picture(np.stack([f.values for f in frames], 1), "thw", None, frames[0].unit, remarks)


def _head(part: Part) -> Head:
    with _alone(part):
        return formats.head(part.source(), part.name)


def _picture(part: Part, axes: str | None) -> Picture:
    with _alone(part):
        return formats.read(part.source(), part.name, axes)


def _joined(parts: Sequence[Part]) -> Picture:
    with _ALONE, contextlib.ExitStack() as stack:
        sources = [p.source() for p in parts]
        opened = [stack.enter_context(io.BytesIO(s) if isinstance(s, bytes) else s.open("rb")) for s in sources]
        join = formats.recognise(opened[0], parts[0].name).join
        assert join is not None
        try:
            return join(opened)
        except Exception as error:
            what = f"{parts[0].name} and the {len(parts) - 1} other slices of its series"
            raise ValueError(f"{what} cannot be read: {str(error).rstrip('.') or type(error).__name__}.") from None


def _alone(part: Part) -> contextlib.AbstractContextManager[object]:
    """Slices are read one at a time: what reads them silences warnings for all threads."""
    found = _suffixes().get(suffix_of(part.name))
    return _ALONE if found is None or found.series is not None else contextlib.nullcontext()


@dataclass
class Left:
    """What is not read, by reason."""

    counts: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> tuple[str, ...]:
        said = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        return (f"Left out of the folder: {said}.",) if said else ()


def walk(root: Path, left: Left) -> Iterator[Path]:
    """Regular files below root that may be pictures, in the order of their names."""
    try:
        with os.scandir(root) as entries:
            here = sorted(entries, key=lambda e: e.name)
    except OSError as error:
        raise ValueError(f"{shown(root)} cannot be listed: {error.strerror or error}.") from None
    for entry in here:  # asked of the folder's own entries: a set of a million files has no time for a million looks
        if entry.is_symlink():
            left.counts["links"] += 1
        elif entry.name.startswith("."):
            left.counts["hidden files"] += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path), left)
        elif not entry.is_file(follow_symlinks=False):
            left.counts["pipes or devices"] += 1
        elif may_be_picture(path := Path(entry.path)):
            yield path
        elif entry.name not in TABLES:
            left.counts[f"{path.suffix.lower() or 'unnamed'} files"] += 1


def suffix_of(name: str) -> str:
    """The longest suffix of a name that a format promises, such as ".nii.gz"; "" if none does."""
    name, known = name.lower(), _suffixes()
    last = name[name.rfind(".") :] if "." in name else ""
    if last in known and last != ".gz":
        return last
    return max((s for s in known if s.count(".") > 1 and name.endswith(s)), key=len, default="")


@cache
def _suffixes() -> Mapping[str, formats.Format]:
    return formats.suffixes()


def may_be_picture(path: Path) -> bool:
    """By its suffix; slices of a series often have none, or numbers, and are known by their first bytes."""
    if suffix_of(path.name):
        return True
    if re.search(r"\.[A-Za-z]\w*$", path.name):
        return False
    try:
        with path.open("rb") as file:
            start = file.read(formats.SNIFFED_BYTES)
    except OSError:
        return False
    return any(f.series is not None and f.knows(start) for f in formats.formats())


def series_of(path: Path) -> str | None:
    """The series that a file is a slice of; None for any other file."""
    suffix = suffix_of(path.name)
    if suffix and _suffixes()[suffix].series is None:
        return None
    try:
        with path.open("rb") as file:
            found = formats.recognise(file, shown(path))
            return (found.series(file) or None) if found.series is not None else None
    except Exception:  # a damaged file has no series; reading it says why
        return None


def files(paths: Sequence[Path], root: Path) -> list[Item]:
    """An item a file."""
    above = len(root.parts)
    return [Item(p.parts[above:], (Part(shown(p), p),)) for p in paths]


def volumes(paths: Sequence[Path], root: Path, series: Sequence[str | None]) -> list[Item]:
    """An item a file, but the slices of one series together if any series has several."""
    if not any(series):
        return files(paths, root)
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path, one in zip(paths, series, strict=True):
        if one is not None:
            groups.setdefault((path.parent, one), []).append(path)
    if all(len(g) == 1 for g in groups.values()):
        return files(paths, root)
    folders = Counter(folder for folder, _ in groups)
    found, seen = [], set()
    for path, one in zip(paths, series, strict=True):
        if one is None:
            found += files([path], root)
        elif (key := (path.parent, one)) not in seen:
            seen.add(key)
            group = groups[key]
            alone = folders[path.parent] == 1 and path.parent != root
            place = (path.parent if alone else group[0]).relative_to(root).parts
            found.append(Item(place, tuple(Part(shown(p), p) for p in group), "series"))
    return found


def clips(paths: Sequence[Path], root: Path, moving: Callable[[Path], bool]) -> list[Item]:
    """An item a file that is `moving` by itself, and one a folder of stills in natural order."""
    stills: dict[Path, list[Path]] = {}
    found: list[Item] = []
    for path in paths:
        if moving(path):
            found += files([path], root)
        else:
            stills.setdefault(path.parent, []).append(path)
    for folder, frames in stills.items():
        ordered = sorted(frames, key=lambda p: natural(p.name))
        place = folder.relative_to(root).parts or (ordered[0].name,)
        found.append(Item(place, tuple(Part(shown(p), p) for p in ordered), "frames"))
    return sorted(found, key=lambda i: i.place)


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which frame2 comes before frame10."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", name)]
