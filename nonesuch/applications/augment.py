"""Real training pictures and synthetic ones in one folder, in a stated ratio for each class, each marked for what it is.

    augment(data, model, "both/", ratio=1.0)      train/<class>/real-..., synthetic-...;  test/<class>/real-...;  metadata.csv

A class of r real training pictures gets round(ratio r) synthetic ones. They are given what real ones were: the rows of the class
in an order keyed by the seed, each once before any comes twice; so columns beside the class keep their joint distribution. A
column `source` says real or synthetic. The test split, and a validation split where the data has its own, are the data's real
pictures alone, in folders of their own: `nonesuch.data.open` finds the splits again, and no test picture is trained on.

What is made, how it is made once, and how it goes on after a kill, is that of `dataset`: real pictures are shards, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nonesuch.applications import Event, finish
from nonesuch.applications._dataset_card import card
from nonesuch.applications._dataset_conditions import conditions, digest, plain
from nonesuch.applications._dataset_files import METADATA, Layout, table
from nonesuch.applications._dataset_job import Job, Shard, begun, making, model_said, pictures_per_shard
from nonesuch.applications._dataset_ledger import CARD, Ledger, told
from nonesuch.applications.dataset import Made, jsonable_options, kept, pace, rows_of
from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import Category, Image, Schema
from nonesuch.core.model import Model
from nonesuch.core.seeds import permutation
from nonesuch.data import formats
from nonesuch.data.dataset import Data, Images
from nonesuch.data.formats import Picture
from nonesuch.data.shards import value_of, values_of
from nonesuch.train import lock

needs: tuple[type, ...] = ()
REAL, SYNTHETIC = "real", "synthetic"


@dataclass(frozen=True)
class Options:
    """ratio: synthetic pictures for one real training picture; the rest as in `dataset.Options`."""

    ratio: float = 1.0
    seed: int = 0
    per_shard: int | None = None
    guidance: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    provenance: bool = True
    date: str | None = None


def augment(data: Data, model: Model, out: Path | str, *, about: Mapping[str, Any] | None = None, **options: Any) -> Made:
    """Write the data's real pictures and the model's as one data set; see `Options`, and `run` for what is raised."""
    made: Made = finish(run(data, model, out, Options(**options), about))
    return made


def run(data: Data, model: Model, out: Path | str, options: Options, about: Mapping[str, Any] | None = None) -> Iterator[Event]:
    """Write what is not there yet, and then the tables and the card; done and total in pictures, and the result is `Made`.

    Raises ValueError for a ratio that is not above 0, a model of other pictures or without the data's classes, another job or
    writer in the folder, and a disk that takes no more.
    """
    _require(data, model, options)
    out, start, about = Path(out), time.perf_counter(), about or {}
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder.")
    with lock.held(out), told(out, lambda: kept(out)):
        job, ledger = _opened(data, model, out, options)
        real = _Real(data, job)
        lost = set(ledger.lost(lambda key: real.names(key) if key in real.parts else names_of_key(job, key)))
        todo = [k for k in [*real.parts, *map(str, range(job.shards))] if k not in ledger.shards or k in lost]
        total, begun_at = real.count + job.asked["n"], time.perf_counter()
        done = before = total - sum(len(real.parts[k][1]) if k in real.parts else len(job.which(int(k))) for k in todo)
        for key in todo:
            for step in real.making(key) if key in real.parts else making(job, model, int(key)):
                lock.touch(out)
                if isinstance(step, Shard):
                    ledger.put(key, step)
                else:
                    done += step
                    yield Event(done, total, pace(done - before, total - done, time.perf_counter() - begun_at))
        _finish(job, ledger, real, data, about)
        remarks = _remarks(data, about)
        made = Made(out, total, len(real.parts) + job.shards, len(todo), 0, time.perf_counter() - start, remarks)
        yield Event(total, total, "done", result=made)


def names_of_key(job: Job, key: str) -> list[str]:
    """The names of a synthetic shard's files."""
    which = job.which(int(key))
    given = job.conditions.given(which, job.asked["seed"])
    return [job.layout.file_name(i, plain(job.conditions.schema, given, j)) for j, i in enumerate(which)]


