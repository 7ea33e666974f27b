"""Shards (WebDataset): tar files whose members 000123.png, .cls, .json and .txt are one picture and its conditions.

A member's key is its path up to the first dot of its name; neighbours of one key belong together. `cls` is the label, `json` an
object of columns, `txt` the text. Shards are read where they lie, nothing is unpacked: a link, a device, a name that is absolute
or climbs with "..", a compressed shard, and conditions over 1 MiB are refused. Shards whose names begin with train, test or val,
or that lie in folders called so, are splits.

References: WebDataset, https://github.com/webdataset/webdataset (the layout; no code of it is used)
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nonesuch.core.given import Category, Column, Image, Number, Text
from nonesuch.core.image import ImageSpec
from nonesuch.data import formats
from nonesuch.data.dataset import Data, Images
from nonesuch.data.decode import Asked
from nonesuch.data.formats import Picture
from nonesuch.data.formats import printable as shown
from nonesuch.data.items import Item, Left
from nonesuch.data.items import Part as FilePart
from nonesuch.data.source import SPLITS, Columns, Part, Source, opened
from nonesuch.data.tables import Table, from_rows

_MAX_TEXT_BYTES = 1 << 20
_MAX_MEMBERS = 1 << 24


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    image: FilePart | None = None
    conditions: dict[str, Any] = field(default_factory=dict)


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder and of its splits' folders, in the order of their names."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix == ".tar" and p.is_file() and not p.is_symlink()]
    for place in sorted(folder.iterdir()):
        if place.name.lower() in SPLITS and place.is_dir() and not place.is_symlink():
            found += [p for p in sorted(place.iterdir()) if p.suffix == ".tar" and p.is_file() and not p.is_symlink()]
    return found


def open_shards(path: Path, asked: Asked, columns: Columns = None) -> Data:
    """Read a shard, or a folder of them. Raises ValueError with a sentence that names the shard and the member."""
    shards, left = ([path] if path.is_file() else shards_in(path)), Left()
    groups: dict[str, list[_Sample]] = {}
    for shard in shards:
        groups.setdefault(_split(shard, path), []).extend(_samples(shard, left))
    if "" in groups and len(groups) > 1:
        raise ValueError(f"{shown(path)}: some shards are of a split (train-..., test-...) and others are not; name all of them.")
    name = path.stem if path.is_file() else path.name
    root = path.parent if path.is_file() else path
    if not any(groups.values()):
        raise ValueError(f"{shown(path)} holds no images.")
    parts = {split: _part(samples) for split, samples in groups.items() if samples}
    return opened(Source(name, root, parts, left.remarks()), asked, columns)


def _split(shard: Path, root: Path) -> str:
    place = shard.parent.name.lower() if shard.parent != root and root.is_dir() else ""
    word = "".join(c if c.isalpha() else " " for c in shard.stem.lower()).split()
    return SPLITS.get(place) or SPLITS.get(word[0] if word else "") or ""


def _part(samples: Sequence[_Sample]) -> Part:
    items = [Item((s.key,), (s.image,)) for s in samples if s.image is not None]
    rows = [s.conditions for s in samples]
    return Part(items, from_rows(rows) if any(rows) else Table(len(rows)))


def _samples(shard: Path, left: Left) -> Iterator[_Sample]:
    """The samples of a shard that have an image."""
    sample: _Sample | None = None
    for member, data in _members(shard):
        folder, _, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if sample is None or sample.key != key:
            yield from _whole(sample, left)
            sample = _Sample(key)
        if data is not None:
            _condition(sample, kind.lower(), data, f"{shown(shard)}: {member.name}")
        elif sample.image is None and f".{kind.lower()}" in formats.suffixes():
            sample.image = FilePart(f"{shown(shard)}: {shown(Path(member.name))}", shard, member.offset_data, member.size)
        else:
            left.counts[f".{kind.lower()} members"] += 1
    yield from _whole(sample, left)


def _whole(sample: _Sample | None, left: Left) -> Iterator[_Sample]:
    if sample is not None and sample.image is not None:
        yield sample
    elif sample is not None:
        left.counts["keys without an image"] += 1


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Each regular member, with its content if it is a condition."""
    try:
        with tarfile.open(shard, "r:") as opened_shard:
            for count, member in enumerate(opened_shard):
                if member.isdir():
                    continue
                why = _refused(member, shard.stat().st_size)
                if why or count >= _MAX_MEMBERS:
                    raise ValueError(
                        f"{shown(shard)}: {shown(Path(member.name))} {why or 'is one member too many'}; nothing of it is read."
                    )
                opened_shard.members.clear()  # a list of all members would grow with the shard
                text = member.name.lower().endswith((".cls", ".json", ".txt", ".text", ".caption"))
                file = opened_shard.extractfile(member) if text else None
                yield member, file.read() if file is not None else None
    except (tarfile.TarError, OSError, EOFError, UnicodeError, OverflowError) as error:
        raise ValueError(f"{shown(shard)} cannot be read as an uncompressed tar file: {str(error).rstrip('.')}.") from None


