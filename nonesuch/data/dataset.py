"""Pictures in memory: `Images` is one split, `Data` the splits of one source, made once by hash of the content.

A picture belongs to the test split if the hash of its values is among the smallest, so identical pictures share a split, and a
picture keeps its side whatever the order of the files.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.degradation import Degradation, read
from nonesuch.core.given import Category, Given, Image, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.made import Made, column_of, named

_CHUNK_BYTES, _MEMORY_BYTES = 16 << 20, 1 << 30  # pictures picked beyond the second lie in an unnamed file


@dataclass(frozen=True)
class Images:
    """One split: levels (N, C, *size) in the smallest integer type (float32 for a continuous spec), and N conditions.

    levels may be mapped from a file larger than the memory: pick from it, never convert it as a whole. Of several sizes it is
    (N, values), a row's end beyond the picture without meaning, and bucket (N,) says which of spec.sizes each picture has.
    """

    spec: ImageSpec
    schema: Schema
    levels: Tensor
    given: Given
    name: str = "train"
    bucket: Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def x(self) -> Tensor:
        """All pictures as models see them, (N, C, *size): for sets that fit in memory as float32."""
        return self.inside(slice(None))

    def inside(self, which: slice | Tensor) -> Tensor:
        """The pictures of these indices as models see them. Raises ValueError if they are of several sizes."""
        picked = self.levels[which]
        if self.bucket is not None:
            picked = self.shaped(picked, self.size_of(which))
        return picked.float() if self.spec.kind == "continuous" else self.spec.from_levels(picked)

    def __getitem__(self, which: slice | Tensor | Sequence[int]) -> Images:
        index = torch.arange(len(self))[which] if isinstance(which, slice) else torch.as_tensor(which)
        plain = isinstance(which, slice) and which.step in (None, 1)  # a view, not a copy
        levels = self.levels[which] if plain else take(self.levels, index)
        bucket = None if self.bucket is None else self.bucket[which if plain else index]
        return replace(self, levels=levels, given=self.given[index], bucket=bucket)

    def rows(self, size: tuple[int, ...]) -> Tensor:
        """The indices of the pictures of that one of spec.sizes; where all have one size, all."""
        if self.bucket is None:
            return torch.arange(len(self))
        return (self.bucket == self.spec.sizes.index(size)).nonzero()[:, 0]

    def of_size(self, size: tuple[int, ...]) -> Images:
        """Those of that size, as pictures of one size; where all have one, all."""
        if self.bucket is None:
            return self
        found = self[self.rows(size)]
        return replace(found, spec=self.spec.of_size(size), levels=self.shaped(found.levels, size), bucket=None)

    def by_size(self) -> list[Images]:
        """The pictures of each size that there are, the most usual of the source first; [self] where all have one."""
        return [part for size in self.spec.sizes or (self.spec.size,) if len(part := self.of_size(size))]

    def size_of(self, which: slice | Tensor) -> tuple[int, ...]:
        """The size of the pictures of these indices. Raises ValueError if they are of several."""
        bucket = None if self.bucket is None else self.bucket[which]
        if bucket is None or not len(bucket):
            return self.spec.size
        if (bucket != bucket[0]).any():
            sizes = ", ".join(" x ".join(map(str, s)) for s in self.spec.sizes)
            raise ValueError(f"these images are of several sizes ({sizes}), and here one is needed; open them with fit='crop'.")
        return self.spec.sizes[int(bucket[0])]

    def shaped(self, rows: Tensor, size: tuple[int, ...]) -> Tensor:
        """Rows (n, values) of pictures of that size as levels (n, C, *size)."""
        shape = self.spec.of_size(size).shape
        return rows[:, : math.prod(shape)].reshape(len(rows), *shape)

    def labels(self, column: str | None = None) -> Tensor:
        """int64 (N,) indices of a Category column; of the first one when no name is given."""
        return self.given.columns[column or self.schema.category()[0]]

    def select(self, columns: Sequence[str | Degradation]) -> Images:
        """The same pictures with these columns only; a degradation adds the column it makes of them, named by its class."""
        names = [c for c in columns if not isinstance(c, Degradation)]
        schema, held = self.schema.select(names), Made.of(self).only(names)
        added = named([c for c in columns if isinstance(c, Degradation)], names)
        new = {name: column_of(one, self.spec) for name, one in added.items()}
        found = replace(held, makers={**held.makers, **added})
        return replace(self, schema=Schema({**schema.columns, **new}), given=found.given())

    def made_as(self, schema: Schema) -> Images:
        """The same pictures with all columns that are made of them in this schema."""
        lacking = {k: c.made_by for k, c in schema.columns.items() if isinstance(c, Image) and k not in self.schema.columns}
        degradations = [read(said) for said in lacking.values() if said is not None]
        return self.select([*self.schema.columns, *degradations]) if degradations else self

    def recoded(self, schema: Schema) -> Images:
        """The same pictures with their conditions coded by another schema of these columns; what it does not know is missing."""
        columns, held = {}, Made.of(self).only(list(schema.columns))
        for name, column in schema.columns.items():
            if isinstance(column, Image) and name not in self.schema.columns and column.made_by is None:  # a model's own
                columns[name] = column.missing(1).expand(len(self), *column.spec.shape)
                continue
            own = self.schema[name]
            if type(own) is not type(column):
                raise ValueError(f"the column {name!r} is a {type(own).__name__} here and a {type(column).__name__} there.")
            if isinstance(column, Image) and isinstance(own, Image):
                if (own.spec.shape, own.made_by) != (column.spec.shape, column.made_by):
                    raise ValueError(f"the images of the column {name!r} are {_said(own)} here and {_said(column)} there.")
            if name not in held.stored:
                continue
            value = held.stored[name]
            if isinstance(column, Category) and isinstance(own, Category) and own.names != column.names:
                place = [column.names.index(n) if n in column.names else -1 for n in own.names]
                value = torch.where(value >= 0, torch.tensor([*place, -1])[value], -1)
            elif isinstance(column, Number) and isinstance(own, Number) and (own.mean, own.std) != (column.mean, column.std):
                value = (value * own.std + own.mean - column.mean) / column.std
            columns[name] = value
        return replace(self, schema=schema, given=replace(held, stored=columns).given())


def _said(column: Image) -> str:
    """What a column of images holds, for a sentence."""
    return f"{' x '.join(map(str, column.spec.shape))}{f', made by {read(column.made_by)!r}' if column.made_by else ''}"


@dataclass(frozen=True)
class Data:
    """A source of pictures: its name, splits, a fingerprint of its content, and remarks a report must repeat.

    own_validation: a validation split that the source came with beside its test split, or None.
    """

    name: str
    train: Images
    test: Images
    fingerprint: str
    remarks: tuple[str, ...] = ()
    own_validation: Images | None = None

    @property
    def spec(self) -> ImageSpec:
        return self.train.spec

    @property
    def schema(self) -> Schema:
        return self.train.schema

    def select(self, columns: Sequence[str | Degradation]) -> Data:
        """The same pictures with these condition columns only; unknown ones are answered by the nearest name.

        A degradation is a column too, made of each picture. Raises ValueError if one does not fit the pictures.
        """
        own = self.own_validation and self.own_validation.select(columns)
        return replace(self, train=self.train.select(columns), test=self.test.select(columns), own_validation=own)

    def made_as(self, schema: Schema) -> Data:
        """The same pictures with all columns that are made of them in this schema."""
        own = self.own_validation and self.own_validation.made_as(schema)
        return replace(self, train=self.train.made_as(schema), test=self.test.made_as(schema), own_validation=own)

    def recoded(self, schema: Schema) -> Data:
        """The same pictures with their conditions coded by another schema of the same columns: that of a model made before."""
        own = self.own_validation and self.own_validation.recoded(schema)
        return replace(self, train=self.train.recoded(schema), test=self.test.recoded(schema), own_validation=own)

    def validation(self, share: float = 0.15) -> Data:
        """The training split and the source's own validation split, or else the training split alone, split again.

        Choose settings on this, never on the test split.
        """
        if self.own_validation is not None:
            return replace(self, name=f"{self.name} (validation)", test=self.own_validation, own_validation=None)
        train, test = split_by_content(replace(self.train, name="train"), round(share * len(self.train)))
        return replace(self, name=f"{self.name} (validation)", train=train, test=replace(test, name="validation"))


def content_hash(values: np.ndarray) -> str:
    """A hex digest of one picture's values: the same for any integer type that holds them."""
    wide = (values.dtype.kind in "ui" and values.dtype.itemsize > 4) or values.dtype == np.uint32
    plain = values if values.dtype.kind == "f" else values.astype(np.int64 if wide else np.int32)
    return hashlib.blake2b(np.ascontiguousarray(plain).data, digest_size=16).hexdigest()


