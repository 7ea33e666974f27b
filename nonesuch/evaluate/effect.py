"""Does the condition do what it says? What was asked for, recovered from the samples.

A judge is trained on real training images to recover one column from a picture: for a Category a support vector machine, for a
Number ridge regression or support vector regression, whichever predicts better in three-fold cross-validation on the training
images. It then reads samples drawn under known conditions:

    Number     r = correlation of what was asked for and what is recovered        Category     accuracy of what is recovered

The same judge on held-out real images gives the ceiling (the `floor` of the score), for what cannot be recovered from real images
cannot be asked of samples; and on the samples with the conditions dealt anew, what no effect at all would show. r says that
the condition is followed in order and direction, not how far. Where several columns are given, each is dealt anew by itself
before sampling: an effect that a column has only because it goes with another one in the data is not counted as its own.

The judge sees the principal components (at most 64) of the pixels, averaged down to at most 32 a side (16 for volumes).

References:
| Conditional Image Synthesis With Auxiliary Classifier GANs (Odena et al., 2017) arXiv:1610.09585, section 4.2
| An Introduction to the Bootstrap (Efron & Tibshirani, 1993), chapter 13
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.given import Category, Column, Given, Number, Schema
from nonesuch.data.dataset import Images
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, bootstrap_mean, keyed

__all__ = ["VERDICTS", "Judge", "columns_judged", "dealt", "effect", "effects", "verdict"]

SIDE = {1: 1024, 2: 32, 3: 16}
PARTS, LEAST = 64, 20
VERDICTS = {
    "obeyed": "does what it says",
    "weak": "has some effect, clearly less than in real images",
    "ignored": "has no effect that can be seen",
    "inverted": "works backwards: samples show something else than was asked for",
    "unseen": "cannot be recovered from real images either, so nothing can be said",
}


class Judge:
    """Recovers a column from pictures; trained on real training images, predicts Numbers (n,) or indices of categories (n,)."""

    def __init__(self, x: Tensor, values: Array, column: Column) -> None:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import cross_val_score
        from sklearn.svm import SVC, SVR

        flat = _flat(x)
        parts = min(PARTS, flat.shape[1], len(flat) - 1)
        self.parts = PCA(parts, svd_solver="covariance_eigh" if flat.shape[1] <= len(flat) else "full").fit(flat)
        seen = self._seen(x)
        self.offset, self.scale, self.name = 0.0, 1.0, "svm-rbf"
        if isinstance(column, Category):
            self.inner: Any = SVC(C=10.0, gamma="scale").fit(seen, values.astype(np.int64))
            return
        self.offset, self.scale = float(values.mean()), float(values.std()) or 1.0
        target = (values - self.offset) / self.scale
        choices = {"ridge": RidgeCV(np.logspace(-3, 3, 7)), "svr-rbf": SVR(C=10.0, gamma="scale")}
        folds = {n: cross_val_score(m, seen, target, cv=3, scoring="neg_mean_squared_error").mean() for n, m in choices.items()}
        self.name = max(folds, key=lambda n: folds[n])
        self.inner = choices[self.name].fit(seen, target)

    def _seen(self, x: Tensor) -> Array:
        return np.asarray(self.parts.transform(_flat(x)))

    def recover(self, x: Tensor) -> Array:
        """What the pictures (n, C, *size) seem to have been given, (n,)."""
        return np.asarray(self.inner.predict(self._seen(x)), dtype=np.float64) * self.scale + self.offset


def _flat(x: Tensor) -> Array:
    """Pixels as rows, averaged down where there are many."""
    axes, x = x.dim() - 2, x.detach().cpu().float()
    if axes:
        pool: Callable[..., Tensor] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[axes - 1]
        x = pool(x, tuple(min(s, SIDE[axes]) for s in x.shape[2:]))
    return np.asarray(x.flatten(1).double().numpy())


def dealt(given: Given, columns: Sequence[str], seed: int = 0) -> Given:
    """The same conditions with each of these columns dealt anew among the rows, independently of the others."""
    rows = {name: torch.from_numpy(keyed("deal", name, seed).permutation(len(given))) for name in columns}
    moved = {name: given.columns[name][rows[name].to(given.columns[name].device)] for name in columns}
    return Given(len(given), {**given.columns, **moved})


def effects(
    train: Images, test: Images, samples: Tensor, given: Given, columns: Sequence[str], seed: int = 0
) -> tuple[dict[str, Score], dict[str, str]]:
    """The effect of each of these columns on the samples drawn under `given`, and notes on the columns that were not judged."""
    scores: dict[str, Score] = {}
    notes: dict[str, str] = {}
    for name in columns:
        try:
            scores |= effect(train, test, samples, given, name, seed)
        except ValueError as error:
            notes[f"effect of {name}"] = str(error)
    return scores, notes


def effect(train: Images, test: Images, samples: Tensor, given: Given, column: str, seed: int = 0) -> dict[str, Score]:
    """Score what one column does: "effect of COLUMN", and beside it "effect of COLUMN, shuffled".

    train, test: real images with the column; samples: (n, C, *size) in [-1, 1], drawn under the n rows of `given`, coded as
    train's are. The `floor` of the first is what real test images reach. Rows in which the column is missing are left out.
    Raises ValueError for texts and images, for fewer than 20 rows anywhere, and for a column of one value only.
    """
    kind = train.schema[column]
    if not isinstance(kind, Category | Number):
        raise ValueError(f"{column} is a {type(kind).__name__.lower()}, which no judge here recovers from a picture.")
    (x, known), (held, truth), (drawn, asked) = (
        _present(kind, pictures, values, what)
        for pictures, values, what in (
            (train.x, train.given.columns[column], "training images"),
            (test.x, test.given.columns[column], "test images"),
            (samples, given.columns[column], "samples"),
        )
    )
    if len(np.unique(known)) < 2 or len(np.unique(asked)) < 2:
        raise ValueError(f"{column} has one value only among these images, so its effect cannot be seen.")
    judge = Judge(x, known, kind)
    measure = _accuracy if isinstance(kind, Category) else _correlation
    ceiling = measure(truth, judge.recover(held), column, seed)[0]
    found = judge.recover(drawn)
    about = {"extractor": judge.name, "n": len(asked), "counts": {"train": len(known), "test": len(truth)}, "better": "higher"}
    word = "accuracy" if isinstance(kind, Category) else "r"
    value, interval = measure(asked, found, column, seed)
    chance, around = measure(asked[keyed("shuffled", column, seed).permutation(len(asked))], found, column, seed)
    real = f"effect of {column}"
    return {
        real: Score(value, f"{real} ({word})", interval=interval, resampled="samples", floor=ceiling, **about),  # type: ignore[arg-type]
        f"{real}, shuffled": Score(chance, f"{real}, shuffled ({word})", interval=around, resampled="samples", **about),  # type: ignore[arg-type]
    }


def verdict(scores: Mapping[str, Score], column: str) -> str:
    """One word of VERDICTS for what a column does, from `effect`'s two scores."""
    mine, chance = scores[f"effect of {column}"], scores[f"effect of {column}, shuffled"]
    assert mine.interval is not None
    assert chance.interval is not None
    assert mine.floor is not None
    nothing = chance.value if mine.name.endswith("(accuracy)") else 0.0
    wide = max(chance.interval[1] - chance.interval[0], 1e-9) / 2  # half an interval around no effect
    if mine.floor - nothing < 2 * wide:
        return "unseen"
    if mine.interval[1] < nothing - wide:
        return "inverted"
    if mine.interval[0] <= nothing + wide:
        return "ignored"
    return "obeyed" if mine.value - nothing >= 0.75 * (mine.floor - nothing) else "weak"


