"""Items decoded once: heads, then a plan, then all pixels in order, in a few threads, into the cache or (a few MB) into memory.

The pictures of a source without splits of its own are divided by the hash of their values; those of each split then lie
together, in their order, so that a split is one memory-mapped array.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.data import cache
from nonesuch.data.dataset import Images, content_hash, in_test_split, smallest_type
from nonesuch.data.formats import Head
from nonesuch.data.hashes import in_threads, part_hashes
from nonesuch.data.items import Item, head_of, picture_of
from nonesuch.data.policies import Plan, plan

TEST_SHARE = 0.2  # of a source that has no test split of its own
_IN_MEMORY_BYTES = 4 << 20  # of files and of pixels: less is decoded at each opening, and nothing written
_SILENT_S = 2.0
_MAX_LEVELS = 1 << 16
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What a caller may say of the pictures."""

    fit: str | None = None
    size: int | tuple[int, ...] | None = None
    axes: str | None = None


@dataclass(frozen=True)
class Decoded:
    """levels of "train", "test" and perhaps "validation"; hashes and split of each item, in order; remarks.

    bucket: which of spec.sizes each item has, where there are several; levels are then (n, values), as in `Images`.
    """

    spec: ImageSpec
    levels: Mapping[str, np.ndarray]
    hashes: tuple[str, ...]
    split: tuple[str, ...]
    remarks: tuple[str, ...]
    bucket: tuple[int, ...] = ()

    def images(self, split: str, schema: Schema, given: Given) -> Images:
        """The pictures of a split, with their conditions."""
        bucket = torch.tensor(self.bucket)[self.rows(split)] if self.bucket else None
        return Images(self.spec, schema, torch.from_numpy(self.levels[split]), given, split, bucket)

    def rows(self, split: str) -> list[int]:
        """The items of a split."""
        return [i for i, s in enumerate(self.split) if s == split]


@dataclass
class _Seen:
    """What is learned of the pictures while they are decoded."""

    hashes: list[str] = field(default_factory=list)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    ranges: list[tuple[float, float]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)


def decoded(items: Sequence[Item], split: Sequence[str], asked: Asked, root: Path, name: str) -> Decoded:
    """All items as pictures of one kind; split: "train", "test" or "validation" an item, or "" for those to be divided.

    Raises ValueError, naming the file, for what cannot be read or does not go together.
    """
    key = _key(items, split, asked, root)
    entry = cache.load(key)
    if entry is not None:
        return _from_entry(entry)
    heads = _heads(items, asked.axes)
    made = plan(heads, [i.name for i in items], asked.axes, asked.fit, asked.size)
    bucket = tuple(made.sizes.index(made.target(h)) for h in heads) if made.sizes else ()
    pixels = len(items) * np.dtype(made.dtype).itemsize * math.prod(_row(made))
    if pixels <= _IN_MEMORY_BYTES and _bytes(items) <= _IN_MEMORY_BYTES:
        seen = _Seen()
        raw = np.stack([_filled(p, made) for p in _pictures(items, heads, made, seen)])
        spec, parts, remarks = _settled(made, seen, split, name)
        levels = {k: np.concatenate(list(_levels(raw, rows, spec))) for k, rows in _grouped(parts).items()}
        return Decoded(spec, levels, tuple(seen.hashes), parts, remarks, bucket)
    try:
        return _into_cache(key, items, heads, made, bucket, split, name)
    except OSError as error:
        what = f"{pixels / 2**20:.0f} MiB of decoded images cannot be written to {cache.folder()}: {error.strerror or error}"
        raise ValueError(f"{what}; set NONESUCH_CACHE to a folder with room.") from None


def _row(made: Plan) -> tuple[int, ...]:
    """The shape of a picture in the array of all: (channels, *size), or of several sizes the values of the largest."""
    return (made.channels * max(map(math.prod, made.sizes)),) if made.sizes else (made.channels, *made.size)


def _filled(values: np.ndarray, made: Plan) -> np.ndarray:
    """A picture as such a row; what is beyond its end holds its last value, so that no range widens."""
    return np.pad(values.ravel(), (0, _row(made)[0] - values.size), "edge") if made.sizes else values


