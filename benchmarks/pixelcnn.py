"""Sampling 28 x 28 pictures from PixelCNN++: kept activations against a whole pass a pixel, same network, same weights.

    python -m benchmarks.pixelcnn          (about five minutes on one core)

Public implementations draw a picture by a loop over its pixels that runs the whole network on the whole picture each time. The
peer here is that loop around the same network (so what is measured is the algorithm), in float32, as those are by default, and
in bf16, its best where the processor multiplies in bf16. 784 passes take minutes, so a few pixels of the loop are timed (the pass
and the draw, which cost the same at every pixel) and multiplied: the loop's seconds are EXTRAPOLATED. Ours is timed whole.
Contestants take turns; medians. "passes" is ours in units of the loop's cost a pixel: the work is that of one, in small pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive.pixelcnnpp import PixelCNNpp

SIDE, PIXELS, BATCHES = 28, 3, (16, 64)


def network(preset: str, levels: int) -> PixelCNNpp:
    """A PixelCNN++ for 28 x 28 whose every weight counts, as after training."""
    model = catalog.build("autoregressive/pixelcnnpp", ImageSpec(1, (SIDE, SIDE), levels=levels), Schema(), preset)
    assert isinstance(model, PixelCNNpp)
    with torch.no_grad():
        for name, p in model.leave.named_parameters():
            p.add_(0.02 * Seeds((1,), (0,)).normal(name, *p.shape)[0])
    model.images_seen.fill_(1)
    return model


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def loop(model: PixelCNNpp, n: int, pixels: int) -> torch.Tensor:
    """The first `pixels` of n pictures, each by a pass over the whole picture."""
    c = model._condition(model.schema.missing(n))
    u = Seeds.of(0, n).uniform("value", model.raster.length, model.raster.values, model.head.draws)
    k = torch.zeros(n, model.raster.length, model.raster.values, dtype=torch.int64)
    for i in range(pixels):
        out = model.outputs(k, c)[:, i]
        for j in range(model.raster.values):
            k[:, i, j] = model.head.draw(out, k[:, i], j, u[:, i, j])
    return k[:, :pixels]


def measure(model: PixelCNNpp, n: int, rounds: int, half: bool = True) -> dict[str, float]:
    """Median seconds for n pictures: ours in float32 and bf16, the loop's extrapolated, and the ratios."""
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16} if half else {"float32": torch.float32}
    model.compute_dtype = torch.float32
    drawn = model.raster.tokens(model.sample(n))
    assert torch.equal(drawn[:, :PIXELS], loop(model, n, PIXELS)), "the two draw different pictures"
    times: dict[str, list[float]] = {f"{who} {name}": [] for who in ("ours", "loop") for name in dtypes}
    for _ in range(rounds):
        for name, dtype in dtypes.items():
            model.compute_dtype = dtype
            times[f"ours {name}"].append(seconds(lambda: model.sample(n)))
            times[f"loop {name}"].append(seconds(lambda: loop(model, n, PIXELS)) / PIXELS * model.raster.length)
    found = {name: statistics.median(t) for name, t in times.items()}
    best_ours = min(v for k, v in found.items() if k.startswith("ours"))
    best_loop = min(v for k, v in found.items() if k.startswith("loop"))
    found["same dtype"] = found["loop float32"] / found["ours float32"]
    found["vs default"], found["vs tuned"] = found["loop float32"] / best_ours, best_loop / best_ours
    found["passes"] = found["ours float32"] / (found["loop float32"] / model.raster.length)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(asked.threads)
    for levels in asked.levels:
        model = network(asked.preset, levels)
        size = sum(p.numel() for p in model.parameters()) / 1e6
        for n in asked.batch:
            found = measure(model, n, asked.rounds)
            if asked.json:
                print(json.dumps({"levels": levels, "batch": n, "parameters_m": size, **found}), flush=True)
                continue
            print(f"{size:.1f} M parameters, {levels} levels, batch {n}; medians of {asked.rounds}; {asked.threads} thread(s)")
            for name, value in found.items():
                unit = " s (extrapolated)" if name.startswith("loop") else " s" if name.startswith("ours") else " x"
                print(f"  {name:16}{value:10.2f}{unit}", flush=True)


if __name__ == "__main__":
    main()
