"""The six families on digits: how good the samples are for training a classifier, and how many bits a picture costs.

    python recipes/digits.py quality --budget 45s --seeds 5          CAS, memorization, FD; one line a run
    python recipes/digits.py bits --budget 5m --seeds 3 --families autoregressive vae diffusion flow
    python recipes/digits.py seeds --budget 45s                      sample(64) against 64 x sample(1), in fp32

Every run is trained on the 1,400 training pictures given the label, with the preset and recipe of the catalogue, and scored
once on the 397 test pictures; nothing is chosen here. Runs are kept under --out, so a repeated command only scores.
Hardware, time and the numbers reached stand in docs/digits.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

import nonesuch as ns
from nonesuch.catalog import FAMILIES
from nonesuch.core.model import Likelihood, Model
from nonesuch.core.seeds import Seeds
from nonesuch.data import Data
from nonesuch.evaluate import (
    fit_extractor,
    frechet_distance,
    labelled_sampler,
    memorization,
    pixel_features,
    synthetic_sets,
    utility,
)
from nonesuch.train.device import place


def trained(family: str, data: Data, seed: int, args: argparse.Namespace) -> tuple[Model, dict[str, Any]]:
    """The family's model of this seed and budget, trained now or before."""
    folder = Path(args.out) / f"{family}-{args.budget}-{seed}"
    done = folder / "done.json"
    if done.is_file():
        return ns.load(folder), json.loads(done.read_text())
    begin = time.perf_counter()
    model = ns.fit(family, data, given="label", budget=args.budget, seed=seed, out=folder)
    about = {"family": family, "seed": seed, "train_s": round(time.perf_counter() - begin, 1), "images": int(model.images_seen)}
    done.write_text(json.dumps(about))
    return model, about


def quality(model: Model, data: Data, seed: int, extractor: Any) -> dict[str, Any]:
    """CAS (one sample set of this seed), nearest-neighbour p-value in pixels, and FD on the test split."""
    y, yt = data.train.labels(), data.test.labels()
    begin = time.perf_counter()
    sets = synthetic_sets(labelled_sampler(model), y, seeds=[seed])
    seconds = time.perf_counter() - begin
    x = sets[0][0]
    cas = utility(sets, (data.train.x, y), (data.test.x, yt))["CAS"]
    pixels = [pixel_features(v, name) for v, name in ((x, "samples"), (data.train.x, "train"), (data.test.x, "test"))]
    found = memorization(*pixels, labels=y, train_labels=y, held_out_labels=yt)
    distance = frechet_distance(extractor.features(x, "samples"), extractor.features(data.test.x, "test"))
    scores = {name: float(s.value) for name, s in found.scores.items()}
    return {"cas": float(cas.value), "fd": float(distance.value), "sample_s": round(seconds, 2), **scores}


def bits(model: Model, data: Data, seed: int, _: Any) -> dict[str, Any]:
    """Bits per dimension of the test split given the label; for a VAE also the bound of one draw and its KL."""
    if not isinstance(model, Likelihood):
        return {}
    found = ns.bits_per_dim(model, data.test, "label", seeds=seed)
    out = {"bits": found.value, "kind": found.kind, "train_bits": ns.bits_per_dim(model, data.train, "label", seeds=seed).value}
    if type(model).__name__ == "VDVAE":
        for name, method, samples in (("elbo", "elbo", 1), ("iwae32", "iwae", 32)):
            out[name] = ns.bits_per_dim(model, data.test, "label", method=method, samples=samples, seeds=seed).value
    return out


def seeds(model: Model, data: Data, seed: int, _: Any) -> dict[str, Any]:
    """Images of sample(64) that differ from sample(1) of the same seed by more than 1e-4, in fp32, over 1,024 images."""
    place(model, precision="fp32")
    labels = [str(i % 10) for i in range(64)]
    differ, worst = 0, 0.0
    for k in range(16):
        together = model.sample(64, {"label": labels}, seeds=Seeds.of(seed, 64, start=64 * k))
        for i in range(64):
            alone = model.sample(1, {"label": labels[i]}, seeds=Seeds.of(seed, 1, start=64 * k + i))[0]
            gap = float((alone - together[i]).abs().max())
            differ, worst = differ + (gap > 1e-4), max(worst, gap)
    return {"images": 1024, "differ": differ, "largest": worst}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"quality": quality, "bits": bits, "seeds": seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--budget", default="45s")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", default="runs/digits")
    args = parser.parse_args()
    data = ns.data.open("digits")
    extractor = fit_extractor(data.train.x, data.train.labels(), name="digits") if args.job == "quality" else None
    for family in args.families:
        rows = []
        for seed in range(args.seeds):
            model, about = trained(family, data, seed, args)
            rows.append(JOBS[args.job](model, data, seed, extractor))
            print(json.dumps({**about, **rows[-1]}), flush=True)
        for key in [k for k, v in rows[0].items() if isinstance(v, float)]:
            values = [r[key] for r in rows]
            half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            print(f"{family:15} {key:12} {mean(values):.4f} +- {half:.4f}  (n = {len(values)})", flush=True)


if __name__ == "__main__":
    main()
