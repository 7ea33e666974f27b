"""Conditions from a table: `metadata.csv`, `.jsonl` or `.parquet` with `file_name`, a row a picture, a column a condition.

A column is a number, a category or a text. All its values parse as numbers: a number, unless they are at most 10 whole ones
(a grade, a class). Otherwise words: a category, unless there are more than 64 different ones or they have three words or more on
average (then a text). Columns called label or class are categories, and text, caption or prompt are texts, always. What a column
holds is counted on the training rows alone: frequencies, mean, deviation, and quantiles, of which the first and last are its
range.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nonesuch.core.given import Category, Column, Given, Number, Schema, Text, did_you_mean
from nonesuch.data.formats import printable as shown
from nonesuch.data.items import TABLES

Cell = str | None
KINDS = ("category", "number", "text")
MISSING = ("", "na", "n/a", "nan", "null")  # in any case of letters
_CLASSES, _TEXTS = ("label", "class"), ("text", "caption", "prompt")
_MAX_CATEGORIES, _MAX_GRADES, _MAX_TEXT_BYTES, _WORDS = 64, 10, 256, 3


@dataclass(frozen=True)
class Table:
    """Cells of each column as text, None where missing. kinds: of columns whose kind is known; names: of known categories."""

    n: int
    cells: Mapping[str, Sequence[Cell]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def chosen(self, columns: Sequence[str] | Mapping[str, str] | None) -> Table:
        """A list keeps these columns only; a dictionary says the kind of some. Raises ValueError for unknown names."""
        if columns is None:
            return self
        columns = (columns,) if isinstance(columns, str) else columns
        for name in columns:
            if name not in self.cells:
                raise ValueError(f"there is no column {name!r}; {did_you_mean(str(name), self.cells)}")
        if not isinstance(columns, Mapping):
            return replace(self, cells={c: self.cells[c] for c in columns})
        for name, kind in columns.items():
            if kind not in KINDS:
                raise ValueError(f"the column {name!r} cannot be a {kind!r}; {did_you_mean(str(kind), KINDS)}")
        return replace(self, kinds={**self.kinds, **columns})

    def schema(self, rows: Sequence[int] | np.ndarray | None = None) -> Schema:
        """The columns, with what they hold counted on these rows (all by default)."""
        columns: dict[str, Column] = {}
        for name, cells in self.cells.items():
            every = [c for c in cells if c is not None]
            some = every if rows is None else [c for i in rows if (c := cells[int(i)]) is not None]
            if every:
                columns[name] = self._column(name, every, some or every)
        return Schema(columns)

    def encode(self, schema: Schema) -> Given:
        """All rows coded by a schema of these columns; a category it does not know is missing."""
        values = {}
        for name, column in schema.columns.items():
            cells = self.cells[name]
            if isinstance(column, Category):
                place = {n: i for i, n in enumerate(column.names)}
                values[name] = torch.tensor([-1 if c is None else place.get(c, -1) for c in cells], dtype=torch.int64)
            else:
                values[name] = column.encode(cells, name)
        return Given(self.n, values)

    def rows(self, which: Sequence[int]) -> Table:
        """The table of these rows."""
        return replace(self, n=len(which), cells={k: [v[i] for i in which] for k, v in self.cells.items()})

    def _column(self, name: str, every: Sequence[str], some: Sequence[str]) -> Column:
        kind = self.kinds.get(name) or kind_of(name, every)
        if kind == "number":
            return _number(name, some)
        if kind == "text":
            longest = max(len(c.encode("utf-8", "surrogateescape")) for c in every)
            return Text(min(_MAX_TEXT_BYTES, -(-longest // 16) * 16))
        names = self.names.get(name) or tuple(sorted(set(every)))
        counts = Counter(some)
        total = max(1, sum(counts[n] for n in names))
        return Category(names, tuple(counts[n] / total for n in names))


def kind_of(name: str, cells: Sequence[str]) -> str:
    """Category, number or text, from a column's name and its cells."""
    if name.lower() in _CLASSES:
        return "category"
    if name.lower() in _TEXTS:
        return "text"
    distinct = set(cells)
    if all(map(_is_number, distinct)):
        whole = all(c.lstrip("+-").isdigit() for c in distinct)
        return "category" if whole and len(distinct) <= _MAX_GRADES else "number"
    words = sum(len(c.split()) for c in cells) / len(cells)
    return "text" if len(distinct) > _MAX_CATEGORIES or words >= _WORDS else "category"


