"""Does an audit find copies? Training pictures planted in five ways among real ones that are none, and what is flagged.

    python recipes/planted.py --data ../shared/data/fashion_mnist.npz --seeds 1 2

Of the test pictures, the first 9,000 are the held-out ones that the audit compares with, and the last 980 stand for honest
samples: what is flagged of them is a false alarm. Among them are put 20 training pictures, four each exact, mirrored, moved by 2
pixels, through JPEG of quality 75, and re-lit (gain 0.6 to 1.2 and an offset, cut off at the ends). --seeds draw which they are,
and how they are moved and lit. A line a seed, and at the end 1 if a planted one was missed.

Numbers reached: docs/audit.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import nonesuch as ns
from nonesuch.applications.audit import audit
from nonesuch.core.degradation import Jpeg
from nonesuch.core.seeds import Seeds

WAYS = ("exact", "mirrored", "moved", "jpeg", "re-lit")
EACH, HELD_OUT, HONEST = 4, 9000, 980


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """Pictures (n, C, h, w) moved by so many pixels, the lowest value where nothing was."""
    out = torch.full_like(x, -1.0)
    h, w = x.shape[2:]
    there, here = ((slice(max(0, d), s + min(0, d)) for d, s in zip((down * k, right * k), (h, w), strict=True)) for k in (1, -1))
    out[(..., *there)] = x[(..., *here)]
    return out


def planted(x: Tensor, seed: int) -> Tensor:
    """EACH training pictures in each of the WAYS, in that order."""
    exact, mirrored, shifted, through, lit = x.split(EACH)
    keys = Seeds.of(seed, EACH)
    ways = [(2, 0), (-2, 0), (0, 2), (0, -2), (2, 2), (-2, 2), (2, -2), (-2, -2)]
    which = keys.integers("moved", len(ways)).tolist()
    shifted = torch.cat([moved(shifted[i : i + 1], *ways[k]) for i, k in enumerate(which)])
    gain, offset = (keys.uniform(name, 1, 1, 1) for name in ("gain", "offset"))
    lit = ((0.6 + 0.6 * gain) * lit + 0.4 * offset - 0.1).clamp(-1, 1)
    return torch.cat([exact, mirrored.flip(-1), shifted, Jpeg(75)(through, seed), lit])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/fashion_mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="a folder for the pages of the audits")
    args = parser.parse_args()
    whole = ns.data.open(args.data)
    data = replace(whole, test=whole.test[:HELD_OUT])
    missed = 0
    for seed in args.seeds:
        begin, n = time.perf_counter(), EACH * len(WAYS)
        which = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:n]
        samples = torch.cat([planted(data.train.inside(which), seed), whole.test[-HONEST:].x])
        found = audit(None, data, samples=samples, seeds=seed)
        if args.out:
            found.save(args.out / f"planted-{seed}.html")
        flagged = torch.zeros(len(samples), dtype=torch.bool).index_fill_(0, torch.tensor(found.flagged, dtype=torch.int64), True)
        ways = {way: int(part.sum()) for way, part in zip(WAYS, flagged[:n].split(EACH), strict=True)}
        missed += n - sum(ways.values())
        line = {
            "seed": seed, "found": ways, "of": EACH, "honest flagged": round(float(flagged[n:].float().mean()), 4),
            "verdict": found.verdict, "seconds": round(time.perf_counter() - begin),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
    sys.exit(min(1, missed))


if __name__ == "__main__":
    main()
