"""Several processes as one: who each is, sums over all of them, and the end of all when one dies.

`torchrun` starts the processes and says to each in its environment who it is (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT). All hold the same weights; rank r has every N-th row, from row r, of the whole batch. Terms are means over rows, so
with w_r the share of the rows that rank r has, and g_r its gradient,

    grad = sum_r w_r g_r                                                                                        (1)

is the gradient of the whole batch, exactly but for the rounding of one sum, whatever N is and whether it divides the batch. It is
one all-reduce of all gradients and logged numbers laid end to end, once for each objective: hooks on gradients, as in
`DistributedDataParallel`, see nothing of `autograd.grad` and of second derivatives.

A process that dies ends the others within ten seconds. Its connections break at once, which ends who waits for its part of a sum;
and as a machine may go without a word, every process also counts aloud, from a thread, in the store that all of them met at, and
stops when another has been silent for `_SILENCE_S`. So a slow round, a save or a preview may take as long as it likes.

References:
    Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour (Goyal et al., 2017) arXiv:1706.02677, section 3 (Eq. 1)
"""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_BEAT_S, _SILENCE_S = 0.5, 7.5
_WAIT = timedelta(minutes=30)  # the longest anybody waits for a living process
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankLost(ConnectionError):
    """Another process of the run has ended, or cannot be reached."""

    def __init__(self, why: str) -> None:
        super().__init__(
            "another process of this run has ended or cannot be reached; start the run again with the same --out, and it goes on "
            f"from its last save ({why})."
        )


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one: its number `rank` of `world`, and `local_rank` of `local_world` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, draws and speaks."""
        return self.rank == 0

    def rows(self, size: int) -> range:
        """The rows of a batch of `size` that this process computes. Raises ValueError if some process would have none."""
        if size < self.world:
            raise ValueError(
                f"a batch of {size} does not go round {self.world} processes; set recipe.batch to {self.world} or more."
            )
        return range(self.rank, size, self.world)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits for each."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        self._ask(lambda: dist.all_reduce(total))
        return total

    def reduce(self, tensors: Sequence[Tensor], weight: float) -> list[Tensor]:
        """Eq. 1 for each of some tensors, in one all-reduce of all of them."""
        if self.world == 1:
            return list(tensors)
        with torch.no_grad():
            flat = torch.cat([t.detach().reshape(-1) for t in tensors]).mul_(weight)
        self._ask(lambda: dist.all_reduce(flat))
        pieces = flat.split([t.numel() for t in tensors])
        return [piece.view(t.shape).to(t.dtype) for piece, t in zip(pieces, tensors, strict=True)]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process: what all of them may act upon."""
        if self.world == 1:
            return flags
        found = torch.tensor([int(f) for f in flags])
        self._ask(lambda: dist.all_reduce(found))
        return tuple(bool(f) for f in found)

    def from_first(self, number: int) -> int:
        """The whole number that the first process has."""
        if self.world == 1:
            return number
        found = torch.tensor([number])
        self._ask(lambda: dist.broadcast(found, 0))
        return int(found)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        for tensor in tensors if self.world > 1 else ():
            sent = tensor.detach().contiguous()
            self._ask(lambda sent=sent: dist.broadcast(sent, 0))  # type: ignore[misc]
            tensor.detach().copy_(sent)

    def alike(self, *values: object) -> None:
        """Raise ValueError, in every process, if these values are not the same in all of them."""
        digest = int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=7).digest(), "little")
        if self.world > 1 and self.any(digest != self.from_first(digest))[0]:
            raise ValueError(
                "the processes do not begin alike: give all one command, the same data, and an --out that all machines see."
            )

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(True)

    def finished(self, yes: bool = True) -> None:
        """Say that nobody need wait for this process any more, or, with False, that it is at work again."""
        if _pulse is not None:
            _pulse.finished = yes

    @staticmethod
    def _ask(collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise RankLost(str(error).splitlines()[0][:200]) from error


class _Pulse(threading.Thread):
    """Count aloud, and listen to the others."""

    def __init__(self, ranks: Ranks, store: dist.Store) -> None:
        super().__init__(daemon=True, name="nonesuch-pulse")
        self.ranks, self.store, self.finished, self.leaving = ranks, store, False, threading.Event()

    def run(self) -> None:
        heard = {r: ("", time.monotonic()) for r in range(self.ranks.world) if r != self.ranks.rank}
        beat, leaves = 0, False
        while not leaves:
            beat, leaves = beat + 1, self.leaving.is_set()  # once more after that, to say how it ended
            try:
                self.store.set(str(self.ranks.rank), "end" if self.finished else str(beat))
                for other, (last, since) in heard.items():
                    said = self.store.get(str(other)).decode() if self.store.check([str(other)]) else ""
                    if said != last or said == "end":
                        heard[other] = said, time.monotonic()
                    elif time.monotonic() - since > _SILENCE_S and not self.finished:
                        _stop(f"rank {other} has been silent for {_SILENCE_S:.0f} s")
            except RuntimeError:  # the store is gone, and with it the machine that all of them met at
                if not self.finished:
                    _stop("the place where the processes met cannot be reached")
                return
            self.leaving.wait(_BEAT_S)


def _stop(why: str) -> None:
    """End this process, whatever its main thread waits for."""
    print(f"nonesuch: {why}; this process stops. Start the run again with the same --out to go on.", file=sys.stderr, flush=True)
    os._exit(1)


_joined: Ranks | None = None
_pulse: _Pulse | None = None


def join(device: str | None = None) -> Ranks:
    """The processes this one belongs to, met at the first call: those that torchrun started, or itself alone.

    They speak through NCCL between graphics processors, and through Gloo between others. A process group that is already there
    is used as it is.
    """
    global _joined, _pulse
    if _joined is not None:
        return _joined
    env = os.environ
    if int(env.get("WORLD_SIZE", 1)) < 2 or any(name not in env for name in _NEEDED):
        return Ranks()
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    places = int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", world))
    if dist.is_initialized():
        _joined = Ranks(dist.get_rank(), dist.get_world_size(), *places)
        return _joined
    on_gpu = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type == "cuda"
    store = _store(host=rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True", wait=_WAIT)
    session = _session(dist.PrefixStore("nonesuch", store), rank, world)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore(session, store), rank=rank, world_size=world, timeout=_WAIT)
    atexit.register(_leave)
    _joined = Ranks(rank, world, *places)
    # A connection of its own: the main thread's may be waiting for something.
    _pulse = _Pulse(_joined, dist.PrefixStore(f"{session}/pulse", _store(host=False, wait=timedelta(seconds=_SILENCE_S))))
    _pulse.start()
    return _joined


def _store(host: bool, wait: timedelta) -> dist.Store:
    """The store that all processes meet at; torchrun holds it, or without it the first process (`host`)."""
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(*where, is_master=host, timeout=wait, wait_for_workers=False)


def _session(store: dist.Store, rank: int, world: int) -> str:
    """A name known to the processes of this attempt alone, agreed through a store that has the leavings of earlier ones.

    torchrun restarts processes around the same store, and what they find there may be the addresses of the dead. So each of the
    others knocks with a word never used before; the first answers each knock with its own, until all have taken it.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"knock/{rank}", own)
        session = store.get(f"answer/{own}").decode()  # waits for it
        store.set(f"{session}/{rank}", "here")
        return session
    answered: dict[int, str] = {}
    end = time.monotonic() + _WAIT.total_seconds()
    while missing := [r for r in range(1, world) if not store.check([f"{own}/{r}"])]:
        for r in missing:
            knock = store.get(f"knock/{r}").decode() if store.check([f"knock/{r}"]) else ""
            if knock and answered.get(r) != knock:
                answered[r] = knock
                store.set(f"answer/{knock}", own)
        if time.monotonic() > end:
            raise RankLost(f"{len(missing)} of {world} processes did not come within {_WAIT}")
        time.sleep(0.02)
    return own


def _leave() -> None:
    if _pulse is not None:  # a thread within torch while the interpreter ends would abort the process
        _pulse.leaving.set()
        _pulse.join(2 * _BEAT_S + _SILENCE_S)
    with suppress(Exception):  # the others may be gone already
        dist.destroy_process_group()
