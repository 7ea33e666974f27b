"""One place that decides where and in which precision a model computes; explicit dtypes, no autocast.

bf16 serves convolutions and matrix products where the processor multiplies it in hardware (AMX, or a GPU); weights, averages,
losses, likelihoods and statistics stay float32. Without such hardware bf16 is slower than float32 (DESIGN section 6).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import torch

from nonesuch import catalog
from nonesuch.core.model import Model
from nonesuch.train.ranks import Ranks, join

Precision = Literal["auto", "fp32", "bf16"]


def place(model: Model, device: str | None = None, precision: Precision = "auto") -> str:
    """Move the model to its device, set its compute dtype, and say the decision in one line.

    Under torchrun each process takes the graphics processor of its number on its machine, or its share of the cores.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {precision!r}.")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ranks = join(where.type)
    if ranks.world > 1:
        where = _own(where, ranks)
    fast = has_bf16(where)
    dtype = torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else torch.float32
    model.to(where)
    for module in model.modules():
        if isinstance(module, Model):
            module.compute_dtype = dtype
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    shared = f"{ranks.world} processes, each on " if ranks.world > 1 else ""
    return f"{shared}{where.type}, {torch.get_num_threads()} threads, {name} for convolutions and matrix products"


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
    path: str | Path, model: type[Model] | None = None, *, device: str | None = None, precision: Precision = "auto"
) -> Model:
    """Read a checkpoint folder and place the model, as `fit` did with the one it returned.

    model: the class of one from outside the catalogue; no code is loaded by name. Raises ValueError, with what is wrong, for
    anything that is no checkpoint.
    """
    loaded = catalog.load(path, model)
    place(loaded, device, precision)
    return loaded


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())
