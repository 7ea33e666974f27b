"""Frechet distance of two sets of 50,000 x 2,048 float32 features, against pytorch-fid and torchmetrics.

    python -m benchmarks.frechet                           (about ten minutes on two cores)
    python -m benchmarks.frechet --rows 5000 --width 256   (seconds)

By turns in one process, the same features, which decay as an eigenvalue spectrum of three decades:

    pytorch-fid    mean, np.cov of each side, its own distance (by scipy's sqrtm; its formula where it is not installed)
    torchmetrics   running sums of float64 products in batches of 1,000, then the eigenvalues of the product
    ours           both sides; with one side kept; from two sides that are kept

The limit is that of the float64 products that the covariances need (half of them, by symmetry), as if nothing else were done.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from benchmarks._turns import Line, arguments, compared, race, rates
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


def formula(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """pytorch-fid's distance."""
    difference = mean1 - mean2
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def peer() -> tuple[str, Callable[..., float]]:
    try:
        from pytorch_fid.fid_score import calculate_frechet_distance
    except ImportError:
        return "pytorch-fid's formula", formula
    return "pytorch-fid", calculate_frechet_distance


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


def measure(rounds: int, n: int, d: int) -> list[Line]:
    """Both sides, one side kept, both kept."""
    x, y = features(n, d, 0), features(n, d, 1) * np.float32(1.05)
    sides, stats = (Side(x), Side(y)), (*gaussian(x), *gaussian(y))
    name, theirs = peer()
    reference = theirs(*stats)
    error, other = (abs(found / reference - 1) for found in (frechet_sets(*sides), torchmetrics_fid(x, y)))
    block = x[: min(n, 4096)].astype(np.float64)

    size, unit, default = f"{n:,} x {d:,}", "distances/s", f"{name}, default"
    both = rates(
        {
            "ours": (1, lambda: frechet_sets(x, y)),
            default: (1, lambda: theirs(*gaussian(x), *gaussian(y))),
            "torchmetrics, default": (1, lambda: torchmetrics_fid(x, y)),
            "kept": (1, lambda: frechet_sets(x, sides[1])),
            "limit": (len(block) / (2 * n), lambda: block.T @ block),
        },
        rounds,
    )
    kept = {"ours": both.pop("kept"), default: both[default], "limit": [2 * rate for rate in both["limit"]]}
    note = f"relative to {name}: ours {error:.1e}, torchmetrics {other:.1e}"
    return [
        compared(f"Frechet distance of two sets of {size}, in all", unit, both, note),
        compared(f"Frechet distance of two sets of {size}, one side kept", unit, kept),
        race(
            f"Frechet distance of {d:,} features, both sides kept", unit,
            {"ours": (1, lambda: frechet_sets(*sides)), default: (1, lambda: theirs(*stats))}, rounds,
        ),
    ]  # fmt: skip


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rows", type=int, default=50_000)
        parser.add_argument("--width", type=int, default=2048)

    asked = arguments(__doc__, more=more)
    for line in measure(asked.rounds, asked.rows, asked.width):
        line.show(asked.json)


if __name__ == "__main__":
    main()
