"""The six families on digits: how good the samples are for training a classifier, and how many bits a picture costs.

    python recipes/digits.py quality --budget 45s --seeds 5          CAS, memorization, FD; one line a run
    python recipes/digits.py bits --budget 5m --seeds 3 --families autoregressive vae diffusion flow
    python recipes/digits.py seeds --budget 45s                      sample(64) against 64 x sample(1), in fp32
    python recipes/digits.py picture --budget 45s                    docs/digits.png

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
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy import stats

import nonesuch as ns
from nonesuch.catalog import FAMILIES
from nonesuch.core.artifact import write_atomic
from nonesuch.core.model import Energy, Likelihood, Model
from nonesuch.core.seeds import Seeds
from nonesuch.data import Data
from nonesuch.data.pictures import png_bytes, sheet
from nonesuch.evaluate import (
    fit_extractor,
    frechet_distance,
    labelled_sampler,
    memorization,
    pixel_features,
    synthetic_sets,
    utility,
)
from nonesuch.models.vae.vdvae import VDVAE
from nonesuch.train.device import place


def trained(family: str, data: Data, seed: int, args: argparse.Namespace) -> tuple[Model, dict[str, Any]]:
    """The family's model of this seed and budget, trained now or before."""
    folder = Path(args.out) / f"{family}-{args.budget}-{seed}{'' if args.precision == 'auto' else f'-{args.precision}'}"
    done = folder / "done.json"
    if done.is_file():
        return ns.load(folder), json.loads(done.read_text())
    begin = time.perf_counter()
    model = ns.fit(family, data, given="label", budget=args.budget, seed=seed, out=folder, precision=args.precision)
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
    if isinstance(model, VDVAE):
        for name, method, samples in (("elbo", "elbo", 1), ("iwae100", "iwae", 100)):
            out[name] = ns.bits_per_dim(model, data.test, "label", method=method, samples=samples, seeds=seed).value
        c = model._condition(data.test.given, len(data.test))
        noise = Seeds.of(seed, len(data.test)).normal("noise", model.top.total)
        with torch.no_grad():
            kl = model._descend(noise, c, model._ascend(data.test.x, c)).kl().sum(1).mean()
        out["kl"] = float(kl) / data.spec.numel / math.log(2)
    return out


def seeds(model: Model, data: Data, seed: int, _: Any) -> dict[str, Any]:
    """Images of sample(64) that differ from sample(1) of the same seed by more than 1e-4, in fp32.

    Of 1,024 images; of an energy's chains, which are chaotic, the first 64 after 20 steps.
    """
    place(model, precision="fp32")
    labels = [str(i % 10) for i in range(64)]
    rounds, cut = (1, 20) if isinstance(model, Energy) else (16, None)

    def drawn(n: int, given: Any, keys: Seeds) -> torch.Tensor:
        return list(islice(model.sample_steps(n, {"label": given}, seeds=keys), cut))[-1].x

    gaps = []
    for k in range(rounds):
        together = drawn(64, labels, Seeds.of(seed, 64, start=64 * k))
        alone = [drawn(1, labels[i], Seeds.of(seed, 1, start=64 * k + i)) for i in range(64)]
        gaps += (torch.cat(alone) - together).abs().flatten(1).amax(1).tolist()
    return {"images": len(gaps), "differ": sum(g > 1e-4 for g in gaps), "largest": max(gaps)}


def picture(model: Model, data: Data, seed: int, _: Any) -> dict[str, Any]:
    """Two pictures of each class, kept beside the others for the sheet."""
    labels = [str(c) for c in range(10) for _ in range(2)]
    real = torch.cat([(data.train.labels() == c).nonzero()[:2, 0] for c in range(10)])
    PICTURES.setdefault("real", data.train.x[real])
    PICTURES[type(model).__name__] = model.sample(20, {"label": labels}, seeds=seed)
    write_atomic(Path("docs/digits.png"), png_bytes(sheet(torch.stack(list(PICTURES.values())), data.spec), 5))
    return {"rows": len(PICTURES)}


PICTURES: dict[str, torch.Tensor] = {}
JOBS: dict[str, Callable[..., dict[str, Any]]] = {"quality": quality, "bits": bits, "seeds": seeds, "picture": picture}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--budget", default="45s")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", default="auto", help="of training; fp32 asks whether bf16 trains as well")
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
