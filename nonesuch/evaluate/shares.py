"""What synthetic images are worth where real ones are few: a classifier trained on real, on synthetic and on both, at 1 to 100 %
of the data.

A generator that saw everything knows more than the person who has 1 %, so two questions are kept apart:

    own        the generator saw that share alone: does generating help whoever has no more than these images?
    released   the generator saw all of them and is given to whoever has the share, or none of it: what does a release carry?

For a share s, trials k = 1, 2, 3 each draw a stratified part of the real images (nested in s), and train the classifier with
their own seed; with m_k its accuracy on held-out real images, the interval is Student's over trials, and that of the *margin*,
both less real, is of the differences in each trial, for they share the real images and the seed.

The classifier is fixed before anything is seen: five 3 x 3 convolutions of 16, 32, 32, 64, 64 channels with batch
normalisation and two residual sums, averaged over 4 x 4 cells; AdamW, one cycle, `images_seen` of the share whatever is in the
sets, batches of 128 moved together by up to a fourteenth of the side; of "both", half of every batch is real. Pictures of at
most 16 x 16 pixels are judged as in `utility`.

References:
| Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019) arXiv:1905.10887
| Synthetic Data from Diffusion Models Improves ImageNet Classification (Azizi et al., 2023) arXiv:2304.08466
| Deep Residual Learning for Image Recognition (He et al., 2015) arXiv:1512.03385
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonesuch.core.seeds import Seeds, initialise, permutation
from nonesuch.evaluate.features import shifted
from nonesuch.evaluate.score import Score, keyed
from nonesuch.evaluate.utility import Labelled, classifier_name, predict_labels
from nonesuch.train.device import has_bf16

SHARES = (0.01, 0.05, 0.25, 1.0)
IMAGES_SEEN = (60_000, 200_000)  # by a classifier: where there is next to nothing to learn from, and where there is all
_BATCH = 128
_WIDTHS = (16, 32, 64)
_CELLS = 4  # along either axis, of the last map: what is where counts for centred pictures
What = Literal["real", "synthetic", "both"]


@dataclass(frozen=True)
class Trial:
    """One classifier: what it learned from, at which share, in which trial; generator: "none", "own" or "released"; right and
    of: how many test images of each class it gets right, of how many; n: images that it learned from."""

    what: str
    share: float
    trial: int
    generator: str
    right: tuple[int, ...]
    of: tuple[int, ...]
    n: int

    @property
    def accuracy(self) -> float:
        return sum(self.right) / max(1, sum(self.of))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        return cls(**{**values, "right": tuple(values["right"]), "of": tuple(values["of"])})


def part(labels: Tensor, share: float, trial: int) -> Tensor:
    """Indices of a share of every class, at least one image of each; a smaller share of a trial lies in a larger one."""
    if not 0 < share <= 1:
        raise ValueError(f"a share lies above 0 and is at most 1, not {share}.")
    found = []
    for one in labels.unique().tolist():
        own = (labels == one).nonzero()[:, 0]
        order = torch.from_numpy(keyed("share", trial, int(one)).permutation(len(own)))
        found.append(own[order[: max(1, round(share * len(own)))]])
    return torch.cat(found).sort().values


def images_seen(share: float) -> int:
    """How many images a classifier sees, repeats counted: few real ones are learned by heart long before many are learned."""
    few, all_ = IMAGES_SEEN
    return round(few + (all_ - few) * math.sqrt(share))


def trial_of(
    what: What, share: float, trial: int, sets: Sequence[Labelled], test: Labelled, classes: int, generator: str = "none"
) -> Trial:
    """Train the classifier on one or two labelled sets and count what it gets right of the test images, class by class."""
    x, truth = test[0].cpu(), test[1].cpu().numpy()
    if classifier_name(x) == "cnn" and len(x.shape) == 4:
        guess = fit_judge(sets, classes, trial, images_seen(share)).classes(x)
    else:
        guess = predict_labels((torch.cat([s[0] for s in sets]), torch.cat([s[1] for s in sets])), x)
    right, of = (np.bincount(truth[mask], minlength=classes) for mask in (guess == truth, truth >= 0))
    return Trial(what, share, trial, generator, tuple(right.tolist()), tuple(of.tolist()), sum(len(s[0]) for s in sets))


# -- the classifier ----------------------------------------------------------------------------------------------------


class Judge(nn.Module):
    """The network of the recipe at the head of this file; convolutions in bf16 where the processor has it."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        a, b, c = _WIDTHS
        shapes = [(channels, a, 1), (a, b, 2), (b, b, 1), (b, c, 2), (c, c, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=s, padding=1, bias=False) for i, o, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in shapes)
        self.out = nn.Linear(c * _CELLS**2, classes)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = ((x.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        h = h.bfloat16() if has_bf16(h.device) else h
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            assert isinstance(conv, nn.Conv2d)
            y = F.relu(norm(F.conv2d(h, conv.weight.to(h.dtype), None, conv.stride, 1)))
            h = h + y if place in (2, 4) else y
        return self.out(F.adaptive_avg_pool2d(h.float(), _CELLS).flatten(1))

    @torch.no_grad()
    def classes(self, x: Tensor) -> np.ndarray:
        """The likeliest class (n,) of images (n, C, H, W)."""
        return torch.cat([self(p).argmax(1) for p in x.split(512)]).numpy()


@torch.enable_grad()
def fit_judge(sets: Sequence[Labelled], classes: int, seed: int, images: int = IMAGES_SEEN[1]) -> Judge:
    """Train the classifier on one labelled set, or on two with half of every batch from each, until it has seen so many images;
    every draw is keyed by the seed."""
    with torch.device("meta"):  # torch's own initialisation would move its global generator
        judge = Judge(sets[0][0].shape[1], classes)
    judge = judge.to_empty(device="cpu")
    initialise(judge, seed)
    for norm in judge.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.reset_running_stats()
        norm.reset_parameters()
    some = sets[0][0][:4096].float()
    judge.mean.copy_(some.mean((0, 2, 3), keepdim=True))
    judge.std.copy_(some.std((0, 2, 3), keepdim=True).clamp_min(1e-3))
    steps = math.ceil(images / _BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-3, weight_decay=0.05, betas=(0.9, 0.99))
    reach = [max(1, s // 14) for s in sets[0][0].shape[2:]]
    moves = Seeds.of(seed, 1).uniform("judge/move", steps, len(reach))[0]
    feeds = [rows_of(len(s[0]), _BATCH // len(sets), seed, place) for place, s in enumerate(sets)]
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, 10 * done + 0.02) * 0.5 * (1 + math.cos(math.pi * done))
        rows = [next(feed) for feed in feeds]
        x = torch.cat([s[0][r].float() for s, r in zip(sets, rows, strict=True)])
        y = torch.cat([s[1][r] for s, r in zip(sets, rows, strict=True)])
        x = shifted(x, [round(float(u - 0.5) * 2 * r) for u, r in zip(moves[step], reach, strict=True)])
        loss = F.cross_entropy(judge(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return judge.eval()


def rows_of(n: int, batch: int, seed: int, place: int) -> Iterator[Tensor]:
    """Batches of indices below n without end, every image once an epoch; batches run on over the ends of epochs."""
    left = torch.zeros(0, dtype=torch.int64)
    for epoch in itertools.count():
        while len(left) >= batch:
            yield left[:batch]
            left = left[batch:]
        left = torch.cat([left, permutation(seed, f"judge/order/{place}", n, epoch)])


# -- the table ---------------------------------------------------------------------------------------------------------


def table(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for each generator and share: scores "real", "synthetic", "both", the "margin" of both over real, and "by_class",
    that margin of each class (mean over trials); a share that nothing synthetic was tried at has no row."""
    rows = []
    places = dict.fromkeys((t.generator, t.share) for t in trials if t.generator != "none")
    for generator, share in sorted(places, key=lambda p: (p[0], p[1])):
        mine = [t for t in trials if t.share == share and t.generator in ("none", generator)]
        by: dict[str, dict[int, Trial]] = {}
        for t in mine:
            by.setdefault(t.what, {})[t.trial] = t
        if generator == "released":  # samples alone are the same whatever share of real images stands beside them
            by |= {"synthetic": {t.trial: t for t in trials if t.what == "synthetic" and t.share == 1.0}}
        row: dict[str, Any] = {"generator": generator, "share": share}
        for what, found in by.items():
            row[what] = over_trials(what, share, [t.accuracy for t in found.values()], next(iter(found.values())))
        pairs = [(by["both"][k], by["real"][k]) for k in by.get("both", {}) if k in by.get("real", {})]
        if pairs:
            row["margin"] = over_trials("both less real", share, [b.accuracy - r.accuracy for b, r in pairs], pairs[0][0])
            row["by_class"] = [
                round(float(np.mean([(b.right[c] - r.right[c]) / max(1, b.of[c]) for b, r in pairs])), 4)
                for c in range(len(pairs[0][0].of))
            ]
        rows.append(row)
    return rows


def over_trials(name: str, share: float, values: Sequence[float], one: Trial) -> Score:
    """The mean with Student's 95 % interval over trials."""
    from scipy.stats import t

    mean, interval = float(np.mean(values)), None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        interval = (mean - half, mean + half)
    counts = {"test": sum(one.of), "trials": len(values)}
    title = f"{name} at {share:.0%}"
    return Score(mean, title, one.n, counts=counts, interval=interval, resampled="trials", better="higher")


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    lines = ["| generator saw | real images | real | synthetic | both | both less real |", "|---|---|---|---|---|---|"]
    for row in rows:
        saw = f"{row['share']:.0%}" if row["generator"] == "own" else "100 %, released"
        cells = [said(row.get(k), k == "margin") for k in ("real", "synthetic", "both", "margin")]
        lines.append(f"| {saw} | {row['share']:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def class_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The margin of both over real class by class, mean over trials, as a table of Markdown."""
    lines = [f"| generator saw | real images | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for row in rows:
        saw = f"{row['share']:.0%}" if row["generator"] == "own" else "100 %, released"
        if "by_class" in row:
            lines.append(f"| {saw} | {row['share']:.0%} | {' | '.join(f'{v:+.3f}' for v in row['by_class'])} |")
    return "\n".join(lines)


def said(score: Score | None, signed: bool) -> str:
    """ "0.912 +- 0.004", the half-width being that of the interval."""
    if score is None:
        return ""
    half = "" if score.interval is None else f" +- {score.interval[1] - score.value:.3f}"
    return f"{score.value:{'+' if signed else ''}.3f}{half}"
