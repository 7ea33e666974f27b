"""Colorization and 8x8 -> 32x32 on CIFAR-10 (JPEG): a diffusion model and pix2pix against pix2pix's network as a regression.

    python recipes/colorize.py colour --budget 30m
    python recipes/colorize.py upscale --budget 30m
    python recipes/colorize.py colour --budget 30m --kinds regression pix2pix

--budget is the training time of all kinds together, shared as KINDS says: the regression soon stands still. Each is given the
spoiled picture alone and makes pictures of the first --images test conditions. Scores:
the conditional Frechet distance (evaluate/conditional.py) and the plain one, through a network trained on the training pictures,
with the floor that other training pictures reach under the plain one; PSNR, which the regression should win. The data came
through JPEG (about quality 75): no number here compares with one of a paper on CIFAR-10. Grids of conditions, each kind, truth
and scores.json lie in --out. The same command takes a run up again.

Hardware, time and the numbers reached stand in docs/translation.md.
"""

from __future__ import annotations

import argparse
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nonesuch as ns
from nonesuch.core.artifact import write_atomic
from nonesuch.core.degradation import Degradation, Downsample, Grayscale, name_of
from nonesuch.core.given import Category, Given
from nonesuch.core.image import ImageSpec
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.data.pictures import png_bytes, sheet
from nonesuch.evaluate import fit_extractor, frechet_distance
from nonesuch.evaluate.conditional import conditional_frechet
from nonesuch.evaluate.restoration import psnr
from nonesuch.nn.bicubic import enlarge
from nonesuch.train.log import Event
from nonesuch.train.recipe import Budget

TASKS: dict[str, Degradation] = {"colour": Grayscale(), "upscale": Downsample(4)}
_FLIPPED = {"augment": ("flip",), "batch": 32}
KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {  # parts of the budget, and what is fitted
    "regression": (1, "gan/pix2pix", {
        "preset": "regression", "config": {"widths": (32, 64, 96), "blocks": (1, 1, 2)}, "recipe": _FLIPPED,
    }),
    "pix2pix": (2, "gan/pix2pix", {
        "preset": "32px", "config": {"noise": 8, "adversarial": 1.0, "features": 0.2}, "recipe": _FLIPPED,
    }),
    "diffusion": (4, "diffusion", {
        "config": {"fold": 2, "base": 64, "mults": (1, 2), "blocks": 1, "attention": (False, True), "width": 128, "dropout": 0.0,
                   "log_normal": 1.0, "log_normal_mean": 0.0},
        "recipe": {"augment": ("flip",), "batch": 32, "lr": 1e-3},
    }),
}  # fmt: skip


def part_of(text: str, kind: str, kinds: list[str]) -> str:
    """What of the budget of all is this kind's."""
    whole, share = Budget.parse(text), KINDS[kind][0] / sum(KINDS[k][0] for k in kinds)
    return f"{whole.seconds * share:.1f}s" if whole.seconds else str(max(1, round(whole.images * share)))


def opened(path: Path) -> Data:
    """CIFAR-10 (JPEG) with its own splits; the label is for the extractor only."""
    from PIL import Image

    splits = {}
    with np.load(path) as file:
        names = Category(tuple(file["class_names"].tolist()))
        for split in ("train", "test"):
            data, place, y = (file[f"{key}_{split}"] for key in ("jpeg", "offset", "y"))
            parts = [data[a:b].tobytes() for a, b in pairwise(place.tolist())]
            x = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(p))) for p in parts])).permute(0, 3, 1, 2)
            label = torch.from_numpy(y.astype(np.int64))
            given = Given(len(x), {"label": label})
            splits[split] = Images(ImageSpec(3, (32, 32)), ns.Schema({"label": names}), x.contiguous(), given, split)
    return Data("CIFAR-10 (JPEG)", splits["train"], splits["test"], fingerprint(splits["test"]))


def shown(y: Tensor) -> Tensor:
    """A condition as a colour picture of 32 x 32."""
    return enlarge(y, 32 // y.shape[-1]).expand(-1, 3, -1, -1).clamp(-1, 1)


def tell(event: Event) -> None:
    """A line for what matters of a run."""
    if event.kind in ("start", "warning", "watch", "done"):
        print(
            f"{event.seconds:.0f} s, {event.images} of {event.total} images, {event.images_per_s:.0f}/s {event.text}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10_jpeg.npz"))
    parser.add_argument("--budget", default="30m")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=2_000, help="test pictures that are scored")
    parser.add_argument("--out", type=Path, default=Path("runs/colorize"))
    args = parser.parse_args()
    data, degradation = opened(args.data), TASKS[args.task]
    column = name_of(degradation)
    models = {}
    for kind in args.kinds:
        _, model, how = KINDS[kind]
        budget = part_of(args.budget, kind, args.kinds)
        out = args.out / f"{args.task}-{kind}-{budget}-{args.seed}"
        models[kind] = ns.fit(model, data, given=degradation, budget=budget, seed=args.seed, out=out, on_event=tell, **how)
    test = data.test[: args.images]
    truth, y = test.x, degradation(test.x, args.seed).clamp(-1, 1)
    extractor = fit_extractor(data.train.x, data.train.labels(), name="cifar10-jpeg")
    real, given = extractor.features(truth, "test"), extractor.features(shown(y), "test")
    others = extractor.features(data.train.x[: len(truth)], "train")
    rows, scores = [shown(y)], {}
    for kind, model in models.items():
        made = model.sample(len(y), {column: y}, seeds=args.seed)
        rows.append(made)
        features = extractor.features(made, kind)
        found = {
            "conditional FD": conditional_frechet(features, real, given),
            "FD": frechet_distance(features, real, real=others),
            "PSNR": psnr(list(made), list(truth), luma_only=False),
        }
        scores[kind] = {name: score.to_json() for name, score in found.items()}
        for score in found.values():
            print(f"{kind}: {score}", flush=True)
    distances = {kind: found["conditional FD"]["value"] for kind, found in scores.items()}
    for kind in distances.keys() - {"regression"} if "regression" in distances else ():
        share = distances[kind] / distances["regression"]
        print(f"conditional FD of {kind} over the regression's: {share:.3f} (wanted: at most 0.5)", flush=True)
    folder = args.out / f"{args.task}-{args.budget}-{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "scores.json", json.dumps(scores, indent=2).encode())
    grid = torch.stack([row[:16] for row in (*rows, truth)])
    write_atomic(folder / "grid.png", png_bytes(sheet(grid, data.spec), 3))


if __name__ == "__main__":
    main()
