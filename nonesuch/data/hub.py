"""Data sets of Hugging Face, already loaded: `datasets.Dataset` and `DatasetDict` objects (extra [hub]); nothing is fetched here.

The column of feature Image is the pictures, read from their files' own bytes at full depth and not as `datasets` would decode
them; ClassLabel is a category with its names, other plain values are columns as those of a table are, the rest is left out and
said.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nonesuch.data.dataset import Data
from nonesuch.data.decode import Asked
from nonesuch.data.items import Item
from nonesuch.data.items import Part as FilePart
from nonesuch.data.source import SPLITS, Columns, Part, Source, opened
from nonesuch.data.tables import Table, cell, from_rows

_KINDS = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")


def is_hub(source: Any) -> bool:
    """Whether an object is a data set of Hugging Face; the package is not imported to find out."""
    return any(c.__module__.split(".")[0] == "datasets" and c.__name__ in _KINDS for c in type(source).__mro__)


def open_hub(source: Any, asked: Asked, columns: Columns = None) -> Data:
    """Data of a Dataset or DatasetDict. Raises ValueError for one without a column of images, or that is streamed."""
    if type(source).__name__.startswith("Iterable"):
        raise ValueError("a streamed data set cannot be split or shuffled; load it with streaming=False.")
    splits: Mapping[str, Any] = source if isinstance(source, Mapping) else {"": source}
    parts, left = {}, []
    for name, rows in splits.items():
        kind = SPLITS.get(str(name).lower(), "") if len(splits) > 1 else ""
        if (name and not kind and len(splits) > 1) or kind in parts or len(rows) == 0:
            left.append(str(name))
        else:
            parts[kind] = _part(rows, str(name))
    if not parts:
        raise ValueError(f"the data set holds no images in a split called train; it has {', '.join(map(str, splits)) or 'none'}.")
    remarks = (f"Splits left out of the data set: {', '.join(left)}.",) if left else ()
    any_split = next(iter(splits.values()))
    name = str(getattr(any_split.info, "dataset_name", None) or "dataset")
    return opened(Source(name, Path(), parts, remarks), asked, columns)


def _part(rows: Any, split: str) -> Part:
    import datasets

    images = [n for n, f in rows.features.items() if isinstance(f, datasets.Image)]
    if not images:
        raise ValueError(f"the data set has no column of images; it has {', '.join(rows.features)}.")
    column = images[0]
    stored = rows.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    where = f"{split + ' ' if split else ''}row"
    items = [Item((f"{i}",), (FilePart(f"{where} {i}", load=partial(_bytes, stored, i, column)),)) for i in range(len(rows))]
    return Part(items, _table(rows, [n for n in rows.features if n not in images], images[1:]))


def _bytes(rows: Any, i: int, column: str) -> bytes:
    """The file of one row."""
    held = rows[i][column]
    if held is None:
        raise ValueError(f"row {i} has no image.")
    return held["bytes"] if held["bytes"] is not None else Path(held["path"]).read_bytes()


def _table(rows: Any, names: list[str], left: list[str]) -> Table:
    """The plain columns; ClassLabel by its names, of which -1 is missing."""
    import datasets

    plain = [n for n in names if isinstance(rows.features[n], (datasets.Value, datasets.ClassLabel))]
    raw = {n: list(rows[n]) for n in plain}
    table = from_rows(
        [dict(zip(plain, values, strict=True)) for values in zip(*raw.values(), strict=True)] if plain else [{}] * len(rows)
    )
    cells, kinds, known = dict(table.cells), dict(table.kinds), {}
    for name in plain:
        if isinstance(rows.features[name], datasets.ClassLabel):
            known[name] = tuple(rows.features[name].names)
            cells[name] = [None if v is None or v < 0 else cell(known[name][v]) for v in raw[name]]
            kinds[name] = "category"
    other = [*left, *(n for n in names if n not in plain)]
    said = (f"Columns of the data set that are no plain values were left out: {', '.join(other)}.",) if other else ()
    return Table(len(rows), {n: cells[n] for n in plain if n in cells}, kinds, known, (*table.remarks, *said))
