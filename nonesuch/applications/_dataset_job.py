"""One shard of a data set: bytes that depend on the model, what was asked and the shard's number, and on nothing else.

Shard k holds the pictures k m, ..., k m + m - 1 of n, for m a shard. Picture i is drawn with the key (seed, i) and given what
`_dataset_conditions` says of i; so it does not matter who makes a shard, when, or after which others. What else could move a bit
is decided when a job begins, and recorded: how pictures are cut into batches (a product of 64 rows may round unlike one of 63),
threads (the order of sums), precision, fused kernels, the files' format, and the date written into them.

A picture that `block` refuses is drawn again with the keys (seed, i + r 2^40), r = 1, 2, ..., which belong to picture i alone: so
shards stay independent, and the conditions stay what they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nonesuch.applications._dataset_conditions import Conditions, plain
from nonesuch.applications._dataset_files import Item, Layout
from nonesuch.core import artifact
from nonesuch.core.given import Given
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model, guided
from nonesuch.core.seeds import Seeds
from nonesuch.data import formats
from nonesuch.data.pictures import stored
from nonesuch.nn import native
from nonesuch.nn.fused import Fusible
from nonesuch.train.device import load

if TYPE_CHECKING:
    from nonesuch.applications.provenance import Origin

Block = Callable[[Tensor, Given], Tensor]  # images (n, C, *size) and their conditions -> bool (n,): these must not be released
AGAIN = 1 << 40  # the distance between the keys of a picture's draws
_TRIES = 32
_BATCH_VALUES = 1 << 17  # of x in a batch; Model.sample cuts no smaller
_WRITERS = ("numpy", "imagecodecs", "tifffile", "nibabel", "av", "pyarrow")
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Job:
    """asked: what must be the same for a job to go on; fixed: what was decided when it began. Both are JSON values."""

    asked: Mapping[str, Any]
    fixed: Mapping[str, Any]
    conditions: Conditions

    @property
    def shards(self) -> int:
        return -(-self.asked["n"] // self.asked["per_shard"])

    def which(self, k: int) -> range:
        """The numbers of shard k's pictures."""
        return range(self.asked["n"])[k * self.asked["per_shard"] : (k + 1) * self.asked["per_shard"]]

    @property
    def layout(self) -> Layout:
        return Layout(self.asked["as"], self.conditions.schema, self.fixed["suffix"], self.asked.get("part", ""))


@dataclass(frozen=True)
class Shard:
    """The files of a shard, by their names below the folder; how many pictures; how many were drawn again; what made them."""

    files: Mapping[str, bytes]
    count: int
    blocked: int = 0
    build: Mapping[str, str] | None = None


def making(job: Job, model: Model, k: int, block: Block | None = None) -> Iterator[int | Shard]:
    """Draw and encode shard k: yields the number of pictures of each batch, and then the shard.

    Raises ValueError for a picture that is blocked whatever its key.
    """
    items, blocked, write, whole = [], 0, _writer(job, model), job.which(k)
    for start in range(0, len(whole), job.fixed["batch"]):
        which = whole[start : start + job.fixed["batch"]]
        given = job.conditions.given(which, job.asked["seed"])
        with as_recorded(model, job.fixed):
            x, index, again = _drawn(job, model, which, given, block)
        blocked += again
        for j, i in enumerate(which):
            items.append(Item(i, write(x[j], given, j, index[j]), plain(model.schema, given, j)))
        yield len(which)
    yield Shard(job.layout.packed(k, job.shards, items), len(items), blocked, build(model))


def make(job: Job, model: Model, k: int, block: Block | None = None) -> Shard:
    """Shard k."""
    *_, shard = making(job, model, k, block)
    assert isinstance(shard, Shard)
    return shard


def sampled(job: Job, model: Model, given: Given, index: list[int]) -> Tensor:
    """The pictures of these keys."""
    drawing = model if job.asked["guidance"] is None else guided(model, job.asked["guidance"])
    seeds = Seeds((job.asked["seed"],) * len(index), tuple(index))
    return drawing.sample(len(index), given, seeds=seeds, **job.asked["sampling"]).cpu()


