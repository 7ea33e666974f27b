"""How good a representation is, judged without training it further: a linear probe, clusters, neighbours, two maps.

    probe         accuracy on test images of multinomial logistic regression on the features, fitted to training images
    agreement     of k-means clusters (k the number of classes, fitted to training images) with the classes of test images:
                  adjusted Rand index (0 by chance, 1 equal) and normalised mutual information
    neighbours    share of test images whose nearest training image is of their class

A map of two dimensions is for looking at: principal components, which are linear, and t-SNE, which keeps neighbours and no
distances. Everything is done alike to latents and to the principal components of pixels, the baseline.

References:
| Understanding intermediate layers using linear classifier probes (Alain & Bengio, 2016) arXiv:1610.01644
| Comparing partitions (Hubert & Arabie, 1985): adjusted Rand index
| Visualizing Data using t-SNE (van der Maaten & Hinton, 2008)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nonesuch.core.image import ImageSpec
from nonesuch.evaluate._pairs import nearest
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, bootstrap_mean, recentred

MOST = 128  # dimensions that features are reduced to, by principal components of training images
_GRID = 8  # maps of latents are pooled to this many cells an axis first
_MOST_CODES = 1 << 14  # one-hot columns; codes beyond are counted instead of placed
STRENGTHS = (0.01, 0.1, 1.0)  # of the probe, chosen on a fifth of the training images
_MAPPED = 1000


@dataclass(frozen=True)
class View:
    """Training (n, d) and test (m, d) images as vectors, float64, d at most `MOST`; raw: dimensions before."""

    name: str
    train: Array
    test: Array
    raw: int


def view(name: str, train: Tensor, test: Tensor, spec: ImageSpec) -> View:
    """Latents or pixels (n, C, *size) of `spec` as a view."""
    flat = [vectors(z, spec) for z in (train, test)]
    first, second = reduced(*flat)
    return View(name, first, second, spec.numel)


def vectors(z: Tensor, spec: ImageSpec) -> Array:
    """Latents as vectors: maps pooled to at most `_GRID` cells an axis; codes one-hot by place, or counted if too wide."""
    if spec.kind == "categorical":
        levels, places = spec.levels or 2, z[0].numel()
        hot = F.one_hot(z.flatten(1), levels).float()
        if places * levels > _MOST_CODES:
            return np.asarray(hot.mean(1).sqrt().double().numpy())  # Hellinger's distance of two bags of codes
        return np.asarray(hot.flatten(1).double().numpy())
    if len(spec.size) in (1, 2, 3) and spec.numel > 16 * MOST and max(spec.size) > _GRID:
        pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(spec.size) - 1]
        z = pool(z.float(), tuple(min(s, _GRID) for s in spec.size))
    return np.asarray(z.flatten(1).double().numpy())


def reduced(train: Array, test: Array) -> tuple[Array, Array]:
    """Both moved by the training mean, and where there are more than `MOST` dimensions, their first principal components."""
    mean = train.mean(0)
    train, test = train - mean, test - mean
    if train.shape[1] <= MOST:
        return train, test
    some = torch.from_numpy(train)
    if min(some.shape) > 1500:
        values, axes = torch.linalg.eigh(some.T @ some)
        axes = axes[:, values.argsort(descending=True)[:MOST]].numpy()
    else:
        axes = torch.linalg.svd(some, full_matrices=False)[2][:MOST].T.numpy()
    return train @ axes, test @ axes


def measured(v: View, y_train: np.ndarray, y_test: np.ndarray, seed: int) -> dict[str, Score]:
    """Probe, agreement and neighbours of a view, labels (n,) and (m,) int64."""
    about = {"extractor": v.name, "resampled": "test images", "better": "higher"}
    right = (probe(v.train, y_train, v.test, seed) == y_test).astype(np.float64)
    _, index = nearest(v.test, v.train)
    near = (y_train[index] == y_test).astype(np.float64)
    clusters = clustered(v.train, v.test, len(np.unique(y_train)), seed)
    counts = bootstrap_counts(len(y_test), 200, "clusters", v.name, seed)
    found = {
        "probe": Score(right.mean(), "linear probe", len(right), interval=bootstrap_mean(right, "probe"), **about),
        "neighbours": Score(near.mean(), "nearest is of its class", len(near), interval=bootstrap_mean(near, "near"), **about),
    }  # fmt: skip
    for key, name, measure in (("rand", "adjusted Rand index", adjusted_rand), ("nmi", "normalised mutual information", nmi)):
        value = measure(y_test, clusters, np.ones(len(y_test)))
        spread = np.array([measure(y_test, clusters, c) for c in counts])
        found[key] = Score(value, name, len(y_test), interval=recentred(value, spread), **about)
    return found


def probe(train: Array, labels: np.ndarray, test: Array, seed: int) -> np.ndarray:
    """Classes (m,) that logistic regression on standardised features gives; its strength is chosen on every fifth image."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scale = train.std() + 1e-12  # one number: the directions' own sizes are part of the representation
    train, test = train / scale, test / scale
    held = np.arange(len(train)) % 5 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are the recipe

        def fitted(c: float, rows: np.ndarray) -> LogisticRegression:
            return LogisticRegression(C=c, max_iter=300, random_state=seed).fit(train[rows], labels[rows])

        enough = len(np.unique(labels[~held])) == len(np.unique(labels)) > 1 and held.any()
        marks = [fitted(c, ~held).score(train[held], labels[held]) if enough else 0.0 for c in STRENGTHS]
        if len(np.unique(labels)) < 2:
            return np.full(len(test), labels[0])
        best = STRENGTHS[int(np.argmax(marks))] if enough else 0.1
        return np.asarray(fitted(best, np.ones(len(train), bool)).predict(test))


