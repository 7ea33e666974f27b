"""The same weights in bf16 and float32: bits/dim of the same pictures with the same draws, and FD of samples of the same seeds.

    python -m benchmarks.precision --model runs/digits/*-45s-0
    python -m benchmarks.precision --model runs/fashion --data fashion_mnist.npz --set sampler=unipc_2 steps=12

Fast is what `place` chooses where the processor multiplies bf16. A model passes if its bits/dim (where it has a likelihood) move
by at most 0.002 and its FD by at most 1 %. Beside them stand the standard error of the first, from the differences picture by
picture; the share of sampled values that differ; and how far apart FD is for two seeds. A model whose samples are
chosen from discrete values, or whose chains are chaotic, turns a rounding into another picture, as likely as the first: its FD
moves as it does between two seeds, however close the arithmetic is. It passes, with a word, if it moves by no more than those.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nonesuch as ns
from benchmarks._folded import conditions, fold, seen, unfold
from benchmarks._turns import arguments
from nonesuch.core.model import Likelihood, Model
from nonesuch.data import Data
from nonesuch.evaluate import Extractor, Features, frechet_distance
from nonesuch.train.device import place

BITS, SHARE = 0.002, 0.01


@dataclass(frozen=True)
class Moved:
    """One model in float32 and in bf16."""

    model: str
    bits: tuple[float, float] | None  # per dimension
    bits_error: float  # standard error of their difference
    fd: tuple[float, float]
    fd_of_another_seed: float  # in bf16
    values_that_differ: float

    @property
    def bits_move(self) -> float:
        return abs(self.bits[1] - self.bits[0]) if self.bits else 0.0

    @property
    def fd_moves(self) -> float:
        return abs(self.fd[1] / self.fd[0] - 1)

    @property
    def seeds_move(self) -> float:
        return abs(self.fd_of_another_seed / self.fd[1] - 1)

    @property
    def verdict(self) -> str:
        if self.bits_move > BITS:
            return "bits/dim moved"
        if self.fd_moves <= SHARE:
            return "the same"
        return "as two seeds differ" if self.fd_moves <= self.seeds_move else "FD moved"

    def show(self, as_json: bool) -> None:
        if as_json:
            print(json.dumps(asdict(self) | {"verdict": self.verdict}), flush=True)
            return
        bits = "no likelihood" if self.bits is None else (
            f"bits/dim {self.bits[0]:.4f} and {self.bits[1]:.4f}: {self.bits_move:.5f} +- {self.bits_error:.5f}"
        )  # fmt: skip
        print(f"{self.model}: {self.verdict}\n  {bits}")
        print(
            f"  FD {self.fd[0]:.4f} and {self.fd[1]:.4f}: {self.fd_moves:.2%} (two seeds {self.seeds_move:.2%}); "
            f"{self.values_that_differ:.2%} of values differ",
            flush=True,
        )


def compare(
    name: str, model: Model, data: Data, look: tuple[Extractor, Features], n: int, images: int, options: dict[str, Any]
) -> Moved:
    """Both precisions: bits/dim of the first `images` test pictures, FD of n samples against all test pictures."""
    x = fold(data.test.x[:images], model, data.spec)
    labels = data.test.labels() if model.schema else torch.zeros(1)
    nats: list[Tensor] = []
    samples: list[Tensor] = []
    given = conditions(model, data.train.labels() if model.schema else labels, n)
    for precision in ("fp32", "bf16"):
        place(model, precision=precision)
        if isinstance(model, Likelihood):
            nats.append(model.log_prob(x, conditions(model, labels, len(x)), seeds=0).nats.double().cpu())
        samples.append(unfold(model.sample(n, given, seeds=0, **options), model, data.spec))
    other = unfold(model.sample(n, given, seeds=1, **options), model, data.spec)
    slow, fast, again = (frechet_distance(look[0].features(s, "samples"), look[1]).value for s in (*samples, other))
    bits, error = None, 0.0
    if nats:
        first, second = (-v / (x[0].numel() * math.log(2)) for v in nats)
        bits, error = (float(first.mean()), float(second.mean())), float((second - first).std() / math.sqrt(len(x)))
    return Moved(name, bits, error, (slow, fast), again, float((samples[0] != samples[1]).float().mean()))


def value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", nargs="*", default=[], help="folders that fit wrote, of this data")
        parser.add_argument("--data", default="digits", help="what the models were trained on, before any folding")
        parser.add_argument("--n", type=int, default=5000, help="samples")
        parser.add_argument("--images", type=int, default=1000, help="test pictures whose bits are counted")
        parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of sampling")

    asked = arguments(__doc__, more=more)
    if not asked.model:
        print("  skipped: it compares trained models; give their folders with --model")
        return
    data = ns.data.open(asked.data)
    look = seen(data, Path(asked.data).stem)
    options = {name: value_of(text) for name, text in (pair.split("=", 1) for pair in asked.set)}
    for folder in asked.model:
        compare(folder, ns.load(folder), data, look, asked.n, asked.images, options).show(asked.json)


if __name__ == "__main__":
    main()
