"""Does what a model makes give its training images away? Copies among its samples, and whether membership can be told.

Three questions, each held against real images that were never trained on: are samples copies (`_copies`)? Are training images
there more than once, or on both sides (`data.duplicates`), for what is repeated is what is remembered? Can one tell from the
model's own scores which images it was trained on (`_membership`)? The verdict is one of `VERDICTS`.

It finds copies and leaks of the kinds it looks for. It is no proof of privacy: that is what differential privacy is for.

References:
| Extracting Training Data from Diffusion Models (Carlini et al., 2023) arXiv:2301.13188
| Diffusion Art or Digital Forgery? (Somepalli et al., 2023) arXiv:2212.03860
| Membership Inference Attacks From First Principles (Carlini et al., 2022) arXiv:2112.03570
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonesuch.applications import Event, finish
from nonesuch.applications._copies import Detector, Found
from nonesuch.applications._membership import Membership, inferred
from nonesuch.core import artifact
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, content_hashes
from nonesuch.data.duplicates import same
from nonesuch.data.open import open as open_data
from nonesuch.evaluate.memorization import order_statistic_p
from nonesuch.evaluate.score import Score, bootstrap_mean, keyed
from nonesuch.train.watch import hold_out

needs: tuple[type, ...] = ()

SIGNIFICANT = 0.01
MOST_FLAGGED = 0.015  # share of samples that a model which remembers nothing may have flagged
TOLD_AUC, TOLD_TPR = 0.75, 0.1  # where the lower end of an interval is above either, membership can be told
SLIGHT_AUC = 0.55
PAIRS = 24
VERDICTS = {
    "do not release": "training images can be recovered or recognised",
    "look closer": "there are traces of training images; look at the pairs, and train for less long or on more images",
    "no sign found": "no copies beyond what real images show by chance, and membership cannot be told",
}
LIMITS = (
    "This finds copies and leaks of the kinds it looks for; it does not prove privacy. A copy that is cropped, recoloured or "
    "drawn anew, a rare image that one sample in a million repeats, or a stronger attack may be missed. A guarantee needs "
    "training with differential privacy."
)


@dataclass(frozen=True)
class Options:
    """n: samples to draw; looked_at: held-out images to compare them with, half for the thresholds and half to check them;
    members: training images, and held-out ones, of the membership attacks; seed: of everything."""

    n: int = 1000
    looked_at: int = 4000
    members: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.looked_at < 20 or self.members < 10:
            raise ValueError("an audit needs n >= 1 samples, at least 20 held-out images and at least 10 members.")


@dataclass
class Audit:
    """What was found. verdict: a key of `VERDICTS`; reasons: its sentences; scores by name; membership: every attack.

    thresholds: of Eq. 2 of `_copies` in pixels and features; duplicates: counts; pairs: (k, 3, C, *size), flagged samples (the
    surest first) beside their training image and their nearest held-out image; usual: the same of the first that were not
    flagged; marks: for each pair what it was flagged by and its statistic. `released` says whether the verdict allows it.
    """

    verdict: str
    reasons: list[str]
    scores: dict[str, Score]
    membership: list[Membership]
    about: dict[str, Any]
    thresholds: dict[str, float | None]
    duplicates: dict[str, Any]
    pairs: Tensor
    marks: list[dict[str, Any]]
    usual: Tensor
    spec: ImageSpec
    flagged: list[int] = field(default_factory=list)

    @property
    def released(self) -> bool:
        return self.verdict != "do not release"

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        attacks = [
            {"attack": m.attack, "calibrated": m.calibrated, "auc": m.auc.to_json(), "tpr": m.tpr.to_json()}
            for m in self.membership
        ]
        return {
            "format": 1, "verdict": self.verdict, "release": self.released, "reasons": self.reasons, "limits": LIMITS,
            **self.about, "scores": {k: s.to_json() for k, s in self.scores.items()}, "thresholds": self.thresholds,
            "flagged": self.flagged, "pairs": self.marks, "duplicates": self.duplicates, "membership": attacks,
            "spec": asdict(self.spec),
        }  # fmt: skip

    def text(self) -> str:
        """The findings in a few lines."""
        lines = [f"verdict: {self.verdict}: {VERDICTS[self.verdict]}", *(f"  {r}" for r in self.reasons)]
        lines += [str(s) for s in self.scores.values()]
        lines += [str(s) for m in self.membership for s in (m.auc, m.tpr)]
        d = self.duplicates
        lines.append(
            f"training images that are there twice: {d['train']} of {d['train_n']}; held-out images equal to one: {d['both']}"
        )
        return "\n".join([*lines, LIMITS])

    def save(self, path: str | Path = "audit.html") -> Path:
        """Write one HTML page with the numbers as JSON beside it, or the JSON alone for a name ending in .json."""
        from nonesuch.applications._audit_page import render

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix != ".json":
                artifact.write_atomic(path, render(self).encode())
            numbers = json.dumps(self.to_json(), indent=1, allow_nan=False).encode()
            artifact.write_atomic(path.with_suffix(".json"), numbers)
        except OSError as error:
            raise ValueError(f"the audit cannot be written to {path}: {error.strerror or error}; choose another place.") from None
        return path


def audit(
    model: Model | None, data: Any, *, n: int = 1000, seeds: int = 0, samples: Any = None, looked_at: int = 4000,
    members: int = 1000, progress: Callable[[Event], object] | None = None,
) -> Audit:  # fmt: skip
    """Look for copies of training images among samples, for duplicates, and for leaks of membership.

    model: that of the samples, or None where only samples are at hand. data: that it was trained on, with the split it was
    trained with, or what `nonesuch.data.open` takes. samples: a folder or array file of them, or (n, C, *size) in [-1, 1]; drawn
    from the model if not given, n of them. progress sees every event.
    Raises ValueError where model, data and samples do not go together, or there are fewer than 20 held-out images.
    """
    options = Options(n, looked_at, members, seeds)
    return finish(run(model, data, options, samples), progress)  # type: ignore[no-any-return]


def run(model: Model | None, data: Any, options: Options, samples: Any = None) -> Iterator[Event]:
    """The events of an audit; the last one's result is the `Audit`."""
    start, opened = time.perf_counter(), open_data(data)
    require_alike(model, opened)
    if model is None and samples is None:
        raise ValueError("an audit without a model needs samples; give the folder they are in.")
    told: list[str] = []
    given = read_samples(samples, opened.spec) if samples is not None else None
    yield Event(0, 5, "drawing samples" if given is None else "reading samples")
    if given is None:
        assert model is not None
        given = yield from drawn(model, opened, options.n, options.seed)
    yield Event(1, 5, "training the feature network and comparing held-out images")
    detector = Detector(opened, looked_at=options.looked_at, seed=options.seed, tell=told.append)
    yield Event(2, 5, f"comparing {len(given):,} samples with {len(opened.train):,} training images")
    found = detector.judge(given)
    yield Event(3, 5, "looking for duplicates")
    duplicates = repeated(detector, opened, options)
    membership: list[Membership] = []
    trained = hold_out(opened)[0]
    for name, pair in inferred(model, trained, opened.test, given, n=options.members, seed=options.seed):
        membership += pair
        yield Event(4, 5, f"membership by {name}")
    result = concluded(detector, found, given, membership, duplicates)
    result.about |= {
        "model": artifact.model_name(type(model)) if model is not None else "none", "data": opened.name,
        "samples_given": samples is not None, "n": len(given), "train": len(opened.train), "held_out": len(opened.test),
        "seed": options.seed, "seconds": round(time.perf_counter() - start, 1), "note": detector.note,
    }  # fmt: skip
    yield Event(5, 5, "done", result=result)


