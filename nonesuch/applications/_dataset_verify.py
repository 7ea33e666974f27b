"""Make some shards of a data set again, and compare.

On the build that a shard was made with, its bytes must be equal. On another one sums are rounded otherwise, and pictures are
compared: d = the mean over a picture of |values made again - values in the file|, as a share of the range of values. A picture is
the same if d <= 1 %, and a shard if at most 1 % of its pictures are not: samplers that choose among levels may fall on the other
side of a tie now and then, and go another way from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nonesuch.applications import Event
from nonesuch.applications._dataset_files import digest, pictures_in
from nonesuch.applications._dataset_job import Block, Job, Shard, making, model_said
from nonesuch.applications._dataset_ledger import Ledger
from nonesuch.applications.dataset import names_of, recorded
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import permutation
from nonesuch.data import formats

TOLERANCE, SHARE = 0.01, 0.01  # of the range of values, in the mean of a picture; of pictures that may differ by more


@dataclass
class Verdict:
    """checked: shards; equal: byte for byte; within: within the tolerance, on another build; different: a sentence a shard."""

    checked: int
    of: int
    equal: list[int] = field(default_factory=list)
    within: list[int] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.different

    def to_json(self) -> dict[str, Any]:
        return {"same": self.same, **asdict(self), "tolerance": {"mean_of_range": TOLERANCE, "share_of_pictures": SHARE}}

    def lines(self) -> list[str]:
        """What is said of it, a line each."""
        said = [f"{self.checked} of {self.of} shards made again: {len(self.equal)} equal byte for byte"]
        if self.within:
            said[0] += (
                f", {len(self.within)} by another build and within {TOLERANCE:.0%} of the range in {1 - SHARE:.0%} of pictures"
            )
        return [*said, *self.different]


def run(model: Model, out: Path | str, shards: int = 5, block: Block | None = None) -> Iterator[Event]:
    """Make so many shards of a folder again, chosen by the job's seed; the last event's result is a `Verdict`.

    Raises ValueError for a folder without finished shards, another model than theirs, and a job that blocks, without its block.
    """
    ledger = Ledger.read(Path(out))
    if ledger is None or not ledger.shards:
        raise ValueError(f"{out} holds no finished shards to verify; give the folder that nonesuch synthesize wrote.")
    if shards < 1:
        raise ValueError(f"--verify takes a number of shards, at least 1, not {shards}.")
    if ledger.asked["job"] != "synthesize":
        raise ValueError(f"{out} was not written by nonesuch synthesize alone; verify the synthetic set that it came from.")
    if ledger.asked["blocking"] and block is None:
        raise ValueError(f"this job blocks {ledger.asked['blocking']}; say so again (--block-memorized) to verify it.")
    ledger.require({**ledger.asked, **model_said(model)}, None)
    job, done = recorded(model, ledger), sorted(map(int, ledger.shards))
    chosen = sorted(done[i] for i in permutation(job.asked["seed"], "verify", len(done))[:shards].tolist())
    verdict, total, seen = Verdict(len(chosen), len(done)), sum(len(job.which(k)) for k in chosen), 0
    for k in chosen:
        for step in making(job, model, k, block):
            if isinstance(step, Shard):
                _compare(verdict, job, ledger, k, step, model.spec.of_size(model.spec.size))
            else:
                yield Event(seen := seen + step, total, f"shard {k}")
    yield Event(total, total, "done", result=verdict)


def _compare(verdict: Verdict, job: Job, ledger: Ledger, k: int, again: Shard, spec: ImageSpec) -> None:
    entry, names = ledger.shards[str(k)], names_of(job, k)
    try:
        files = {name: (ledger.folder / name).read_bytes() for name in names}
    except OSError as error:
        verdict.different.append(f"shard {k}: {Path(str(error.filename)).name} cannot be read.")
        return
    if digest(files) != entry["sha256"]:
        verdict.different.append(f"shard {k}: its files are not those that the manifest tells of; they were changed or damaged.")
    elif files == dict(again.files):
        verdict.equal.append(k)
    elif ledger.builds[entry["build"]] == again.build:
        apart = _beyond(files, again, spec) or "Pixels are within the tolerance of other builds."
        verdict.different.append(f"shard {k}: not equal byte for byte, though made by the same build. {apart}")
    elif (said := _beyond(files, again, spec)) is not None:
        verdict.different.append(f"shard {k}: {said}")
    else:
        verdict.within.append(k)


def _beyond(files: dict[str, bytes], again: Shard, spec: ImageSpec) -> str | None:
    """How two shards differ beyond the tolerance; None if they do not."""
    here, there = _decoded(files), _decoded(dict(again.files))
    if here.keys() != there.keys() or any(here[key].shape != there[key].shape for key in here):
        return "It does not hold the same pictures."
    apart = np.array([_distance(here[key], there[key], spec) for key in here])
    odd = int((apart > TOLERANCE).sum())
    if odd <= SHARE * len(apart):
        return None
    return f"{odd} of {len(apart)} pictures differ by more than {TOLERANCE:.0%} of the range."


def _decoded(files: dict[str, bytes]) -> dict[str, np.ndarray]:
    return {key: formats.read(data, key).values for name in files for key, data in pictures_in(name, files[name])}


def _distance(a: np.ndarray, b: np.ndarray, spec: ImageSpec) -> float:
    lo, hi = spec.value_range or (0.0, float(spec.levels or 2) - 1)
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean() / abs(hi - lo))
