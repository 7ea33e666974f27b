"""Frechet distance: how far apart two sets of features are when each is seen as a Gaussian.

The 2-Wasserstein distance of two Gaussians has a closed form (Dowson & Landau 1982),

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2.                                        (1)

The last trace is the sum of the square roots of the eigenvalues of A A^T, or of the singular values of A (its nuclear norm), for
A = R1 R2^T and any roots R_i^T R_i = S_i:

    tr (S1^1/2 S2 S1^1/2)^1/2 = |R1 R2^T|_* = sum_j sqrt(lambda_j(R1 S2 R1^T)).                              (2)

Two ways of the same formula. Quick: R_i is the Cholesky factor of the covariance and the eigenvalues are those of a symmetric
matrix. Forming S_i and A A^T squares the data: an eigenvalue is known to delta = eps |S1| |S2|, its root to
delta / (2 sqrt(lambda)) or, near zero, to sqrt(delta) only (Weyl). Where these, in quadrature, are not below `DOUBT` of the
distance, the other way is taken (in trials the true error of what was taken stayed below 1e-9). Careful: R_i is the triangular
factor of the centred features themselves, found block by block (R of R stacked on the next block), and the singular values are
those of A; no digits are lost to squaring, at three times the work.

With fewer images than features R_i is the matrix of centred features, n x d, and everything happens on the small side: A is
n1 x n2 and no d x d matrix is made. Sets are read in blocks and each becomes float64 by itself; float32 features are never copied
as a whole. What is known of one set is a `Side`; that of a reference can be kept and compared with many.

References:
| The Frechet distance between multivariate normal distributions (Dowson & Landau, 1982)
| GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017) arXiv:1706.08500
| Communication-optimal parallel and sequential QR and LU factorizations (Demmel et al., 2012) arXiv:0808.2664
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch

from nonesuch.evaluate.features import Features, comparison, floor_features
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, recentred

__all__ = ["Side", "frechet_distance", "frechet_gaussians", "frechet_sets"]

BLOCK = 2**23  # float64 numbers of a block, 64 MiB
DOUBT = 5e-9  # of the distance: the rounding that the quick way may have


class Side:
    """What a Frechet distance needs of one set of features (n, d) float32 or float64, each part found once, when asked for."""

    def __init__(self, x: Array) -> None:
        self.x = np.asarray(x)
        if self.x.ndim != 2 or len(self.x) < 2:
            raise ValueError("A Frechet distance needs at least two images on each side, as features (n, d); give more.")
        self.n, self.d = self.x.shape
        self.mean: Array = sum(self._blocks(np.zeros(self.d), lambda b: b.sum(0)), np.zeros(self.d)) / self.n

    def _blocks(self, mean: Array, of: Callable[[Array], Array], least: int = 1) -> Iterator[Array]:
        """`of` each block of features less the mean, in float64."""
        step = max(least, BLOCK // self.d)
        for start in range(0, self.n, step):
            yield of(np.subtract(self.x[start : start + step], mean, dtype=np.float64))

    @cached_property
    def covariance(self) -> Array:
        """S over n - 1, (d, d)."""
        total = np.zeros((self.d, self.d))
        for part in self._blocks(self.mean, lambda b: b.T @ b):  # of one matrix with itself, numpy computes a half
            total += part
        return total / (self.n - 1)

    @cached_property
    def quick(self) -> Array | None:
        """R by Cholesky; None where S is not positive definite to rounding, as with fewer images than features."""
        if self.n < self.d:
            return None
        try:
            return np.linalg.cholesky(self.covariance).T
        except np.linalg.LinAlgError:
            return None

    @cached_property
    def careful(self) -> Array:
        """R from the features themselves, (min(n, d), d)."""
        scale = np.sqrt(self.n - 1)
        if self.n < self.d:
            return np.subtract(self.x, self.mean, dtype=np.float64) / scale
        root = np.empty((0, self.d))
        for part in self._blocks(self.mean, lambda b: b, least=2 * self.d):
            root = np.linalg.qr(np.concatenate([root, part]), mode="r")
        return root / scale


def frechet_gaussians(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> Array:
    """Squared Frechet distance of Gaussians, (..., d) means and (..., d, d) covariances -> (...); float64."""
    cross = np.linalg.svd(symmetric_root(cov1) @ symmetric_root(cov2), compute_uv=False).sum(-1)
    traces = np.trace(cov1, axis1=-2, axis2=-1) + np.trace(cov2, axis1=-2, axis2=-1)
    return np.square(mean1 - mean2).sum(-1) + traces - 2 * cross  # Eq. 1


def symmetric_root(cov: Array) -> Array:
    """S^1/2 of symmetric positive semi-definite matrices, (..., d, d); eigenvalues below zero are rounding and become zero."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def frechet_sets(x1: Array | Side, x2: Array | Side) -> float:
    """Squared Frechet distance of two sets of features, (n1, d) and (n2, d), by Eq. 2; float64, covariances over n - 1.

    A set that is compared more than once can be given as a `Side`. Raises ValueError for fewer than two images.
    """
    one, two = (x if isinstance(x, Side) else Side(x) for x in (x1, x2))
    means = np.square(one.mean - two.mean).sum()
    if (r1 := one.quick) is not None and (r2 := two.quick) is not None:
        a = r1 @ r2.T
        square = a @ a.T if len(a) <= a.shape[1] else a.T @ a
        values = torch.linalg.eigvalsh(torch.from_numpy(square)).numpy()  # in half of numpy's time
        distance = means + np.square(r1).sum() + np.square(r2).sum() - 2 * np.sqrt(np.maximum(values, 0)).sum()
        if rounding(values, r1, r2) <= DOUBT * distance:
            return float(distance)
    r1, r2 = one.careful, two.careful
    cross = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()  # Eq. 2
    return float(means + np.square(r1).sum() + np.square(r2).sum() - 2 * cross)  # Eq. 1