def require_alike(model: Model | None, data: Data) -> None:
    """Raise ValueError if the model's pictures are not those of the data."""
    if model is None:
        return
    mine, theirs = ((s.shape, s.levels) for s in (model.spec, data.spec))
    if mine != theirs:
        raise ValueError(
            f"the model draws {mine[0]} with {mine[1]} levels, and {data.name} has {theirs[0]} with {theirs[1]}; "
            "give the data it was trained on."
        )


def read_samples(samples: Any, spec: ImageSpec) -> Tensor:
    """Samples as (n, C, *size) on the grid of the data: of a tensor as it is, of a folder or file all images of it."""
    if isinstance(samples, Tensor):
        return spec.snap(spec.check(samples.float().cpu(), "samples"))
    size = spec.size if Path(str(samples)).is_dir() else None
    found = samples if isinstance(samples, Data) else open_data(samples, size=size, axes=spec.axes if size else None)
    if found.spec.shape != spec.shape:
        raise ValueError(f"the samples are {found.spec.shape}, and the data's images {spec.shape}; give samples of its kind.")
    splits = [s for s in (found.train, found.test, found.own_validation) if s is not None]
    return spec.snap(torch.cat([s.x.float() for s in splits]))


def drawn(model: Model, data: Data, n: int, seed: int) -> Any:
    """n samples under the conditions of training images, a few at a time."""
    names = [c for c in model.schema.columns if c in data.schema.columns]
    rows = torch.from_numpy(keyed("audit", seed).permutation(len(data.train)))[torch.arange(n) % len(data.train)]
    told = model.schema.missing(n)
    if names:
        known = data.train[rows].select(names).recoded(model.schema.select(names)).given
        told = type(told)(n, {**told.columns, **known.columns})
    keys, parts = Seeds.of(seed, n), []
    for i in range(0, n, 250):
        part = slice(i, min(n, i + 250))
        parts.append(model.sample(len(told[part]), told[part] if model.schema else None, seeds=keys[part]).float().cpu())
        yield Event(0, 5, f"drawing samples, {part.stop} of {n}")
    return model.spec.snap(torch.cat(parts))


