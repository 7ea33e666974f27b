"""Files looked at in processes of their own, so that a decoder that crashes or hangs costs one file, and the file is named.

The processes are started afresh (no fork, and the caller's main module is not run again) and speak lines of JSON.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

LIMIT_S = 60.0  # for one file
FEW = 200  # files; so many are not worth a second process
_CHUNK = 16  # files sent ahead to a process
_ROOT = Path(__file__).parents[3]

# The package `nonesuch.data` without what its __init__ imports: torch takes longer to load than most folders to read.
_START = """
import sys, types
package = types.ModuleType("nonesuch.data")
package.__path__ = [sys.argv[1]]
sys.modules["nonesuch.data"] = package
from nonesuch.data.doctor import workers
workers.serve()
"""


def serve() -> None:
    """The process's side: a line of paths in, a line for each out, until the input ends."""
    import nonesuch.data.doctor.one as one

    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # decoders' own words
    os.dup2(null, 2)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        for path in json.loads(line):
            answers.write(json.dumps(one.examined(path)) + "\n")
            answers.flush()


def examine_all(
    paths: Sequence[str], processes: int | None = None, limit_s: float = LIMIT_S
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, what `one.examined` says) of each path, in the order in which they finish."""
    if not paths:
        return
    count = processes or (1 if len(paths) <= FEW else min(2, os.cpu_count() or 1))
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for start in range(0, len(paths), _CHUNK):
        todo.put(list(range(start, min(start + _CHUNK, len(paths)))))
    done: queue.SimpleQueue[tuple[int, dict[str, Any]] | BaseException] = queue.SimpleQueue()
    lanes = [_Lane(paths, todo, done) for _ in range(count)]
    try:
        for _ in paths:
            while True:
                try:
                    answer = done.get(timeout=min(1.0, limit_s / 4))
                    break
                except queue.Empty:
                    for lane in lanes:
                        lane.end_if_slow(limit_s)
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        for lane in lanes:
            lane.end()


class _Lane:
    """One process and the thread that feeds it; both end when there is nothing left to do."""

    def __init__(self, paths: Sequence[str], todo: queue.SimpleQueue[list[int]], done: queue.SimpleQueue[Any]) -> None:
        self.paths, self.todo, self.done = paths, todo, done
        self.process: subprocess.Popen[str] | None = None
        self.since, self.slow, self.ended, self.fate = time.monotonic(), False, False, ""
        self.thread = threading.Thread(target=self._feed, daemon=True)
        self.thread.start()

    def end_if_slow(self, limit_s: float) -> None:
        """End the process if it has been at one file for longer than that."""
        if self.process is not None and time.monotonic() - self.since > limit_s:
            self.slow = True
            self.process.kill()

    def end(self) -> None:
        """End the process and the thread, whatever they are doing."""
        self.ended = True
        if self.process is not None:
            self.process.kill()
        self.thread.join(10)

    def _feed(self) -> None:
        try:
            while not self.ended:
                part = self.todo.get_nowait()
                while part and not self.ended:
                    part = self._ask(part)
        except queue.Empty:
            pass
        except BaseException as error:  # said in the caller's thread
            self.done.put(error)
        finally:
            self._close()

    def _ask(self, part: list[int]) -> list[int]:
        """Send these to the process and pass on its answers; returns those that were not reached because it died."""
        self.since = math.inf  # starting is not timed
        process = self.process or self._start()
        answers, questions = process.stdout, process.stdin
        assert answers is not None
        assert questions is not None
        self.since, self.slow = time.monotonic(), False
        sent = _write(questions, json.dumps([self.paths[i] for i in part]) + "\n")
        for k, i in enumerate(part):
            line = answers.readline() if sent else ""
            if not line.endswith("\n"):
                self._close()
                if not self.ended:
                    crash = ("crash", f"makes its decoder crash{self.fate}")
                    self.done.put((i, {"findings": [("slow", "takes too long to read") if self.slow else crash]}))
                return part[k + 1 :]
            self.since = time.monotonic()
            self.done.put((i, json.loads(line)))
        return []

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[1])], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="ascii",
        )  # fmt: skip
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n" and not self.ended:
            raise RuntimeError(f"{sys.executable} could not be started to read the files in a process of its own.")
        return self.process

    def _close(self) -> None:
        self.fate = ""
        process, self.process = self.process, None
        if process is None:
            return
        for end in (process.stdin, process.stdout):
            if end is not None:
                try:
                    end.close()
                except OSError:  # what was not yet read by a dead process
                    pass
        try:
            code = process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.fate = f" (signal {-code})" if code < 0 else ""


def _write(file: IO[str], text: str) -> bool:
    try:
        file.write(text)
        file.flush()
    except OSError:
        return False
    return True