def _refused(member: tarfile.TarInfo, shard_bytes: int) -> str:
    """Why a member is not read; "" for a good one."""
    name = member.name.replace("\\", "/")
    if not member.isreg() or member.issparse() or member.islnk() or member.issym():
        return "is a link, a device or sparse"
    if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0] or "\0" in name:
        return "leads out of its shard"
    if member.offset_data + member.size > shard_bytes or member.size < 0:
        return "is longer than its shard"
    if name.lower().endswith((".cls", ".json", ".txt", ".text", ".caption")) and member.size > _MAX_TEXT_BYTES:
        return f"has more than {_MAX_TEXT_BYTES} bytes, too many for a condition"
    return ""


def _condition(sample: _Sample, kind: str, data: bytes, name: str) -> None:
    """Add what a cls, json or txt member says."""
    try:
        text = data.decode("utf-8")
        if kind == "json":
            said = json.loads(text)
            if not isinstance(said, dict):
                raise ValueError("it is no JSON object")
            sample.conditions |= {str(k): v for k, v in said.items()}
        elif kind == "cls":
            sample.conditions.setdefault("label", text.strip())
        else:
            sample.conditions["text"] = text.strip()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read: {str(error).rstrip('.')}.") from None


# -- writing


def write_shards(images: Images, folder: Path | str, *, per_shard: int = 1000, prefix: str | None = None) -> list[Path]:
    """Write a split as shards, the same bytes at every time: prefix-000000.tar, ..., with .png (or what keeps the values), .json.

    per_shard: images a shard. prefix: by default the split's name, so that `open` finds the splits again. A column "label" of
    categories is also written as .cls, and one of texts called "text" as .txt. Returns the paths.
    """
    folder, prefix = Path(folder), images.name if prefix is None else prefix
    if per_shard < 1 or "/" in prefix or not prefix:
        raise ValueError("shards need per_shard of at least 1, and a prefix that is a file's name.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, start in enumerate(range(0, len(images), per_shard)):
        path = folder / f"{prefix}-{number:06d}.tar"
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
                for i in range(start, min(start + per_shard, len(images))):
                    _write_sample(shard, images, i)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        written.append(path)
    return written


def _write_sample(shard: tarfile.TarFile, images: Images, i: int) -> None:
    data, suffix = formats.encode(Picture(values_of(images, i), images.spec.axes, images.spec.spacing, images.spec.unit))
    row = {n: value_of(c, images.given.columns[n][i]) for n, c in images.schema.columns.items() if not isinstance(c, Image)}
    members = [(suffix.lstrip("."), data)]
    if row:
        members.append(("json", json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogateescape")))
    if isinstance(images.schema.columns.get("label"), Category) and row.get("label") is not None:
        members.append(("cls", str(row["label"]).encode()))
    if isinstance(images.schema.columns.get("text"), Text) and row.get("text") is not None:
        members.append(("txt", str(row["text"]).encode()))
    add_sample(shard, f"{i:09d}", members)


def add_sample(shard: tarfile.TarFile, key: str, members: Sequence[tuple[str, bytes]]) -> None:
    """Add the members of one key, each a kind ("png") and its bytes, with nothing of the clock or the person in their heads."""
    for kind, content in members:
        member = tarfile.TarInfo(f"{key}.{kind}")
        member.size, member.mode = len(content), 0o644
        shard.addfile(member, io.BytesIO(content))


def values_of(images: Images, i: int) -> np.ndarray:
    """One picture in the file's own values and type, (channels, *size)."""
    spec: ImageSpec = images.spec
    values = spec.to_values(images.inside(slice(i, i + 1))[0]).numpy()
    dtype = np.dtype(spec.dtype)
    return (np.rint(values) if dtype.kind in "ui" else values).astype(dtype)


def value_of(column: Column, coded: Any) -> Any:
    """A coded condition as JSON has it; None where it is missing."""
    if not bool(column.present(coded[None])[0]):
        return None
    if isinstance(column, Category):
        return column.names[int(coded)]
    if isinstance(column, Number):
        return float(np.float32(float(coded.double()) * column.std + column.mean))
    return bytes(int(b) - 1 for b in coded if int(b) > 0).decode("utf-8", "replace")
