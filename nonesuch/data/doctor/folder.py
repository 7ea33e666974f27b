"""A folder, read once: its listing, what the workers say of each file, what is odd about them together, and what to choose."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.data import formats
from nonesuch.data.arrays import TEST_SHARE
from nonesuch.data.doctor.advice import advice
from nonesuch.data.doctor.examination import Examination
from nonesuch.data.doctor.findings import HANDLING, MUST_FIX, NOTES, Finding, escaped
from nonesuch.data.doctor.listing import Listing, listed
from nonesuch.data.doctor.one import kind_of_other, print_from
from nonesuch.data.doctor.sets import alike, sized, tabled, unlike
from nonesuch.data.doctor.workers import examine_all
from nonesuch.data.folder import find_splits, list_items
from nonesuch.data.items import head_of
from nonesuch.data.policies import plan

TALLIES = ("splits", "classes", "formats", "sizes", "channels", "depths", "modes")
BESIDE = "-"


@dataclass
class _Read:
    """The files of a folder that could be read, in order: what the workers said of each, its split and its class."""

    names: list[str]
    said: list[dict[str, Any]]
    splits: list[str]
    classes: list[str | None]


def examine_folder(
    root: str, tell: Callable[[int, int], None], models: Mapping[str, type[Model]], processes: int | None = None
) -> Examination:
    """All there is to say of a folder of pictures, and what to choose of `models`; `tell` is called with (done, of)."""
    start, listing = time.perf_counter(), listed(root)
    findings = list(listing.findings) + _others(listing)
    places = split_places(listing, findings)
    in_tables, columns = tabled(listing, places)
    answers = _answers(listing, tell, processes)
    found = [Finding(kind, name, reason) for name, answer in answers.items() for kind, reason in answer["findings"]]
    read, left_out = _used(answers, places, {f.file for f in in_tables if f.kind == "file-without-row"})
    odd, spec, remarks = _together(root, read)
    copied, copies, likenesses = alike(read.names, [print_from(a["print"]) for a in read.said], read.splits, read.classes)
    findings += [*in_tables, *found, *left_out, *odd, *copied, *_too_few(read, places)]
    train = _train_count(read)
    return Examination(
        root, len(listing.files) + len(listing.others), len(read.names),
        sum(listing.files.values()) + sum(listing.others.values()), time.perf_counter() - start, _tallies(read),
        _ordered(findings), columns, remarks, copies, likenesses, spec, _split(read, likenesses),
        advice(models, spec, train) if spec is not None and train > 0 else (),
    )  # fmt: skip


def _ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """What must be fixed first, kind by kind; by name within a kind."""
    kinds = {k: i for i, k in enumerate((*MUST_FIX, *HANDLING, *NOTES))}
    return tuple(sorted(findings, key=lambda f: (kinds[f.kind], f.file)))


def _used(answers: Mapping[str, dict[str, Any]], places: Mapping[str, str], unnamed: set[str]) -> tuple[_Read, list[Finding]]:
    """The files that a fit would learn from, and findings on those that lie beside the splits."""
    used, left_out = _Read([], [], [], []), []
    for name, answer in answers.items():
        split, word = _place(name, places)
        if split == BESIDE:
            left_out.append(Finding("beside-splits", name, "lies beside the folders of the splits"))
        elif "print" in answer and name not in unnamed:
            for into, one in zip((used.names, used.said, used.splits, used.classes), (name, answer, split, word), strict=True):
                into.append(one)  # type: ignore[attr-defined]
    return used, left_out


def _answers(listing: Listing, tell: Progress, processes: int | None) -> dict[str, dict[str, Any]]:
    """What the workers say of each file, in the order of the listing."""
    names = list(listing.files)
    paths = [os.path.abspath(os.path.join(listing.root, n)) for n in names]
    found: list[dict[str, Any]] = [{}] * len(names)
    for done, (i, answer) in enumerate(examine_all(paths, processes), start=1):
        found[i] = answer
        tell(done, len(names))
    return dict(zip(names, found, strict=True))


def _others(listing: Listing) -> list[Finding]:
    """Files whose names promise no picture: slices of a series are taken among the pictures, the rest is named."""
    found = []
    for name, size in list(listing.others.items()):
        kind, reason = kind_of_other(os.path.join(listing.root, name))
        if kind == "slice":
            listing.files[name] = listing.others.pop(name)
        else:
            found.append(Finding(kind, name, reason if size else "is empty, and its name promises no picture"))
    listing.files = dict(sorted(listing.files.items()))
    return found


def split_places(listing: Listing, findings: list[Finding] | None = None) -> dict[str, str]:
    """Folders below the root -> the split they are, as reading finds them; {"": ""} for a folder without splits."""
    try:
        found = find_splits(Path(listing.root))
    except ValueError as error:
        if findings is not None and not listing.findings:
            findings.append(Finding("refused", "", f"cannot be read: {str(error).rstrip('.')}"))
        return {"": ""}
    except OSError:
        return {"": ""}
    places = {os.path.relpath(place, listing.root): kind for kind, place in found.items()}
    if "test" not in places.values() and len(places) > 1:
        places = {p: "test" if k == "validation" else k for p, k in places.items()}
    return {"" if place == "." else place: kind for place, kind in places.items()}


def _place(name: str, places: Mapping[str, str]) -> tuple[str, str | None]:
    """The split and class of a file: photos/train/cat/a.png, photos/cat/a.png or photos/a.png; BESIDE is neither."""
    parts = name.split("/")
    if "" in places:
        split, rest = places[""], parts
    else:
        split, rest = places.get(parts[0], BESIDE) if len(parts) > 1 else BESIDE, parts[1:]
    return split, rest[0] if len(rest) > 1 else None


def _heads(said: Sequence[Mapping[str, Any]]) -> list[formats.Head]:
    return [formats.Head(**{**a["head"], "size": tuple(a["head"]["size"])}) for a in said]


def _together(root: str, read: _Read) -> tuple[list[Finding], ImageSpec | None, tuple[str, ...]]:
    """Files unlike the others, and what all become when they are read."""
    heads = _heads(read.said)
    if any(a["format"] == "DICOM" for a in read.said):
        names, heads = _volumes(root, read.names)
    else:
        names = list(read.names)
    odd, left = unlike(names, heads)
    if not left:
        return odd, None, ()
    try:
        made = plan([heads[i] for i in left], [escaped(names[i]) for i in left])
    except ValueError as error:
        return [*odd, Finding("refused", "", f"do not go together: {str(error).rstrip('.')}")], None, ()
    return odd, _spec(made.axes, made.channels, made.size, made.dtype, made.own), made.remarks


def _volumes(root: str, names: Sequence[str]) -> tuple[list[str], list[formats.Head]]:
    """Slices of one series are one volume."""
    items = list_items([Path(root, n) for n in names], Path(root), None)
    return [os.path.join(*i.place) for i in items], [head_of(i, None) for i in items]


def _spec(axes: str, channels: int, size: tuple[int, ...], dtype: str, own: str) -> ImageSpec:
    if np.dtype(dtype).kind == "f":
        return ImageSpec(channels, size, axes, "continuous", None, dtype=own)
    levels = min(1 << 31, int(np.iinfo(dtype).max) - int(np.iinfo(dtype).min) + 1)
    return ImageSpec(channels, size, axes, levels=levels, dtype=own)


def _too_few(read: _Read, places: Mapping[str, str]) -> list[Finding]:
    """What is too few to learn from."""
    found = []
    if len(read.names) < 2:
        held = "1 image, and 2 are needed, one to learn from and one to test on" if read.names else "no images that can be read"
        found.append(Finding("no-images", "", f"has {held}"))
    classes = Counter((s, c) for s, c in zip(read.splits, read.classes, strict=True) if s != "test")
    for (split, name), n in classes.items():
        if n == 1 and name is not None:
            folder = next((p for p, s in places.items() if s == split), "")
            found.append(Finding("class-of-one", os.path.join(folder, name), "is a class of one image"))
    return found


def _tallies(read: _Read) -> dict[str, dict[str, int]]:
    heads = _heads(read.said)
    values = {
        "splits": [s for s in read.splits if s],
        "classes": [escaped(c) for c in read.classes if c is not None],
        "formats": [a["format"] for a in read.said],
        "sizes": [sized(h.size) for h in heads],
        "channels": [str(h.channels) for h in heads],
        "depths": [h.dtype for h in heads],
        "modes": [h.mode for h in heads],
    }
    return {name: dict(Counter(values[name]).most_common()) for name in TALLIES}


def _train_count(read: _Read) -> int:
    n = len(read.names)
    return read.splits.count("train") if "train" in read.splits else n - round(TEST_SHARE * n)


def _split(read: _Read, likenesses: int) -> str:
    n = len(read.names)
    if any(read.splits):
        return "Split: as the folder has it, " + ", ".join(f"{k} {v:,}" for k, v in Counter(read.splits).items()) + "."
    if n < 2:
        return ""
    near = f"; {likenesses:,} near duplicates may fall on both" if likenesses else ""
    test = max(1, round(TEST_SHARE * n))
    how = "those whose content has the smallest hash, so that copies share a side"
    return f"Split: {test:,} of {n:,} images are the test split, {how}{near}."
