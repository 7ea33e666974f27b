"""How a data set lies on the disk, in the layouts that other programs read; the same pictures are the same bytes.

    folder      <class>/000000017.png           ImageFolder (torchvision, `datasets`, data.open), with a metadata.csv where
                                                folders cannot say all conditions
    nifti       <class>/000000017.nii.gz        the same, of volumes
    webdataset  train-000003.tar                members 000000017.png, .json (all conditions) and .cls (the class's number)
    parquet     train-00003-of-00020.parquet    image {bytes, path} and columns, typed for `datasets`

A file's name is its picture's number, so two shards never share one. Nothing of the clock is written: tar heads are zero, gzip
has no time, and Parquet's own remarks are its version alone.

References:
    WebDataset, https://github.com/webdataset/webdataset (the layout)
    Hugging Face datasets, https://huggingface.co/docs/datasets/image_dataset (ImageFolder, and the features of Parquet files)
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nonesuch.core.given import Category, Image, Number, Schema, did_you_mean
from nonesuch.data.pictures import class_folders
from nonesuch.data.shards import add_sample

LAYOUTS = ("folder", "webdataset", "parquet", "nifti")
METADATA = "metadata.csv"


@dataclass(frozen=True)
class Item:
    """One picture: its number, its file's bytes, its conditions as JSON values."""

    i: int
    data: bytes
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """name: one of LAYOUTS; suffix: of the pictures' files; part: where in the folder files begin, such as "train/real-"."""

    name: str
    schema: Schema
    suffix: str
    part: str = ""

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS:
            raise ValueError(f"a data set cannot be written as {self.name!r}; {did_you_mean(self.name, LAYOUTS)}")

    @property
    def loose(self) -> bool:
        """Whether each picture is a file of its own."""
        return self.name in ("folder", "nifti")

    def packed(self, k: int, of: int, items: Sequence[Item]) -> dict[str, bytes]:
        """The files of shard k of so many: name below the folder -> bytes. Raises ValueError for a missing extra."""
        if self.name == "webdataset":
            return {self.shard_name(k, of): self._tar(items)}
        if self.name == "parquet":
            return {self.shard_name(k, of): self._parquet(items)}
        zipped = self.name == "nifti"
        return {self.file_name(one.i, one.row): gzip.compress(one.data, mtime=0) if zipped else one.data for one in items}

    def shard_name(self, k: int, of: int) -> str:
        """The name of shard k's one file."""
        return f"train-{k:06d}.tar" if self.name == "webdataset" else f"train-{k:05d}-of-{of:05d}.parquet"

    def file_name(self, i: int, row: Mapping[str, Any]) -> str:
        """The name of picture i's own file, below the folder."""
        place, _, stem = self.part.rpartition("/")
        label = self._category()
        parts = [place, self._folders[row[label[0]] or ""] if label else ""]
        ending = ".nii.gz" if self.name == "nifti" else self.suffix
        return "/".join([p for p in parts if p] + [f"{stem}{i:09d}{ending}"])

    def needs_table(self) -> bool:
        """Whether folders of classes alone cannot say the conditions."""
        told = [c for c in self.schema.columns.values() if not isinstance(c, Image)]
        return self.loose and bool(told) and not (len(told) == 1 and isinstance(told[0], Category))

    @cached_property
    def _folders(self) -> Mapping[str, str]:
        label = self._category()
        return class_folders(label[1].names) if label else {}

    def _category(self) -> tuple[str, Category] | None:
        return next(((n, c) for n, c in self.schema.columns.items() if isinstance(c, Category)), None)

    def _class_number(self, row: Mapping[str, Any]) -> int | None:
        """What trainers call the class: its place among the names, -1 where missing; None without classes."""
        label = self._category()
        if label is None:
            return None
        return label[1].names.index(row[label[0]]) if row[label[0]] is not None else -1

    def _tar(self, items: Sequence[Item]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            for one in items:
                members = [(self.suffix[1:], one.data)]
                if one.row:
                    members.append(("json", json.dumps(one.row, ensure_ascii=False, sort_keys=True).encode()))
                if (number := self._class_number(one.row)) is not None:
                    members.append(("cls", str(number).encode()))
                add_sample(shard, f"{one.i:09d}", members)
        return file.getvalue()

    def _parquet(self, items: Sequence[Item]) -> bytes:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ValueError("parquet needs pyarrow, which is not installed: pip install 'nonesuch[tables]'.") from None
        pictures = [{"bytes": one.data, "path": f"{one.i:09d}{self.suffix}"} for one in items]
        columns = {"image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        for name, column in self.schema.columns.items():
            values = [one.row.get(name) for one in items]
            if isinstance(column, Category):
                place = {n: i for i, n in enumerate(column.names)}
                columns[name] = pa.array([None if v is None else place[v] for v in values], pa.int64())
                features[name] = {"names": list(column.names), "_type": "ClassLabel"}
            elif not isinstance(column, Image):
                number = isinstance(column, Number)
                columns[name] = pa.array(values, pa.float32() if number else pa.string())
                features[name] = {"dtype": "float32" if number else "string", "_type": "Value"}
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        file = io.BytesIO()
        pq.write_table(table, file, compression="none")
        return file.getvalue()


def digest(files: Mapping[str, bytes]) -> str:
    """sha256 of a shard: of its one file, or of the lines that sha256sum would print of its files in the order of names."""
    if [n for n in files if n.endswith((".tar", ".parquet"))]:
        return hashlib.sha256(*files.values()).hexdigest()
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pictures_in(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The pictures of one of a shard's files: a key and bytes for each. Raises ValueError for a damaged one."""
    try:
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as shard:
                for member in shard:
                    if not member.name.endswith((".json", ".cls")) and (file := shard.extractfile(member)):
                        yield member.name, file.read()
        elif name.endswith(".parquet"):
            import pyarrow.parquet as pq

            for one in pq.read_table(io.BytesIO(data), columns=["image"])["image"].to_pylist():
                yield one["path"], one["bytes"]
        else:
            yield name, data
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{name} cannot be read: {str(error).rstrip('.')}.") from None


def table(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> bytes:
    """metadata.csv: file_name, and the conditions; numbers to six digits, an empty cell where one is missing."""
    text, writer = io.StringIO(newline=""), None
    for name, row in rows:
        if writer is None:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["file_name", *row])
        writer.writerow([name, *("" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in row.values())])
    return text.getvalue().encode("utf-8", "surrogateescape")
