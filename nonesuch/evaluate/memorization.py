"""Does a model give back its training images? Three questions, for a copy, for nearness, and for nearness that is not mere
smoothness.

Let d(x) be the distance of x to the nearest training image. A model that learned P(x) gives samples whose d is distributed as
that of images held out of the training; a model that copies gives smaller ones.

* **nearer**: the share of pairs (sample s, held-out h) with d(s) < d(h), ties half: 0.5 for a perfect model. The one-sided
  p-value is that of Mann and Whitney's test, compared only within a class and pooled with van Elteren's weights, so that classes
  of different spread and frequency do not matter:

      z = sum_c w_c (U_c - n_c m_c / 2) / sqrt(sum_c w_c^2 var U_c),    w_c = 1 / (n_c + m_c + 1).                       (1)

  A blurred image is near to everything, so a smooth model may be nearer without having copied; hence the second question.
* **membership**: each sample's nearest *real* image, among training and held-out ones together, is a training image how often? If
  the model did not remember which images it was trained on, the real images of a class are exchangeable, and with c_i samples
  nearest to real image i, K of N in training, the count T = sum_{i in train} c_i has the moments of a draw without replacement,

      E T = K mean(c),    var T = K (N - K) / N * sum_i (c_i - mean(c))^2 / (N - 1),    summed over classes.             (2)

  Smoothness cancels: the same sample is held against both.
* **copies**: samples nearer than the r-th nearest held-out image, r = 1 % of them: one sample in a hundred is expected. The
  p-value is exact: at least k of n samples lie below the r-th of m held-out when of the k + r - 1 smallest at most r - 1 are held
  out, a hypergeometric probability.

References:
| On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other (Mann & Whitney, 1947)
| On the combination of independent two sample tests of Wilcoxon (van Elteren, 1960)
| A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan et al., 2020) arXiv:2004.05675
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nonesuch.evaluate._pairs import nearest
from nonesuch.evaluate.features import Features, comparison
from nonesuch.evaluate.score import Array, Score, bootstrap_mean

__all__ = ["Memorization", "memorization", "stratified_mann_whitney"]

Labels = ArrayLike | None


@dataclass(frozen=True)
class Memorization:
    """What was found: scores by name, and for every sample its nearest training image, the distance, and if it is called a copy.

    `scores` has nearer, nearer_p, membership, membership_p, copies, copies_p and exact_copies.
    """

    scores: dict[str, Score]
    nearest: np.ndarray
    distance: Array
    copied: np.ndarray
    threshold: float


def memorization(
    samples: Features, train: Features, held_out: Features, *,
    labels: Labels = None, train_labels: Labels = None, held_out_labels: Labels = None, seed: int = 0,
) -> Memorization:  # fmt: skip
    """Hold the samples' distances to training images against those of held-out images; labels (n,) int, all three or none."""
    about = comparison(samples, train) | {"counts": {"train": train.n, "held_out": held_out.n}}
    about["extractor"] = samples.extractor
    comparison(samples, held_out)
    given = [labels is not None, train_labels is not None, held_out_labels is not None]
    if any(given) and not all(given):
        raise ValueError("Give the labels of samples, training and held-out images, or of none of them.")
    strata = tuple(np.zeros(f.n, dtype=np.int64) if y is None else np.asarray(y) for f, y in
                   ((samples, labels), (train, train_labels), (held_out, held_out_labels)))  # fmt: skip
    distance, index = nearest(samples.array, train.array)
    usual, _ = nearest(held_out.array, train.array)
    rank = max(1, int(0.01 * held_out.n))
    threshold = float(np.sort(usual)[rank - 1])
    copied = (distance < threshold) | (distance == 0)
    share, p_near, wins = stratified_mann_whitney(distance, usual, strata[0], strata[2])
    member, expected, p_member, inside = membership(samples.array, train.array, held_out.array, strata[1], strata[2])
    p_copies = order_statistic_p(int(copied.sum()), samples.n, rank, held_out.n)

    def share_of(value: float, name: str, floor: float, interval: tuple[float, float]) -> Score:
        return Score(value, name, **about, floor=floor, interval=interval, resampled="sampled images", better="lower")

    def p_of(value: float, name: str) -> Score:
        return Score(value, f"p({name})", **about, kind="one-sided")

    exact = distance == 0
    scores = {
        "nearer": share_of(share, "nearer", 0.5, around(share, wins, seed)),
        "nearer_p": p_of(p_near, "nearer"),
        "membership": share_of(member, "membership", expected, bootstrap_mean(inside, seed, "inside")),
        "membership_p": p_of(p_member, "membership"),
        "copies": share_of(copied.mean(), "copies", (usual < threshold).mean(), bootstrap_mean(copied, seed, "copied")),
        "copies_p": p_of(p_copies, "copies"),
        "exact_copies": share_of(exact.mean(), "exact copies", (usual == 0).mean(), bootstrap_mean(exact, seed, "exact")),
    }
    return Memorization(scores, index, distance, copied, threshold)


