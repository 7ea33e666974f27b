"""Unpaired translation: MNIST <-> a rotated, inverted, coloured MNIST, by CycleGAN and by a bridge; is the digit the same?

    python recipes/unpaired.py --budget 20m                  CycleGAN
    python recipes/unpaired.py --by bridge --budget 20m      one diffusion model of both kinds, and the noise that they share

"plain" are the first 30,000 training digits, white on black in three equal channels; "paper" are the other 30,000, turned by
--degrees, inverted and coloured (blue ink on yellow paper): no digit is in both heaps, so there is no pair to learn from. The
class of a translated test digit is read by a network trained on the labelled digits of the target's kind, which says itself how
often it is right about real ones. Neither way sees a label of a digit. A grid and scores.json lie in --out; the same command goes
on with a run.

Hardware, time and the numbers reached stand in docs/translation.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import nonesuch as ns
from nonesuch.applications.bridge import bridge
from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import Category, Given
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.data.pictures import png_bytes, sheet
from nonesuch.evaluate import accuracy, fit_extractor
from nonesuch.train.log import Event

SPEC = ImageSpec(3, (32, 32))
KINDS = ("plain", "paper")
SMALL = {"fold": 2, "base": 64, "mults": (1, 2), "blocks": 1, "attention": (False, True), "width": 128, "dropout": 0.0,
         "log_normal": 1.0, "log_normal_mean": 0.0}  # fmt: skip
INK, PAPER = (30.0, 40.0, 120.0), (250.0, 235.0, 180.0)


def plain(x: Tensor) -> Tensor:
    """Digits uint8 (n, 28, 28) in the middle of 32 x 32, three equal channels, uint8."""
    return F.pad(x, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1).contiguous()


def paper(x: Tensor, degrees: float) -> Tensor:
    """The same digits turned, inverted and coloured: ink where there was light, paper where there was none."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    wide = F.pad(x, (2, 2, 2, 2))[:, None].float() / 255
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(wide.shape), align_corners=False)
    turned = F.grid_sample(wide, grid, mode="bilinear", align_corners=False)
    ink, ground = (torch.tensor(c).view(1, 3, 1, 1) for c in (INK, PAPER))
    return torch.lerp(ground, ink, turned).round().to(torch.uint8)


def heaps(path: Path, degrees: float) -> tuple[Data, dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """The two heaps as data, and for each kind the labelled training digits and test digits of it, on [-1, 1]."""
    with np.load(path) as file:
        x, y, xt, yt = (torch.from_numpy(file[key]) for key in ("x_train", "y_train", "x_test", "y_test"))
    half = len(x) // 2
    both = torch.cat([plain(x[:half]), paper(x[half:], degrees)])
    kind = Category(KINDS)
    given = Given(len(x), {"kind": (torch.arange(len(x)) >= half).long()})
    train = Images(SPEC, ns.Schema({"kind": kind}), both, given)
    ours = {"plain": (train.inside(slice(0, half)), y[:half].long()), "paper": (train.inside(slice(half, None)), y[half:].long())}
    tests = {"plain": (SPEC.from_levels(plain(xt)), yt.long()), "paper": (SPEC.from_levels(paper(xt, degrees)), yt.long())}
    return Data("MNIST in two kinds", train, train[:0], fingerprint(train[:100])), ours, tests


def tell(event: Event) -> None:
    """A line for what matters of a run."""
    if event.kind in ("start", "warning", "watch", "done"):
        terms = {k: round(v, 3) for k, v in event.terms.items() if "gradient" not in k}
        print(
            f"{event.seconds:.0f} s, {event.images} of {event.total} images, {event.images_per_s:.0f}/s {terms} {event.text}",
            flush=True,
        )


def fitted(args: argparse.Namespace, data: Data, config: dict[str, object], folder: Path) -> dict[str, Model]:
    """For each kind, what makes pictures of it of those of the other."""
    how = {"budget": args.budget, "seed": args.seed, "out": folder, "on_event": tell, "allow_change": ["images"]}
    if args.by == "cyclegan":
        return dict.fromkeys(KINDS, ns.fit("gan/cyclegan", data, given="kind", preset="32px", config=config, **how))
    model = ns.fit("diffusion", data, given="kind", config=SMALL | config, recipe={"batch": 32, "lr": 1e-3, "hide": 0.0}, **how)
    return {kind: bridge(model, told={"kind": other}) for kind, other in zip(KINDS, KINDS[::-1], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist.npz"))
    parser.add_argument("--by", choices=("cyclegan", "bridge"), default="cyclegan")
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--images", type=int, default=2_000, help="test digits that are translated each way")
    parser.add_argument("--degrees", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the model's config")
    parser.add_argument("--out", type=Path, default=Path("runs/unpaired"))
    args = parser.parse_args()
    data, labelled, tests = heaps(args.data, args.degrees)
    tests = {kind: (x[: args.images], y[: args.images]) for kind, (x, y) in tests.items()}
    config = {k: json.loads(v) for k, _, v in (one.partition("=") for one in args.set)}
    folder = args.out / "-".join([args.by, f"{args.degrees:g}", str(args.seed), *args.set])
    models = fitted(args, data, config, folder)
    scores, rows = {}, []
    for source, target in (KINDS, KINDS[::-1]):
        judge = fit_extractor(*labelled[target], name=target)
        x, y = tests[source]
        made = torch.cat([models[target].sample(len(part), {"source": part, "kind": target}) for part in x.split(500)])
        kept, real = (
            accuracy(judge.predict(made), y, "class kept", judge.name),
            accuracy(judge.predict(tests[target][0]), y, "real"),
        )
        scores[f"{source} to {target}"] = {"class kept": kept.to_json(), "classifier on real": real.to_json()}
        print(f"{source} to {target}: {kept}; the classifier on real digits: {real}", flush=True)
        picked = torch.cat([(y == c).nonzero()[:2, 0] for c in range(10)])
        rows += [x[picked], made[picked], tests[target][0][picked]]
    write_atomic(folder / "scores.json", json.dumps(scores, indent=2).encode())
    write_atomic(folder / "grid.png", png_bytes(sheet(torch.stack(rows), SPEC), 3))


if __name__ == "__main__":
    main()
