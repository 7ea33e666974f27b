"""What each picture of a data set is given: a function of its number alone, so that any shard can be made anywhere.

Picture i of a set has, of

    balanced columns of K1, K2, ... categories     the categories (i mod K1), (i / K1 mod K2), ...: counts differ by one at most
    lists of values                                the value (i / (K1 K2 ...)) mod L, each list in turn, all lists together
    a table of rows, with counts or without        its row, the rows in order, and from the first again after the last
    "as trained"                                   what training's own frequencies draw under the key (seed, i)

and nothing in the other columns. A column is spoken for once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.given import AS_TRAINED, Category, Given, Image, Number, Schema, did_you_mean
from nonesuch.core.seeds import Seeds
from nonesuch.data.shards import value_of
from nonesuch.data.tables import cell

COUNT = "count"  # a table's column that says how many pictures a row is for, where the model has none of that name
_PART = 1 << 13
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Conditions:
    """values: coded rows by column; places: for each column, how to find picture i's row; drawn: whether the rest is drawn."""

    schema: Schema
    drawn: bool
    values: Mapping[str, Tensor]
    strides: Mapping[str, int]
    ends: Tensor | None = None  # of a table's rows, counted in pictures
    of_table: tuple[str, ...] = ()

    def given(self, which: Sequence[int], seed: int) -> Given:
        """The conditions of pictures of these numbers."""
        i = torch.tensor(list(which), dtype=torch.int64)
        seeds = Seeds((seed,) * len(i), tuple(i.tolist()))
        columns = {}
        for name, column in self.schema.columns.items():
            if name in self.of_table and self.ends is not None:
                columns[name] = self.values[name][torch.searchsorted(self.ends, i % self.ends[-1], right=True)]
            elif name in self.values:
                columns[name] = self.values[name][i // self.strides[name] % len(self.values[name])]
            else:
                columns[name] = column.draw(seeds, name) if self.drawn else column.missing(len(i))
        return Given(len(i), columns)

    def parts(self, n: int, seed: int) -> Iterator[Given]:
        """Those of all n pictures, some thousands at a time."""
        return (self.given(range(i, min(n, i + _PART)), seed) for i in range(0, n, _PART))


def conditions(schema: Schema, given: Any, balance: Sequence[str], table: Sequence[Row]) -> Conditions:
    """Read what a caller asks for.

    given: None, "as trained", or {column: a value, or a list of values in turn}; balance: columns of categories; table: rows of
    {column: value}, perhaps with a count. Raises ValueError for unknown columns and categories, and a column spoken for twice.
    """
    lists = {} if given is None or given == AS_TRAINED else given
    if not isinstance(lists, Mapping):
        raise ValueError(f"given takes 'as trained', or values such as {{'label': [0, 1]}}, not {given!r}.")
    counted = bool(table) and COUNT in table[0] and COUNT not in schema.columns
    of_table = tuple(k for k in (table[0] if table else ()) if not (counted and k == COUNT))
    _require(schema, given, [*balance, *lists, *of_table])
    values: dict[str, Tensor] = {}
    strides: dict[str, int] = {}
    stride = 1
    for name in balance:
        column = schema[name]
        if not isinstance(column, Category):
            raise ValueError(f"--balance takes a column of categories, and {name!r} is a {type(column).__name__.lower()}.")
        values[name], strides[name] = torch.arange(len(column.names)), stride
        stride *= len(column.names)
    for name, several in lists.items():
        listed = list(several) if isinstance(several, (list, tuple)) else [several]
        if not listed:
            raise ValueError(f"{name} was given no value; leave it out, or say one.")
        values[name], strides[name] = schema[name].encode(listed, name), stride
    for name in of_table:
        values[name] = schema[name].encode([row[name] for row in table], name)
    ends = torch.tensor([_count(row) for row in table] if counted else [1] * len(table)).cumsum(0) if table else None
    return Conditions(schema, given == AS_TRAINED, values, strides, ends, of_table)


def _require(schema: Schema, given: Any, named: Sequence[str]) -> None:
    """Raise ValueError for columns that are not there, are pictures, or are named twice."""
    if not schema and (named or given == AS_TRAINED):
        raise ValueError("this model is unconditional: it takes no --given, --balance or --table; fit it with given=...")
    for i, name in enumerate(named):
        if isinstance(schema[name], Image):
            raise ValueError(f"the column {name!r} is of pictures, which a data set cannot be given; use nonesuch restore.")
        if name in named[:i]:
            raise ValueError(f"the column {name!r} is spoken for twice; say it once, by --given, --balance or --table.")


def read_rows(path: Path, schema: Schema) -> list[dict[str, str | None]]:
    """The rows of a CSV file of conditions. Raises ValueError with a sentence for anything that is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"the table {path} cannot be read: {said.rstrip('.')}.") from None
    if not rows:
        raise ValueError(f"the table {path} needs a header with the model's columns, and at least one row.")
    known = [*schema.columns, COUNT]
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"line {line} of the table {path} has another number of cells than its header.")
    for name in rows[0]:
        if name not in known:
            raise ValueError(f"the table {path} has a column {name!r}, which the model has not; {did_you_mean(name, known)}")
    return [{k: cell(v) for k, v in row.items()} for row in rows]


def table_bytes(rows: Sequence[Row]) -> bytes:
    """The rows as the one CSV file that says them."""
    names = list(rows[0])
    lines = [",".join(_quoted(v) for v in line) for line in (names, *([row[n] for n in names] for row in rows))]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def digest(rows: Sequence[Row]) -> str | None:
    """sha256 of the table; None where there is none."""
    return hashlib.sha256(table_bytes(rows)).hexdigest() if rows else None


def plain(schema: Schema, given: Given, i: int) -> dict[str, Any]:
    """Row i as JSON values, None where missing; pictures are left out."""
    return {n: value_of(c, given.columns[n][i]) for n, c in schema.columns.items() if not isinstance(c, Image)}


def tallies(schema: Schema, parts: Iterable[Given]) -> dict[str, dict[str, float]]:
    """What a set holds: the count of each category, and of numbers their count, least, mean and greatest."""
    counts = {n: torch.zeros(len(c.names), dtype=torch.int64) for n, c in schema.columns.items() if isinstance(c, Category)}
    present, numbers, n = dict.fromkeys(schema.columns, 0), {}, 0
    for given in parts:
        n += len(given)
        for name, column in schema.columns.items():
            here = given.columns[name][column.present(given.columns[name])]
            present[name] += len(here)
            if isinstance(column, Category):
                counts[name] += torch.bincount(here, minlength=len(column.names))
            elif isinstance(column, Number) and len(here):
                real = here.double() * column.std + column.mean
                least, total, greatest = numbers.get(name, (math.inf, 0.0, -math.inf))
                numbers[name] = min(least, float(real.min())), total + float(real.sum()), max(greatest, float(real.max()))
    out: dict[str, dict[str, float]] = {}
    for name, column in schema.columns.items():
        out[name] = {"present": present[name]}
        if isinstance(column, Category):
            out[name] = dict(zip(column.names, counts[name].tolist(), strict=True))
        elif name in numbers:
            least, total, greatest = numbers[name]
            said = {"least": least, "mean": total / present[name], "greatest": greatest}
            out[name] |= {k: float(f"{v:.4g}") for k, v in said.items()}
        if n > present[name]:
            out[name]["(missing)"] = n - present[name]
    return out


def jsonable(given: Any) -> Any:
    """What was given, as JSON has it and as it is compared with another job's."""
    if given is None or isinstance(given, str):
        return given
    plainly = {str(k): list(v) if isinstance(v, (list, tuple)) else [v] for k, v in given.items()}
    return json.loads(json.dumps({k: [None if x is None else str(x) for x in v] for k, v in plainly.items()}))


def _count(row: Row) -> int:
    try:
        count = int(row[COUNT])
    except (TypeError, ValueError):
        count = 0
    if count < 1 or not math.isfinite(count):
        raise ValueError(f"a table's column count takes whole numbers from 1, not {row[COUNT]!r}.")
    return count


def _quoted(value: Any) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text
