"""A data set drawn from a model: as many pictures as asked for, in shards that are each made once and come out the same anywhere.

    synthesize(model, "more/", n=100_000, balance="label")

What a picture is depends on the model, the seed, the options and its number alone (`_dataset_job`), so that shards may be made
in any order and on any machine; a manifest says what was asked, what was fixed when the job began, and the sha256 of every shard
that is done (`_dataset_ledger`). A job that ended, however it ended, goes on with the same call. `verify` makes some shards again
and compares. Conditions: `_dataset_conditions`; layouts: `_dataset_files`; a cluster of machines: `_dataset_ray`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonesuch.applications import Event, _dataset_ray, finish
from nonesuch.applications._dataset_card import card
from nonesuch.applications._dataset_conditions import conditions, digest, jsonable, plain, read_rows, table_bytes
from nonesuch.applications._dataset_files import METADATA, Layout, table
from nonesuch.applications._dataset_job import Block, Job, Shard, begun, making, model_said, origin_of, pictures_per_shard
from nonesuch.applications._dataset_ledger import CARD, MANIFEST, TABLE, Ledger, told
from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import did_you_mean
from nonesuch.core.model import Model
from nonesuch.train import lock

if TYPE_CHECKING:
    from nonesuch.applications._dataset_verify import Verdict

needs: tuple[type, ...] = ()
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Options:
    """What is asked for.

    n: how many pictures; None is as many as a table says, or takes up the job that the folder holds. layout: folder, webdataset,
    parquet or nifti. per_shard: None is a thousand, or 256 MB of values. given: None, "as trained", or {column: value or values
    in turn}; balance: columns whose categories come equally often; table: a CSV file of conditions. sampling: options of the
    model's sampler. provenance: whether files say what made them. date: UTC, written into them; None is the day the job begins.
    blocking: in words, what a `block` refuses, as it is part of what the pictures are. engine: local or ray.
    """

    n: int | None = None
    layout: str = "folder"
    seed: int = 0
    per_shard: int | None = None
    given: Any = None
    balance: Sequence[str] = ()
    table: Path | str | None = None
    guidance: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    provenance: bool = True
    date: str | None = None
    blocking: str | None = None
    engine: str = "local"


@dataclass(frozen=True)
class Made:
    """A finished set: its folder, pictures, shards, how many of them were made now, pictures that were drawn again, remarks."""

    folder: Path
    n: int
    shards: int
    now: int
    blocked: int
    seconds: float
    remarks: tuple[str, ...] = ()


def synthesize(
    model: Model, out: Path | str, n: int | None = None, *, block: Block | None = None, about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Made:  # fmt: skip
    """Write n pictures of the model as a data set; see `Options` for the rest, and `run` for what is raised."""
    made: Made = finish(run(model, out, Options(n, **options), block, about))
    return made


def verify(model: Model, out: Path | str, shards: int = 5, block: Block | None = None) -> Verdict:
    """Make some shards of a folder again and compare; see `_dataset_verify` for the tolerance, and what is raised."""
    from nonesuch.applications import _dataset_verify

    found: Verdict = finish(_dataset_verify.run(model, out, shards, block))
    return found


def sign(out: Path | str, certificates: bytes, key: bytes) -> Path:
    """Sign a finished set's manifest by C2PA, and by it every shard, whose sha256 it tells; the file beside it that says so.

    certificates, key: see `provenance.signed`. Raises ValueError for a folder without a finished set, and as that does.
    """
    from nonesuch.applications.provenance import SEAL, sealed

    out = Path(out)
    ledger = Ledger.read(out)
    if ledger is None or not ledger.complete:
        raise ValueError(f"{out} holds no finished data set to sign; make it first.")
    seal = out / (MANIFEST + SEAL)
    write_atomic(seal, sealed((out / MANIFEST).read_bytes(), origin_of(ledger.asked, ledger.fixed), certificates, key))
    return seal


def run(
    model: Model, out: Path | str, options: Options, block: Block | None = None, about: Mapping[str, Any] | None = None
) -> Iterator[Event]:
    """Make the shards that are not yet made, and then the card; one event a batch, done and total in pictures.

    block: images (n, C, *size) and their Given -> bool (n,), true for those that must not be released: they are drawn again.
    about: what is known of the model's training, for the card. The last event's result is `Made`.
    Raises ValueError for a mistake in the options, another job or writer in the folder, and a disk that takes no more;
    ConnectionError for a cluster that is lost. Shards that are done stay done.
    """
    if options.n is not None and (isinstance(options.n, bool) or not isinstance(options.n, int) or options.n < 1):
        raise ValueError(f"n must be a whole number of pictures, at least 1, not {options.n!r}.")
    if options.engine not in ENGINES:
        raise ValueError(f"there is no engine {options.engine!r}; {did_you_mean(options.engine, ENGINES)}")
    if (block is None) != (options.blocking is None):
        raise ValueError("block and blocking go together: what refuses pictures, and what it refuses in words.")
    if options.engine == "ray":
        _dataset_ray.library()
    model.require_fitted()
    out, start = Path(out), time.perf_counter()
    _require_place(out, options)
    with lock.held(out), told(out, lambda: kept(out)):
        job, ledger = opened(model, out, options)
        todo, remarks = _todo(job, ledger), []
        for event in _made(job, model, ledger, todo, options.engine, block):
            remarks += [event.text] if event.result else []
            yield replace(event, result=None)
        _finish(job, ledger, about or {})
        blocked = sum(entry.get("blocked", 0) for entry in ledger.shards.values())
        made = Made(out, job.asked["n"], job.shards, len(todo), blocked, time.perf_counter() - start, tuple(remarks))
        yield Event(job.asked["n"], job.asked["n"], "done", result=made)


def opened(model: Model, out: Path, options: Options) -> tuple[Job, Ledger]:
    """The job of a folder: begun now, or the one that is there, if it is what is asked for."""
    ledger = Ledger.read(out)
    if ledger is None:
        rows = read_rows(Path(options.table), model.schema) if options.table else []
        known = conditions(model.schema, options.given, _names(options.balance), rows)
        if options.n is None and known.ends is None:
            raise ValueError(f"say how many pictures: {out} holds no job that could go on.")
        if options.n is None and known.ends is not None:
            options = replace(options, n=int(known.ends[-1]))
        asked = {**_asked(model, options, rows), "per_shard": options.per_shard or pictures_per_shard(model.spec)}
        job = begun(model, asked, known, options.date)
        ledger = Ledger(out, asked, dict(job.fixed))
        if rows:
            write_atomic(out / TABLE, table_bytes(rows))
        ledger.begin()
        return job, ledger
    ledger.sweep()
    rows = read_rows(Path(options.table), model.schema) if options.table else []
    asked = {**_asked(model, options, rows), "per_shard": options.per_shard or ledger.asked["per_shard"]}
    if options.n is None:  # what is left at its default is as the folder says; what the model is, is compared
        plainly = _asked(model, Options(), [])
        asked |= {k: v for k, v in ledger.asked.items() if k in _OPTIONAL and asked.get(k) == plainly.get(k)}
    if ledger.asked.get("blocking") and not options.blocking:
        raise ValueError(f"this job blocks {ledger.asked['blocking']}; say so again (--block-memorized), and it goes on.")
    ledger.require(asked, options.date)
    return recorded(model, ledger), ledger


_OPTIONAL = ("n", "as", "seed", "given", "balance", "table", "guidance", "sampling", "provenance")


def recorded(model: Model, ledger: Ledger) -> Job:
    """The job that a manifest tells of. Raises ValueError if its table is gone, or another."""
    asked, rows = ledger.asked, []
    if asked["table"]:
        rows = read_rows(ledger.folder / TABLE, model.schema)
        if digest(rows) != asked["table"]:
            raise ValueError(f"{ledger.folder / TABLE} is not the table that this job began with; put that one back.")
    return Job(asked, ledger.fixed, conditions(model.schema, asked["given"], asked["balance"], rows))


def _asked(model: Model, options: Options, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if options.per_shard is not None and options.per_shard < 1:
        raise ValueError(f"a shard holds at least 1 picture, not {options.per_shard}.")
    Layout(options.layout, model.schema, "")
    return {
        "job": "synthesize", **model_said(model), "n": options.n, "as": options.layout, "seed": options.seed,
        "given": jsonable(options.given), "balance": list(_names(options.balance)), "table": digest(rows),
        "guidance": None if options.guidance is None else float(options.guidance), "sampling": jsonable_options(options.sampling),
        "blocking": options.blocking, "provenance": options.provenance,
    }  # fmt: skip


def jsonable_options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a sampler, which a manifest must be able to say."""
    for name, value in sampling.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ValueError(f"the sampler's option {name} must be a number, a word or true or false, not {value!r}.")
    return dict(sampling)


