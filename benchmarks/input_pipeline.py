"""An epoch of 60,000 pictures of 28 x 28 through the input pipeline with flips, against torch's DataLoader.

    python -m benchmarks.input_pipeline          (about two minutes on two cores)

Peers, in the same process and by turns with ours, batches of 128, flips with probability 1/2, float32 on [-1, 1] at the end:

    png        DataLoader with 2 workers that stay, over a Dataset that opens PNG files with Pillow and flips each picture; on
               6,000 files, the rate being per picture and the files in the page cache
    tensors    DataLoader over a TensorDataset of float32 in memory, flipped by the batch; without workers (its best) and with 2
    bare       no pipeline at all: index_select of the bytes in a random order and three passes to float32, no flips, no keys

The pictures are scikit-learn's 1,797 digits enlarged to 28 x 28 and repeated. Medians of the rounds; the ratio of a peer is the
median of the ratios of neighbouring measurements. Ours runs without worker threads, and then with 1 and 2 (which must not matter
to anything but speed, and at this size cannot help). torch runs one thread, as DataLoader's workers do by themselves: a second
gains little on pieces of 100 kB, and on a machine that does anything else it waits by spinning.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.data.dataset import Images
from nonesuch.data.loader import Batches

SIDE, BATCH, N, FILES = 28, 128, 60_000, 6_000


class Files(Dataset):
    """The plain way: one PNG file an item, opened, flipped by chance, made float."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        with Image.open(self.paths[i]) as file:
            picture = file.convert("L")
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture))[None].float().mul_(2 / 255).sub_(1)


def pictures(n: int) -> np.ndarray:
    """uint8 (n, 28, 28): the digits, enlarged, one after another."""
    small = (np.asarray(load_digits().images) * 15.9375).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in small])
    return large[np.arange(n) % len(large)]


def rate(epoch: Callable[[], int]) -> float:
    """Pictures a second of one epoch, begun when the threads of the one before have gone to sleep."""
    time.sleep(0.3)
    start = time.perf_counter()
    n = epoch()
    return n / (time.perf_counter() - start)


def ours(images: Images, workers: int, seed: int) -> Callable[[], int]:
    batches, clock = Batches(images, BATCH, seed, augment=("flip",), workers=workers), 0

    def epoch() -> int:
        nonlocal clock
        for _ in range(len(images) // BATCH):
            batches.at(clock)
            clock += BATCH
        return len(images) // BATCH * BATCH

    return epoch


def theirs(loader: DataLoader, flip: bool) -> Callable[[], int]:
    def epoch() -> int:
        n = 0
        for batch in loader:
            x = batch[0] if flip else batch
            if flip:
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
            n += len(x)
        return n

    return epoch


def bare(levels: Tensor) -> Callable[[], int]:
    def epoch() -> int:
        for which in torch.randperm(len(levels)).split(BATCH):
            levels.index_select(0, which).float().mul_(2 / 255).sub_(1)
        return len(levels)

    return epoch


def measure(rounds: int, n: int = N, files: int = FILES) -> dict[str, dict[str, float]]:
    """Median pictures a second of each contestant, and how many times as many ours does."""
    x = pictures(n)
    levels = torch.from_numpy(x)[:, None].contiguous()
    images = Images(ImageSpec(1, (SIDE, SIDE)), Schema(), levels, Given(n))
    tensors = TensorDataset(levels.float().mul_(2 / 255).sub_(1))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:06}.png" for i in range(files)]
        for one, path in zip(x, paths, strict=False):
            Image.fromarray(one).save(path)
        kept = {"shuffle": True, "num_workers": 2, "persistent_workers": True}
        contestants = {
            "ours": ours(images, 0, 0),
            "png files, 2 workers": theirs(DataLoader(Files(paths), BATCH, **kept), flip=False),
            "tensors, no workers": theirs(DataLoader(tensors, BATCH, shuffle=True), flip=True),
            "tensors, 2 workers": theirs(DataLoader(tensors, BATCH, **kept), flip=True),
            "bare": bare(levels),
            "ours, 1 thread ahead": ours(images, 1, 1),
            "ours, 2 threads ahead": ours(images, 2, 2),
        }
        for epoch in contestants.values():
            epoch()  # workers start, pages and caches fill
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, epoch in contestants.items():
                rates[name].append(rate(epoch))
    out = {}
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], found, strict=True))
        out[name] = {"images_per_s": statistics.median(found), "ours_is_times": ratio}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(asked.threads)
    found = measure(asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{N:,} pictures of {SIDE} x {SIDE}, batches of {BATCH}; medians of {asked.rounds}; {asked.threads} thread(s)")
    for name, row in found.items():
        print(f"  {name:24}{row['images_per_s']:>12,.0f} pictures/s    ours is {row['ours_is_times']:6.2f} x")


if __name__ == "__main__":
    main()
