"""Precision, recall, density and coverage of 10,000 x 10,000 float32 features of 2,048 numbers, against the prdc package.

    python -m benchmarks.prdc                                  (about five minutes on one core)
    python -m benchmarks.prdc --images 1000 --features 64      (a second)

By turns in one process. The peer is the package where it is installed, and otherwise its formula (scikit-learn's pairwise
distances, a partition of each row), written here. Its neighbours are compared with <, ours with <= as the papers have it, which
makes no difference unless distances are equal.
Memory is what the process holds more while ours runs than before. The share of the limit is that of
the float32 products needed (one for the cross distances, half of one for each set's own), at the rate measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks._turns import by_turns, matmul_rate, table
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


def measure(rounds: int, n: int, d: int, k: int = 5) -> dict[str, dict[str, float]]:
    """Median seconds of each, how many times as long as ours; scores, memory and share of the limit."""
    real, fake = features(n, d, 0), features(n, d, 1)
    name, theirs = peer()

    def quiet() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return theirs(real, fake, nearest_k=k)

    more = growth(lambda: prdc_sets(fake, real, k=k))
    rate = matmul_rate(np.float32)
    out = table(by_turns({"ours": lambda: prdc_sets(fake, real, k=k), name: quiet}, rounds))
    mine, other = prdc_sets(fake, real, k=k).means(), quiet()
    out["scores, ours"] = mine
    out[f"scores, {name}"] = {key: float(other[key]) for key in mine}
    out["memory"] = {"growth_mib": more / 2**20}
    out["limit"] = {"float32_flop_per_s": rate, "share": 4 * n * n * d / rate / out["ours"]["s"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    asked, _ = parser.parse_known_args()
    found = measure(asked.rounds, asked.images, asked.features)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{asked.images:,} x {asked.images:,} x {asked.features:,}; {asked.rounds} rounds; {torch.get_num_threads()} thread(s)")
    for name, row in found.items():
        print(f"  {name:24}" + "   ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
