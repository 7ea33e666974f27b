"""`run.lock`: one writer a folder.

The lock is the kernel's (flock), so that a kill of any kind frees it; the file says who holds it, for the one who is refused.
Two cases the kernel cannot judge are judged by what the file says. Where a file system has no locks, the holder lives if its
process does, with the start time that is recorded (a process number is used again). On a file system shared by machines that
does not carry locks from one to another, the holder lives if it has touched the file within `_SILENT_S`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = "run.lock"
_SILENT_S = 120.0  # a holder on another machine is gone when it has not touched the file for so long
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EOPNOTSUPP}


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Be the only writer of the folder, which is made if need be. Raises ValueError: another is, or nothing can be written."""
    if folder is None:
        yield
        return
    handle = _take(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(handle)


def touch(folder: Path) -> None:
    """Show that the holder lives."""
    with suppress(OSError):
        os.utime(folder / LOCK, follow_symlinks=False)


def started_at(pid: int) -> str | None:
    """When the process began, in the kernel's clock ticks; "" where the system does not say; None if there is no such process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _take(folder: Path) -> int:
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                free = _flock(handle)
                holder = _read(handle)
                if not free or _lives(holder, path):
                    raise ValueError(_refusal(folder, holder))
                with suppress(FileNotFoundError):
                    if os.fstat(handle).st_ino == os.stat(path).st_ino:  # not one that its holder has just removed
                        mine = {"pid": os.getpid(), "host": socket.gethostname(), "start": started_at(os.getpid()) or ""}
                        os.ftruncate(handle, 0)
                        os.pwrite(handle, json.dumps({**mine, "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode(), 0)
                        return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder}: {error.strerror or error}; choose another folder.") from None


def _flock(handle: int) -> bool:
    """Whether the kernel's lock was free; True where there is none to be had."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return True
    return True


def _read(handle: int) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        said = json.loads(os.pread(handle, 1024, 0) or b"{}")
        return said if isinstance(said, dict) else {}
    return {}


def _lives(holder: dict[str, Any], path: Path) -> bool:
    """Whether the one who wrote the file still writes the folder, by what the file says."""
    pid, host = holder.get("pid"), holder.get("host")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    if host != socket.gethostname():
        return time.time() - path.stat().st_mtime < _SILENT_S
    start = started_at(pid)
    return start is not None and start == holder.get("start") and pid != os.getpid()


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'this machine')} since {holder.get('since', 'a while')}"
    return f"{folder} is being written by {who}; wait for it, or choose another folder (if it is dead, remove {folder / LOCK})."