def repeated(detector: Detector, data: Data, options: Options) -> dict[str, Any]:
    """Training images that are there more than once; held-out ones that were trained on; the share of near duplicates."""
    hashes = content_hashes(data.train.levels)
    groups = same(hashes)
    known = set(hashes)
    both = sum(h in known for h in content_hashes(data.test.levels))
    some = keyed("duplicates", options.seed).permutation(len(data.train))[: options.members]
    found = detector.judge_training(torch.from_numpy(some))
    near, order = detector.flagged(found), np.argsort(found.pixels)[:8]
    return {
        "train_n": len(hashes), "train": sum(map(len, groups)), "groups": len(groups), "both": both, "test_n": len(data.test),
        "near": float(near.mean()), "near_n": len(near),
        "near_held_out": float(detector.flagged(detector.check).mean()),
        "nearest": [[int(some[i]), int(found.train[0, i])] for i in order],
    }  # fmt: skip


def concluded(
    detector: Detector, found: Found, samples: Tensor, membership: list[Membership], duplicates: dict[str, Any]
) -> Audit:
    """The verdict and its reasons."""
    flagged, sure = detector.flagged(found), detector.sure(found)
    usual = detector.flagged(detector.check)
    m = len(detector.calibration) + len(detector.check)
    p_sure = order_statistic_p(int(sure.sum()), len(found), 1, m)
    p_flagged = excess_p(int(flagged.sum()), len(found), int(usual.sum()), len(usual))
    p_exact = excess_p(int(found.exact.sum()), len(found), detector.leaked, m + detector.leaked)
    scores = {
        "flagged": share("flagged as copies", flagged, float(usual.mean()), len(usual)),
        "sure": share("nearer than any held-out image", sure, 1 / (m + 1), m),
        "exact": share("exact copies", found.exact, detector.leaked / (m + detector.leaked), m),
    }
    for key, p in (("flagged", p_flagged), ("sure", p_sure), ("exact", p_exact)):
        scores[f"{key}_p"] = Score(p, f"p({scores[key].name})", len(found), kind="one-sided")
    copies = (flagged.mean() > MOST_FLAGGED and p_flagged < SIGNIFICANT) or min(p_sure, p_exact) < SIGNIFICANT
    verdict, reasons = judged(copies, scores, membership, duplicates)
    order = np.argsort(found.pixels, kind="stable")
    shown, rest = [i for i in order if flagged[i]][:PAIRS], [i for i in range(len(found)) if not flagged[i]][:8]
    pixels, features = detector.by(found)
    space = np.where(features & ~pixels, 1, 0)
    return Audit(
        verdict, reasons, scores, membership, {}, dict(zip(("pixels", "features"), detector.thresholds, strict=True)), duplicates,
        triplets(detector, found, samples, shown, space), [marked(found, int(i), pixels, features) for i in shown],
        triplets(detector, found, samples, rest, space), detector.spec, np.flatnonzero(flagged).tolist(),
    )  # fmt: skip