def clustered(train: Array, test: Array, k: int, seed: int) -> np.ndarray:
    """The k-means cluster (m,) of each test image, of clusters fitted to training images."""
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(min(k, len(train)), n_init=4, random_state=seed).fit(train).predict(test))


def contingency(a: np.ndarray, b: np.ndarray, weights: Array) -> Array:
    """The weighted counts of pairs of classes and clusters."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    flat = np.bincount(a * (b.max() + 1) + b, weights, (a.max() + 1) * (b.max() + 1))
    return flat.reshape(a.max() + 1, b.max() + 1)


def adjusted_rand(a: np.ndarray, b: np.ndarray, weights: Array) -> float:
    """(index - expected) / (largest - expected) of pairs put together by both partitions (Hubert & Arabie, Eq. 5)."""
    table = contingency(a, b, weights)

    def pairs(n: Array) -> float:
        return float((n * (n - 1) / 2).sum())

    index, rows, columns, all_ = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(table.sum(keepdims=True))
    expected, largest = rows * columns / max(all_, 1e-12), (rows + columns) / 2
    return (index - expected) / (largest - expected) if largest != expected else 1.0


def nmi(a: np.ndarray, b: np.ndarray, weights: Array) -> float:
    """I(a; b) / mean(H(a), H(b))."""
    p = contingency(a, b, weights) / weights.sum()
    rows, columns = p.sum(1), p.sum(0)
    outer = rows[:, None] * columns[None]
    some = p > 0
    mutual = float((p[some] * np.log(p[some] / outer[some])).sum())
    entropies = [-float((q[q > 0] * np.log(q[q > 0])).sum()) for q in (rows, columns)]
    return mutual / (sum(entropies) / 2) if sum(entropies) > 0 else 1.0


def maps(v: View, seed: int) -> dict[str, Array]:
    """Test images, at most a thousand, on two maps (m, 2): "principal components" and "t-SNE" where there are enough."""
    axes = np.linalg.svd(v.train, full_matrices=False)[2][:2]
    some = v.test[:_MAPPED]
    flat = some @ axes.T
    found = {"principal components": flat if flat.shape[1] == 2 else np.concatenate([flat, 0 * flat], 1)}
    if len(some) >= 20 and some.shape[1] > 2:
        from sklearn.manifold import TSNE

        found["t-SNE"] = np.asarray(TSNE(init="pca", perplexity=min(30, len(some) / 4), random_state=seed).fit_transform(some))
    return found


def between(a: Tensor, b: Tensor, steps: int, spec: ImageSpec, order: Tensor) -> Tensor:
    """Latents (steps, *shape) from a to b: on the arc between them, their length changing evenly; of codes, place by place.

    A straight line leaves the shell where draws of a normal prior lie; the arc does not. order: of the places of codes.
    """
    if spec.kind == "categorical":
        flat_a, flat_b, n = a.flatten(), b.flatten(), a.numel()
        rows = [torch.where(order < round(n * s / (steps - 1)), flat_b, flat_a) for s in range(steps)]
        return torch.stack(rows).view(steps, *a.shape)
    share = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    x, y = a.double().flatten()[None], b.double().flatten()[None]
    lengths = x.norm().clamp_min(1e-12), y.norm().clamp_min(1e-12)
    u, w = x / lengths[0], y / lengths[1]
    angle = (u * w).sum().clamp(-1, 1).acos()
    if angle < 1e-4 or angle > 3.14:
        return torch.lerp(x, y, share).view(steps, *a.shape).to(a.dtype)
    arc = (((1 - share) * angle).sin() * u + (share * angle).sin() * w) / angle.sin()
    return (arc * torch.lerp(lengths[0], lengths[1], share)).view(steps, *a.shape).to(a.dtype)
