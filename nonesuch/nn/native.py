"""The compiled part of this package: fused.cpp and passes.cpp, built once by core/compiled.py.

Where it cannot be had, `library` is None and eager operations of the same result take its place (fused.py, higher.py,
train/optim.py). Building takes about six seconds of one core, once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nonesuch.core.compiled import allowed, compiled

__all__ = ["adam", "addresses", "allowed", "library", "normalise", "sided", "sides", "takes"]

_HERE = Path(__file__).parent
_SOURCES = [_HERE / name for name in ("fused.cpp", "passes.cpp")]
_HEADERS = [_HERE.parent / "core" / "numbers.h"]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be had."""
    return compiled(_SOURCES, _HEADERS)


def takes(x: Tensor) -> bool:
    """Whether the compiled functions can read it."""
    return x.device.type == "cpu" and x.dtype in _NAMES and library() is not None


_NAMES = {torch.bfloat16: "normalise_bf16", torch.float32: "normalise_float", torch.float64: "normalise_double"}


def normalise(dtype: torch.dtype, sizes: Sequence[int], eps: float, tensors: Sequence[Tensor | None]) -> None:
    """Call `either` of fused.cpp with contiguous tensors."""
    built = library()
    assert built is not None
    size = (ctypes.c_int64 * 8)(*sizes)
    built[_NAMES[dtype]](size, ctypes.c_double(eps), addresses(tensors))


Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]  # a parameter, its gradient, two moments, an average


def adam(rows: Sequence[Row], numbers: Sequence[float]) -> None:
    """Clip, step and average, in place, float32 tensors that lie alike and without gaps in memory.

    numbers: what gradients are multiplied by; what is kept of a parameter; the two betas; lr / (1 - beta1^t);
    sqrt(1 - beta2^t); eps; and 1 - the average's decay.
    """
    built = library()
    assert built is not None
    sizes = (ctypes.c_int64 * len(rows))(*[row[0].numel() for row in rows])
    counts = ctypes.c_int64(len(rows)), ctypes.c_int64(torch.get_num_threads())
    built.adam(*counts, sizes, addresses([t for row in rows for t in row]), (ctypes.c_double * 8)(*numbers))


def addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """Where they lie in memory, as the compiled functions read it; None is null."""
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
    built = library()
    assert built is not None
    out = torch.empty_like(x)
    counts = ctypes.c_int64(x.numel()), ctypes.c_int64(torch.get_num_threads()), ctypes.c_float(slope)
    built[_SIDED[x.dtype]](*counts, *[ctypes.c_void_p(t.data_ptr()) for t in (x, g, out)])
    return out