# -- what is asked, and what of it cannot be


def _require(data: Data, model: Model, options: Options) -> None:
    model.require_fitted()
    if not (isinstance(options.ratio, (int, float)) and math.isfinite(options.ratio) and options.ratio > 0):
        raise ValueError(f"the ratio is of synthetic pictures to real ones, a number above 0, not {options.ratio!r}.")
    if options.per_shard is not None and options.per_shard < 1:
        raise ValueError(f"a shard holds at least 1 picture, not {options.per_shard}.")
    mine, theirs = ((s.shape, s.levels, s.axes, s.dtype, s.value_range) for s in (model.spec, data.spec))
    if mine != theirs or data.spec.sizes or model.spec.sizes:
        said = [f"{shape} of {levels} levels ({dtype})" for shape, levels, _, dtype, _ in (mine, theirs)]
        raise ValueError(
            f"the model draws {said[0]} and {data.name} has {said[1]}; open the data as when the model learned, all of one size."
        )
    label = class_of(data)
    if label and label not in model.schema.columns:
        raise ValueError(f"the model is not given {label!r}, so its pictures would have no class; fit it with --given {label}.")
    if missing := [n for n in model.schema.columns if n not in data.schema.columns]:
        raise ValueError(f"the model is given {', '.join(missing)}, which {data.name} does not have.")
    if any(isinstance(c, Image) for c in model.schema.columns.values()):
        raise ValueError("a model that is given pictures makes pairs, and no more pictures of a kind; use nonesuch restore.")
    known, own = model.schema.columns.get(label), data.schema.columns.get(label)
    if isinstance(own, Category) and isinstance(known, Category) and (new := sorted({*own.names} - {*known.names})):
        raise ValueError(f"{data.name} has a {label} that the model has not learned: {new[0]}; fit the model on this data.")


def class_of(data: Data) -> str:
    """The column that divides the data into classes, its first of categories; "" if there is none."""
    return next((name for name, column in data.schema.columns.items() if isinstance(column, Category)), "")


def wanted(train: Images, label: str, ratio: float, seed: int) -> list[int]:
    """The training rows whose conditions synthetic pictures take over, class after class: round(ratio r) of a class of r."""
    codes = train.labels(label) if label else torch.zeros(len(train), dtype=torch.int64)
    rows = []
    for code in codes.unique().tolist():
        own = (codes == code).nonzero()[:, 0]
        own = own[permutation(seed, f"augment/{code}", len(own))].tolist()
        rows += [own[i % len(own)] for i in range(round(ratio * len(own)))]
    return rows


def _opened(data: Data, model: Model, out: Path, options: Options) -> tuple[Job, Ledger]:
    """The job of the folder: begun now, or the one that is there, if it is what is asked for."""
    label = class_of(data)
    train = data.train.select(list(model.schema.columns)).recoded(model.schema)
    rows = [plain(model.schema, train.given, i) for i in wanted(data.train, label, options.ratio, options.seed)]
    if not rows:
        raise ValueError(f"a ratio of {options.ratio} of {len(train)} pictures is no picture; take a higher one.")
    columns = {label: model.schema[label], **model.schema.columns} if label else model.schema.columns
    asked = {
        "job": "augment", **model_said(model), "data": data.fingerprint, "ratio": float(options.ratio), "n": len(rows),
        "as": "folder", "part": f"train/{SYNTHETIC}-", "seed": options.seed, "given": "as the real pictures", "balance": [],
        "rows": digest(rows) if model.schema else None, "table": None, "blocking": None, "provenance": options.provenance,
        "guidance": None if options.guidance is None else float(options.guidance), "sampling": jsonable_options(options.sampling),
    }  # fmt: skip
    known = conditions(Schema(columns), None, (), rows if model.schema else ())
    ledger = Ledger.read(out)
    if ledger is None:
        asked["per_shard"] = options.per_shard or pictures_per_shard(model.spec)
        job = begun(model, asked, known, options.date)
        ledger = Ledger(out, asked, dict(job.fixed))
        ledger.begin()
        return job, ledger
    ledger.sweep()
    ledger.require({**asked, "per_shard": options.per_shard or ledger.asked.get("per_shard")}, options.date)
    return Job(ledger.asked, ledger.fixed, known), ledger


