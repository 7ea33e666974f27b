"""Rows of a comparison made at the same time, each in a process of its own with its share of the cores.

Small networks gain nothing from a second thread: their operations are over before the threads have met. Two of them on a core
each, for twice the time, see about twice the images in the same time of the machine. So a time budget is that of the whole
machine, and a process that has an n-th of the cores trains n times as long.

The processes are started afresh (no fork: threads of linear algebra do not survive one). Ctrl-C and SIGTERM are the parent's
alone; it ends the others with SIGTERM, on which each saves, at the end of its round, what the same call takes up again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from nonesuch.train.stopping import Terminated, stops

_POLL_S = 0.2

Work = Callable[[str, Callable[..., None]], Any]  # (name, tell) -> its result, as plain values


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def at_once(networks: int) -> int:
    """How many networks are trained at the same time: one a core; one in all on a graphics processor."""
    return 1 if torch.cuda.is_available() else max(1, min(networks, cores()))


def made(names: Sequence[str], work: Work, count: int) -> Iterator[tuple[str, Any, bool]]:
    """(name, (arguments, keywords) of a call of `tell`, False), and (name, result, True) at a row's end, by `count` processes.

    A result is None where the process died. `work` is sent to the processes, and so must be made of what can be.
    Raises KeyboardInterrupt and Terminated, as in training, once the processes have saved and ended.
    """
    waiting, busy = list(names), dict[Connection, tuple[SpawnProcess, str]]()
    threads = max(1, cores() // count)
    lanes = [_start(work, threads) for _ in range(min(count, len(waiting)))]
    try:
        with stops() as stopped:
            for process, ours in lanes:
                _next(waiting, busy, process, ours)
            while busy:
                if stopped()[0]:
                    raise Terminated
                ready = connection.wait(list(busy), _POLL_S)
                for ours in [c for c in busy if c in ready]:
                    process, name = busy[ours]
                    try:
                        kind, value = ours.recv()
                    except (EOFError, ConnectionError):
                        kind, value = "result", None
                    yield name, value, kind == "result"
                    if kind == "result":
                        if value is None:  # another process for what is left
                            process.join()
                            process, ours_next = _start(work, threads) if waiting else (process, ours)
                            lanes.append((process, ours_next))
                            del busy[ours]
                            _next(waiting, busy, process, ours_next)
                        else:
                            _next(waiting, busy, process, ours)
    finally:
        _end(lanes)


def _start(work: Work, threads: int) -> tuple[SpawnProcess, Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _next(waiting: list[str], busy: dict[Connection, tuple[SpawnProcess, str]], process: SpawnProcess, ours: Connection) -> None:
    """Give the process another name, or let it go."""
    busy.pop(ours, None)
    if waiting:
        busy[ours] = process, waiting.pop(0)
        ours.send(busy[ours][1])


def _end(lanes: list[tuple[SpawnProcess, Connection]]) -> None:
    """Ask whatever still runs to save and end, and wait; a second Ctrl-C does not wait."""
    for process, _ in lanes:
        if process.is_alive():
            process.terminate()
    try:
        for process, ours in lanes:
            ours.close()
            process.join()
    except KeyboardInterrupt:
        for process, _ in lanes:
            process.kill()
        raise


def _serve(theirs: Connection, work: Work, threads: int) -> None:
    """A process's side: a name in, what is told on the way and the result out, until the parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    torch.set_num_threads(threads)
    parent = parent_process()

    def tell(*args: Any, **more: Any) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit("the comparison that asked for this has ended")
        if (event := more.get("event")) is not None:
            more["event"] = replace(event, x=None)  # pictures stay here
        theirs.send(("told", (args, more)))

    while True:
        try:
            name = theirs.recv()
        except (EOFError, ConnectionError):
            return
        theirs.send(("result", work(name, tell)))
