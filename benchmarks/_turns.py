"""What the benchmarks of this folder share: contestants by turns, medians, ratios of neighbouring measurements, and limits."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from nonesuch.train import memory
from nonesuch.train.device import has_bf16

FAST = torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32  # what products are quickest in: limits, tuned peers


def arguments(
    about: str | None, rounds: int = 7, more: Callable[[argparse.ArgumentParser], object] | None = None
) -> argparse.Namespace:
    """What every benchmark is asked by: --rounds, --threads, --json, and what `more` adds; the process is pinned to its cores."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contestant has its turn")
    parser.add_argument("--threads", type=int, default=2, help="cores to be pinned to, a thread each")
    parser.add_argument("--json", action="store_true", help="one object a line instead of the table")
    if more:
        more(parser)
    asked, _ = parser.parse_known_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    torch.set_num_threads(asked.threads)
    return asked


@dataclass(frozen=True)
class Line:
    """One measured row: rates in `unit`, ours first, and how many times each contestant's rate ours is."""

    row: str
    unit: str
    rates: dict[str, float]
    ours_is_times: dict[str, float]
    limit: float | None = None  # what the hardware allows, in the same unit, measured in the same rounds
    note: str = ""

    @property
    def share(self) -> float | None:
        """Of the limit, what ours reaches."""
        return None if self.limit is None else next(iter(self.rates.values())) / self.limit

    def show(self, as_json: bool) -> None:
        if as_json:
            print(json.dumps({**asdict(self), "share": self.share}), flush=True)
            return
        print(self.row)
        for name, rate in self.rates.items():
            print(f"  {name:36}{rate:>12.4g} {self.unit}   ours is {self.ours_is_times[name]:7.2f} x")
        if self.share is not None:
            print(f"  {'limit':36}{self.limit:>12.4g} {self.unit}   ours reaches {100 * self.share:.0f} %")
        if self.note:
            print(f"  {self.note}", flush=True)


def race(
    row: str, unit: str, contestants: dict[str, tuple[float, Callable[[], object]]], rounds: int,
    limit: tuple[float, Callable[[], object]] | None = None, note: str = "",
) -> Line:  # fmt: skip
    """By turns, contestants {name: (amount done by one call, call)}, ours first; medians of rates and of neighbours' ratios."""
    return compared(row, unit, rates({**contestants, **({"limit": limit} if limit else {})}, rounds), note)


def rates(contestants: dict[str, tuple[float, Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """Amount a second of each contestant in each of the rounds."""
    for _, work in contestants.values():
        work()  # what is made on first use, compiled or cached, is not part of a rate
    found = by_turns({name: work for name, (_, work) in contestants.items()}, rounds)
    return {name: [contestants[name][0] / s for s in times] for name, times in found.items()}


def compared(row: str, unit: str, found: dict[str, list[float]], note: str = "") -> Line:
    """The line of the rates of contestants, ours first; one named "limit" is the hardware's."""
    limit = statistics.median(found["limit"]) if "limit" in found else None
    named = {name: each for name, each in found.items() if name != "limit"}
    first = next(iter(named.values()))
    times = {name: statistics.median(a / b for a, b in zip(first, each, strict=True)) for name, each in named.items()}
    return Line(row, unit, {name: statistics.median(each) for name, each in named.items()}, times, limit, note)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once, begun when the threads of the one before have gone to sleep."""
    time.sleep(0.1)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each of the rounds; a peer at its "default" runs without our setting of the allocator."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    usual = None
    for _ in range(rounds):
        for name, work in contestants.items():
            if usual is not (usual := name.endswith("default")) and memory.keep(not usual):
                work()  # what it maps anew since the one before is not its own cost
            found[name].append(seconds(work))
    memory.keep()
    return found


def convolutions(
    model: torch.nn.Module, call: Callable[[], object], dtype: torch.dtype = FAST,
    only: Callable[[torch.nn.Module], bool] = lambda module: True,
) -> Callable[[], None]:  # fmt: skip
    """The convolutions and linear maps, or `only` some, that `call` runs in `model`, in `dtype` channels last, and no more."""
    met: list[tuple[torch.Size, torch.nn.Module]] = []
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    hooks = [
        m.register_forward_pre_hook(lambda m, i: met.append((i[0].shape, m)))
        for m in model.modules()
        if isinstance(m, kinds) and only(m)
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    work = [_alone(m, shape, dtype) for shape, m in met]

    def run() -> None:
        with torch.no_grad():
            for one in work:
                one()

    return run


def _alone(module: torch.nn.Module, shape: Sequence[int], dtype: torch.dtype) -> Callable[[], object]:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    x = torch.randn(*shape).to(dtype=dtype, memory_format=layout)
    weight = module.weight.detach().to(dtype)  # type: ignore[union-attr]
    if isinstance(module, torch.nn.Linear):
        return lambda: torch.nn.functional.linear(x, weight)
    weight = weight.to(memory_format=layout)
    convolve = {3: torch.nn.functional.conv1d, 4: torch.nn.functional.conv2d, 5: torch.nn.functional.conv3d}[len(shape)]
    return lambda: convolve(x, weight, None, module.stride, module.padding, module.dilation, module.groups)  # type: ignore[arg-type, union-attr]


class _Products(TorchDispatchMode):
    """Notes the convolutions and matrix products that run within, forward, backward, and backward of backward."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[Callable[[], object]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket._qualified_op_name.removeprefix("aten::") in _PRODUCTS:
            held = tree_map(
                lambda v: (
                    torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).fill_(0.5) if isinstance(v, torch.Tensor) else v
                ),
                args,
            )
            self.met.append(partial(func, *held, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


_PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")


def replayed(step: Callable[[], object]) -> Callable[[], None]:
    """The convolutions and matrix products of one call of `step`, with operands of the same shapes, strides and dtypes."""
    with _Products() as products:
        step()

    def run() -> None:
        with torch.no_grad():
            for one in products.met:
                one()

    return run
