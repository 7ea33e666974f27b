"""What encoders' latents know of the classes: linear probe and k-means agreement, beside pixels and PCA, for every encoder.

    python recipes/representations.py --data digits --budget 60s
    python recipes/representations.py --data ../shared/data/mnist.npz --budget 2m --models vae/vdvae flow/glow

Each model is trained for --budget without any condition, so that the latents must say it all, and explored on --n test pictures
(nonesuch explore): a page with its 2-D map, neighbours and walks, and a row of numbers, lie in --out. The same command goes on
with a run. Numbers reached: docs/explore.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nonesuch as ns
from nonesuch import catalog
from nonesuch.applications.explore import explore
from nonesuch.core.artifact import write_atomic
from nonesuch.core.model import Encoder


def encoders() -> list[str]:
    """The catalogue's models that have an inverse or an encoder."""
    return [name for name in catalog.names() if issubclass(catalog.get(name), Encoder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--models", nargs="+", default=encoders(), choices=encoders())
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--n", type=int, default=1000, help="test pictures explored")
    parser.add_argument("--out", type=Path, default=Path("runs/representations"))
    args = parser.parse_args()
    data, rows = ns.data.open(args.data), []
    for name in args.models:
        folder = args.out / f"{data.name}-{name.replace('/', '-')}-{args.budget}"
        model = ns.fit(name, data, budget=args.budget, out=folder)
        found = explore(model, data, n=args.n)
        found.save(folder / "explore.html")
        for what, scores in found.scores.items():
            row = {"model": name, "images": int(model.images_seen), "of": what, **{k: str(v) for k, v in scores.items()}}
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_atomic(args.out / f"{data.name}-{args.budget}.json", json.dumps(rows, indent=1).encode())


if __name__ == "__main__":
    main()
