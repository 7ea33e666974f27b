"""Batches of a run: what the clock points at, a pure function of (seed, clock).

The clock counts images. Sight s, the s-th image a run sees, is the picture at place s mod N of the keyed permutation of epoch
s // N; its key is (seed, s), and its hidden condition and augmentation are drawn under s as well. So a run that is resumed, one
with other worker threads, and one shared by several ranks see the same pictures under the same keys, and an epoch shows each
picture once. Pictures of several sizes come in batches of one size, in the order of buckets.py.

Pictures are selected as levels, in the few bytes they have, from memory or from a memory-mapped file; only a batch is ever
converted. Small batches are made some at a time, for the calls then cost more than the work; and numbers that are cheap by the
thousand and dear by the batch (order, hidden rows, flips) are made in chunks and kept. A condition that a degradation makes of
the picture is made with its batch, after augmentation, under the sight's key.

Threads (`workers`) make the next batches while the model learns from this one. Worth it where a batch takes a share of a step, as
with crops, or where pages of a file must be read first; small pictures in memory take less time than the hand-over.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType

import torch
from torch import Tensor

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds, permutation
from nonesuch.data.augment import CHUNK, Augment, pieces
from nonesuch.data.buckets import places, turn
from nonesuch.data.dataset import Images, batch_keys
from nonesuch.data.made import Made

_TOGETHER, _TOGETHER_BYTES = 16, 2 << 20  # batches made at once, of pictures that as float32 take so much at most

_Picked = tuple[Tensor, Given, range, Tensor | None]  # levels, stored conditions, sights, and which conditions are hidden


@dataclass
class Batches:
    """The batches of a run: `at(clock)` is the one that begins with the clock's image.

    images: the pictures, in memory or memory-mapped; batch: images of all ranks together; seed: the run's; hide: probability
    that a row's condition is hidden; augment: names of `nonesuch.data.augment`; workers: threads that make the next batches;
    rows: those of this rank, such as range(rank, batch, ranks); total: images of the whole run;
    device: where x and given are put (pictures travel as levels).
    Raises ValueError, with what to do, for augmentations that are unknown or do not fit the pictures, and impossible values.
    """

    images: Images
    batch: int
    seed: int
    hide: float = 0.0
    augment: tuple[str, ...] | str | Augment = ()
    workers: int = 0
    rows: slice | range | None = None
    total: int = 1
    device: torch.device | str = "cpu"
    places: range = field(init=False)  # those of this rank's rows in the batch
    _members: list[Tensor] = field(init=False, repr=False)  # the pictures of each size, where there are several
    _together: int = field(init=False, repr=False)  # batches made at once
    _held: Made = field(init=False, repr=False)  # all conditions
    _stored: Schema = field(init=False, repr=False)  # those that are not made of the pictures
    _picked: dict[int, _Picked] = field(default_factory=dict, init=False, repr=False)
    _made: dict[int, Batch] = field(default_factory=dict, init=False, repr=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)
    _ahead: dict[int, Future[dict[int, Batch]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.hide <= 1 or self.workers < 0:
            raise ValueError("a batch needs at least 1 image, hide a probability, and workers a number of threads, 0 for none.")
        if len(self.images) == 0:
            raise ValueError("there are no images to learn from.")
        rows = slice(None) if self.rows is None else self.rows
        self.places = range(self.batch)[slice(rows.start, rows.stop, rows.step)]
        if self.places.step < 1 or not self.places:
            raise ValueError(f"{self.rows} picks no rows of a batch of {self.batch}, or not in ascending order.")
        columns, self._held = self.images.schema.columns, Made.of(self.images)
        self._stored = Schema({name: column for name, column in columns.items() if name not in self._held.makers})
        self.augment = Augment.of(self.augment).check(self.images.spec, self._stored)
        self._members = [self.images.rows(size) for size in self.images.spec.sizes]
        # The sights of batches one after another are one range if the rank's rows go round the batch evenly.
        even = len(self.places) * self.places.step == self.batch
        fit = _TOGETHER_BYTES // (4 * self.images.spec.numel * len(self.places))
        self._together = max(1, min(_TOGETHER, fit)) if even and not self._members else 1

    def at(self, clock: int) -> Batch:
        """The batch of images clock, ..., clock + batch - 1 of the run, this rank's rows of it. Raises what a worker met."""
        if not self.workers:  # converted one by one: the memory of the last batch is used again, which is half of the time
            if clock not in self._picked:
                self._picked = self._pick(clock)
            return self._convert(clock, *self._picked.pop(clock))
        if clock not in self._made:
            self._made = self._next(clock)
        return self._made.pop(clock)

    def close(self) -> None:
        """End the threads, if there are any; a later `at` starts them again."""
        self._forget()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _forget(self) -> None:
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()

    def _next(self, clock: int) -> dict[int, Batch]:
        """What was made ahead for this clock, if it was; and two tasks more for each worker."""
        ready = self._ahead.pop(clock, None)
        if ready is None:  # the first batch, or the clock was set: what was made ahead is of no use
            self._forget()
        self._pool = self._pool or ThreadPoolExecutor(self.workers, "batches")
        for task in range(1, 2 * self.workers + 1):
            if (later := clock + task * self._together * self.batch) not in self._ahead:
                self._ahead[later] = self._pool.submit(self._make, later)
        return ready.result() if ready else self._make(clock)

    def _make(self, clock: int) -> dict[int, Batch]:
        return {begin: self._convert(begin, *picked) for begin, picked in self._pick(clock).items()}

    def _pick(self, clock: int) -> dict[int, _Picked]:
        """The levels, conditions and sights of the batch at this clock and of those made with it, by their clocks."""
        rows, step = len(self.places), self.places.step
        first = clock + self.places.start
        sights = range(first, first + self._together * rows * step, step)
        data, augment = self.images, self.augment
        assert isinstance(augment, Augment)
        which = self._of_one_size(clock) if self._members else self._which(sights)
        given = Given(len(which), self._held.kept(which))
        hidden = None
        if data.schema:
            hidden = torch.cat([_hide(self.seed, chunk)[at] for chunk, at in pieces(sights, CHUNK)]) < self.hide
            given = self._stored.hide(given, hidden)
        k, given = _levels(data, which).to(self.device), given.to(self.device)
        if augment:
            k, given = augment.on_levels(k, given, data.spec, self._stored, self.seed, sights)
        picked = {}
        for i in range(self._together):
            part = slice(i * rows, (i + 1) * rows)
            conditions = Given(rows, {name: column[part] for name, column in given.columns.items()})
            picked[clock + i * self.batch] = (k[part], conditions, sights[part], None if hidden is None else hidden[part])
        return picked

    def _which(self, sights: range) -> Tensor:
        n = len(self.images)
        return torch.cat([permutation(self.seed, "order", n, epoch)[at] for epoch, at in pieces(sights, n)])

    def _of_one_size(self, clock: int) -> Tensor:
        """The pictures of this rank's rows of the batch that holds image `clock`, if batches had always been so large."""
        size, before = turn(tuple(map(len, self._members)), self.batch, self.seed, clock // self.batch)
        first = before * self.batch
        rows = range(first + self.places.start, first + self.places.stop, self.places.step)
        return self._members[size][places(self.seed, size, len(self._members[size]), rows)]

    def _convert(self, clock: int, k: Tensor, given: Given, sights: range, hidden: Tensor | None) -> Batch:
        assert isinstance(self.augment, Augment)
        x = _inside(k.view(self.images.levels.dtype), self.images.spec)
        if self.augment:
            x = self.augment.inside(x, self.images.spec, self.seed, sights)
        keys = Seeds((self.seed,) * len(sights), tuple(sights))
        if self._held.makers:
            given = self._with_made(x, given, keys, hidden)
        return Batch(x, given, keys, clock, self.total, self.places, self.batch)

    def _with_made(self, x: Tensor, given: Given, keys: Seeds, hidden: Tensor | None) -> Given:
        """The conditions with those that are made of the pictures, in the schema's order."""
        schema, columns, makers = self.images.schema, dict(given.columns), self._held.makers
        spoiled = Schema({name: schema.columns[name] for name in makers})
        found = Given(len(x), {name: maker(x, keys) for name, maker in makers.items()})
        columns |= (found if hidden is None else spoiled.hide(found, hidden)).columns
        return Given(len(x), {name: columns[name] for name in schema.columns})


@lru_cache(maxsize=4)
def _hide(seed: int, chunk: int) -> Tensor:
    """float32 (CHUNK,): for each sight of a chunk the number that hides its condition, drawn under its own key."""
    return batch_keys(seed, chunk * CHUNK, CHUNK).uniform("hide")


def _levels(images: Images, which: Tensor) -> Tensor:
    """A copy of these pictures. Few operations know torch.uint16, so it travels as int16 of the same bits."""
    levels = images.levels
    picked = (levels.view(torch.int16) if levels.dtype == torch.uint16 else levels).index_select(0, which)
    return picked if images.bucket is None else images.shaped(picked, images.size_of(which))


def _inside(k: Tensor, spec: ImageSpec) -> Tensor:
    """`ImageSpec.from_levels`, the same bits in fewer passes over memory; a continuous picture is float already."""
    if spec.kind == "ordinal":
        return k.to(torch.float32, copy=True).mul_(spec.step).sub_(1)
    return k.float() if spec.kind == "continuous" else k.long()