def _present(column: Category | Number, x: Tensor, values: Tensor, what: str) -> tuple[Tensor, Array]:
    there = column.present(values).cpu()
    if int(there.sum()) < LEAST:
        raise ValueError(f"only {int(there.sum())} {what} have a value; at least {LEAST} are needed.")
    return x[there.to(x.device)], values.cpu()[there].double().numpy()


def _accuracy(asked: Array, found: Array, *key: int | str) -> tuple[float, tuple[float, float]]:
    right = (asked == found).astype(np.float64)
    return float(right.mean()), bootstrap_mean(right, *key)


def _correlation(asked: Array, found: Array, *key: int | str) -> tuple[float, tuple[float, float]]:
    """Pearson's r and its 95 % percentile interval over the pairs; 0 where one side does not vary."""
    weight = bootstrap_counts(len(asked), 1000, "r", *key) / len(asked)
    every = [weighted_r(np.full((1, len(asked)), 1 / len(asked)), asked, found)[0], weighted_r(weight, asked, found)]
    low, high = np.quantile(every[1], (0.025, 0.975))
    return float(every[0]), (float(low), float(high))


def weighted_r(weight: Array, a: Array, b: Array) -> Array:
    """Correlation of a and b (n,) under each row of weights (B, n) that sum to one."""
    a, b = a - a.mean(), b - b.mean()
    mean_a, mean_b = weight @ a, weight @ b
    spread = (weight @ a**2 - mean_a**2) * (weight @ b**2 - mean_b**2)
    covariance = weight @ (a * b) - mean_a * mean_b
    return np.asarray(np.where(spread > 1e-24, covariance / np.sqrt(np.maximum(spread, 1e-24)), 0.0))


def columns_judged(schema: Schema) -> list[str]:
    """The columns of a schema whose effect can be measured."""
    return [name for name, column in schema.columns.items() if isinstance(column, Category | Number)]