# -- the real pictures


class _Real:
    """Real pictures as shards: `parts` are a split and the numbers of its pictures, by key."""

    def __init__(self, data: Data, job: Job) -> None:
        splits = {"train": data.train, "test": data.test, "validation": data.own_validation}
        self.splits = {name: images for name, images in splits.items() if images is not None}
        self.job, self.label, size = job, class_of(data), job.asked["per_shard"]
        self.count = sum(map(len, self.splits.values()))
        self.parts = {
            f"{name}-{k}": (name, range(start, min(len(images), start + size)))
            for name, images in self.splits.items()
            for k, start in enumerate(range(0, len(images), size))
        }

    def name(self, split: str, i: int) -> str:
        """The name of a picture's file."""
        layout = Layout("folder", self.job.conditions.schema, self.job.fixed["suffix"], f"{split}/{REAL}-")
        images = self.splits[split]
        if not self.label:
            return layout.file_name(i, {})
        return layout.file_name(i, {self.label: value_of(images.schema[self.label], images.given.columns[self.label][i])})

    def names(self, key: str) -> list[str]:
        """The names of a shard's files."""
        split, which = self.parts[key]
        return [self.name(split, i) for i in which]

    def making(self, key: str) -> Iterator[int | Shard]:
        """Its pictures' values, encoded: nothing is said in them, and nothing of their own files' metadata is kept."""
        split, which = self.parts[key]
        images = self.splits[split]
        spec, files = images.spec, {}
        for i in which:
            picture = Picture(values_of(images, i), spec.axes, spec.spacing, spec.unit)
            files[self.name(split, i)] = formats.encode(picture, self.job.fixed["suffix"])[0]
        yield len(files)
        yield Shard(files, len(files))

    def rows(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """A row of the split's table for each picture: its file below the split's folder, all columns of the data."""
        images = self.splits[split]
        for i in range(len(images)):
            yield self.name(split, i).partition("/")[2], plain(images.schema, images.given, i)


# -- the end


def _finish(job: Job, ledger: Ledger, real: _Real, data: Data, about: Mapping[str, Any]) -> None:
    columns = [n for n, c in data.schema.columns.items() if not isinstance(c, Image)]
    source = "source" if "source" not in columns else "real or synthetic"
    for split in real.splits:
        rows = [(name, {**row, source: REAL}) for name, row in real.rows(split)]
        if split == "train":
            for i, row in enumerate(rows_of(job)):
                name = job.layout.file_name(i, row).partition("/")[2]
                rows.append((name, {**{n: row.get(n) for n in columns}, source: SYNTHETIC}))
        write_atomic(ledger.folder / split / METADATA, table(rows))
    counts = ", ".join(f"{len(images):,} in {name}/" for name, images in real.splits.items())
    real_ones = f"the real pictures of {data.name} ({data.fingerprint}): {counts}"
    beside = (
        f"Beside them stand {real_ones}.\nSynthetic ones stand in train/ alone, "
        f"{job.asked['ratio']:g} for one real picture of their class; the column `{source}` of metadata.csv says which is which."
    )
    write_atomic(ledger.folder / CARD, card(job, ledger, about, beside).encode())
    if not ledger.complete:
        ledger.complete = True
        ledger.write()


def _remarks(data: Data, about: Mapping[str, Any]) -> tuple[str, ...]:
    if about.get("fingerprint") == data.fingerprint:
        return ()
    what = "other data than this" if about.get("fingerprint") else "data that is not recorded"
    return (f"The model learned from {what}: if it has seen pictures of this test split, what is measured on it means nothing.",)