def _names(balance: Sequence[str]) -> tuple[str, ...]:
    return (balance,) if isinstance(balance, str) else tuple(balance)


def _require_place(out: Path, options: Options) -> None:
    """Raise ValueError before a folder is made for nothing."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder.")
    if options.n is None and not options.table and not out.is_dir():
        raise ValueError(f"say how many pictures: {out} holds no job that could go on.")


def kept(out: Path) -> str:
    """What a job that ended before its time leaves, in words."""
    try:
        ledger = Ledger.read(out)
    except ValueError:
        ledger = None
    done = len(ledger.shards) if ledger else 0
    return f"{done} finished shard{'s' * (done != 1)} {'are' if done != 1 else 'is'} kept"


# -- making


def names_of(job: Job, k: int) -> list[str]:
    """The names of shard k's files."""
    layout = job.layout
    if not layout.loose:
        return [layout.shard_name(k, job.shards)]
    which, schema = job.which(k), job.conditions.schema
    given = job.conditions.given(which, job.asked["seed"])
    return [layout.file_name(i, plain(schema, given, j)) for j, i in enumerate(which)]


def rows_of(job: Job) -> Iterator[dict[str, Any]]:
    """The conditions of all pictures, in order, as JSON values."""
    for part in job.conditions.parts(job.asked["n"], job.asked["seed"]):
        yield from (plain(job.conditions.schema, part, j) for j in range(len(part)))


