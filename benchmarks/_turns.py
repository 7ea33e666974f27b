"""What the benchmarks of this folder share: contestants by turns, medians, ratios of neighbouring measurements, and limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once, begun when the threads of the one before have gone to sleep."""
    time.sleep(0.1)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def by_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each of the rounds."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            found[name].append(seconds(work))
    return found


def table(found: dict[str, list[float]], ours: str = "ours") -> dict[str, dict[str, float]]:
    """Median seconds of each, and how many times as long as `ours` it takes: the median of the ratios round by round."""
    return {
        name: {
            "s": statistics.median(times),
            "ours_is_times": statistics.median(b / a for a, b in zip(found[ours], times, strict=True)),
        }
        for name, times in found.items()
    }


def matmul_rate(dtype: np.dtype | type, side: int = 2048, rounds: int = 3) -> float:
    """FLOP/s of a square product, the faster of numpy's and torch's: the limit of what is made of products."""
    a = np.random.default_rng(0).standard_normal((side, side)).astype(dtype)
    t = torch.from_numpy(a)
    best = min(min(seconds(lambda: a @ a), seconds(lambda: t @ t)) for _ in range(rounds))
    return 2 * side**3 / best


def bandwidth(floats: int = 2**26, rounds: int = 3) -> float:
    """Bytes/s of y <- y + x over arrays too large for the caches: two reads and a write."""
    x, y = torch.ones(floats), torch.ones(floats)
    return 12 * floats / min(seconds(lambda: y.add_(x)) for _ in range(rounds))
