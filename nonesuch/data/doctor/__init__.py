"""The doctor: reads a source of pictures once, whole, and says what must be fixed, what reading will do, and what to choose.

`examine` names every odd file with a stable word, its severity and a reason; nothing that lies in a folder is left unsaid, and
nothing but regular files is opened. `quick` is its cheap part, which a fit runs first: names, sizes and heads, no pixels.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonesuch.data.doctor.examination import Examination
from nonesuch.data.doctor.findings import MUST, Finding, escaped, unescaped
from nonesuch.data.doctor.listing import listed

if TYPE_CHECKING:
    from nonesuch.core.model import Model

__all__ = ["Examination", "Finding", "Progress", "escaped", "examine", "quick", "unescaped"]

Progress = Callable[[int, int], None]
QUICK_S = 1.0


def examine(
    source: Any,
    *,
    models: Mapping[str, type[Model]] | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Examination:
    """Read a folder, a file of arrays, arrays or a named set once, and say all there is to say of it.

    models: name -> class of those to advise on (models are above data, and come from the caller); progress: called with
    (done, of); processes: for decoding, by default two for a folder of more than 200 files.
    Raises ValueError for a source that does not exist or is of no kind that can be opened.
    """
    from nonesuch.data.doctor.arrays import examine_arrays
    from nonesuch.data.doctor.folder import examine_folder
    from nonesuch.data.open import open as open_data

    tell = progress or (lambda done, of: None)
    if isinstance(source, (str, os.PathLike)) and _is_folder(source):
        return examine_folder(os.fspath(source), tell, models or {}, processes)
    try:
        data = open_data(source)
    except ValueError as error:
        if not isinstance(source, (str, os.PathLike)) or not os.path.isfile(source) or "is a single file" in str(error):
            raise
        return _bad_file(os.fspath(source), str(error))
    return examine_arrays(data, source, tell, models or {})


def quick(source: Any, *, seconds: float = QUICK_S) -> tuple[str, ...]:
    """What a fit should say of a source before it begins, in about that many seconds; no pixel is decoded.

    All of a folder is listed; heads are read of files spread evenly over it, as many as there is time for.
    Raises ValueError, naming a file, for what a fit cannot get around: unreadable, empty or mistaken files, bombs, bad tables.
    """
    if not isinstance(source, (str, os.PathLike)) or not _is_folder(source):
        return ()
    from nonesuch.data.doctor.folder import split_places
    from nonesuch.data.doctor.one import looked_at
    from nonesuch.data.doctor.sets import tabled

    root, end = os.fspath(source), time.monotonic() + seconds
    listing = listed(root, lambda: time.monotonic() > end)
    findings = [*listing.findings, *(tabled(listing, split_places(listing))[0] if listing.complete else ())]
    findings += [Finding("empty", name, "is empty, 0 bytes") for name, size in listing.files.items() if size == 0]
    names = [n for n, size in listing.files.items() if size]
    looked = 0
    for name in _spread(names):
        if time.monotonic() > end and looked >= 8:
            break
        found = looked_at(os.path.join(root, name))[1]
        looked += 1
        if found:
            findings.append(Finding(found[0], name, found[1]))
    bad = [f for f in findings if f.severity == MUST]
    if listing.complete and not listing.files and not bad and not any("." not in os.path.basename(n) for n in listing.others):
        raise ValueError(f"{escaped(root)} holds no images; give the folder that does.")
    if bad:
        rest = len(bad) - 1
        more = f" So {'is 1 other' if rest == 1 else f'are {rest:,} others'}" if rest else " It may not be the only one"
        raise ValueError(f"{_at(root, bad[0])}.{more}: nonesuch doctor {escaped(root)} names them all.")
    counts = Counter(f.kind for f in findings if f.kind not in ("name-not-utf8", "name-control"))
    said = tuple(f"{n:,} {kind}: {handled}." for kind, n in sorted(counts.items()) if (handled := Finding(kind, "", "").handling))
    if looked < len(names) or not listing.complete:
        some = f"{len(names):,}" if listing.complete else f"{len(names):,} and more"
        said = (*said, f"Heads of {looked:,} of {some} files were looked at; nonesuch doctor reads all.")
    return said


def _spread(names: Sequence[str]) -> list[str]:
    """The names in an order whose every beginning lies evenly over them: by the bits of the place, reversed."""
    width = max(1, (len(names) - 1).bit_length())
    return [names[i] for p in range(1 << width) if (i := int(f"{p:0{width}b}"[::-1], 2)) < len(names)]


def _at(root: str, finding: Finding) -> str:
    return f"{escaped(os.path.join(root, finding.file) if finding.file else root)} {finding.reason}"


def _is_folder(source: str | os.PathLike[str]) -> bool:
    from nonesuch.data.open import NAMES
    from nonesuch.data.shards import shards_in

    return os.fspath(source) not in NAMES and os.path.isdir(source) and not shards_in(Path(source))


def _bad_file(name: str, said: str) -> Examination:
    """Of a file of arrays that cannot be opened."""
    reason = said.removeprefix(name).lstrip(": ").rstrip(".")
    bad = Finding("bad-array", os.path.basename(name), reason)
    return Examination(os.path.dirname(name) or ".", 1, 0, os.path.getsize(name), 0.0, {}, (bad,))
