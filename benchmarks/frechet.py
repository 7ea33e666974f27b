"""Frechet distance of two sets of 50,000 x 2,048 float32 features, against pytorch-fid's formula and torchmetrics.

    python -m benchmarks.frechet                                  (about ten minutes on one core)
    python -m benchmarks.frechet --images 5000 --features 256     (a few seconds)

By turns in one process, the same features, which decay as an eigenvalue spectrum of three decades:

    pytorch-fid    mean, np.cov of each side, scipy.linalg.sqrtm of the product (its formula, written here)
    torchmetrics   running sums of float64 products in batches of 1,000, then the eigenvalues of the product
    ours           both sides; "cached" with one side kept; "distance" from two sides that are kept

The share of the limit is that of the float64 products that the covariances need (half of them, by symmetry), as if nothing else
were done, at the rate of a product measured in the same run.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import scipy.linalg
import torch

from benchmarks._turns import by_turns, matmul_rate, table
from nonesuch.evaluate.frechet import Side, frechet_sets


def features(n: int, d: int, seed: int) -> np.ndarray:
    """float32 (n, d), correlated, the standard deviations falling over a decade and a half."""
    rng = np.random.default_rng(seed)
    mix = (rng.standard_normal((d, d)) / np.sqrt(d)).astype(np.float32) * np.logspace(0, -1.5, d, dtype=np.float32)[:, None]
    out = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 5000):
        rows = out[start : start + 5000]
        np.maximum(rng.standard_normal(rows.shape, dtype=np.float32) @ mix + np.float32(0.1), 0, out=rows)
    return out


def gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pytorch-fid's statistics."""
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


def pytorch_fid(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> float:
    """pytorch-fid's distance."""
    difference = one[0] - two[0]
    root = scipy.linalg.sqrtm(one[1] @ two[1])
    return float(difference @ difference + np.trace(one[1]) + np.trace(two[1]) - 2 * np.trace(root).real)


def torchmetrics_fid(x: np.ndarray, y: np.ndarray) -> float:
    """torchmetrics' sums and its formula, without its network."""
    from torchmetrics.image.fid import _compute_fid

    found = []
    for z in (x, y):
        total, second = torch.zeros(z.shape[1], dtype=torch.float64), torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64)
        for part in torch.from_numpy(z).split(1000):
            part = part.double()
            total += part.sum(0)
            second += part.T @ part
        mean = total / len(z)
        found += [mean, (second - len(z) * torch.outer(mean, mean)) / (len(z) - 1)]
    return float(_compute_fid(*found))


def measure(rounds: int, n: int, d: int) -> dict[str, dict[str, float]]:
    """Median seconds of each contestant, how many times as long as ours, relative errors and shares of the limit."""
    x, y = features(n, d, 0), features(n, d, 1) * np.float32(1.05)
    sides, stats = (Side(x), Side(y)), (gaussian(x), gaussian(y))
    reference = pytorch_fid(*stats)
    error = abs(frechet_sets(*sides) / reference - 1)  # and the sides now have their parts
    other = abs(torchmetrics_fid(x, y) / reference - 1)
    rate = matmul_rate(np.float64)
    found = by_turns(
        {
            "ours": lambda: frechet_sets(x, y),
            "pytorch-fid": lambda: pytorch_fid(gaussian(x), gaussian(y)),
            "torchmetrics": lambda: torchmetrics_fid(x, y),
            "ours, one side cached": lambda: frechet_sets(x, sides[1]),
            "ours, distance": lambda: frechet_sets(*sides),
            "pytorch-fid, distance": lambda: pytorch_fid(*stats),
        },
        rounds,
    )
    out = table(found)
    for name, pair in {
        "in all": ("ours", "pytorch-fid"),
        "in all, torchmetrics": ("ours", "torchmetrics"),
        "one side cached, peer uncached": ("ours, one side cached", "pytorch-fid"),
        "distance": ("ours, distance", "pytorch-fid, distance"),
    }.items():
        out[f"ratio: {name}"] = {"ratio": table({key: found[key] for key in pair}, pair[0])[pair[1]]["ours_is_times"]}
    out["relative error"] = {"ours": error, "torchmetrics": other}
    out["limit"] = {"float64_flop_per_s": rate, "share": 2 * n * d * d / rate / out["ours"]["s"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    asked, _ = parser.parse_known_args()
    found = measure(asked.rounds, asked.images, asked.features)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"twice {asked.images:,} x {asked.features:,} float32; medians of {asked.rounds}; {torch.get_num_threads()} thread(s)")
    for name, row in found.items():
        print(f"  {name:40}" + "   ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