def _drawn(job: Job, model: Model, which: range, given: Given, block: Block | None) -> tuple[Tensor, list[int], int]:
    """A batch, the index of each picture's key, and how many draws were refused."""
    index, refused = list(which), 0
    x = sampled(job, model, given, index)
    todo = list(range(len(index)))
    for _ in range(_TRIES if block else 0):
        assert block is not None
        found = block(x[todo], given[torch.tensor(todo)])
        if found.shape != (len(todo),) or found.dtype != torch.bool:
            raise ValueError(f"block(x, given) must return a bool for each image, not {found.dtype} {tuple(found.shape)}.")
        todo = [j for j, bad in zip(todo, found.tolist(), strict=True) if bad]
        if not todo:
            return x, index, refused
        refused += len(todo)
        for j in todo:
            index[j] += AGAIN
        x[todo] = sampled(job, model, given[torch.tensor(todo)], [index[j] for j in todo])
    if todo and block:
        raise ValueError(
            f"picture {which[todo[0]]} was blocked {_TRIES} times in a row: the model hardly draws anything else under "
            "these conditions, and its pictures should not be released."
        )
    return x, index, refused


Write = Callable[[Tensor, Given, int, int], bytes]


def origin_of(asked: Mapping[str, Any], fixed: Mapping[str, Any]) -> Origin:
    """What made a set, by what its manifest says was asked and fixed."""
    from nonesuch.applications.provenance import Origin, plain

    options = {"guidance": asked["guidance"]} if asked["guidance"] is not None else {}
    return Origin(
        asked["job"], asked["model"], asked["weights"], asked["seed"], options=plain({**options, **_scalars(asked["sampling"])}),
        date=fixed["date"],
    )  # fmt: skip


def _writer(job: Job, model: Model) -> Write:
    """How one image (C, *size) becomes a file's bytes, with what made it unless that was refused."""
    spec = model.spec.of_size(model.spec.size)
    suffix = job.fixed["suffix"]
    if not job.asked["provenance"]:
        return lambda x, given, row, index: formats.encode(stored(x, spec), suffix)[0]
    from nonesuch.applications.provenance import stamping, told

    origin = origin_of(job.asked, job.fixed)

    def write(x: Tensor, given: Given, row: int, index: int) -> bytes:
        made = replace(origin, index=index, given=told(model.schema, given, row))
        data, found = stamping([made], spec)(stored(x, spec), 0)
        if found != suffix:
            raise ValueError(f"this job writes {suffix} files, and here only {found} can be written; install what is missing.")
        return data

    return write


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, (str, int, float, bool)) else json.dumps(v) for k, v in values.items()}


# -- what is fixed when a job begins