def _todo(job: Job, ledger: Ledger) -> list[int]:
    lost = set(ledger.lost(lambda key: names_of(job, int(key))))
    return [k for k in range(job.shards) if str(k) not in ledger.shards or str(k) in lost]


def _made(job: Job, model: Model, ledger: Ledger, todo: Sequence[int], engine: str, block: Block | None) -> Iterator[Event]:
    """Make shards and bring them to their places; the event of a shard with a remark has a result."""
    total, start = job.asked["n"], time.perf_counter()
    done = before = total - sum(len(job.which(k)) for k in todo)
    made = _dataset_ray.shards_from_cluster if engine == "ray" else _one_by_one
    for k, step in made(job, model, todo, block):
        lock.touch(ledger.folder)
        if isinstance(step, Shard):
            if remark := ledger.put(str(k), step):
                yield Event(done, total, remark, result=remark)
            continue
        done += step
        yield Event(done, total, pace(done - before, total - done, time.perf_counter() - start))


def _one_by_one(job: Job, model: Model, todo: Sequence[int], block: Block | None) -> Iterator[tuple[int, int | Shard]]:
    for k in todo:
        for step in making(job, model, k, block):
            yield k, step


def pace(done: int, left: int, seconds: float) -> str:
    """Throughput and time left, in words."""
    rate = done / max(seconds, 1e-9)
    wait = left / max(rate, 1e-9)
    shown = f"{wait:.0f} s" if wait < 90 else f"{wait / 60:.0f} min" if wait < 5400 else f"{wait / 3600:.1f} h"
    return f"{rate:.3g} images/s, {shown} left"


def _finish(job: Job, ledger: Ledger, about: Mapping[str, Any]) -> None:
    """The table of conditions, the card, and the word that the set is complete."""
    if job.layout.needs_table():
        write_atomic(ledger.folder / METADATA, table((job.layout.file_name(i, row), row) for i, row in enumerate(rows_of(job))))
    write_atomic(ledger.folder / CARD, card(job, ledger, about).encode())
    if not ledger.complete:
        ledger.complete = True
        ledger.write()
