"""Frechet distance: how far apart two sets of features are when each is seen as a Gaussian.

The 2-Wasserstein distance of two Gaussians has a closed form (Dowson & Landau 1982),

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2.                                        (1)

The last trace is the sum of the square roots of the eigenvalues of A A^T with A = S1^1/2 S2^1/2, which is the sum of the singular
values of A (its nuclear norm). Taking singular values of A rather than eigenvalues of A A^T loses no digits to squaring.
Any root will do: with S_i = R_i^T R_i / (n_i - 1), where R_i is the triangular factor of the centred features,

    tr (S1^1/2 S2 S1^1/2)^1/2 = |R1 R2^T|_* / sqrt((n1 - 1)(n2 - 1)).                                        (2)

R_i has min(n_i, d) rows, so that for fewer images than features everything happens on the small side and no d x d matrix is made.

References:
| The Frechet distance between multivariate normal distributions (Dowson & Landau, 1982)
| GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017) arXiv:1706.08500
"""

import numpy as np

from nonesuch.evaluate.features import Features, comparison, floor_features
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, recentred

__all__ = ["frechet_distance", "frechet_gaussians", "frechet_sets"]


def frechet_gaussians(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> Array:
    """Squared Frechet distance of Gaussians, (..., d) means and (..., d, d) covariances -> (...); float64."""
    cross = np.linalg.svd(symmetric_root(cov1) @ symmetric_root(cov2), compute_uv=False).sum(-1)
    traces = np.trace(cov1, axis1=-2, axis2=-1) + np.trace(cov2, axis1=-2, axis2=-1)
    return np.square(mean1 - mean2).sum(-1) + traces - 2 * cross  # Eq. 1


def symmetric_root(cov: Array) -> Array:
    """S^1/2 of symmetric positive semi-definite matrices, (..., d, d); eigenvalues below zero are rounding and become zero."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def frechet_sets(x1: Array, x2: Array) -> float:
    """Squared Frechet distance of two sets of features, (n1, d) and (n2, d), by Eq. 2; float64, covariances over n - 1."""
    x1, x2 = np.asarray(x1, dtype=np.float64), np.asarray(x2, dtype=np.float64)
    if min(len(x1), len(x2)) < 2:
        raise ValueError("A Frechet distance needs at least two images on each side; give more.")
    mean1, mean2 = x1.mean(0), x2.mean(0)
    r1, r2 = triangular_root(x1 - mean1), triangular_root(x2 - mean2)
    cross = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()  # Eq. 2
    return float(np.square(mean1 - mean2).sum() + np.square(r1).sum() + np.square(r2).sum() - 2 * cross)  # Eq. 1


def triangular_root(centred: Array) -> Array:
    """R with R^T R = the covariance over n - 1, (min(n, d), d)."""
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(centred) - 1)


def frechet_distance(samples: Features, reference: Features, *, real: Features | None = None, seed: int = 0) -> Score:
    """Score the Frechet distance of samples from reference images; `real` (training images) gives the floor at the same n.

    The interval resamples both sets (100 replicates, 20 above 256 features) and stands around the value: it is for this n.
    """
    about = comparison(samples, reference)
    value = frechet_sets(samples.array, reference.array)
    floor = None if real is None else frechet_sets(floor_features(samples, real, seed).array, reference.array)
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
