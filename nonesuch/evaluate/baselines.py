"""Three classical models of small images, one per class, in the same ledger as the networks: what a network must beat.

Pixels are integers k in {0, ..., levels - 1}. A density p on [0, levels)^D becomes a bound on the probability of the grid's image
by uniform dequantization (Theis et al. 2016, Eq. 4): with u uniform on [0, 1)^D,

    log P(k) = log E_u p(k + u) >= E_u log p(k + u),                                                              (1)

estimated by one draw of u an image. The mixture of independent categoricals is a distribution of the integers itself, and exact,

    P(k) = sum_j pi_j prod_d theta_jd(k_d).                                                                       (2)

Each has a few settings; the one with the best likelihood given the label on a fifth of the *training* images is refitted on all
of them.

References:
| A note on the evaluation of generative models (Theis et al., 2016) arXiv:1511.01844
| Scikit-learn: Machine Learning in Python (Pedregosa et al., 2011) arXiv:1201.0490
| Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin, 1977)
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from nonesuch.evaluate._pairs import centred, squared_distances, tiles
from nonesuch.evaluate.score import Array, keyed

__all__ = ["BASELINES", "Baseline", "CategoricalMixture", "GaussianMixtures", "KernelDensities"]

Levels = np.ndarray  # integers (n, D) in [0, levels)
LIMIT = 4_000_000  # values of D * levels, and entries of a covariance matrix, above which these models make no sense


def logsumexp(a: Array) -> Array:
    """log of the sum of exponentials over the last axis."""
    top = a.max(-1)
    return np.log(np.exp(a - top[..., None]).sum(-1)) + top


class Baseline(ABC):
    """One distribution per class over integer images (n, D), chosen on a part of the training images."""

    name: ClassVar[str]
    kind: ClassVar[str]
    settings: ClassVar[tuple[Any, ...]]

    def __init__(self, levels: int, classes: int = 1) -> None:
        self.levels, self.classes = levels, classes
        self.scale = (levels - 1) / 16  # settings are in levels, for 17 of them
        self.parts: list[Any] = []
        self.setting: Any = None
        self.prior = np.full(classes, 1 / classes)

    @abstractmethod
    def fit_one(self, x: Levels, setting: Any, rng: np.random.Generator) -> Any:
        """Fit one class."""

    @abstractmethod
    def log_prob_one(self, part: Any, x: Levels, rng: np.random.Generator) -> Array:
        """log P(x | class) in nats (n,)."""

    @abstractmethod
    def sample_one(self, part: Any, n: int, rng: np.random.Generator) -> Array:
        """n draws (n, D), not yet on the grid."""

    def fit(self, x: Levels, labels: np.ndarray | None = None, *, seed: int = 0) -> "Baseline":
        """Choose the setting on a fifth of the images of each class, then fit all of them; x (n, D) int, labels (n,) int."""
        labels = np.zeros(len(x), dtype=np.int64) if labels is None else np.asarray(labels)
        counts = np.bincount(labels, minlength=self.classes)
        if len(counts) > self.classes or counts.min() < 5:
            raise ValueError(
                f"A {self.name} needs at least five images of each of {self.classes} classes; it has {counts.tolist()}."
            )
        if x.shape[1] * self.levels > LIMIT or x.shape[1] ** 2 > LIMIT:
            raise ValueError(f"A {self.name} is for small images; {x.shape[1]} values of {self.levels} levels are too many.")
        self.prior = counts / counts.sum()
        groups = [x[labels == c][keyed("baseline", seed, c).permutation(counts[c])] for c in range(self.classes)]

        def validated(setting: Any) -> float:
            total = 0.0
            for c, group in enumerate(groups):
                cut = max(1, len(group) // 5)
                part = self.fit_one(group[cut:], setting, keyed("select", seed, c))
                total += self.log_prob_one(part, group[:cut], keyed("validate", seed, c)).sum()
            return total

        self.setting = max(self.settings, key=validated)
        self.parts = [self.fit_one(group, self.setting, keyed("fit", seed, c)) for c, group in enumerate(groups)]
        return self

    def log_prob(self, x: Levels, labels: np.ndarray | None = None, *, seed: int = 0) -> Array:
        """log P(x | label) in nats (n,), or log P(x) with the class frequencies where no labels are given."""
        if labels is None:
            return logsumexp(self.joint(x, seed=seed))
        return np.take_along_axis(self.joint(x, seed=seed) - np.log(self.prior), np.asarray(labels)[:, None], axis=1)[:, 0]

    def joint(self, x: Levels, *, seed: int = 0) -> Array:
        """log P(x, class), (n, classes); every class sees the same dequantization."""
        return np.stack([self.log_prob_one(part, x, keyed("log_prob", seed)) for part in self.parts], 1) + np.log(self.prior)

    def classify(self, x: Levels, *, seed: int = 0) -> Array:
        """P(class | x) by Bayes' rule, (n, classes)."""
        joint = self.joint(x, seed=seed)
        return np.exp(joint - logsumexp(joint)[:, None])

    def sample(self, labels: np.ndarray, seed: int = 0) -> Levels:
        """One image of each label (n,) -> int64 (n, D)."""
        labels = np.asarray(labels)
        out = None
        for c in np.unique(labels):
            rows = labels == c
            drawn = self.sample_one(self.parts[c], int(rows.sum()), keyed("sample", seed, int(c)))
            out = np.zeros((len(labels), drawn.shape[1]), dtype=np.int64) if out is None else out
            out[rows] = np.clip(np.floor(drawn), 0, self.levels - 1)
        assert out is not None
        return out


