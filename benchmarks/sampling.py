"""Diffusion's samplers on the same weights: evaluations, pictures a second, quality, and how far from the exact flow they end.

    python -m benchmarks.sampling                            (trains on digits for about 45 seconds, then about four minutes)
    python -m benchmarks.sampling --model runs/digits/diffusion-45s-0

Contestants, by turns in one process, on scikit-learn's digits given the label:

    ours        UniPC-2 in 8, 10 and 12 evaluations, noise levels uniform in log sigma
    preset      what the catalogue does: DPM-Solver++(2M) in 18
    DDIM-50     the usual number of steps of the usual sampler
    DDPM-1000   ancestral sampling as it was published, a thousand evaluations

Rates are medians of the rounds, each of --timed pictures; a ratio is the median of the ratios of neighbouring measurements, ours
being 10 evaluations. FD is against the 397 test pictures from 1,400 samples of the training labels, with its bootstrap interval.
*off* is the share of pixels that differ from those of the same seed under UniPC-3 in 200 steps, the solved flow: FD alone does
not say that a solver is good, for its errors may cancel those of a model. DDPM draws noise on the way, so it has no such share.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import nonesuch as ns
from nonesuch.core.model import Model
from nonesuch.evaluate import fit_extractor, frechet_distance

OURS = "ours, 10"
FLOW = {"sampler": "unipc_3", "steps": 200, "rho": math.inf}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "ours, 8": {"sampler": "unipc_2", "steps": 8, "rho": math.inf},
    OURS: {"sampler": "unipc_2", "steps": 10, "rho": math.inf},
    "ours, 12": {"sampler": "unipc_2", "steps": 12, "rho": math.inf},
    "preset, 2M in 18": {"sampler": "dpmpp_2m", "steps": 18},
    "DDIM-10": {"sampler": "ddim", "steps": 10},
    "DDIM-50": {"sampler": "ddim", "steps": 50},
    "DDPM-1000": {"sampler": "ddpm", "steps": 1000},
}


def rate(model: Model, n: int, options: dict[str, Any]) -> float:
    """Pictures a second of one call."""
    labels = [str(i % 10) for i in range(n)]
    begin = time.perf_counter()
    model.sample(n, {"label": labels}, seeds=1, **options)
    return n / (time.perf_counter() - begin)


def measure(model: Model, rounds: int, timed: int) -> dict[str, dict[str, Any]]:
    """Of each contestant: images_per_s, how many times as many ours does, FD with its interval, and the share of pixels off."""
    data = ns.data.open("digits")
    labels = data.train.labels()
    given = {"label": [str(int(v)) for v in labels]}
    extractor = fit_extractor(data.train.x, labels, name="digits")
    test = extractor.features(data.test.x, "test")
    solved = model.sample(len(labels), given, seeds=0, **FLOW)
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for options in CONTESTANTS.values():
        rate(model, timed, {**options, "steps": 2})  # the first call of each is slower
    for _ in range(rounds):
        for name, options in CONTESTANTS.items():
            rates[name].append(rate(model, timed, options))
    out: dict[str, dict[str, Any]] = {}
    for name, options in CONTESTANTS.items():
        x = model.sample(len(labels), given, seeds=0, **options)
        score = frechet_distance(extractor.features(x, "samples"), test)
        out[name] = {
            "evaluations": options["steps"],
            "images_per_s": statistics.median(rates[name]),
            "ours_is_times": statistics.median(a / b for a, b in zip(rates[OURS], rates[name], strict=True)),
            "fd": score.value,
            "fd_interval": score.interval,
            "off": None if options["sampler"] == "ddpm" else float((x != solved).float().mean()),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder that fit wrote: diffusion on digits, given the label")
    parser.add_argument("--budget", default="134144", help="images, or a time such as 45s")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--timed", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        if asked.model:
            model = ns.load(Path(asked.model))
        else:
            model = ns.fit(
                "diffusion", ns.data.open("digits"), given="label", budget=asked.budget, seed=0, out=Path(folder) / "run"
            )
        found = measure(model, asked.rounds, asked.timed)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"diffusion on digits, {asked.timed} pictures a call; medians of {asked.rounds}; {asked.threads} thread(s)")
    for name, row in found.items():
        low, high = row["fd_interval"]
        off = "" if row["off"] is None else f"{row['off']:7.2%} of pixels off"
        print(
            f"  {name:18}{row['images_per_s']:>9,.0f} pictures/s   ours is {row['ours_is_times']:6.1f} x"
            f"   FD {row['fd']:.3f} ({low:.3f} to {high:.3f}){off}"
        )


if __name__ == "__main__":
    main()
