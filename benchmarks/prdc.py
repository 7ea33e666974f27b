"""Precision, recall, density and coverage of 10,000 x 10,000 float32 features of 2,048 numbers, against the prdc package.

    python -m benchmarks.prdc                            (about five minutes on two cores)
    python -m benchmarks.prdc --rows 1000 --width 64     (a second)

By turns in one process. The peer is the package where it is installed, and otherwise its formula (scikit-learn's pairwise
distances, a partition of each row), written here. Its neighbours are compared with <, ours with <= as the papers have it, which
makes no difference unless distances are equal.
Memory is what the process holds more while ours runs than before. The limit is that of the products needed (one for the cross
distances, half of one for each set's own), in the dtype that ours screens with.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks._turns import Line, arguments, race
from nonesuch.evaluate._pairs import vectors
from nonesuch.evaluate.prdc import prdc_sets


def features(n: int, d: int, seed: int) -> np.ndarray:
    """float32 (n, d) about a surface of 16 dimensions, as features of pictures are."""
    rng, surface = np.random.default_rng(seed), np.random.default_rng(9)
    mix, turn = surface.standard_normal((16, d)), surface.standard_normal((16, 16))
    z = rng.standard_normal((n, 16)) * (1 + 0.1 * seed)
    return (np.tanh(z @ turn / 4) @ mix + 0.3 * rng.standard_normal((n, d))).astype(np.float32)


def formula(real: np.ndarray, fake: np.ndarray, nearest_k: int) -> dict[str, float]:
    """What the prdc package computes."""
    from sklearn.metrics import pairwise_distances

    def reach(z: np.ndarray) -> np.ndarray:
        return np.partition(pairwise_distances(z, n_jobs=8), nearest_k, axis=1)[:, nearest_k]

    r, s, d = reach(real), reach(fake), pairwise_distances(real, fake, n_jobs=8)
    inside = d < r[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (d < s[None]).any(1).mean(),
        "density": inside.sum(0).mean() / nearest_k,
        "coverage": (d.min(1) < r).mean(),
    }


def peer() -> tuple[str, Callable[..., dict[str, float]]]:
    try:
        from prdc import compute_prdc
    except ImportError:
        return "prdc's formula", formula
    return "prdc", compute_prdc


def held_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def growth(work: Callable[[], object]) -> int:
    """The most bytes held while it works, above those held before, looked at every few milliseconds."""
    before, most, done = held_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, held_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(0, most - before)


def measure(rounds: int, n: int, d: int, k: int = 5) -> Line:
    """Pairs of images a second."""
    real, fake = features(n, d, 0), features(n, d, 1)
    name, theirs = peer()

    def quiet() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return theirs(real, fake, nearest_k=k)

    more = growth(lambda: prdc_sets(fake, real, k=k))
    mine, other = prdc_sets(fake, real, k=k).means(), quiet()
    off = max(abs(mine[key] - float(other[key])) for key in mine)
    near = vectors(real)[0].near[:2048]
    return race(
        f"Precision, recall, density, coverage of {n:,} x {n:,} x {d:,}", "pairs/s",
        {"ours": (n * n, lambda: prdc_sets(fake, real, k=k)), f"{name}, default": (n * n, quiet)},
        rounds, (len(near) ** 2 / 2, lambda: near @ near.T),
        f"scores differ by at most {off:.1e}; ours holds {more / 2**20:.0f} MiB more",
    )  # fmt: skip


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, default=10_000)
        parser.add_argument("--width", type=int, default=2048)

    asked = arguments(__doc__, 5, more)
    measure(asked.rounds, asked.rows, asked.width).show(asked.json)


if __name__ == "__main__":
    main()