def find_table(root: Path) -> Path | None:
    """The table of a folder. Raises ValueError if there are several."""
    found = [root / name for name in TABLES if (root / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{shown(root)} holds {' and '.join(f.name for f in found)}; keep one of them.")
    return found[0] if found else None


def read_table(path: Path) -> tuple[list[str], Table]:
    """The file_name of each row, and the other columns. Raises ValueError with a sentence for what is no such table."""
    try:
        rows = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()](path)
    except ImportError:
        raise ValueError(f"{shown(path)} needs pyarrow, which is not installed: pip install 'nonesuch[tables]'.") from None
    except (
        OSError,
        UnicodeDecodeError,
        csv.Error,
        ValueError,
    ) as error:  # pyarrow's and json's among them
        raise ValueError(f"{shown(path)} cannot be read as a table: {str(error).rstrip('.')}.") from None
    if not rows or not all(isinstance(r.get("file_name"), str) and r["file_name"] for r in rows):
        raise ValueError(f"{shown(path)} needs a header with file_name, and a row for each image.")
    return [r["file_name"] for r in rows], from_rows(rows, skip=("file_name",))


def from_rows(rows: Sequence[Mapping[str, Any]], skip: Iterable[str] = (), kinds: Mapping[str, str] | None = None) -> Table:
    """A table of rows that need not have the same columns; nested columns and names of other files are left out, and said."""
    names = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in skip and k]
    cells, left = {}, []
    for name in names:
        raw = [r.get(name) for r in rows]
        other = name.endswith("_file_name") or any(isinstance(v, (list, dict, tuple, bytes)) for v in raw)
        column = [] if other else [cell(v) for v in raw]
        if any(c is not None for c in column):
            cells[name] = column
        else:
            left.append(name)
    remark = (f"Columns left out of the table (empty, nested, or names of other files): {', '.join(left)}.",) if left else ()
    return Table(len(rows), cells, kinds or {}, remarks=remark)


def cell(value: Any) -> Cell:
    """One value as text, the same from every kind of file; None where it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    text = str(value).strip()
    return None if text.lower() in MISSING else text


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text)) and "_" not in text
    except ValueError:
        return False


def _number(name: str, cells: Sequence[str]) -> Number:
    try:
        values = np.array([float(c) for c in cells])
    except ValueError:
        odd = next(c for c in cells if not _is_number(c))
        raise ValueError(
            f"the column {name!r} is a number, and {odd!r} is none; leave the cell empty if it is missing."
        ) from None
    if not np.isfinite(values).all():
        raise ValueError(f"the column {name!r} holds infinite values; leave the cell empty if it is missing.")
    quantiles = tuple(float(q) for q in np.quantile(values, np.linspace(0, 1, 33)))
    return Number(float(values.mean()), float(values.std()) or 1.0, quantiles)


def _csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig", errors="strict") as file:
        rows = list(csv.DictReader(file))
    if any(None in r for r in rows):
        line = next(i for i, r in enumerate(rows) if None in r) + 2
        raise ValueError(f"row {line} has more cells than the header")
    return [dict(r) for r in rows]


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for i, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {i} is no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {i} is no JSON object")
                rows.append(row)
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    with path.open("rb") as file:
        return list(pyarrow.parquet.read_table(file).to_pylist())
