"""Synthetic images for whoever has few real ones: a classifier on real, synthetic and both, at 1, 5, 25 and 100 % of the data.

    python recipes/utility.py --data ../shared/data/fashion_mnist.npz --budget 45m
    python recipes/utility.py --data digits --budget 3m --preset digits --samples 1400

--budget is the training time of all generators together: three at 1, 5 and 25 %, each on images and a seed of its own, and one at
100 %, which is also the released one; the shares of the time are PLAN's. Everything is kept under --out, a file a generator's
samples and a line a classifier, and the same command goes on where it stopped. At the end stand two tables (own and released),
printed and written to table.json and table.md. The generator of 100 % draws --samples for each trial, the others a quarter of it:
a sample costs as much as two training images, and classifiers of few real images gain little from more.
Hardware, time and the numbers reached stand in docs/datasets.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import nonesuch as ns
from nonesuch.core.artifact import load_tensors, save_tensors, write_atomic
from nonesuch.core.seeds import Seeds
from nonesuch.data import Data
from nonesuch.evaluate.shares import SHARES, Trial, class_table, part, table, text_table, trial_of
from nonesuch.train.recipe import Budget

TRIALS = 3
PLAN = {0.01: (3, 1 / 45), 0.05: (3, 1.5 / 45), 0.25: (3, 3.5 / 45), 1.0: (1, 27 / 45)}  # generators, and each one's time
SMALL = {"fold": 2, "base": 64, "mults": (1, 2), "blocks": 1, "attention": (False, True), "width": 128, "dropout": 0.0,
         "log_normal": 1.0, "log_normal_mean": 0.0, "steps": 10, "sampler": "unipc_2"}  # fmt: skip


def budget_of(text: str, share: float) -> str:
    """A generator's part of the budget of all."""
    length, part_ = Budget.parse(text), PLAN[share][1]
    return f"{length.seconds * part_:.1f}s" if length.seconds else str(max(1, round(length.images * part_)))


def of_share(data: Data, share: float, trial: int) -> Data:
    """The data of whoever has that share of the training images."""
    index = part(data.train.labels(), share, trial)
    mark = data.fingerprint if share == 1 else f"{data.fingerprint}-{share}-{trial}"
    return replace(data, name=f"{data.name} {share:.0%}", train=data.train[index], fingerprint=mark, own_validation=None)


def samples(args: argparse.Namespace, data: Data, share: float, trial: int) -> tuple[Tensor, Tensor]:
    """The synthetic set of a generator, trained and drawn now or before: images and as many labels of each class as real ones."""
    own = trial if PLAN[share][0] > 1 else 0
    folder, file = args.out / f"generator-{share}-{own}", args.out / f"samples-{share}-{trial}.safetensors"
    if file.is_file():
        kept, _ = load_tensors(file)
        return data.spec.from_levels(kept["levels"]), kept["labels"]
    begin = time.perf_counter()
    mine = of_share(data, share, own)
    config = None if args.preset or args.model != "diffusion" else SMALL
    model = ns.fit(
        args.model, mine, given=mine.schema.category()[0], budget=budget_of(args.budget, share), seed=own, preset=args.preset,
        config=config, recipe=None if config is None else {"batch": 32, "lr": 1e-3, "hide": 0.0}, out=folder, progress=True,
    )  # fmt: skip
    fitted = time.perf_counter()
    name, column = mine.schema.category()
    n = args.samples if share == 1 else args.samples // 4
    labels = torch.arange(n) % len(column.names)
    keys, found = Seeds.of(1000 + trial, n), []
    for i in range(0, n, 1000):
        some = labels[i : i + 1000]
        found.append(
            data.spec.to_levels(
                model.sample(len(some), {name: [column.names[c] for c in some.tolist()]}, seeds=keys[i : i + 1000])
            )
        )
        say({"samples": min(n, i + 1000), "of": n, "share": share, "trial": trial})
    levels = torch.cat(found).to(data.train.levels.dtype)
    about = {
        "fit_s": round(fitted - begin, 1),
        "sample_s": round(time.perf_counter() - fitted, 1),
        "images": int(model.images_seen),
    }
    save_tensors(file, {"levels": levels, "labels": labels}, about)
    say({"share": share, "trial": trial, **about})
    return data.spec.from_levels(levels), labels


def judged(args: argparse.Namespace, kept: dict[tuple, Trial], key: tuple, sets: list, data: Data) -> None:
    """One classifier, unless its line is there."""
    if key in kept:
        return
    what, share, trial, generator = key
    begin, classes = time.perf_counter(), len(data.schema.category()[1].names)
    found = trial_of(what, share, trial, sets, (data.test.x, data.test.labels()), classes, generator)
    kept[key] = found
    lines = "".join(json.dumps(t.to_json()) + "\n" for t in kept.values())
    write_atomic(args.out / "trials.jsonl", lines.encode())
    say({"what": what, "share": share, "trial": trial, "generator": generator, "accuracy": round(found.accuracy, 4),
         "seconds": round(time.perf_counter() - begin, 1)})  # fmt: skip


def say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/fashion_mnist.npz")
    parser.add_argument("--model", default="diffusion")
    parser.add_argument("--preset", default=None)
    parser.add_argument("--budget", default="45m")
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--out", type=Path, default=Path("runs/utility"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data, file = ns.data.open(args.data), args.out / "trials.jsonl"
    found = [Trial.from_json(json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []
    kept = {(t.what, t.share, t.trial, t.generator): t for t in found}
    for share in SHARES:
        for trial in range(TRIALS):
            mine = of_share(data, share, trial).train
            real, made = (mine.x, mine.labels()), samples(args, data, share, trial)
            judged(args, kept, ("real", share, trial, "none"), [real], data)
            judged(args, kept, ("synthetic", share, trial, "own"), [made], data)
            judged(args, kept, ("both", share, trial, "own"), [real, made], data)
    for share in SHARES[:-1]:
        for trial in range(TRIALS):
            mine, released = of_share(data, share, trial).train, samples(args, data, 1.0, trial)
            judged(args, kept, ("both", share, trial, "released"), [(mine.x, mine.labels()), released], data)
    whole = [replace(t, generator="released") for t in kept.values() if t.what == "both" and t.share == 1]
    rows = table([*kept.values(), *whole])
    plain = [{k: v.to_json() if isinstance(v, ns.Score) else v for k, v in row.items()} for row in rows]
    write_atomic(args.out / "table.json", json.dumps(plain, indent=1).encode())
    text = f"{text_table(rows)}\n\n{class_table(rows, data.schema.category()[1].names)}\n"
    write_atomic(args.out / "table.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