def judged(
    copies: bool, scores: dict[str, Score], membership: list[Membership], duplicates: dict[str, Any]
) -> tuple[str, list[str]]:
    """The word, and the sentences that lead to it."""
    f, s, x = (scores[k] for k in ("flagged", "sure", "exact"))
    reasons = [
        f"{said(f.value)} of {f.n:,} samples are flagged as copies; of held-out images that took no part in setting the "
        f"threshold {said(f.floor)} are. {round(s.value * s.n)} are nearer to a training image than any of "
        f"{s.counts['held_out']:,} held-out images, {round(x.value * x.n)} are exact copies."
    ]
    told = [v for v in membership if tells(v)]
    slight = [v for v in membership if low(v.auc) > SLIGHT_AUC]
    for access in ("model", "samples alone"):
        if mine := [v for v in membership if (v.attack == "distance") == (access == "samples alone")]:
            best = max(mine, key=lambda v: low(v.auc))
            by = f"{best.attack}{', calibrated' if best.calibrated else ''}"
            reasons.append(
                f"Who has the {access} can tell training images from held-out ones with AUC {best.auc.value:.2f} (by the {by}; "
                f"0.5 is chance), and names {said(best.tpr.value)} of them at one false alarm in a hundred."
            )
    if duplicates["both"]:
        reasons.append(f"{duplicates['both']} held-out images are also training images; what was left out of training leaked in.")
    if copies or told:
        return "do not release", reasons
    return ("look closer" if slight or scores["flagged_p"].value < SIGNIFICANT else "no sign found"), reasons


def said(share: float | None) -> str:
    """A share in words: 0.3 %."""
    return "none" if share is None else f"{100 * share:.1f} %"


def tells(one: Membership) -> bool:
    """Whether this attack recognises training images for sure."""
    return low(one.auc) > TOLD_AUC or low(one.tpr) > TOLD_TPR


def low(score: Score) -> float:
    """The lower end of a score's interval."""
    return score.interval[0] if score.interval else score.value


def share(name: str, which: np.ndarray, floor: float, of: int) -> Score:
    values = which.astype(np.float64)
    return Score(
        values.mean(), name, len(values), counts={"held_out": of}, floor=floor, interval=bootstrap_mean(values, name),
        resampled="sampled images", better="lower",
    )  # fmt: skip


def excess_p(k: int, n: int, usual: int, m: int) -> float:
    """Fisher's exact one-sided p-value that k of n samples are a larger share than `usual` of m held-out images."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(k - 1, n + m, k + usual, n))


def triplets(detector: Detector, found: Found, samples: Tensor, which: list[int], space: np.ndarray) -> Tensor:
    """(k, 3, C, *size): sample, training image, held-out image, the nearest in the space that flagged it."""
    if not len(which):
        return torch.empty(0)

    def near(images: Images, index: np.ndarray) -> Tensor:
        return images.inside(torch.tensor([int(index[min(space[i], len(index) - 1), i]) for i in which])).float()

    sides = (near(detector.train, found.train), near(detector.held_out, found.held_out))
    return torch.stack([samples[which].float(), *sides], 1)


def marked(found: Found, i: int, pixels: np.ndarray, features: np.ndarray) -> dict[str, Any]:
    """Which sample it is, by what it was flagged, and what Eq. 1 left unexplained by either side."""
    by = "exact" if found.exact[i] else " and ".join(n for n, f in (("pixels", pixels[i]), ("features", features[i])) if f)
    rests = {"unexplained_by_train": round(float(found.rest_train[i]), 5), "by_held_out": round(float(found.rest_held_out[i]), 5)}
    return {"sample": i, "train": int(found.train[0, i]), "by": by, "ratio": round(float(found.pixels[i]), 4), **rests}


def blocker(model: Model | None, data: Any) -> Callable[[Tensor, Any], Tensor]:
    """A function (x, given) -> bool (n,) that says which pictures x (n, C, *size) an audit would flag as copies.

    Its thresholds are those of `audit` with seed 0: at most one real image in a hundred is stopped by mistake. given is not
    looked at. Raises ValueError where model and data do not go together.
    """
    opened = open_data(data)
    require_alike(model, opened)
    detector = Detector(opened)
    return lambda x, given=None: torch.from_numpy(detector.flagged(detector.judge(x)))
