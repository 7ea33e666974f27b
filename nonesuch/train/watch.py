"""Is it training? A `Watch` looks at a run now and then, and says in plain words what the looks so far mean.

At each look, under keys that never change, so that two looks differ by the weights alone: the objectives' terms on images held
out of training and on equally many training images, under averaged and raw weights, as if at the end of the run (schedules within
a loss do not make it rise); bits per dimension where there is a likelihood; and a few samples of the averaged model against real
images (`likeness.py`). `verdicts.py` reads the history. Nothing of the run is moved: no weight, buffer or generator, bit for bit.

What it costs is bounded by measurement: a look is due `LOOKS` times a run, and only once all looks together, this one included,
stay within `SHARE` of the time trained (the last one: `LAST`); sampling is left out if only few such looks would fit. So a short
or slowly sampling run is looked at less often. Only numbers to look at depend on this, never the run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.given import Category, Given
from nonesuch.core.model import Energy, Likelihood
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds, permutation
from nonesuch.data.dataset import Data, Images
from nonesuch.train.likeness import Classes, Eye, frechet, variety
from nonesuch.train.run import Run
from nonesuch.train.stopping import whole_rounds
from nonesuch.train.verdicts import FEW, Kind, Look, best, count, verdicts

__all__ = ["LAST", "LOOKS", "SHARE", "Look", "Watch", "held_share", "hold_out", "kept_looks"]

LOOKS, SHARE, LAST = 20, 0.03, 0.1
_TERMS, _BITS, _SAMPLES, _LEAST, _KNOWN = 512, 64, 256, 8, 2000  # for the terms, bits, drawn (at least), to fix features on
_VALUES = 1 << 20  # values of samples held at a time
_HELD_SHARE, _HELD_FROM, _HELD_MOST = 0.02, 2000, 1000  # held out unless the recipe says
_FORWARD = 1 / 3  # the cost of a pass without gradients, in training steps an image
_KEYS = 1 << 40  # apart from every seed of training
FAILED = "not everything could be measured:"


def held_share(data: Data, share: float | None = None) -> float:
    """The share of the training split that `hold_out` holds out."""
    n = len(data.train)
    if share is None:
        own = data.own_validation is not None and len(data.own_validation) > 0
        return 0.0 if own or n < _HELD_FROM else min(_HELD_SHARE, _HELD_MOST / n)
    if not 0 <= share < 1:
        raise ValueError(f"the share of images held out to watch must be at least 0 and below 1, not {share}.")
    return share


def hold_out(data: Data, share: float | None = None) -> tuple[Images, Images | None]:
    """The images to train on, and those to watch with: a share of the training split by content hash, never of the test split.

    share: 0 holds nothing out; None is 2 % (at most 1,000) of a training split of at least 2,000 images, and nothing of a smaller
    one, whose every image counts. A source that came with its own validation split is watched with that, and trained on whole.
    Raises ValueError if nothing would be left to train on.
    """
    n, share = len(data.train), held_share(data, share)
    if not share and data.own_validation is not None and len(data.own_validation):
        return data.train, data.own_validation
    if round(share * n) < 1:
        return data.train, None
    split = replace(data, own_validation=None).validation(share)
    if not len(split.train):
        raise ValueError(f"holding out {share:g} of {n} images leaves none to train on; hold out less.")
    return replace(split.train, name=data.train.name), split.test


def kept_looks(folder: Path | None, until: int) -> list[Look]:
    """The looks that metrics.jsonl has of a run that stands at `until` images; what was lost with later steps is left out."""
    file = folder / "metrics.jsonl" if folder else None
    looks: dict[int, Look] = {}
    for line in file.read_text(errors="replace").splitlines() if file and file.is_file() else ():
        try:
            look = Look.from_json(json.loads(line)["look"])
        except (ValueError, KeyError, TypeError):  # another event, or a line cut by a kill
            continue
        if look.images <= until:
            looks[look.images] = look
    return [looks[i] for i in sorted(looks)]


@dataclass
class Watch:
    """Looks at one run. `due` asks whether it is time, `look` looks, `better` says whether the last look was the best so far.

    held_out, trained: images to take the terms on; samples: how many are drawn; eye, reference: the features, and the real images
    that samples are held against, under the same conditions; `history` grows by each look. spent_s: seconds of all looks;
    terms_s, sampling_s: of the two halves of one, as measured last.
    """

    kind: Kind
    held_out: Images | None
    trained: Images
    samples: int = 0
    eye: Eye | None = None
    reference: Images | None = None
    floor: float = math.nan
    classes: tuple[str, Classes] | None = None
    history: list[Look] = field(default_factory=list)
    first: int = 0
    spent_s: float = 0.0
    terms_s: float = 0.0
    sampling_s: float = 0.0
    allowed_s: float = math.inf
    shown: Tensor | None = None

    @classmethod
    def of(cls, run: Run, held_out: Images | None = None, history: Sequence[Look] = ()) -> Watch:
        """Fix what a run is looked at with; held_out: images it does not train on; history: looks before it was taken up."""
        objectives = run.objectives
        kind: Kind = "loss" if len(objectives) == 1 and not isinstance(run.model, Energy) else "distance"
        order = permutation(run.recipe.seed, "watch", len(run.data))
        held_out = held_out[:_TERMS] if held_out is not None and len(held_out) else None
        trained = run.data[order[: len(held_out) if held_out is not None else _TERMS]]
        n = min(_SAMPLES, max(16, 4 * _VALUES // max(1, run.model.spec.numel)), len(run.data.rows(run.data.spec.size)) // 2)
        return cls(kind, held_out, trained, n if n >= _LEAST else 0, history=list(history), first=run.images)

    def _fix_likeness(self, run: Run) -> None:
        """At the first look: features from training images, real ones to hold samples against, and what others of them reach."""
        size = run.data.spec.size  # of several sizes, samples are drawn and seen at the usual one
        rows, held_out = run.data.rows(size), self.held_out.of_size(size) if self.held_out is not None else None
        n, order = self.samples, rows[permutation(run.recipe.seed, "watch", len(rows))]
        known = run.data[order[: min(_KNOWN, max(2 * n, _KNOWN * 1024 // max(1024, run.model.spec.numel)))]].of_size(size)
        eye = Eye.of(known.x, run.model.spec)
        features = eye.see(known.x)
        apart = held_out is not None and len(held_out) >= 64
        real = held_out[:n] if apart and held_out is not None else known[:n]
        others = features[-len(real) :] if apart else features[n : n + len(real)]
        self.eye, self.reference, self.floor = eye, real, frechet(others, eye.see(real.x))
        columns = [(k, c.names) for k, c in run.model.schema.columns.items() if isinstance(c, Category)]
        if columns and int((known.labels(columns[0][0]) >= 0).sum()) > len(columns[0][1]):
            name, names = columns[0]
            self.classes = name, Classes.of(features, known.labels(name), names)

    # -- when

    def due(self, images: int, total: int, seconds: float) -> bool:
        """Whether to look now: at `images` of `total`, after `seconds` of this process's training, looks included."""
        seen, last = images - self.first, self.history[-1].images if self.history else 0
        if seen <= 0 or images <= last:
            return False
        ended = images >= total
        if not ended and images * LOOKS // total <= last * LOOKS // total:
            return False
        left = (LAST if ended else SHARE) * seconds - self.spent_s
        affordable = (LAST if ended else SHARE / FEW) * seconds * (total - self.first) / seen  # or there would be too few looks
        self.allowed_s = max(left, affordable) if self.kind == "distance" else affordable
        if not self.terms_s:  # a guess, until it is measured; sampling for the first time is broken off if it is too slow
            return (4 * len(self.trained) + _BITS) * _FORWARD * seconds / seen <= left
        return self.terms_s + (self.sampling_s if self.sampling_s <= self.allowed_s else 0.0) <= left

    # -- looking

    def look(self, run: Run) -> Look:
        """Measure the run as it stands, add the look to the history and return it; Ctrl-C waits for its end."""
        start, values, failed = time.perf_counter(), dict[str, float](), tuple[str, ...]()
        with whole_rounds(), _untouched(run):
            try:
                values |= self._terms(run, "_raw")
                with run.averaged():
                    values |= self._terms(run, "")
                    values |= self._bits(run)
                    self.terms_s = time.perf_counter() - start
                    values |= self._samples(run)
            except (ValueError, RuntimeError) as error:  # such as too little memory: no reason to end the training
                failed = (f"{FAILED} {str(error).splitlines()[0]}",)
        look = Look(run.images, values, self.kind)
        look = replace(look, verdicts=(*verdicts([*self.history, look]), *failed))
        self.history.append(look)
        self.spent_s += time.perf_counter() - start
        return look

    @property
    def better(self) -> bool:
        """Whether the last look has the best score of all; a loss on training images alone tells no best."""
        return bool(self.history) and self.history[-1].name != "training" and best(self.history) is self.history[-1]

    def about(self) -> dict[str, Any]:
        """What the model card says of it."""
        if not self.history:
            return {}
        said = {"verdict": self.history[-1].text}
        if self.held_out is None:
            return said | {"overfitting": "not looked for, as no images were held out of training (recipe.held_out)"}
        top = best(self.history)
        said |= {"held out to watch": f"{len(self.held_out):,} training images"}
        return said | ({"best look": f"{top.name} {top.score:.4g} at {count(top.images)} images"} if top else {})

    def _terms(self, run: Run, weights: str) -> dict[str, float]:
        """The sums of the terms, and under averaged weights each term, on held-out and on training images."""
        out: dict[str, float] = {}
        sides = {"training": self.trained} | ({"validation": self.held_out} if self.held_out is not None else {})
        for side, images in sides.items():
            found = _terms_on(run, images)
            out[f"{side}{weights}"] = sum(v for (_, averaged), v in found.items() if averaged)
            if weights:
                continue
            out |= {f"{side}/{name}": v for (name, _), v in found.items()}
            if critic := [v for (_, averaged), v in found.items() if not averaged]:
                out[f"{side}_critic"] = sum(critic)
        return out

    def _bits(self, run: Run) -> dict[str, float]:
        """Bits per dimension of a few images."""
        model, images = run.model, (self.held_out if self.held_out is not None else self.trained)[:_BITS]
        if not isinstance(model, Likelihood) or model.spec.levels is None:
            return {}
        bits, keys = 0.0, _keys(run, len(images))
        for part in images.by_size():
            nats = model.log_prob(part.x.to(model.device), part.given.to(model.device), seeds=keys[: len(part)]).nats
            bits += float(-nats.double().mean()) / (part.spec.numel * math.log(2)) * (len(part) / len(images))
        return {"bits": bits}

    def _samples(self, run: Run) -> dict[str, float]:
        """How like real images a few samples are."""
        self.shown = None
        if not self.samples or self.sampling_s > self.allowed_s:
            return {}
        if self.eye is None:
            self._fix_likeness(run)
        assert self.eye is not None
        assert self.reference is not None
        drawn = self._draw(run, self.reference.given)
        if drawn is None:
            return {}
        if not drawn.isfinite().all():
            return {"distance": math.nan, "distance_floor": self.floor}
        self.shown = drawn[:16]
        mine, real = self.eye.see(drawn), self.eye.see(self.reference.x)
        out = {"distance": frechet(mine, real), "distance_floor": self.floor}
        out["variety"] = variety(mine) / max(variety(real), 1e-12)
        if self.classes:
            labels = self.reference.labels(self.classes[0])
            out |= self.classes[1].balance(mine, labels, real, labels)
        return out

    def _draw(self, run: Run, given: Given) -> Tensor | None:
        """Samples of the averaged model under these conditions; None if that would take more than the time there is."""
        start, n, pieces = time.perf_counter(), len(given), []
        chunk, seeds = max(16, _VALUES // max(1, run.model.spec.numel * 8)), _keys(run, n)
        for i in range(0, n, chunk):
            part = slice(i, min(n, i + chunk))
            for step in run.model.sample_steps(part.stop - i, given[part], seeds=seeds[part]):
                done = (i + (part.stop - i) * min(1.0, max(1, step.step) / max(1, step.total))) / n
                self.sampling_s = (time.perf_counter() - start) / done
                if self.sampling_s > 1.5 * self.allowed_s and step.step < step.total:
                    return None
            pieces.append(step.x.cpu())
        return torch.cat(pieces)


def _keys(run: Run, n: int) -> Seeds:
    return Seeds.of(run.recipe.seed + _KEYS, n)


def _terms_on(run: Run, images: Images) -> dict[tuple[str, bool], float]:
    """Every loss term's mean over the images, and whether its player is averaged; the same keys for any images and any time."""
    keys, device, total, seen = _keys(run, len(images)), run.model.device, max(1, run.recipe.images), 0
    sums: dict[tuple[str, bool], float] = {}
    for one in images.by_size():
        size = min(run.recipe.batch, len(one))
        end = -(-total // (size * 5040)) * size * 5040  # at the end, and at a round when every lazy term is due
        for i in range(0, len(one) - size + 1, size):
            part = slice(i, i + size)
            batch = Batch(one.inside(part).to(device), one.given[part].to(device), keys[seen : seen + size], end, total)
            seen += size
            for objective in run.objectives:
                for name, value in objective.terms(batch).loss.items():
                    key = (name, objective.average)
                    sums[key] = sums.get(key, 0.0) + float(value.detach()) * size
    return {key: value / seen for key, value in sums.items()}


@contextmanager
def _untouched(run: Run) -> Iterator[None]:
    """Buffers come back as they were; parameters ask for no gradient meanwhile, but inputs may (penalties of slopes need it)."""
    model = run.model
    asked = [p for p in model.parameters() if p.requires_grad]
    kept = [(m, name, b, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    for p in asked:
        p.requires_grad_(False)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for p in asked:
            p.requires_grad_(True)
        with torch.no_grad():
            for module, name, buffer, before in kept:
                buffer.copy_(before)
                setattr(module, name, buffer)