def around(share: float, wins: Array, seed: int) -> tuple[float, float]:
    """The interval of a weighted share: the spread of each sample's own share of wins, around the value."""
    low, high = bootstrap_mean(wins, seed, "wins")
    return share + low - float(wins.mean()), share + high - float(wins.mean())


def stratified_mann_whitney(a: Array, b: Array, strata_a: ArrayLike, strata_b: ArrayLike) -> tuple[float, float, Array]:
    """P(a < b) within strata, the one-sided p-value that a is the smaller (Eq. 1), and each a's own share of b above it."""
    from scipy.stats import norm, rankdata

    strata_a, strata_b = np.asarray(strata_a), np.asarray(strata_b)
    total = variance = share = weights = 0.0
    wins = np.full(len(a), 0.5)
    for stratum in np.intersect1d(strata_a, strata_b):
        mine, other = a[strata_a == stratum], b[strata_b == stratum]
        n, m = len(mine), len(other)
        order = np.sort(other)
        wins[strata_a == stratum] = 1 - (np.searchsorted(order, mine, "left") + np.searchsorted(order, mine, "right")) / (2 * m)
        u = wins[strata_a == stratum].sum() * m
        _, ties = np.unique(rankdata(np.concatenate([mine, other])), return_counts=True)
        correction = (ties**3 - ties).sum() / ((n + m) * max(1, n + m - 1))
        w = 1 / (n + m + 1)
        total += w * (u - n * m / 2)
        variance += w**2 * n * m / 12 * (n + m + 1 - correction)
        share, weights = share + w * u, weights + w * n * m
    if weights == 0:
        raise ValueError("No class has both samples and held-out images; sample the classes of the data.")
    p = float(norm.sf(total / np.sqrt(variance))) if variance > 0 else 1.0
    return share / weights, p, wins


def membership(x: Array, train: Array, held_out: Array, y_train: Array, y_held_out: Array) -> tuple[float, float, float, Array]:
    """Share of samples nearest to a training image among all real ones, the share expected, p-value (Eq. 2), and (n,) 0 or 1."""
    from scipy.stats import norm

    _, index = nearest(x, np.concatenate([train, held_out]))
    inside = (index < len(train)).astype(np.float64)
    count = np.bincount(index, minlength=len(train) + len(held_out))
    strata, is_train = np.concatenate([y_train, y_held_out]), np.arange(len(count)) < len(train)
    expected = variance = 0.0
    for stratum in np.unique(strata):
        c, k = count[strata == stratum], int(is_train[strata == stratum].sum())
        expected += k * c.mean()
        if len(c) > 1:
            variance += k * (len(c) - k) / len(c) * c.var(ddof=1)
    p = float(norm.sf((inside.sum() - expected) / np.sqrt(variance))) if variance > 0 else 1.0
    return float(inside.mean()), float(expected / len(x)), p, inside


def order_statistic_p(k: int, n: int, rank: int, m: int) -> float:
    """P(at least k of n draws lie below the rank-th smallest of m further draws of one continuous distribution)."""
    from scipy.stats import hypergeom

    return 1.0 if k == 0 else float(hypergeom.cdf(rank - 1, n + m, m, k + rank - 1))