class KernelDensities(Baseline):
    """A Gaussian around every training image; settings: its standard deviation in levels, for 17 of them.

    The density is scikit-learn's KernelDensity, summed directly: with version 1.9 the tree behind `score_samples` is wrong by up
    to 285 nats on images of 64 pixels, and right in two dimensions, where the tests compare them.
    """

    name, kind = "kernel density", "bound"
    settings = (0.35, 0.5, 0.7, 1.0, 1.2, 1.4, 1.7, 2.0, 2.2, 2.4, 2.7, 3.0, 4.0)

    def fit_one(self, x: Levels, setting: float, rng: np.random.Generator) -> tuple[Array, float]:
        return x + 0.5, setting * self.scale

    def log_prob_one(self, part: tuple[Array, float], x: Levels, rng: np.random.Generator) -> Array:
        points, width = part
        queries, points = centred(x + rng.random(x.shape), points)  # Eq. 1
        constant = -np.log(len(points)) - points.shape[1] / 2 * np.log(2 * np.pi * width**2)
        blocks = (squared_distances(queries[rows], points) / (-2 * width**2) for rows in tiles(len(x), len(points)))
        return np.concatenate([logsumexp(block) for block in blocks]) + constant

    def sample_one(self, part: tuple[Array, float], n: int, rng: np.random.Generator) -> Array:
        points, width = part
        return points[rng.integers(0, len(points), n)] + width * rng.standard_normal((n, points.shape[1]))


class GaussianMixtures(Baseline):
    """scikit-learn's GaussianMixture; settings: components, covariance type, and what is added to variances (levels^2 of 17).

    It is fitted to the middles of the cells; the 1/12 that dequantization adds to every variance is a part of what is added.
    """

    name, kind = "Gaussian mixture", "bound"
    settings = (
        (1, "full", 0.1), (1, "full", 0.15), (1, "full", 0.2), (1, "full", 0.3), (1, "full", 1.0),
        (2, "tied", 0.2), (4, "tied", 0.15), (4, "diag", 0.1), (8, "diag", 0.1), (8, "diag", 0.15), (16, "diag", 0.3),
    )  # fmt: skip

    def fit_one(self, x: Levels, setting: tuple[int, str, float], rng: np.random.Generator) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        components, shape, added = setting
        components = min(components, max(1, len(x) // 2))
        added *= self.scale**2
        mixture = GaussianMixture(components, covariance_type=shape, reg_covar=added, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture stopped early is judged like any other
            return mixture.fit(x + 0.5)

    def log_prob_one(self, part: Any, x: Levels, rng: np.random.Generator) -> Array:
        return part.score_samples(x + rng.random(x.shape))  # Eq. 1

    def sample_one(self, part: Any, n: int, rng: np.random.Generator) -> Array:
        part.random_state = int(rng.integers(2**31))
        return part.sample(n)[0]


class CategoricalMixture(Baseline):
    """A mixture of independent categoricals by expectation maximisation, shrunk to the class's own frequencies.

    Settings: components, and how many images the class's frequencies are worth in each component.
    """

    name, kind = "independent categoricals", "exact"
    settings = ((1, 0.0), *((k, images) for k in (2, 3, 5) for images in (10.0, 30.0, 60.0)))

    def fit_one(self, x: Levels, setting: tuple[int, float], rng: np.random.Generator) -> tuple[Array, Array]:
        components, worth = setting
        hot = self.one_hot(x)
        overall = hot.sum(0).reshape(x.shape[1], self.levels) + 5 / self.levels
        overall /= overall.sum(1, keepdims=True)
        if components == 1:
            return np.zeros(1), np.log(overall)[:, :, None]
        resp = rng.dirichlet(np.full(components, 0.3), len(x))
        for _ in range(30):
            log_pi = np.log((resp.sum(0) + 1) / (len(x) + components))
            theta = (hot.T @ resp).reshape(x.shape[1], self.levels, components) + worth * overall[:, :, None]
            log_theta = np.log(theta / theta.sum(1, keepdims=True))
            joint = hot @ log_theta.reshape(-1, components) + log_pi  # Eq. 2, before the sum
            resp = np.exp(joint - logsumexp(joint)[:, None])
        return log_pi, log_theta

    def one_hot(self, x: Levels) -> Any:
        """(n, D) -> (n, D * levels), sparse."""
        from scipy.sparse import csr_array

        n, d = x.shape
        index = (x + np.arange(d) * self.levels).ravel()
        return csr_array((np.ones(n * d), index, np.arange(n + 1) * d), shape=(n, d * self.levels))

    def log_prob_one(self, part: tuple[Array, Array], x: Levels, rng: np.random.Generator) -> Array:
        log_pi, log_theta = part
        return logsumexp(self.one_hot(x) @ log_theta.reshape(-1, len(log_pi)) + log_pi)  # Eq. 2

    def sample_one(self, part: tuple[Array, Array], n: int, rng: np.random.Generator) -> Array:
        log_pi, log_theta = part
        which = rng.choice(len(log_pi), size=n, p=np.exp(log_pi) / np.exp(log_pi).sum())
        below = np.cumsum(np.exp(log_theta), axis=1)[:, :, which]  # (D, levels, n)
        return (rng.random((below.shape[0], 1, n)) * below[:, -1:] > below).sum(1).T


BASELINES: dict[str, type[Baseline]] = {c.name: c for c in (KernelDensities, GaussianMixtures, CategoricalMixture)}
