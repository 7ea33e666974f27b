"""How a run is stopped from outside: Ctrl-C and SIGTERM wait for the end of a round, so that what is saved resumes exactly."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Impatience(KeyboardInterrupt):
    """The second Ctrl-C within a round: the state is in the middle of a change and must not be saved."""


class Terminated(SystemExit):
    """SIGTERM came and the run was saved: the process ends with 143, as if the signal had ended it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def whole_rounds() -> Iterator[None]:
    """Ctrl-C waits for the end of the round, so that what is then saved resumes exactly; a second one does not wait."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            raise Impatience
        came.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def stops(together: bool = False) -> Iterator[Callable[[], tuple[bool, bool]]]:
    """While it lasts SIGTERM is only noted; yields a function that says whether it came, and whether Ctrl-C did.

    together: note Ctrl-C too, for several processes to stop after the same round. The second signal of a kind does not wait.
    """
    usual = {signal.SIGTERM: signal.SIG_DFL} | ({signal.SIGINT: signal.default_int_handler} if together else {})
    main = threading.current_thread() is threading.main_thread()
    usual = {s: h for s, h in usual.items() if main and signal.getsignal(s) is h}  # others are someone else's affair
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number in came:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        came.append(number)

    for number in usual:
        signal.signal(number, note)
    try:
        yield lambda: (signal.SIGTERM in came, signal.SIGINT in came)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