def rounding(values: Array, r1: Array, r2: Array) -> float:
    """How far the quick way may be off, by `delta` at the head of this file; errors of many eigenvalues add up as independent."""
    delta = np.finfo(np.float64).eps * largest(r1) * largest(r2)
    roots = np.sqrt(np.maximum(values, 0))
    return float(2 * np.linalg.norm(delta / np.maximum(2 * roots, np.sqrt(delta) + 1e-300)))


def largest(root: Array, rounds: int = 16) -> float:
    """About the largest eigenvalue of R^T R, by power iteration; half as much again as is found, for it comes from below."""
    v, norm = np.abs(root).sum(0), 0.0
    for _ in range(rounds):
        v = root.T @ (root @ (v / max(np.linalg.norm(v), 1e-300)))
        norm = float(np.linalg.norm(v))
    return 1.5 * norm


def frechet_distance(samples: Features, reference: Features, *, real: Features | None = None, seed: int = 0) -> Score:
    """Score the Frechet distance of samples from reference images; `real` (training images) gives the floor at the same n.

    The interval resamples both sets (100 replicates, 20 above 256 features) and stands around the value: it is for this n.
    """
    about = comparison(samples, reference)
    side = Side(reference.array)
    value = frechet_sets(samples.array, side)
    floor = None if real is None else frechet_sets(floor_features(samples, real, seed).array, side)
    moments1, moments2 = (
        bootstrap_moments(side.array, seed, which) for which, side in (("samples", samples), ("reference", reference))
    )
    low, high = recentred(value, frechet_gaussians(*moments1, *moments2))
    return Score(
        value, "FD", **about, interval=(max(0.0, low), high), resampled="sampled and reference images",
        floor=floor, better="lower",
    )  # fmt: skip


def bootstrap_moments(x: Array, seed: int, which: str) -> tuple[Array, Array]:
    """Mean (B, d) and covariance (B, d, d) of B resampled sets."""
    n, d = x.shape
    counts = bootstrap_counts(n, 100 if d <= 256 else 20, seed, "frechet", which)
    centre = x.mean(0)
    x = x - centre
    mean = counts @ x / n
    second = np.stack([(x * row[:, None]).T @ x for row in counts]) / (n - 1)
    return mean + centre, second - mean[:, :, None] * mean[:, None, :] * (n / (n - 1))
