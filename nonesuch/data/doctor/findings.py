"""What the doctor may find: a kind, how grave it is, and what reading does about it. The words are stable: scripts read them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["must fix", "will be handled", "note"]
MUST, HANDLED, NOTE = "must fix", "will be handled", "note"

# kind -> what is done about it; kinds of MUST_FIX stop a fit or make its results wrong, those of NOTES need nothing.
MUST_FIX = (
    "no-images", "empty", "truncated", "corrupt", "refused", "bomb", "html", "disallowed-format", "unknown-format", "not-finite",
    "needs-package", "unreadable", "crash", "slow", "mixed-axes", "mixed-type", "odd-channels", "bad-table", "row-without-file",
    "row-outside", "bad-array", "duplicate-across-splits",
)  # fmt: skip
NOTES = (
    "other-file", "name-not-utf8", "name-control", "class-of-one", "row-twice", "vanished", "blank", "duplicate",
    "duplicate-across-classes", "near-duplicate", "near-duplicate-across-splits", "near-duplicate-across-classes",
)  # fmt: skip
HANDLING = {
    "wrong-extension": "read by its content",
    "unlisted": "left out; a name that ends as its format does is read",
    "pixels-complete": "read, for all its pixels are there",
    "animated": 'its first frame is read; axes="thw" reads all',
    "palette": "read as colours",
    "cmyk": "turned into RGB",
    "one-bit": "widened to 8-bit grey",
    "turned": "turned upright",
    "changed": "read like that",
    "mixed-alpha": "composited over white",
    "mixed-channels": "grey becomes colour",
    "mixed-depth": "8 bits are widened to 16",
    "mixed-size": "brought to one size",
    "link": "left out",
    "link-loop": "not followed",
    "link-outside": "not followed",
    "dangling-link": "left out",
    "pipe": "not opened",
    "socket": "not opened",
    "device": "not opened",
    "hidden": "left out",
    "beside-splits": "left out",
    "file-without-row": "left out",
}


@dataclass(frozen=True)
class Finding:
    """kind: one of this module's words; file: its path below the root (with surrogates where it is not UTF-8), "" for the
    whole; reason: a clause that follows the file's name."""

    kind: str
    file: str
    reason: str

    @property
    def severity(self) -> Severity:
        return MUST if self.kind in MUST_FIX else NOTE if self.kind in NOTES else HANDLED  # type: ignore[return-value]

    @property
    def handling(self) -> str:
        """What reading does about it; empty for what must be fixed and for notes."""
        return HANDLING.get(self.kind, "")

    def to_json(self) -> dict[str, Any]:
        said = {"kind": self.kind, "severity": self.severity, "file": escaped(self.file), "reason": self.reason}
        return {**said, "handling": self.handling} if self.handling else said

    def __str__(self) -> str:
        return f"{escaped(self.file) or 'the data'} {self.reason}"


def escaped(path: str) -> str:
    r"""A path on one line of valid text: backslash is \\, newline \n, any other control character and any byte that is not
    UTF-8 \xHH. `printf %b` of a shell, or `unescaped`, gives the path back, byte for byte."""
    text = os.fsencode(path).replace(b"\\", b"\\\\").replace(b"\n", b"\\n").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]", _hex, text)


def unescaped(line: str) -> str:
    """The path of an escaped line."""
    raw = os.fsencode(line)
    names = {b"\\": b"\\", b"n": b"\n"}
    return os.fsdecode(re.sub(rb"\\(x[0-9a-f]{2}|\\|n)", lambda m: names.get(m[1]) or bytes([int(m[1][1:], 16)]), raw))


def _hex(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode())