def begun(model: Model, asked: Mapping[str, Any], conditions: Conditions, date: str | None) -> Job:
    """The job with all that is decided at its start, after one picture was drawn and encoded with it.

    Raises ValueError for an option that the model does not sample with, and pictures that the layout does not keep.
    """
    from nonesuch.applications.provenance import utc_day

    if date is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", date):
        raise ValueError(f"a date is in UTC, such as 2026-11-28, not {date!r}.")
    batch = max(16, _BATCH_VALUES // max(1, model.spec.numel))
    fixed = {
        "date": date or utc_day(), "precision": _PRECISIONS.get(model.compute_dtype, "fp32"), "fused": _fused(model),
        "threads": torch.get_num_threads(), "batch": min(batch, asked["per_shard"]),
        "suffix": suffix_of(model.spec.of_size(model.spec.size), asked["as"]),
    }  # fmt: skip
    job = Job(asked, fixed, conditions)
    try:
        given = conditions.given([0], asked["seed"])
        x = sampled(job, model, given, [0])
    except TypeError as error:
        if not asked["sampling"]:
            raise
        names = ", ".join(asked["sampling"])
        raise ValueError(f"{type(model).__name__} does not sample with {names}: {error}.") from None
    job.layout.packed(0, job.shards, [Item(0, _writer(job, model)(x[0], given, 0, 0), plain(model.schema, given, 0))])
    return job


def suffix_of(spec: ImageSpec, layout: str) -> str:
    """The files' format: what keeps such pictures; .nii for a layout of volumes. Raises ValueError if nothing does."""
    blank = stored(torch.zeros(spec.shape, dtype=torch.int64 if spec.kind == "categorical" else torch.float32), spec)
    if layout == "nifti" and spec.axes != "dhw":
        raise ValueError("nifti is for volumes (axes dhw), and this model draws none; use --as folder, webdataset or parquet.")
    try:
        return formats.encode(blank, ".nii" if layout == "nifti" else None)[1]
    except ImportError:
        raise ValueError("volumes as NIfTI need nibabel, which is not installed: pip install 'nonesuch[medical]'.") from None


@contextmanager
def as_recorded(model: Model, fixed: Mapping[str, Any]) -> Iterator[None]:
    """Compute as the job began: its threads, precision and kernels; afterwards as before."""
    threads, kept = torch.get_num_threads(), [(m, m.compute_dtype) for m in model.modules() if isinstance(m, Model)]
    fusible = [(m, m.fused) for m in model.modules() if isinstance(m, Fusible)]
    dtype = next(d for d, name in _PRECISIONS.items() if name == fixed["precision"])
    try:
        torch.set_num_threads(fixed["threads"])
        for part, _ in kept:
            part.compute_dtype = dtype
        for layer, _ in fusible:
            layer.fused = fixed["fused"]
        yield
    finally:
        torch.set_num_threads(threads)
        for part, own in kept:
            part.compute_dtype = own
        for layer, was in fusible:
            layer.fused = was


def build(model: Model) -> dict[str, str]:
    """What else bytes may depend on: two shards made with the same threads and the same of these are equal bit for bit."""
    where = model.device
    compiled = native.allowed() and sys.platform == "linux" and any(map(shutil.which, ("g++", "c++", "clang++")))
    unit = torch.cuda.get_device_name(where) if where.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    amx = " AMX" if where.type == "cpu" and torch.cpu._is_amx_tile_supported() else ""
    return {
        "nonesuch": _version("nonesuch"),
        "torch": str(torch.__version__),
        "writers": ", ".join(f"{name} {v}" for name in _WRITERS if (v := _version(name))),
        "computed on": f"{where.type} {platform.machine()} {unit}{amx}",
        "kernels": "compiled" if compiled else "eager",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _fused(model: Model) -> bool:
    return any(m.fused for m in model.modules() if isinstance(m, Fusible))


# -- the model, named and sent


def model_said(model: Model) -> dict[str, str]:
    """The model as a job names it: catalogue name, sha256 of its weights, and of its description."""
    from nonesuch.applications.provenance import weights_sha256

    about = json.dumps(artifact.describe(model), sort_keys=True)
    return {
        "model": artifact.model_name(type(model)),
        "weights": weights_sha256(model),
        "description": hashlib.sha256(about.encode()).hexdigest(),
    }


def sent(model: Model) -> bytes:
    """The model as bytes, for a process elsewhere."""
    return artifact.tensor_bytes(artifact.export_state(model), artifact.describe(model))


def received(data: bytes, cls: type[Model], device: str) -> Model:
    """What `sent` sent. No code is loaded by name: a class from outside the catalogue is given."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / artifact.WEIGHTS
        file.write_bytes(data)
        return load(file, cls, device=device, precision="fp32", compile=False)


def pictures_per_shard(spec: ImageSpec) -> int:
    """A thousand, or as many as have 256 MB of values."""
    return max(1, min(1000, (256 << 20) // max(1, math.prod(spec.shape) * 4)))
