"""Everything below a folder, seen and none of it opened: files, links, pipes, devices, hidden ones, and names that are odd.

Reading (`nonesuch.data.items`) leaves most of these out; the doctor says of each that it was there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from nonesuch.data import formats
from nonesuch.data.doctor.findings import Finding

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
_ODD = ((stat.S_ISFIFO, "pipe", "is a pipe"), (stat.S_ISSOCK, "socket", "is a socket"),
        (stat.S_ISBLK, "device", "is a block device"), (stat.S_ISCHR, "device", "is a character device"))  # fmt: skip


@dataclass
class Listing:
    """files: name below the root -> bytes, of regular files whose names promise a picture; others: of the other regular ones;
    tables: names; findings: what the names and kinds of entries alone say; complete: whether the time sufficed."""

    root: str
    files: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    complete: bool = True

    @property
    def splits(self) -> bool:
        """Whether the folder has its own train and test splits."""
        return {SPLITS.get(n.split("/")[0].lower()) for n in (*self.files, *self.tables) if "/" in n} >= {"train", "test"}

    def place(self, name: str) -> tuple[str, str | None]:
        """The split and class of a file: photos/train/cat/a.png, photos/cat/a.png or photos/a.png."""
        parts = name.split("/")
        split = SPLITS.get(parts[0].lower()) if self.splits and len(parts) > 1 else None
        folders = parts[1:-1] if split else parts[:-1]
        return split or ("train" if self.splits else ""), folders[0] if folders else None


def listed(root: str, stop: Callable[[], bool] = lambda: False) -> Listing:
    """Walk a folder in the order of its names; `stop` is asked once a folder. Opens no file, follows no link."""
    found, real, todo = Listing(root), os.path.realpath(root), [""]
    suffixes = tuple(formats.suffixes())
    while todo:
        below = todo.pop()
        if stop():
            found.complete = False
            break
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                here = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            found.findings.append(Finding("unreadable", below, f"cannot be listed: {error.strerror or error}"))
            continue
        folders = []
        for entry in here:
            name = f"{below}/{entry.name}" if below else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                found.findings.append(Finding("vanished", name, "was listed, and is gone"))
                continue
            if _is_folder(found, entry.name, name, status, real, suffixes):
                folders.append(name)
        todo += reversed(folders)
    return found


def _is_folder(found: Listing, base: str, name: str, status: os.stat_result, real: str, suffixes: tuple[str, ...]) -> bool:
    """Sort one entry in; true for a folder to go into."""
    mode, add = status.st_mode, found.findings.append
    if stat.S_ISLNK(mode):
        add(_link(found.root, name, real))
        return False
    for is_kind, kind, reason in _ODD:
        if is_kind(mode):
            add(Finding(kind, name, reason))
            return False
    if base.startswith("."):
        add(Finding("hidden", name, f"is a hidden {'folder' if stat.S_ISDIR(mode) else 'file'}"))
        return False
    _name(found, base, name)
    if stat.S_ISDIR(mode):
        return True
    if base.lower().endswith(suffixes):
        found.files[name] = status.st_size
    elif base in TABLES:
        found.tables.append(name)
    else:
        found.others[name] = status.st_size
    return False


def _name(found: Listing, base: str, name: str) -> None:
    try:
        base.encode()
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in base):
            what = "a line break" if "\n" in base or "\r" in base else "a control character"
            found.findings.append(Finding("name-control", name, f"has {what} in its name"))
    except UnicodeEncodeError:
        found.findings.append(Finding("name-not-utf8", name, "has a name that is not UTF-8"))


def _link(root: str, name: str, real: str) -> Finding:
    """What a symbolic link leads to, found without opening it."""
    path = os.path.join(root, name)
    try:
        target = os.path.realpath(path, strict=True)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Finding("link-loop", name, "is a link that leads to itself")
        return Finding("dangling-link", name, "is a link to nothing")
    here = os.path.realpath(os.path.dirname(path))
    if here == target or here.startswith(target.rstrip("/") + "/"):
        return Finding("link-loop", name, "is a link to a folder that it lies in")
    if target != real and not target.startswith(real.rstrip("/") + "/"):
        return Finding("link-outside", name, "is a link that leads out of the folder")
    return Finding("link", name, "is a link to another place of the same folder")
