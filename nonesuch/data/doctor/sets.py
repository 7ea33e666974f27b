"""What is odd about files taken together: those unlike the others, copies across splits and classes, and tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nonesuch.data.doctor.findings import Finding, escaped
from nonesuch.data.doctor.listing import Listing
from nonesuch.data.duplicates import Print, clusters, near, same
from nonesuch.data.formats import Head
from nonesuch.data.policies import has_alpha

_FEW = 0.1  # share of files up to which those unlike the others are named one by one


def sized(size: Iterable[int]) -> str:
    """ "640 x 480", width first, as people say it of pictures."""
    return " x ".join(map(str, reversed(list(size))))


def unlike(names: Sequence[str], heads: Sequence[Head]) -> tuple[list[Finding], list[int]]:
    """Files unlike the others, and the places of those that go together."""
    found: list[Finding] = []
    flat = any(h.axes == "hw" for h in heads)
    refused: tuple[tuple[str, Callable[[Head], Any], str], ...] = (
        ("mixed-axes", lambda h: "hw" if flat and h.axes == "thw" else h.axes, "axes"),
        ("mixed-type", lambda h: "real numbers" if np.dtype(h.dtype).kind == "f" else "integers", "values"),
        ("odd-channels", lambda h: h.channels - has_alpha(h), "channels"),
    )
    left = list(range(len(heads)))
    for kind, of, what in refused:
        values = [of(heads[i]) for i in left]
        if len(set(values)) < 2 or (kind == "odd-channels" and set(values) <= {1, 3}):
            continue
        usual = Counter(values).most_common(1)[0][0]
        goes = [v == usual or (kind == "odd-channels" and {v, usual} <= {1, 3}) for v in values]
        odd = [(i, v) for i, v, well in zip(left, values, goes, strict=True) if not well]
        found += [Finding(kind, names[i], f"has {what} {v} where others have {usual}; they do not go together") for i, v in odd]
        left = [i for i, well in zip(left, goes, strict=True) if well]
    return found + _mixed([names[i] for i in left], [heads[i] for i in left]), left


def _mixed(names: Sequence[str], heads: Sequence[Head]) -> list[Finding]:
    """Files that reading brings to what the others are: the rarer kind, one by one where it is rare."""
    properties: tuple[tuple[str, Callable[[Head], Any], Callable[[Any], str]], ...] = (
        ("mixed-depth", lambda h: h.dtype, lambda v: f"is of {v}"),
        ("mixed-alpha", has_alpha, lambda v: "has transparency" if v else "has no transparency"),
        ("mixed-channels", lambda h: h.channels - has_alpha(h), lambda v: "is grey" if v == 1 else "is colour"),
        ("mixed-size", lambda h: h.size, lambda v: f"is {sized(v)}"),
    )
    found = []
    for kind, of, say in properties:
        values = [of(h) for h in heads]
        counts = Counter(values).most_common()
        if len(counts) < 2:
            continue
        (usual, most), others = counts[0], len(values) - counts[0][1]
        if others <= max(1, _FEW * len(values)):
            odd = [(n, v) for n, v in zip(names, values, strict=True) if v != usual]
            others_say = say(usual).replace("is ", "are ").replace("has ", "have ")
            found += [Finding(kind, n, f"{say(v)}, where {most:,} others {others_say}") for n, v in odd]
        else:
            two = f"{counts[0][1]:,} {say(usual).split(' ', 1)[1]}, {counts[1][1]:,} {say(counts[1][0]).split(' ', 1)[1]}"
            found.append(Finding(kind, "", f"differ in {len(counts):,} ways: {two}{', ...' if len(counts) > 2 else ''}"))
    return found


def alike(
    names: Sequence[str], prints: Sequence[Print], splits: Sequence[str], classes: Sequence[str | None]
) -> tuple[list[Finding], int, int]:
    """Findings of duplicates, and how many images are copies of another, and how many nearly."""
    found: list[Finding] = []
    groups = same([p.digest for p in prints])
    pairs = near(prints)
    for nearly, gathered in ((False, groups), (True, clusters([(a, b) for a, b, _ in pairs]))):
        for group in gathered:
            kept = min(group, key=lambda i: (splits[i] == "train", i))  # the test set stays as it is
            for i in (i for i in group if i != kept):
                found.append(_copy(names, splits, classes, i, kept, nearly))
    copies = sum(len(g) - 1 for g in groups)
    return found, copies, len(found) - copies


def _copy(names: Sequence[str], splits: Sequence[str], classes: Sequence[str | None], i: int, kept: int, nearly: bool) -> Finding:
    across = ""
    if splits[i] != splits[kept]:
        across = "-across-splits"
    elif classes[i] != classes[kept]:
        across = "-across-classes"
    what = "looks almost like" if nearly else "is the same picture as"
    where = {"": "", "-across-splits": ", of another split", "-across-classes": ", of another class"}[across]
    return Finding(f"{'near-' if nearly else ''}duplicate{across}", names[i], f"{what} {escaped(names[kept])}{where}")


def tabled(listing: Listing, places: Mapping[str, str]) -> tuple[list[Finding], dict[str, str]]:
    """Findings on the tables of these folders (below the root -> split), and what their columns hold."""
    found: list[Finding] = []
    columns: dict[str, str] = {}
    for folder in places:
        tables = [t for t in listing.tables if os.path.dirname(t) == folder]
        if len(tables) > 1:
            found.append(Finding("bad-table", tables[1], f"stands beside {os.path.basename(tables[0])}; one table is read"))
        elif tables:
            more, said = _table(listing, tables[0], folder)
            found += more
            columns.update({f"{places[folder]} {k}".strip() if len(places) > 1 else k: v for k, v in said.items()})
    stray = [t for t in listing.tables if os.path.dirname(t) not in places]
    return found + [Finding("other-file", t, "is a table where none is read") for t in stray], columns


def _table(listing: Listing, name: str, folder: str) -> tuple[list[Finding], dict[str, str]]:
    from nonesuch.data.tables import read_table

    try:
        rows, table = read_table(Path(listing.root, name))
    except ValueError as error:
        return [Finding("bad-table", name, str(error).split(name, 1)[-1].strip(" :").rstrip("."))], {}
    base, found = os.path.basename(name), []
    prefix = f"{folder}/" if folder else ""
    named: Counter[str] = Counter()
    files = [prefix + "/".join(Path(r.replace("\\", "/")).parts) for r in rows]
    for row, path in zip(rows, files, strict=True):
        named[path] += 1
        parts = Path(row.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or "\0" in row:
            found.append(Finding("row-outside", path, f"is named in {base}, and leads out of its folder"))
        elif named[path] == 2:
            found.append(Finding("row-twice", path, f"is named in two rows of {base}"))
        elif named[path] == 1 and path not in listing.files:
            there = os.path.lexists(os.path.join(listing.root, path))
            what = "no regular file of a format that is read" if there else "not there"
            found.append(Finding("row-without-file", path, f"is named in {base}, and is {what}"))
    rest = [f for f in listing.files if f.startswith(prefix) and f not in named]
    found += [Finding("file-without-row", f, f"is not named in {base}") for f in rest]
    return found, {k: _column(k, v) for k, v in table.cells.items()}


def _column(name: str, cells: Sequence[str | None]) -> str:
    """What a column holds, in a clause."""
    from nonesuch.data.tables import kind_of

    there = [c for c in cells if c is not None]
    gone = f", {len(cells) - len(there):,} missing" if len(there) < len(cells) else ""
    if not there:
        return f"empty{gone}"
    kind = kind_of(name, there)
    if kind == "number":
        numbers = np.array([float(c) for c in there])
        return f"numbers from {numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.4g}{gone}"
    counts = Counter(there).most_common()
    if kind == "text":
        return f"texts, {len(counts):,} different{gone}"
    return f"{len(counts)} categories, {', '.join(f'{k} {n:,}' for k, n in counts[:5])}{', ...' if len(counts) > 5 else ''}{gone}"