def _into_cache(
    key: str, items: Sequence[Item], heads: Sequence[Head], made: Plan, bucket: tuple[int, ...], split: Sequence[str], name: str
) -> Decoded:
    seen, dtype = _Seen(), np.dtype(made.dtype)
    with cache.writing(key) as folder:
        cache.write_array(
            folder / "raw.npy",
            (len(items), *_row(made)),
            dtype,
            (_filled(p, made)[None] for p in _pictures(items, heads, made, seen)),
        )
        spec, parts, remarks = _settled(made, seen, split, name)
        raw, groups = cache.mapped(folder / "raw.npy"), _grouped(parts)
        kept = np.dtype(np.float32 if spec.levels is None else smallest_type(spec.levels))
        for one, rows in groups.items():
            cache.write_array(folder / f"{one}.npy", (len(rows), *_row(made)), kept, _levels(raw, rows, spec))
        about = {"spec": asdict(spec), "hashes": seen.hashes, "split": parts, "remarks": remarks, "bucket": bucket}
        return _from_entry(cache.commit(folder, key, tuple(groups), about))


def _from_entry(entry: cache.Entry) -> Decoded:
    about = entry.about
    spec = ImageSpec(**about["spec"])
    return Decoded(
        spec, entry.arrays, tuple(about["hashes"]), tuple(about["split"]), tuple(about["remarks"]), tuple(about.get("bucket", ()))
    )


def _key(items: Sequence[Item], split: Sequence[str], asked: Asked, root: Path) -> str:
    """Of the bytes of all items, which belong together, and what is asked."""
    indexed = root if _bytes(items) > _IN_MEMORY_BYTES else None  # a small set leaves nothing behind
    hashes = iter(part_hashes([p for i in items for p in i.parts], indexed))
    content = [[i.kind, s, *(next(hashes) for _ in i.parts)] for i, s in zip(items, split, strict=True)]
    return blake2b(json.dumps([cache.VERSION, TEST_SHARE, asdict(asked), content]).encode(), digest_size=16).hexdigest()


def _bytes(items: Sequence[Item]) -> int:
    parts = [p for i in items for p in i.parts]
    try:
        return sum(p.length if p.length is not None else p.path.stat().st_size if p.path else 1 << 16 for p in parts)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}.") from None


def _heads(items: Sequence[Item], axes: str | None) -> list[Head]:
    """All heads; where some cannot be read, one sentence says of how many."""

    def one(item: Item) -> Head | ValueError:
        try:
            return head_of(item, axes)
        except ValueError as error:
            return error

    found = list(progress(in_threads(one, items), len(items), "looking at images"))
    bad = [f for f in found if isinstance(f, ValueError)]
    if bad:
        more = f" (and {len(bad) - 1} more of {len(items)} files; nonesuch doctor lists them)" if len(bad) > 1 else ""
        raise ValueError(f"{str(bad[0]).rstrip('.')}{more}.")
    return [f for f in found if isinstance(f, Head)]


def _pictures(items: Sequence[Item], heads: Sequence[Head], made: Plan, seen: _Seen) -> Iterator[np.ndarray]:
    """Each item's values by the plan, in order, with what is learned on the way."""
    for values, digest, spacing, unit, remarks in progress(
        in_threads(partial(_one, made), zip(items, heads, strict=True)), len(items), "decoding images"
    ):
        seen.hashes.append(digest)
        seen.ranges.append((float(values.min()), float(values.max())))
        seen.remarks.update(remarks)
        if spacing is not None:
            seen.spacings.append(spacing)
        if unit is not None:
            seen.units.append(unit)
        yield values


def _one(made: Plan, job: tuple[Item, Head]) -> tuple[np.ndarray, str, tuple[float, ...] | None, str | None, tuple[str, ...]]:
    item, head = job
    picture = picture_of(item, made.axes)
    values = made.apply(picture, head, item.name)
    return values, content_hash(values), made.spacing(picture, head), picture.unit, picture.remarks


