"""C++ sources of this package, compiled once for this processor if it has a compiler.

    $NONESUCH_CACHE or ~/.cache/nonesuch, folder native/    <key>.so, key = blake2b of the sources, the command and the processor

Where there is no compiler, or building fails, or $NONESUCH_COMPILE is 0, there is nothing, and what asks has another way to the
same result. Building takes seconds of one core, once; loading what was built, a millisecond.

It is C++ and not torch.compile, which was measured first: of one law (nn/fused.py) in one function it makes loops that are not
vectorised (17.8 ms where two functions take 1.6 and this 1.2: bf16, 16 x 128 x 32 x 32, one core); it recomputes what it could
keep in the cache; and each function costs it as long to compile as all of this.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FLAGS = (
    "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-shared", "-fPIC", "-std=c++17",
)  # fmt: skip
_WIDE_VECTORS = "-mprefer-vector-width=512"  # gcc and clang for x86-64 alone; the others refuse it
_LIMIT_S = 180


def allowed() -> bool:
    """Whether $NONESUCH_COMPILE lets anything be built; it does unless it says 0."""
    return os.environ.get("NONESUCH_COMPILE", "1") != "0"


def compiled(
    sources: Sequence[Path], headers: Sequence[Path] = (), build: bool = True, flags: Sequence[str] = ()
) -> ctypes.CDLL | None:  # fmt: skip
    """The functions of these sources, or None where they cannot be had; unless `build`, they must have been built before."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if not allowed() or not compiler or sys.platform != "linux":
        return None
    processor = _processor()
    command = [compiler, *_FLAGS, *flags, *([_WIDE_VECTORS] if platform.machine() == "x86_64" else [])]
    if "AuthenticAMD" in processor:
        command.append("-DAMD")
    read = b"".join(file.read_bytes() for file in [*sources, *headers])
    key = hashlib.blake2b("\0".join([*command, processor]).encode() + read, digest_size=16).hexdigest()
    try:
        with tempfile.TemporaryDirectory() as spare:
            built = _folder(Path(spare)) / f"{key}.so"
            if not built.is_file():
                if not build:
                    return None
                _build([*command, "-o"], sources, built)
            return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "the compiled kernels could not be built (%s); eager operations take their place.", error
        )
        return None


def _folder(spare: Path) -> Path:
    """Where built libraries lie: a folder that is ours and that no one else writes to, or a spare one."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        asked = os.environ.get("NONESUCH_CACHE")
        place = (Path(asked) if asked else Path.home() / ".cache" / "nonesuch") / "native"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = place.stat()
        if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(place, os.W_OK):
            return place
    return spare


def _build(command: Sequence[str], sources: Sequence[Path], to: Path) -> None:
    """Compile under another name and rename: who looks meanwhile sees all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder) / "made.so"
        subprocess.run([*command, str(made), *map(str, sources)], check=True, capture_output=True, timeout=_LIMIT_S)
        os.replace(made, to)


def _processor() -> str:
    """What -march=native depends on, so that a home shared by several machines keeps a build for each kind."""
    said = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "vendor_id"))}))
    return said
