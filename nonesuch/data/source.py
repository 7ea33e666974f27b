"""Pictures and their conditions, found somewhere (a folder, shards, a data set of Hugging Face), made into `Data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nonesuch.core.given import Schema
from nonesuch.data.dataset import Data, fingerprint_of
from nonesuch.data.decode import Asked, Decoded, decoded
from nonesuch.data.items import Item
from nonesuch.data.tables import Table

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
Columns = Sequence[str] | Mapping[str, str] | None


@dataclass(frozen=True)
class Part:
    """The items of one split, and a row of conditions for each."""

    items: Sequence[Item]
    table: Table


@dataclass(frozen=True)
class Source:
    """splits: "train", "test" and perhaps "validation" as the source has them, or "" alone: to be divided."""

    name: str
    root: Path
    splits: Mapping[str, Part]
    remarks: tuple[str, ...] = ()


def named(splits: Mapping[str, Part]) -> dict[str, Part]:
    """Splits as far as `Data` knows them: without a test split the validation split is it, and a split alone is divided."""
    found = dict(splits)
    if "test" not in found and "validation" in found and len(found) > 1:
        found["test"] = found.pop("validation")
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def opened(source: Source, asked: Asked, columns: Columns = None) -> Data:
    """Decode, divide, and count what the conditions hold on the training split alone."""
    splits = {k: replace(p, table=p.table.chosen(columns)) for k, p in named(source.splits).items()}
    items = [i for p in splits.values() for i in p.items]
    parts = [k for k, p in splits.items() for _ in p.items]
    found = decoded(items, parts, asked, source.root, source.name)
    remarks = (*found.remarks, *source.remarks, *dict.fromkeys(r for p in splits.values() for r in p.table.remarks))
    return _divided(source, splits[""], found, remarks) if "" in splits else _as_it_came(source, splits, found, remarks)


def _divided(source: Source, part: Part, found: Decoded, remarks: tuple[str, ...]) -> Data:
    schema = part.table.schema(np.array(found.rows("train")))
    given = part.table.encode(schema)
    train, test = (found.images(k, schema, given[torch.tensor(found.rows(k))]) for k in ("train", "test"))
    return Data(source.name, train, test, fingerprint_of(found.hashes, given), remarks)


def _as_it_came(source: Source, splits: Mapping[str, Part], found: Decoded, remarks: tuple[str, ...]) -> Data:
    if "train" not in splits:
        raise ValueError(f"{source.name} has splits {', '.join(splits)} and none to train on; name one of them train.")
    schema, images, prints = splits["train"].table.schema(), {}, {}
    for name, part in splits.items():
        _same_columns(source.name, name, part.table, schema)
        given = part.table.encode(schema)
        images[name] = found.images(name, schema, given)
        prints[name] = fingerprint_of([found.hashes[i] for i in found.rows(name)], given)
        remarks += _unknown(name, part.table, schema)
    both = prints["train"] + prints["test"]
    return Data(source.name, images["train"], images["test"], both, remarks, images.get("validation"))


def _same_columns(source: str, name: str, table: Table, schema: Schema) -> None:
    missing = [c for c in schema.columns if c not in table.cells]
    if missing:
        raise ValueError(f"{source}: the train and {name} splits hold different columns: {', '.join(missing)} is not in {name}.")


def _unknown(name: str, table: Table, schema: Schema) -> tuple[str, ...]:
    """What is said of categories that training does not have."""
    said = []
    for column, known in table.schema().columns.items():
        new = set(getattr(known, "names", ())) - set(getattr(schema.columns.get(column), "names", ()))
        here = [c for c in table.cells[column] if c in new] if column in schema.columns else []
        if here:
            said.append(
                f"{len(here)} images of the {name} split have a {column} that training has not, here missing: {min(here)}."
            )
    return tuple(said)
