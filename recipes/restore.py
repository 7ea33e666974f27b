"""Digits: one half hidden, halved in size, or full of noise, and restored with each of the six families as the prior.

    python recipes/restore.py table --out runs/restore          a row a family, job and method
    python recipes/restore.py sheet --out runs/restore          docs/restore.png

Models are unconditional and trained on the 1,400 training pictures, the pictures restored are from the test split, and
nothing is chosen here. Trained models are kept under --out, so a repeated command only restores. error: root mean square of
the samples' mean against the truth, over all pixels, where 2 is from black to white; sample: of the samples themselves;
consistency: root mean square of y - f(x) over what was measured, which should be the noise, 0, 0 and 0.5 here; spread: mean
standard deviation of the samples.

Training takes about four minutes of one core (350,000 images of diffusion 65 s of them). Numbers reached: docs/restore.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nonesuch as ns
from nonesuch.applications.restore import Restored, restore
from nonesuch.applications.restore.files import before_and_after
from nonesuch.catalog import FAMILIES
from nonesuch.core.artifact import write_atomic
from nonesuch.core.degradation import Degradation, Downsample, Mask, Noise
from nonesuch.core.model import Model
from nonesuch.data.pictures import png_bytes, sheet

IMAGES = {"autoregressive": 33_000, "flow": 45_000, "vae": 140_000, "diffusion": 350_000, "energy": 160_000, "gan": 70_000}
JOBS: dict[str, Degradation] = {"inpaint": Mask("half"), "upscale": Downsample(2), "denoise": Noise(0.5)}
OTHERS = {"diffusion": ("dps", "twisted"), "vae": ("optimise",), "flow": ("optimise",), "gan": ("optimise",)}


def trained(family: str, out: Path) -> Model:
    """The family's model, trained now or before."""
    folder = out / family
    if (folder / "model.safetensors").is_file() and int((model := ns.load(folder)).images_seen) >= IMAGES[family]:
        return model
    return ns.fit(family, ns.data.open("digits"), budget=str(IMAGES[family]), out=folder)


def row(family: str, job: str, found: Restored, x: Tensor) -> dict[str, Any]:
    """What is measured of one restoration."""

    def size(v: Tensor) -> float:
        return round(float(v.square().mean().sqrt()), 3)

    return {
        "family": family, "job": job, "method": found.method, "honest": found.honest, "error": size(found.mean - x),
        "sample": size(found.x - x[:, None]), "consistency": round(float(found.error.square().mean().sqrt()), 3),
        "spread": round(float(found.spread.mean()), 3), "seconds": round(found.seconds, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("table", "sheet"))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("-n", type=int, default=32, help="test pictures")
    parser.add_argument("--out", default="runs/restore")
    args = parser.parse_args()
    data = ns.data.open("digits")
    x = data.test.x[: args.n if args.job == "table" else 3]
    tiles = []
    for family in args.families:
        model = trained(family, Path(args.out))
        for job, degradation in JOBS.items():
            y = degradation(x, 0)
            for method in (None, *OTHERS.get(family, ())) if args.job == "table" else (None,):
                found = restore(model, y, degradation, method=method)
                print(json.dumps(row(family, job, found, x)), flush=True)
            tiles.append(before_and_after(found, y, x, data.spec))
    if args.job == "sheet":  # a row a family, the jobs beside one another: the first picture of each in the first rows
        grid = torch.stack(tiles).unflatten(0, (len(args.families), len(JOBS))).movedim(2, 1).flatten(0, 1).flatten(1, 2)
        write_atomic(Path("docs/restore.png"), png_bytes(sheet(grid, data.spec), 4))


if __name__ == "__main__":
    main()