def content_hashes(levels: Tensor) -> list[str]:
    """A hex digest of each picture's values."""
    return [content_hash(row if row.dtype.kind == "f" else row.astype(np.int32)) for row in levels.numpy()]


def fingerprint(images: Images) -> str:
    """A digest of all pictures and conditions, in order."""
    return fingerprint_of(content_hashes(images.levels), images.given)


def fingerprint_of(hashes: Sequence[str], given: Given) -> str:
    """The same, of pictures whose hashes are known."""
    digest = hashlib.blake2b(digest_size=16)
    for one in hashes:
        digest.update(one.encode())
    for name, column in given.columns.items():
        digest.update(name.encode() + column.contiguous().numpy().tobytes())
    return digest.hexdigest()


def smallest_type(levels: int) -> type[np.generic]:
    """The smallest type of those torch computes with that holds so many levels."""
    return np.uint8 if levels <= 256 else np.int16 if levels <= 1 << 15 else np.int32


def take(levels: Tensor, index: Tensor) -> Tensor:
    """levels[index]; in an unnamed file, chunk by chunk, if that is too large for the memory."""
    row = max(1, levels[:1].numel() * levels.element_size())
    index = index.nonzero()[:, 0] if index.dtype == torch.bool else index
    if index.dim() != 1 or len(index) * row <= _MEMORY_BYTES:
        return levels[index]
    with tempfile.TemporaryFile() as file:
        for part in index.split(max(1, _CHUNK_BYTES // row)):
            file.write(levels[part].numpy().data)
        file.flush()
        kept = np.memmap(file, levels.numpy().dtype, "c", shape=(len(index), *levels.shape[1:]))
    return torch.from_numpy(kept)


def in_test_split(hashes: Sequence[str], test: int) -> np.ndarray:
    """bool (n,): the `test` pictures (about: identical ones stay together) with the smallest hashes."""
    cut = sorted(hashes)[test - 1] if test > 0 else ""
    return np.array([h <= cut for h in hashes], dtype=bool)


def split_by_content(images: Images, test: int) -> tuple[Images, Images]:
    """Train and test splits; what categories and numbers hold is counted on neither: `counted` does that."""
    in_test = torch.from_numpy(in_test_split(content_hashes(images.levels), test))
    return images[(~in_test).nonzero()[:, 0]], replace(images[in_test.nonzero()[:, 0]], name="test")


def counted(train: Images) -> Schema:
    """The schema with categories' frequencies counted on this split alone; the names stay those of the whole source."""
    columns = dict(train.schema.columns)
    for name, column in columns.items():
        if isinstance(column, Category):
            index = train.given.columns[name]
            counts = torch.bincount(index[index >= 0], minlength=len(column.names)).double()
            columns[name] = Category(column.names, tuple((counts / counts.sum().clamp_min(1)).tolist()))
    return Schema(columns)


def batch_keys(seed: int, images: int, n: int) -> Seeds:
    """A seed for each of n pictures at the clock's reading: new at every sight, the same on every machine."""
    return Seeds((seed,) * n, tuple(range(images, images + n)))
