"""One place that decides where and in which precision a model computes; explicit dtypes, no autocast.

bf16 serves convolutions and matrix products where the processor multiplies it in hardware (AMX, AMD's AVX512-BF16, or a GPU);
weights, averages, losses, likelihoods and statistics stay float32. Elsewhere bf16 is slower than float32 (DESIGN section 6).
AVX512-BF16 alone does not decide: forward and backward of a convolution of 128 channels runs at 0.45 TFLOP/s in bf16 and 0.17 in
float32 on two cores of Zen 4, but an Intel processor kept from its AMX takes 13.0 ms for what takes it 8.5 in float32 (and 2.2
with AMX).

Images lie channels-last, and freed memory is kept (memory.py). Fused kernels (nn/fused.py, nn/packed.py) are used where they pay;
NONESUCH_COMPILE=0 forbids them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from nonesuch import catalog
from nonesuch.core.model import Model
from nonesuch.nn.fused import Fusible
from nonesuch.nn.native import allowed, library
from nonesuch.train import memory
from nonesuch.train.ranks import Ranks, join

Precision = Literal["auto", "fp32", "bf16"]
_FUSED_PIXELS = 144  # of a picture, from which on fused kernels pay


def place(model: Model, device: str | None = None, precision: Precision = "auto", compile: bool | None = None) -> str:
    """Move the model to its device, set its compute dtype and its paths, and say the decision in one line.

    compile: whether fused kernels may be built and used (None: where they pay, and $NONESUCH_COMPILE is not 0). Where there is no
    compiler, eager operations of the same result take their place. Under torchrun each process takes the graphics processor of
    its number on its machine, or its share of the cores.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {precision!r}.")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ranks = join(where.type)
    if ranks.world > 1:
        where = _own(where, ranks)
    fast = has_bf16(where)
    dtype = torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else torch.float32
    if where.type == "cpu":
        memory.keep()
    model.to(where)
    fusible = [module for module in model.modules() if isinstance(module, Fusible)]
    fused = _pays(model, where) if compile is None else compile and where.type == "cpu"
    for part in fusible:
        part.fused = fused
    for module in model.modules():
        if isinstance(module, Model):
            module.compute_dtype = dtype
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    shared = f"{ranks.world} processes, each on " if ranks.world > 1 else ""
    how = "eager" if not fusible or not fused else "fused kernels" if library() else "fused kernels' eager form (no compiler)"
    said = (
        f"{_found(where)}, {torch.get_num_threads()} threads, {name} for convolutions and matrix products, channels last, {how}"
    )
    return shared + said


def _pays(model: Model, where: torch.device) -> bool:
    """Whether fused kernels gain more than the ten seconds that building them takes, once: on pictures of some size, on a CPU.

    A GPU has quick kernels of its own. Small pictures stay as they are: their networks are made of matrix products.
    """
    return where.type == "cpu" and allowed() and model.spec.numel // max(1, model.spec.channels) >= _FUSED_PIXELS


def _found(where: torch.device) -> str:
    """The device by what matters of it here."""
    if where.type == "cuda":
        major, minor = torch.cuda.get_device_capability(where)
        return f"cuda ({torch.cuda.get_device_name(where)}, capability {major}.{minor})"
    if where.type != "cpu":
        return where.type
    unit = "AMX" if torch.cpu._is_amx_tile_supported() else "AVX512-BF16" if has_bf16(where) else ""
    return f"cpu ({unit or torch.backends.cpu.get_cpu_capability()})"


def _own(where: torch.device, ranks: Ranks) -> torch.device:
    """What one of several processes computes on. Raises ValueError if there are more of them than graphics processors."""
    if where.type == "cuda":
        if ranks.local_world > torch.cuda.device_count():
            found = f"{ranks.local_world} processes on {torch.cuda.device_count()} graphics processor(s)"
            raise ValueError(f"{found}: start no more than there are (--nproc-per-node), or train with device='cpu'.")
        where = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(where)
    elif where.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # 1 is what torchrun says where nobody does
        torch.set_num_threads(max(1, _cores() // ranks.local_world))
    return where


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def load(
    path: str | Path, model: type[Model] | None = None, *, device: str | None = None, precision: Precision = "auto",
    compile: bool | None = None,
) -> Model:  # fmt: skip
    """Read a checkpoint folder and place the model, as `fit` did with the one it returned.

    model: the class of one from outside the catalogue; no code is loaded by name. Raises ValueError, with what is wrong, for
    anything that is no checkpoint.
    """
    loaded = catalog.load(path, model)
    place(loaded, device, precision, compile)
    return loaded


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware there, and faster than float32's."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _amd()))


@cache
def _amd() -> bool:
    """Whether the processor is one of AMD's."""
    with contextlib.suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return False
