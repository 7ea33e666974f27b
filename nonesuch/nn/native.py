"""The compiled part of this package, fused.cpp and passes.cpp: built once for this processor if it has a C++ compiler.

    $NONESUCH_CACHE or ~/.cache/nonesuch, folder native/    <key>.so, key = blake2b of the sources, the command and the processor

Where there is no compiler, or building fails, or $NONESUCH_COMPILE is 0, `library` is None and eager operations of the same
result take its place (fused.py, higher.py, train/optim.py). Building takes about six seconds of one core, once; loading what was
built, a millisecond.

It is C++ and not torch.compile, which was measured first: of the same law in one function it makes loops that are not vectorised
(17.8 ms where two functions take 1.6 and this 1.2: bf16, 16 x 128 x 32 x 32, one core); it recomputes what it could keep in the
cache; and each function costs it as long to compile as all of this.
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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_HERE = Path(__file__).parent
_SOURCES, _HEADERS = [_HERE / "fused.cpp", _HERE / "passes.cpp"], [_HERE / "numbers.h"]
_FLAGS = (
    "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-shared", "-fPIC", "-std=c++17",
)  # fmt: skip
_WIDE_VECTORS = "-mprefer-vector-width=512"  # gcc and clang for x86-64 alone; the others refuse it
_LIMIT_S = 180


def allowed() -> bool:
    """Whether $NONESUCH_COMPILE lets anything be built; it does unless it says 0."""
    return os.environ.get("NONESUCH_COMPILE", "1") != "0"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be had."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if not allowed() or not compiler or sys.platform != "linux":
        return None
    command = [compiler, *_FLAGS, *([_WIDE_VECTORS] if platform.machine() == "x86_64" else [])]
    read = b"".join(file.read_bytes() for file in [*_SOURCES, *_HEADERS])
    key = hashlib.blake2b("\0".join([*command, _processor()]).encode() + read, digest_size=16).hexdigest()
    try:
        with tempfile.TemporaryDirectory() as spare:
            built = _folder(Path(spare)) / f"{key}.so"
            if not built.is_file():
                _build(command, built)
            return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "the fused kernels could not be built (%s); eager operations take their place.", error
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


def _build(command: Sequence[str], to: Path) -> None:
    """Compile under another name and rename: who looks meanwhile sees all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder) / "made.so"
        subprocess.run([*command, "-o", str(made), *map(str, _SOURCES)], check=True, capture_output=True, timeout=_LIMIT_S)
        os.replace(made, to)


def _processor() -> str:
    """What -march=native depends on, so that a home shared by several machines keeps a build for each kind."""
    said = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return said


def takes(x: Tensor) -> bool:
    """Whether the compiled functions can read it."""
    return x.device.type == "cpu" and x.dtype in _NAMES and library() is not None


_NAMES = {torch.bfloat16: "normalise_bf16", torch.float32: "normalise_float", torch.float64: "normalise_double"}


def normalise(dtype: torch.dtype, sizes: Sequence[int], eps: float, tensors: Sequence[Tensor | None]) -> None:
    """Call `either` of fused.cpp with contiguous tensors."""
    compiled = library()
    assert compiled is not None
    size = (ctypes.c_int64 * 8)(*sizes)
    compiled[_NAMES[dtype]](size, ctypes.c_double(eps), _addresses(tensors))


Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]  # a parameter, its gradient, two moments, an average


def adam(rows: Sequence[Row], numbers: Sequence[float]) -> None:
    """Clip, step and average, in place, float32 tensors that lie alike and without gaps in memory.

    numbers: what gradients are multiplied by; what is kept of a parameter; the two betas; lr / (1 - beta1^t);
    sqrt(1 - beta2^t); eps; and 1 - the average's decay.
    """
    compiled = library()
    assert compiled is not None
    sizes = (ctypes.c_int64 * len(rows))(*[row[0].numel() for row in rows])
    counts = ctypes.c_int64(len(rows)), ctypes.c_int64(torch.get_num_threads())
    compiled.adam(*counts, sizes, _addresses([t for row in rows for t in row]), (ctypes.c_double * 8)(*numbers))


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


_SIDED = {torch.bfloat16: "sided_bf16", torch.float32: "sided_float"}
_WORTH = 1 << 20  # numbers for which a pass of our own is quicker than torch's two, and building it worth while


def sides(x: Tensor, g: Tensor) -> bool:
    """Whether `sided` takes them: large, of one dtype, and lying alike and without gaps in memory."""
    if x.numel() < _WORTH or x.device.type != "cpu" or x.dtype not in _SIDED or x.dtype != g.dtype:
        return False
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return dense and x.stride() == g.stride() and not torch.compiler.is_compiling() and library() is not None


def sided(x: Tensor, g: Tensor, slope: float) -> Tensor:
    """g where x is above zero, slope g elsewhere."""
    compiled = library()
    assert compiled is not None
    out = torch.empty_like(x)
    counts = ctypes.c_int64(x.numel()), ctypes.c_int64(torch.get_num_threads()), ctypes.c_float(slope)
    compiled[_SIDED[x.dtype]](*counts, *[ctypes.c_void_p(t.data_ptr()) for t in (x, g, out)])
    return out
