"""Enhancement: one pix2pix for dark, flat, noisy and compressed photos, with how spoiled they are as a condition.

    python recipes/enhance.py --budget 40m
    nonesuch enhance runs/enhance/... photos/ --strength 0.7

Trained on the photos of scikit-image and scikit-learn (recipes/superres.py) and Set5, tested on Set14 without training on it.
What light a photo usually has shows in no patch of one: photos reduced to hardly more than a patch are beside and, for twenty
are few, --small pictures of CIFAR-10, enlarged. Each patch is spoiled twice in each of the four ways, at a strength drawn by its
key; the strength is the column of numbers that a user turns as a knob, and is hidden half of the time, so that leaving it out is
something the model knows. Tested at strengths 0.3, 0.6 and 0.9, each degradation apart, strength not told: PSNR on luma beside
histogram equalisation (of luma, and adaptive: scikit-image's CLAHE), non-local means (scikit-image's, at its own estimate of the
noise), and both in a row; "nothing" is the spoiled picture itself. The best of the classical ones is taken for each degradation
after the fact, which favours them.

Hardware, time and the numbers reached stand in docs/translation.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from colorize import opened as cifar10
from superres import SPEC, crop, opened, patches, photos, tell, unseen

import nonesuch as ns
from nonesuch.applications.translate import translate
from nonesuch.core.artifact import write_atomic
from nonesuch.core.degradation import Degradation, Jpeg, LowContrast, LowLight, Noise
from nonesuch.core.given import Given, Image, Number
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.data.pictures import png_bytes, sheet
from nonesuch.evaluate.restoration import psnr
from nonesuch.nn.bicubic import enlarge

STEPS, DRAWS = 8, 2  # strengths that noise and compression are made at in training, and how often a patch is spoiled each way
CONFIG = {"widths": (24, 48, 96), "blocks": (1, 2, 2), "glance": 64, "adversarial": 0.0, "features": 0.0, "noise": 0}
SIDES = (96, 112, 132)  # of photos that a patch shows most of
ENLARGED = 3  # 32 x 32 pictures, to the size of a patch
SCHEMA = ns.Schema({"spoiled": Image(SPEC), "strength": Number(mean=0.5, std=0.3)})
WAYS: dict[str, Callable[[float], Degradation]] = {
    "low light": lambda s: LowLight(s),
    "low contrast": lambda s: LowContrast(s),
    "noise": lambda s: Noise(0.4 * s),  # up to 51 of 255 levels
    "compression": lambda s: Jpeg(round(60 - 50 * s)),
}


def spoil(x: Tensor, way: str, strength: float, seeds: Seeds) -> Tensor:
    """Pictures (n, 3, h, w) spoiled in one way, as a file of 8 bits holds them."""
    return ImageSpec(3, tuple(x.shape[2:])).snap(WAYS[way](strength)(x, seeds).clamp(-1, 1))


def reduced(pictures: dict[str, Tensor]) -> Tensor:
    """Most of each photo in a patch: shorter sides of SIDES pixels, cut every 12, uint8 (n, 3, 96, 96)."""
    out = []
    for x, side in itertools.product(pictures.values(), SIDES):
        size = [round(s * side / min(x.shape[1:])) for s in x.shape[1:]]
        small = F.adaptive_avg_pool2d(x.float(), size).round().to(torch.uint8)
        out.append(small.unfold(1, 96, 12).unfold(2, 96, 12).permute(1, 2, 0, 3, 4).flatten(0, 1))
    return torch.cat(out)


def enlarged(path: Path, n: int) -> Tensor:
    """n training pictures of CIFAR-10 as patches, uint8 (n, 3, 96, 96)."""
    small = cifar10(path).train[:n].x
    return SPEC.to_levels(enlarge(small, ENLARGED).clamp(-1, 1)).to(torch.uint8)


def spoiled(clean: Images, seed: int) -> Images:
    """Each patch DRAWS times in each way, at one of STEPS strengths drawn by its key; strength missing for every second."""
    n, levels, ys, strengths = len(clean), [], [], []
    for draw, way in itertools.product(range(DRAWS), WAYS):
        keys = Seeds.of(seed * DRAWS + draw, n)
        step = keys.integers(f"strength/{way}", STEPS)
        y = torch.empty(n, *SPEC.shape)
        for s in range(STEPS):
            rows = (step == s).nonzero()[:, 0]
            y[rows] = spoil(clean.inside(rows), way, (s + 0.5) / STEPS, keys[rows.tolist()])
        told = ((step + 0.5) / STEPS - 0.5) / 0.3
        levels, ys = [*levels, clean.levels], [*ys, y]
        strengths.append(torch.where((torch.arange(n) + draw) % 2 == 0, told, torch.nan))
    given = Given(len(levels) * n, {"spoiled": torch.cat(ys), "strength": torch.cat(strengths)})
    return Images(SPEC, SCHEMA, torch.cat(levels), given)


# -- the classical ones: pictures (3, h, w) on [-1, 1] -> the same


def equalised(x: Tensor) -> Tensor:
    """Histogram equalisation of luma, the chroma kept."""
    from skimage import color, exposure

    ycc = color.rgb2ycbcr(_plain(x))
    ycc[..., 0] = exposure.equalize_hist(ycc[..., 0]) * 219 + 16
    return _inside(color.ycbcr2rgb(ycc))


def adaptive(x: Tensor) -> Tensor:
    """CLAHE of the value channel."""
    from skimage import exposure

    return _inside(exposure.equalize_adapthist(_plain(x)))


def means(x: Tensor) -> Tensor:
    """Non-local means at the noise that is there: the median of the diagonal differences of 2 x 2 pixels (Donoho's estimate)."""
    from skimage import restoration

    plain = _plain(x)
    even = plain[: len(plain) // 2 * 2, : plain.shape[1] // 2 * 2]
    fine = (even[::2, ::2] - even[1::2, ::2] - even[::2, 1::2] + even[1::2, 1::2]) / 2
    sigma = float(np.median(np.abs(fine)) / 0.6745)
    how = {"h": 0.8 * sigma + 1e-4, "sigma": sigma, "fast_mode": True, "patch_size": 5, "patch_distance": 6}
    return _inside(restoration.denoise_nl_means(plain, channel_axis=-1, **how))


def _plain(x: Tensor) -> np.ndarray:
    return ((x.permute(1, 2, 0).double() + 1) / 2).numpy()


def _inside(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).permute(2, 0, 1).float().clamp(0, 1) * 2 - 1


def classical(y: Tensor) -> dict[str, Tensor]:
    """What the classical methods make of a picture."""
    smooth = means(y)
    return {
        "nothing": y, "equalisation": equalised(y), "adaptive equalisation": adaptive(y), "non-local means": smooth,
        "means, then equalisation": equalised(smooth), "means, then adaptive": adaptive(smooth),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--budget", default="40m")
    parser.add_argument("--small", type=int, default=2000, help="pictures of CIFAR-10 to train on, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--out", type=Path, default=Path("runs/enhance"))
    args = parser.parse_args()
    truth = {path.stem: opened(path) for path in sorted((args.data / "Set14" / "HR").glob("*.png"))}
    own = {name: x for name, x in photos(args.data).items() if not name.startswith("Set14")}
    own |= {f"Set5/{path.stem}": opened(path) for path in sorted((args.data / "Set5" / "HR").glob("*.png"))}
    kept = unseen(own, truth)
    levels = torch.cat([patches(kept).levels, reduced(kept), enlarged(args.data / "cifar10_jpeg.npz", args.small)])
    train = spoiled(Images(SPEC, ns.Schema(), levels, Given(len(levels))), args.seed)
    print(f"{len(train)} spoiled patches of {len(levels)}", flush=True)
    folder = args.out / f"{args.budget}-{args.seed}"
    recipe = {"batch": 8, "lr": 1e-3, "betas": (0.9, 0.99), "clip": 1.0, "augment": ("flip", "rotate90")}
    model = ns.fit(
        "gan/pix2pix", Data("spoiled photos", train, train[:0], fingerprint(train[:64])), given=["spoiled", "strength"],
        preset="photo", config=CONFIG, recipe=recipe, budget=args.budget, seed=args.seed, out=folder, on_event=tell,
    )  # fmt: skip
    true = [x.float() / 127.5 - 1 for x in truth.values()]
    table: dict[str, dict[str, float]] = {}
    rows = []
    for way in WAYS:
        found: dict[str, list[float]] = {}
        for strength in args.strengths:
            given = [spoil(x[None], way, strength, Seeds.of(args.seed, 1, start=i))[0] for i, x in enumerate(true)]
            made = [translate(model, y[None])[0] for y in given]
            others = [classical(y) for y in given]
            for name in others[0]:
                found.setdefault(name, []).append(psnr([one[name] for one in others], true).value)
            found.setdefault("pix2pix", []).append(psnr(made, true).value)
            row = (given[8], others[8]["non-local means"], others[8]["adaptive equalisation"], made[8], true[8])
            rows.append(torch.stack([crop(v) for v in row]))
        table[way] = {name: round(sum(v) / len(v), 2) for name, v in found.items()}
        best = max((name for name in found if name != "pix2pix"), key=lambda name: table[way][name])
        ours, theirs = table[way]["pix2pix"], table[way][best]
        print(f"{way}: pix2pix {ours} dB, best classical {best} {theirs} dB; {json.dumps(table[way])}", flush=True)
    write_atomic(folder / "scores.json", json.dumps(table, indent=2).encode())
    write_atomic(folder / "sheet.png", png_bytes(sheet(torch.stack(rows), ImageSpec(3, (224, 224)), 4)))


if __name__ == "__main__":
    main()
