"""Super-resolution 4x: pix2pix given Downsample(4), trained on photos that come with scikit-image and scikit-learn and on Set14.

    python recipes/superres.py --budget 40m                    the regression: PSNR-Y and SSIM on Set5, beside cubic convolution
    python recipes/superres.py --preset photo --budget 40m     with the critic: sharper, and farther from the truth by PSNR

Tested on Set5 with its published small pictures (DATA/Set5/HR, LRx4); no picture of it is trained on, by hash of the content, nor
is one that looks like it ("face" of Set14 is "head" of Set5, cut otherwise). Luma, 4 pixels of border off, as papers do.
The same command takes a run up again. A sheet of Set5 (cubic, made, true) and scores.json lie in --out.

Hardware, time and the numbers reached stand in docs/translation.md.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import nonesuch as ns
from nonesuch.applications.translate import translate
from nonesuch.core.artifact import write_atomic
from nonesuch.core.degradation import Downsample
from nonesuch.core.given import Given
from nonesuch.core.image import ImageSpec
from nonesuch.data import formats
from nonesuch.data.dataset import Data, Images, content_hash, fingerprint
from nonesuch.data.pictures import png_bytes, sheet
from nonesuch.evaluate.restoration import luma, psnr, ssim
from nonesuch.nn.bicubic import enlarge
from nonesuch.train.log import Event

SPEC = ImageSpec(3, (96, 96))
PHOTOS = "astronaut chelsea coffee rocket motorcycle_left camera coins brick grass gravel moon hubble_deep_field ihc".split()


def opened(path: Path) -> Tensor:
    """A picture file as levels, uint8 (3, h, w)."""
    values = torch.from_numpy(formats.read(path).values)
    return values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1).contiguous()


def photos(data: Path) -> dict[str, Tensor]:
    """The training pictures by name."""
    from sklearn.datasets import load_sample_images

    found = {f"scikit-learn/{i}": torch.from_numpy(x.copy()).permute(2, 0, 1) for i, x in enumerate(load_sample_images().images)}
    spec = find_spec("skimage.data")
    if spec is None or spec.origin is None:
        raise ValueError("the photos are those of scikit-image: pip install scikit-image.")
    for path in sorted(Path(spec.origin).parent.iterdir()):
        if path.stem in PHOTOS:
            found[f"scikit-image/{path.stem}"] = opened(path)
    return found | {f"Set14/{path.stem}": opened(path) for path in sorted((data / "Set14" / "HR").glob("*.png"))}


def thumbnails(pictures: dict[str, Tensor]) -> Tensor:
    """Standardised luma at 24 x 24, (n, 576): two cuts of one photo have nearly the same."""
    small = torch.stack([F.adaptive_avg_pool2d(luma(x / 127.5 - 1), 24).flatten() for x in pictures.values()])
    small = small - small.mean(1, keepdim=True)
    return small / small.norm(dim=1, keepdim=True)


def unseen(train: dict[str, Tensor], test: dict[str, Tensor]) -> dict[str, Tensor]:
    """The training pictures without those that are, or look like, a test picture; says what it found."""
    hashes = {content_hash(x.numpy()): name for name, x in train.items()}
    likeness, kept = thumbnails(test) @ thumbnails(train).T, dict(train)
    for row, (name, x) in zip(likeness, test.items(), strict=True):
        digest, near = content_hash(x.numpy()), list(train)[int(row.argmax())]
        alike = float(row.max())
        said = {"test": name, "blake2b": digest, "in training": hashes.get(digest), "nearest": near, "likeness": round(alike, 3)}
        if alike > 0.9 or digest in hashes:
            kept.pop(hashes.get(digest, near), None)
            said["left out"] = near
        print(json.dumps(said), flush=True)
    return kept


def patches(pictures: dict[str, Tensor], stride: int = 48, halvings: int = 1) -> Images:
    """Patches of all pictures at their own size and halved so many times, without flat ones."""
    out = []
    for x in pictures.values():
        for times in range(halvings + 1):
            scale = F.avg_pool2d(x[None].float(), 2**times)[0].round().to(torch.uint8)
            if min(scale.shape[1:]) >= 96:
                cut = scale.unfold(1, 96, stride).unfold(2, 96, stride).permute(1, 2, 0, 3, 4).flatten(0, 1)
                out.append(cut[cut.float().flatten(1).std(1) > 8])
    levels = torch.cat(out).contiguous()
    return Images(SPEC, ns.Schema(), levels, Given(len(levels)))


def scored(name: str, made: list[Tensor], truth: list[Tensor]) -> dict[str, object]:
    """PSNR and SSIM, printed."""
    found = {"psnr": psnr(made, truth, border_px=4), "ssim": ssim(made, truth, border_px=4)}
    for score in found.values():
        print(f"{name}: {score}", flush=True)
    return {k: v.to_json() for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--preset", default="regression", choices=["regression", "photo"])
    parser.add_argument("--budget", default="40m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/superres"))
    args = parser.parse_args()
    folder = args.out / f"{args.preset}-{args.budget}-{args.seed}"
    truth = {path.stem: opened(path) for path in sorted((args.data / "Set5" / "HR").glob("*.png"))}
    small = [opened(args.data / "Set5" / "LRx4" / f"{name}.png").float() / 127.5 - 1 for name in truth]
    kept = unseen(photos(args.data), truth)
    train = patches(kept)
    print(f"{len(train)} patches of {len(kept)} pictures", flush=True)
    data = Data("photos", train, train[:0], fingerprint(train))
    model = ns.fit(
        "gan/pix2pix", data, given=Downsample(4), preset=args.preset, budget=args.budget, seed=args.seed, out=folder,
        recipe={"augment": ("flip", "rotate90"), "held_out": 0.02}, on_event=tell,
    )  # fmt: skip
    names, true = list(truth), [x.float() / 127.5 - 1 for x in truth.values()]
    cubic = [enlarge(y[None], 4)[0].clamp(-1, 1) for y in small]
    made = [translate(model, y[None])[0] for y in small]
    scores = {"cubic": scored("cubic", cubic, true), args.preset: scored(args.preset, made, true)}
    each = {
        name: [round(psnr([x], [t], border_px=4).value, 2) for x in (c, m)]
        for name, c, m, t in zip(names, cubic, made, true, strict=True)
    }
    scores["each"] = each
    photo = kept["scikit-image/astronaut"][None].float() / 127.5 - 1
    begin = time.perf_counter()
    large = translate(model, photo)
    scores["seconds of 512 x 512"] = round(time.perf_counter() - begin, 2)
    print(f"{tuple(photo.shape[2:])} -> {tuple(large.shape[2:])} in {scores['seconds of 512 x 512']} s", flush=True)
    write_atomic(folder / "scores.json", json.dumps(scores, indent=2).encode())
    middle = [torch.stack([crop(x) for x in (c, m, t)]) for c, m, t in zip(cubic, made, true, strict=True)]
    write_atomic(folder / "set5.png", png_bytes(sheet(torch.stack(middle), ImageSpec(3, (224, 224)), 4)))


def crop(x: Tensor, side: int = 224) -> Tensor:
    """The middle of a picture."""
    top, left = ((n - side) // 2 for n in x.shape[1:])
    return (
        x[:, top : top + side, left : left + side]
        if min(x.shape[1:]) >= side
        else F.pad(x, (0, side - x.shape[2], 0, side - x.shape[1]))
    )


def tell(event: Event, last: list[float] = [0.0]) -> None:  # noqa: B006 (when it last spoke)
    """A line a minute."""
    now = time.perf_counter()
    if now - last[0] > 60 or event.kind in ("done", "warning", "watch"):
        last[0] = now
        terms = {k: round(v, 4) for k, v in event.terms.items()}
        print(
            f"{event.seconds:.0f} s, {event.images} of {event.total} images, {event.images_per_s:.1f}/s {event.text} {terms}",
            flush=True,
        )


if __name__ == "__main__":
    main()
