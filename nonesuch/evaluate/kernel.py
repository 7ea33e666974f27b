"""Kernel distance: the squared maximum mean discrepancy of two sets of features, without bias at any n.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),       k(x, y) = (x . y / d + 1)^3                          (1)

Expectations over two *different* images of a set make the estimate unbiased (Gretton et al. 2012, Eq. 3), so that, unlike the
Frechet distance, values at different n can be set side by side, and a perfect sampler scores 0 on average, a little below as
often as above.

References:
| A Kernel Two-Sample Test (Gretton et al., 2012) JMLR 13
| Demystifying MMD GANs (Binkowski et al., 2018) arXiv:1801.01401
"""

import numpy as np

from nonesuch.evaluate._pairs import tiles
from nonesuch.evaluate.features import Features, comparison, floor_features
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, recentred

__all__ = ["kernel_distance", "kernel_sets"]


def polynomial_kernel(x: Array, y: Array) -> Array:
    """(x . y / d + 1)^3 of all pairs, (n, d) x (m, d) -> (n, m)."""
    inner = x @ y.T / x.shape[1] + 1.0
    return inner * inner * inner  # numpy's power of a float array is twenty times slower


def weighted_terms(x: Array, y: Array, weights_x: Array, weights_y: Array, *, same: bool) -> Array:
    """sum_ij w_i v_j k(x_i, y_j) for each row (w, v) of the weights, over i != j if `same`; (B,), in tiles of rows."""
    total = np.zeros(len(weights_x))
    for rows in tiles(len(x), len(y)):
        block = polynomial_kernel(x[rows], y)
        if same:
            index = np.arange(rows.start, rows.stop)
            block[index - rows.start, index] = 0.0
        total += ((weights_x[:, rows] @ block) * weights_y).sum(1)
    return total


def weighted_mmd(x: Array, y: Array, weights_x: Array, weights_y: Array) -> Array:
    """Eq. 1 for each row of weights (B, n) and (B, m); a pair of one image with itself never counts."""
    pairs_x = np.square(weights_x.sum(1)) - np.square(weights_x).sum(1)
    pairs_y = np.square(weights_y.sum(1)) - np.square(weights_y).sum(1)
    within = (
        weighted_terms(x, x, weights_x, weights_x, same=True) / pairs_x
        + weighted_terms(y, y, weights_y, weights_y, same=True) / pairs_y
    )
    between = weighted_terms(x, y, weights_x, weights_y, same=False) / (weights_x.sum(1) * weights_y.sum(1))
    return within - 2 * between  # Eq. 1


def kernel_sets(x: Array, y: Array) -> float:
    """The unbiased squared kernel distance of two sets of features, (n, d) and (m, d); float64; may be below zero."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("A kernel distance needs at least two images on each side; give more.")
    return float(weighted_mmd(x, y, np.ones((1, len(x))), np.ones((1, len(y))))[0])


def kernel_distance(samples: Features, reference: Features, *, real: Features | None = None, seed: int = 0) -> Score:
    """Score the kernel distance of samples from reference images; `real` (training images) gives the floor at the same n.

    The interval resamples both sets (100 replicates) and stands around the value. Raises ValueError for fewer than ten images on
    a side, of which a replicate may be one image many times.
    """
    if min(samples.n, reference.n) < 10:
        raise ValueError(f"a kernel distance needs at least ten images on each side, not {min(samples.n, reference.n)}.")
    about = comparison(samples, reference)
    x, y = samples.array, reference.array
    weights_x, weights_y = (
        bootstrap_counts(len(side), 100, seed, "kernel", which) for which, side in (("samples", x), ("reference", y))
    )
    ones_x, ones_y = np.ones((1, len(x))), np.ones((1, len(y)))
    value, *replicates = weighted_mmd(x, y, np.vstack([ones_x, weights_x]), np.vstack([ones_y, weights_y]))
    floor = None if real is None else kernel_sets(floor_features(samples, real, seed).array, y)
    return Score(
        float(value), "KD", **about, interval=recentred(float(value), np.array(replicates)),
        resampled="sampled and reference images", floor=floor, better="lower",
    )  # fmt: skip