def _settled(made: Plan, seen: _Seen, split: Sequence[str], name: str) -> tuple[ImageSpec, tuple[str, ...], tuple[str, ...]]:
    """The spec, the split of each item, and all remarks."""
    n, parts = len(seen.hashes), tuple(split)
    if "" in parts:
        if n < 2:
            raise ValueError(f"{name} holds {n} image; at least 2 are needed, one to learn from and one to test on.")
        in_test = in_test_split(seen.hashes, max(1, round(TEST_SHARE * n)))
        if in_test.all():
            raise ValueError(f"all {n} images of {name} are identical; there is nothing to learn and to test.")
        parts = tuple("test" if t else "train" for t in in_test)
    remarks = [*made.remarks, *(f"{count} of {n} images: {what.rstrip('.')}." for what, count in seen.remarks.items())]
    spacing = None
    if seen.spacings:
        spacing = tuple(float(s) for s in np.median(np.array(seen.spacings), axis=0))
        other = sum(not np.allclose(s, spacing, rtol=0.01) for s in seen.spacings) + n - len(seen.spacings)
        if other:
            remarks.append(
                f"{other} of {n} images have another spacing than the median {' x '.join(f'{s:.3g}' for s in spacing)}, or none."
            )
    units = Counter(seen.units)
    if len(units) > 1:
        remarks.append(f"The images' values are of different units: {', '.join(f'{c} {u}' for u, c in units.items())}.")
    train = [r for r, p in zip(seen.ranges, parts, strict=True) if p == "train"]
    spec, more = _spec(made, seen.ranges, train, spacing, units.most_common(1)[0][0] if len(units) == 1 else None)
    return spec, parts, (*remarks, *more)


def _spec(
    made: Plan,
    ranges: Sequence[tuple[float, float]],
    train: Sequence[tuple[float, float]],
    spacing: tuple[float, ...] | None,
    unit: str | None,
) -> tuple[ImageSpec, list[str]]:
    """Integers lie on a grid that holds all of them; floats, and integers of too wide a range, on the training split's range."""
    spec = partial(ImageSpec, made.channels, made.size, made.axes, dtype=made.own, unit=unit, spacing=spacing, sizes=made.sizes)
    if made.dtype in ("uint8", "uint16"):
        return spec(levels=256 if made.dtype == "uint8" else 65536), []
    lo, hi = (f(r[i] for r in ranges) for i, f in enumerate((min, max)))
    if np.dtype(made.dtype).kind in "ui":
        if hi - lo < _MAX_LEVELS:
            hi = max(hi, lo + 1)
            return spec(levels=int(hi - lo) + 1, value_range=(lo, hi)), []
    lo, hi = (f(r[i] for r in train) for i, f in enumerate((min, max)))
    hi = hi if hi > lo else lo + 1
    wide = np.dtype(made.dtype).kind in "ui"
    said = [f"The integers range over {hi - lo:.4g} values and are treated as real numbers of 24 bits."] if wide else []
    return spec(kind="continuous", levels=None, value_range=(lo, hi)), said


def _grouped(parts: Sequence[str]) -> dict[str, np.ndarray]:
    return {one: np.array([i for i, p in enumerate(parts) if p == one]) for one in sorted(set(parts))}


def _levels(raw: np.ndarray, rows: np.ndarray, spec: ImageSpec) -> Iterator[np.ndarray]:
    """The rows' values as levels (or scaled to the inside, of continuous ones), some at a time."""
    step = max(1, (16 << 20) // max(1, raw[:1].nbytes))
    lo, hi = spec.value_range or (0.0, 1.0)
    for start in range(0, len(rows), step):
        chunk = raw[rows[start : start + step]]
        if spec.levels is None:
            wide = chunk.astype(np.float32 if chunk.dtype == np.float32 else np.float64)
            chunk = ((wide - lo) / (hi - lo) * 2 - 1).astype(np.float32)
        elif spec.value_range is not None:
            chunk = chunk.astype(np.int64) - int(lo)
        yield chunk.astype(np.float32 if spec.levels is None else smallest_type(spec.levels))


def progress(steps: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same steps, with a bar on a terminal once they have taken over two seconds."""
    begin, bar, move = time.monotonic(), None, lambda: None
    with contextlib.ExitStack() as stack:
        for i, step in enumerate(steps, start=1):
            if bar is None and time.monotonic() - begin > _SILENT_S and sys.stderr.isatty():
                bar, move = _bar(stack, total, what, i)
            move()
            yield step


def _bar(stack: contextlib.ExitStack, total: int, what: str, done: int) -> tuple[Any, Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(what, total=total, completed=done)
    return bar, lambda: bar.advance(task)
