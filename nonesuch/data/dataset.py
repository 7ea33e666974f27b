"""Pictures in memory: `Images` is one split, `Data` the splits of one source, made once by hash of the content.

A picture belongs to the test split if the hash of its values is among the smallest, so identical pictures share a split, and a
picture keeps its side whatever the order of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds


@dataclass(frozen=True)
class Images:
    """One split: levels (N, C, *size) in the smallest integer type (float32 for a continuous spec), and N conditions."""

    spec: ImageSpec
    schema: Schema
    levels: Tensor
    given: Given
    name: str = "train"

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def x(self) -> Tensor:
        """All pictures as models see them: (N, C, *size)."""
        return self.inside(slice(None))

    def inside(self, which: slice | Tensor) -> Tensor:
        """The pictures of these indices as models see them."""
        picked = self.levels[which]
        return picked.float() if self.spec.kind == "continuous" else self.spec.from_levels(picked)

    def __getitem__(self, which: slice | Tensor | Sequence[int]) -> Images:
        index = torch.arange(len(self))[which] if isinstance(which, slice) else torch.as_tensor(which)
        return replace(self, levels=self.levels[index], given=self.given[index])

    def labels(self, column: str | None = None) -> Tensor:
        """int64 (N,) indices of a Category column; of the first one when no name is given."""
        return self.given.columns[column or self.schema.category()[0]]

    def select(self, columns: Sequence[str]) -> Images:
        """The same pictures with these columns only."""
        schema = self.schema.select(columns)
        return replace(self, schema=schema, given=Given(len(self), {c: self.given.columns[c] for c in columns}))

    def recoded(self, schema: Schema) -> Images:
        """The same pictures with their conditions coded by another schema of these columns; what it does not know is missing."""
        columns = {}
        for name, column in schema.columns.items():
            own, value = self.schema[name], self.given.columns[name]
            if type(own) is not type(column):
                raise ValueError(f"the column {name!r} is a {type(own).__name__} here and a {type(column).__name__} there.")
            if isinstance(column, Category) and isinstance(own, Category) and own.names != column.names:
                place = [column.names.index(n) if n in column.names else -1 for n in own.names]
                value = torch.where(value >= 0, torch.tensor([*place, -1])[value], -1)
            elif isinstance(column, Number) and isinstance(own, Number) and (own.mean, own.std) != (column.mean, column.std):
                value = (value * own.std + own.mean - column.mean) / column.std
            columns[name] = value
        return replace(self, schema=schema, given=Given(len(self), columns))


@dataclass(frozen=True)
class Data:
    """A source of pictures: its name, splits, a fingerprint of its content, and remarks a report must repeat."""

    name: str
    train: Images
    test: Images
    fingerprint: str
    remarks: tuple[str, ...] = ()

    @property
    def spec(self) -> ImageSpec:
        return self.train.spec

    @property
    def schema(self) -> Schema:
        return self.train.schema

    def select(self, columns: Sequence[str]) -> Data:
        """The same pictures with these condition columns only; unknown ones are answered by the nearest name."""
        return replace(self, train=self.train.select(columns), test=self.test.select(columns))

    def recoded(self, schema: Schema) -> Data:
        """The same pictures with their conditions coded by another schema of the same columns: that of a model made before."""
        return replace(self, train=self.train.recoded(schema), test=self.test.recoded(schema))

    def validation(self, share: float = 0.15) -> Data:
        """The training split alone, split again: choose settings on this, never on the test split."""
        train, test = split_by_content(replace(self.train, name="train"), round(share * len(self.train)))
        return replace(self, name=f"{self.name} (validation)", train=train, test=replace(test, name="validation"))


def content_hashes(levels: Tensor) -> list[str]:
    """A hex digest of each picture's values (the same for uint8 and wider integers of the same values)."""
    plain = levels if levels.is_floating_point() else levels.to(torch.int32)
    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).hexdigest() for row in plain.contiguous()]


def fingerprint(images: Images) -> str:
    """A digest of all pictures and conditions, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for one in content_hashes(images.levels):
        digest.update(one.encode())
    for name, column in images.given.columns.items():
        digest.update(name.encode() + column.contiguous().numpy().tobytes())
    return digest.hexdigest()


def split_by_content(images: Images, test: int) -> tuple[Images, Images]:
    """Train and test splits; `test` pictures (about: identical ones stay together) with the smallest hashes are the test."""
    hashes = content_hashes(images.levels)
    cut = sorted(hashes)[test - 1] if test > 0 else ""
    in_test = torch.tensor([h <= cut for h in hashes], dtype=torch.bool)
    return images[(~in_test).nonzero()[:, 0]], replace(images[in_test.nonzero()[:, 0]], name="test")


def batch_keys(seed: int, images: int, n: int) -> Seeds:
    """A seed for each of n pictures at the clock's reading: new at every sight, the same on every machine."""
    return Seeds((seed,) * n, tuple(range(images, images + n)))
