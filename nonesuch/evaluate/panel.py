"""The same measurements for whatever is compared: a `Panel` fixes the real images, the extractor and the counts, once for all.

A `Subject` is anything that samples under the conditions of the training images, and perhaps says probabilities: a network or a
classical baseline. `Panel.measure` draws its images (one set a seed, with exactly the training images' conditions), and returns
scores by name with notes for what could not be measured. Nothing is chosen on the test images.

What depends on time: after the first set, further sampling seeds are drawn while they fit an allowance of seconds; a bound is
tightened with `DRAWS` draws an image, and Bayes' rule applied to as many test images as fit theirs. All counts are in the scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.given import Category, Given
from nonesuch.core.model import Energy, Likelihood, Model
from nonesuch.data.dataset import Data, Images
from nonesuch.evaluate.baselines import Baseline
from nonesuch.evaluate.effect import columns_judged, dealt, effects
from nonesuch.evaluate.features import Extractor, Features, fit_extractor, pixel_features
from nonesuch.evaluate.frechet import frechet_distance
from nonesuch.evaluate.kernel import kernel_distance
from nonesuch.evaluate.likelihood import bits_from_nats, bits_per_dim, classify
from nonesuch.evaluate.memorization import Memorization, memorization
from nonesuch.evaluate.prdc import prdc
from nonesuch.evaluate.score import Score, bootstrap_mean, keyed
from nonesuch.evaluate.utility import utility

__all__ = ["Measured", "Panel", "Subject", "subject_of_baseline", "subject_of_model", "verdict"]

DRAWS = 8  # of an importance-weighted bound, where they fit the allowance
SIGNIFICANT = 0.01
_PIXEL_BYTES = 1 << 30  # above it, distances to training images are those of features
VERDICTS = {
    "copies": "nearer to training images than held-out images are, and nearer to them than to other real images",
    "traces": "its nearest real image is a training image more often than chance allows",
    "smooth": "nearer than held-out images, but no more to training images than to other real ones: blurred, not copied",
    "clear": "no sign of copying",
}


@dataclass(frozen=True)
class Subject:
    """What is measured. sample: seed -> images; bits: draws -> score of the test images, or why there is none; posterior:
    images -> P(class | x); columns: the conditions it is drawn under; under: (conditions, seed) -> images, where that can be."""

    name: str
    sample: Callable[[int], Tensor]
    bits: Callable[[int], Score] | str
    posterior: Callable[[Tensor], Tensor] | None = None
    columns: tuple[str, ...] = ()
    under: Callable[[Given, int], Tensor] | None = None


@dataclass
class Measured:
    """scores by name, notes for what is missing, seconds by part; images of the first set, and what memorization found."""

    scores: dict[str, Score] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    images: Tensor = field(default_factory=lambda: torch.empty(0))
    found: Memorization | None = None


@dataclass(frozen=True)
class Panel:
    """The real side of every measurement: at most `limit` images of each split, seen through one extractor."""

    data: Data
    columns: tuple[str, ...]
    label: str | None
    train: Images
    test: Images
    extractor: Extractor | None
    note: str
    features: Mapping[str, Features]
    distances: Mapping[str, Features]
    seed: int

    @classmethod
    def of(cls, data: Data, columns: tuple[str, ...], *, limit: int = 2000, seed: int = 0) -> Panel:
        """Choose the images by keyed permutation and train the extractor on the training split; columns: the conditions."""
        label = next((c for c in columns if isinstance(data.schema[c], Category)), None)
        train, test = (chosen(split, label, limit, seed) for split in (data.train, data.test))
        extractor, note = None, ""
        try:
            extractor = _extractor(data, limit, seed)
        except ValueError as error:
            note = str(error)
        features = {s.name: extractor.features(s.x, s.name) if extractor else pixel_features(s.x, s.name) for s in (train, test)}
        everything = data.train
        if extractor and len(everything) * everything.spec.numel * 8 > _PIXEL_BYTES:
            distances = {"train": extractor.features(everything.x, "train"), "test": features[test.name]}
        else:
            distances = {"train": pixel_features(everything.x, "train"), "test": pixel_features(test.x, "test")}
        return cls(data, columns, label, train, test, extractor, note, features, distances, seed)

    @property
    def given(self) -> Given:
        """The conditions samples are drawn with: those of the training images, in a fixed order."""
        return self.train.select(self.columns).given

    def labels(self, split: Images) -> Tensor:
        assert self.label is not None
        return split.labels(self.label)

    def measure(
        self, subject: Subject, *, allowance_s: float = 60.0, sample_seeds: int = 5, tell: Callable[[str], None] = print
    ) -> Measured:
        """Sample the subject and score it; allowance_s bounds the time for more sampling seeds, half of it the rest."""
        out = Measured()
        sets = self._sampled(subject, out, allowance_s, sample_seeds, tell)
        tell("scoring samples")
        start = time.perf_counter()
        self._quality(sets[0], out)
        self._memorization(sets[0], out)
        if self.label is not None:
            labels = self.labels(self.train)
            both = ((self.train.x, labels), (self.test.x, self.labels(self.test)))
            _noted(out, "CAS", lambda: utility([(x, labels) for x in sets], *both))
        self._effect(subject, sets[0], out, allowance_s)
        out.seconds["score"] = time.perf_counter() - start
        tell("likelihood")
        self._likelihood(subject, out, allowance_s / 2)
        return out

    def _sampled(
        self, subject: Subject, out: Measured, allowance_s: float, seeds: int, tell: Callable[[str], None]
    ) -> list[Tensor]:
        sets: list[Tensor] = []
        start = time.perf_counter()
        for s in range(seeds if self.label is not None else 1):  # only the classifiers' interval asks for more than one set
            tell(f"sampling {len(self.train):,} images, set {s + 1}")
            begin = time.perf_counter()
            sets.append(self.train.spec.snap(subject.sample(self.seed + s).cpu()))
            now = time.perf_counter()
            if s == 0:
                out.seconds["sample"] = now - begin
            if now - start + (now - begin) > allowance_s:
                break
        out.images = sets[0]
        return sets

    def _effect(self, subject: Subject, x: Tensor, out: Measured, allowance_s: float) -> None:
        """Whether each condition does what it says; several columns are told apart by a set drawn under columns dealt anew."""
        given = self.train.select(subject.columns).given
        judged = columns_judged(self.train.select(subject.columns).schema)
        if len(judged) > 1 and subject.under is not None:
            if out.seconds["sample"] > allowance_s:
                out.notes["effect"] = f"{', '.join(judged)} are told apart only as far as they are independent in the data"
            else:
                given = dealt(given, judged, self.seed)
                x = self.train.spec.snap(subject.under(given, self.seed).cpu())
        scores, notes = effects(self.train, self.test, x, given, subject.columns, self.seed)
        out.scores |= scores
        out.notes |= notes

    def _quality(self, x: Tensor, out: Measured) -> None:
        real, reference = self.features["train"], self.features["test"]
        mine = self.extractor.features(x, "samples") if self.extractor else pixel_features(x, "samples")
        _noted(out, "FD", lambda: {"FD": frechet_distance(mine, reference, real=real, seed=self.seed)})
        _noted(out, "KD", lambda: {"KD": kernel_distance(mine, reference, real=real, seed=self.seed)})
        _noted(out, "precision", lambda: prdc(mine, reference, real=real, seed=self.seed))

    def _memorization(self, x: Tensor, out: Measured) -> None:
        pixels = self.distances["train"].extractor == "pixels"
        mine = pixel_features(x) if pixels or self.extractor is None else self.extractor.features(x)
        named = {}
        if self.label is not None:
            named = {
                "labels": self.labels(self.train),
                "train_labels": self.labels(self.data.train),
                "held_out_labels": self.labels(self.test),
            }

        def judged() -> dict[str, Score]:
            plain = {k: v.numpy() for k, v in named.items()}
            out.found = memorization(mine, self.distances["train"], self.distances["test"], **plain, seed=self.seed)
            out.verdict = verdict(out.found.scores)
            return out.found.scores

        _noted(out, "memorization", judged)

    def _likelihood(self, subject: Subject, out: Measured, allowance_s: float) -> None:
        if isinstance(subject.bits, str):
            out.notes["bits"] = subject.bits
            return
        bits = subject.bits
        start = time.perf_counter()
        _noted(out, "bits", lambda: {"bits": bits(1)})
        one = time.perf_counter() - start
        out.seconds["likelihood"] = one
        if "bits" not in out.scores:
            return
        if out.scores["bits"].kind == "bound" and one * DRAWS < allowance_s:
            _noted(out, "bits", lambda: {"bits": drawn(bits(DRAWS), DRAWS)})
        if self.label is None or subject.posterior is None:
            return
        posterior = subject.posterior
        each = one / len(self.test) * len(self.data.schema.select([self.label]).category()[1].names)
        m = min(len(self.test), max(50, int(allowance_s / max(each, 1e-9))))
        _noted(out, "bayes", lambda: {"bayes": self._bayes(posterior, m, out)})

    def _bayes(self, posterior: Callable[[Tensor], Tensor], m: int, out: Measured) -> Score:
        right = (posterior(self.test.x[:m]).argmax(1).cpu() == self.labels(self.test)[:m]).double().numpy()
        ceiling = out.scores["real"].value if "real" in out.scores else None
        return Score(
            right.mean(), "Bayes accuracy", m, kind=out.scores["bits"].kind, interval=bootstrap_mean(right, "bayes"),
            resampled="test images", floor=ceiling, better="higher",
        )  # fmt: skip


def chosen(split: Images, label: str | None, limit: int, seed: int) -> Images:
    """At most `limit` images of a split in a keyed order, those with a label if there is one to be had."""
    index = keyed("panel", split.name, seed).permutation(len(split))
    if label is not None:
        index = index[split.labels(label).numpy()[index] >= 0]
    if len(index) < 2:
        raise ValueError(f"the {split.name} split has {len(index)} images to measure with; give more images.")
    return split[torch.from_numpy(index[:limit])]


def _extractor(data: Data, limit: int, seed: int) -> Extractor:
    """Trained on the training split only: to tell its classes apart, whether or not the models are given them."""
    split = data.train[: max(limit, 20_000)]
    for name, column in data.schema.columns.items():
        if isinstance(column, Category):
            return fit_extractor(split.x, split.labels(name), name=data.name, seed=seed, classes=len(column.names))
    return fit_extractor(split.x, name=data.name, seed=seed)


def _noted(out: Measured, name: str, measure: Callable[[], Mapping[str, Score]]) -> None:
    """Add the scores, or the sentence that says why there are none."""
    try:
        out.scores.update(measure())
    except ValueError as error:
        out.notes[name] = str(error)


def drawn(score: Score, draws: int) -> Score:
    return replace(score, counts={**score.counts, "draws": draws})


def verdict(scores: Mapping[str, Score]) -> str:
    """One word for what the three questions of `memorization` found, at a level of 1 % each; its meaning is in VERDICTS."""
    nearer, member, copies = (scores[f"{k}_p"].value < SIGNIFICANT for k in ("nearer", "membership", "copies"))
    if copies or (nearer and member):
        return "copies"
    return "traces" if member else "smooth" if nearer else "clear"


def subject_of_model(model: Model, panel: Panel, name: str) -> Subject:
    """A fitted network as a subject."""
    given, columns = panel.given, list(panel.columns)

    def bits(draws: int) -> Score:
        return bits_per_dim(model, panel.test.select(columns), columns or None, samples=draws, seeds=panel.seed)

    def posterior(x: Tensor) -> Tensor:
        return classify(model, x, column=panel.label, seeds=panel.seed)

    def under(conditions: Given, seed: int) -> Tensor:
        return model.sample(len(conditions), conditions if columns else None, seeds=seed)

    def sample(seed: int) -> Tensor:
        return under(given, seed)

    if not isinstance(model, Likelihood):
        why = (
            "unnormalised: an energy is -log p up to an unknown constant"
            if isinstance(model, Energy)
            else "implicit: it samples without saying how probable an image is"
        )
        return Subject(name, sample, why, columns=tuple(columns), under=under)
    if model.spec.levels is None:
        return Subject(
            name, sample, "a density of continuous images, which is not comparable", columns=tuple(columns), under=under
        )
    by_rule = posterior if panel.label is not None and columns == [panel.label] else None
    return Subject(name, sample, bits, by_rule, tuple(columns), under)


def subject_of_baseline(baseline: Baseline, panel: Panel) -> Subject:
    """A fitted baseline as a subject."""
    spec, label = panel.test.spec, panel.label
    labels = panel.labels(panel.train).numpy() if label else np.zeros(len(panel.train), dtype=np.int64)

    def sample(seed: int) -> Tensor:
        return spec.from_levels(torch.from_numpy(baseline.sample(labels, seed)).view(-1, *spec.shape))

    def bits(draws: int) -> Score:
        truth = panel.labels(panel.test).numpy() if label else None
        nats = [baseline.log_prob(flat(spec.to_levels(panel.test.x)), truth, seed=panel.seed + d) for d in range(draws)]
        mean = torch.from_numpy(np.logaddexp.reduce(nats) - np.log(draws))
        return bits_from_nats(mean, baseline.kind, spec.numel, given=label or "", seed=panel.seed)

    def posterior(x: Tensor) -> Tensor:
        return torch.from_numpy(baseline.classify(flat(spec.to_levels(x)), seed=panel.seed))

    return Subject(baseline.name, sample, bits, posterior if label else None, (label,) if label else ())


def flat(levels: Tensor) -> np.ndarray:
    """int64 (n, D)."""
    return levels.flatten(1).long().cpu().numpy()
