"""Cost as work grows: images a second and memory of DDPM's U-Net against batch, image size and channels.

    python -m benchmarks.scaling                     (about ten minutes; a process a point, so that memory is that point's own)
    python -m benchmarks.scaling --plot FILE.png     and draws it

Each point is a configuration around 32 x 32, 64 channels (6.5 M parameters), batch 32, of which one number is changed. Trained is
the whole step of the library (loss, gradients, clipping, Adam, averages); evaluated is one call of the network without gradients.
Rates are medians of the rounds; memory is the largest resident size of the process less what it had before the model was made.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks._turns import arguments, seconds
from nonesuch import catalog
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.diffusion.ddpm import DDPM
from nonesuch.train.device import place
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

BASE = {"batch": 32, "size": 32, "channels": 64}
GRID = {"batch": (1, 4, 16, 64, 256, 512), "size": (8, 16, 32, 64, 128), "channels": (16, 32, 64, 128, 192)}


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def point(batch: int, size: int, channels: int, what: str, rounds: int) -> dict[str, float]:
    """Images a second and megabytes of one configuration, "train" or "evaluate"."""
    before, spec = memory_mb(), ImageSpec(3, (size, size))
    levels = (torch.arange(batch * 3 * size * size) % 251).view(batch, 3, size, size).to(torch.uint8)
    config = {"base": channels, "mults": (1, 2, 2), "attention": (False, True, False), "groups": 16}
    model = catalog.build("diffusion/ddpm", spec, Schema(), "cifar10", **config)
    assert isinstance(model, DDPM)
    place(model)
    parameters = sum(p.numel() for p in model.parameters())
    if what == "train":
        images = Images(spec, Schema(), levels, Given(batch))
        call = Run(model, images, Recipe(images=1 << 40, batch=batch)).step
    else:
        x, k, given = Seeds.of(0, batch).normal("x", *spec.shape), torch.full((batch,), 500), Schema().missing(batch)

        def call() -> object:
            with torch.no_grad():
                return model.noise_of(x, k, given)

    call()
    taken = [seconds(call) for _ in range(rounds)]
    return {"images_per_s": batch / statistics.median(taken), "mb": memory_mb() - before, "parameters": parameters}


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--plot", type=Path)
        parser.add_argument("--point", help=argparse.SUPPRESS)

    asked = arguments(__doc__, 3, more)
    if asked.point:
        print(json.dumps(point(**json.loads(asked.point), rounds=asked.rounds)))
        return
    found: dict[str, dict[str, list[tuple[float, dict[str, float]]]]] = {}
    for axis, values in GRID.items():
        for what in ("evaluate", "train"):
            for value in values:
                said = json.dumps({**BASE, axis: value, "what": what})
                command = [sys.executable, "-m", "benchmarks.scaling", "--point", said, "--threads", str(asked.threads)]
                run = subprocess.run([*command, "--rounds", str(asked.rounds)], capture_output=True, text=True, check=True)
                row = json.loads(run.stdout.splitlines()[-1])
                found.setdefault(axis, {}).setdefault(what, []).append((value, row))
                text = f"{axis:9}{value:5}  {what:9}{row['images_per_s']:10.1f} images/s{row['mb']:8.0f} MB"
                print(json.dumps({axis: value, "what": what, **row}) if asked.json else text, flush=True)
    if asked.plot:
        draw(found, asked.plot)


def draw(found: dict[str, dict[str, list[tuple[float, dict[str, float]]]]], to: Path) -> None:
    """Rates above, memory below, an axis a column."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3.6 * len(found), 5.4), sharey="row", layout="constrained")
    for column, (axis, curves) in enumerate(found.items()):
        for row, (key, word) in enumerate((("images_per_s", "images a second"), ("mb", "MB"))):
            plot = axes[row][column]
            for what, points in curves.items():
                plot.loglog([v for v, _ in points], [p[key] for _, p in points], marker="o", label=what)
            ticks = [v for v, _ in points]
            plot.set_xticks(ticks, [str(v) for v in ticks])
            plot.minorticks_off()
            plot.grid(alpha=0.3)
            plot.set_xlabel({"size": "pixels a side"}.get(axis, axis))
            if column == 0:
                plot.set_ylabel(word)
    axes[0][0].legend(frameon=False)
    figure.savefig(to, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
