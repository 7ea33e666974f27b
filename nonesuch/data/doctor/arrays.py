"""Pictures that are arrays already, in a file, in memory or named: counts, values, duplicates, and what to choose."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nonesuch.core.given import Category
from nonesuch.core.model import Model
from nonesuch.data.dataset import Data, Images
from nonesuch.data.doctor.advice import advice
from nonesuch.data.doctor.examination import Examination
from nonesuch.data.doctor.findings import Finding
from nonesuch.data.doctor.sets import alike, sized
from nonesuch.data.duplicates import Print, print_of


@dataclass
class _Read:
    """Of each picture: a name such as train[17], its print, its split ("" where we made it) and its class."""

    names: list[str]
    prints: list[Print]
    splits: list[str]
    classes: list[str | None]


def examine_arrays(data: Data, source: Any, tell: Callable[[int, int], None], models: Mapping[str, type[Model]]) -> Examination:
    """All there is to say of opened data; `source` is what it was opened from."""
    start, parts = time.perf_counter(), [p for p in (data.train, data.test, data.own_validation) if p is not None]
    own, total = _has_own_splits(data, source), sum(map(len, parts))
    read, findings = _Read([], [], [], []), []
    for part in parts:
        findings += _read(part, own, read, lambda done: tell(done, total))
    copied, copies, likenesses = alike(read.names, read.prints, read.splits, read.classes)
    counts = dict(Counter(c for c in read.classes if c is not None))
    findings += [Finding("class-of-one", "", f"has a class of one image, {c}") for c, n in counts.items() if n == 1]
    spec, named = data.spec, {p.name: len(p) for p in parts}
    low, high = min(float(p.levels.min()) for p in parts), max(float(p.levels.max()) for p in parts)
    tallies = {
        "splits": named, "classes": counts, "sizes": {sized(spec.size): total}, "channels": {str(spec.channels): total},
        "depths": {spec.dtype: total},
    }  # fmt: skip
    how = "as the source has it" if own else "by hash of the content, so that copies share a side"
    return Examination(
        data.name, 1, total, sum(p.levels.nbytes for p in parts), time.perf_counter() - start, tallies, (*findings, *copied), {},
        (*data.remarks, f"Values from {low:g} to {high:g}, of {spec.levels or 'real'} levels."), copies, likenesses, spec,
        f"Split: {how}: {', '.join(f'{k} {n:,}' for k, n in named.items())}.", advice(models, spec, len(data.train)),
    )  # fmt: skip


def _read(part: Images, own: bool, read: _Read, tell: Callable[[int], None]) -> list[Finding]:
    """Add the pictures of one split; what is odd of one alone."""
    column = next((n for n, c in part.schema.columns.items() if isinstance(c, Category)), None)
    known = part.schema[column].names if column else ()  # type: ignore[union-attr]
    found = []
    for i, levels in enumerate(part.levels):
        values = levels.numpy()
        place = int(part.given.columns[column][i]) if column else -1
        read.names.append(f"{part.name}[{i}]")
        read.prints.append(print_of(values))
        read.splits.append(part.name if own else "")
        read.classes.append(known[place] if place >= 0 else None)
        if read.prints[-1].deviation == 0 and values.size > 1 and (values == values.flat[0]).all():
            found.append(Finding("blank", read.names[-1], "has one value throughout"))
        tell(len(read.names))
    return found


def _has_own_splits(data: Data, source: Any) -> bool:
    """Whether the source brought its test split, or we made it."""
    if isinstance(source, (str, os.PathLike)) and os.fspath(source).endswith(".npz"):
        with np.load(source, allow_pickle=False) as file:
            return "x_test" in file.files and "x_train" in file.files
    return data.own_validation is not None
