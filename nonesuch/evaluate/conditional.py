"""Conditional Frechet distance: are pictures made of a picture like the true ones, given that picture?

Two sets of pictures may agree as sets although each picture is made of the wrong condition. The conditional distance is the
Frechet distance of x and of what is made, both given y, averaged over y. When the features of y and x are jointly Gaussian, with

    x = m_x + A (y - m_y) + r,    A = S_xy S_yy^-1,    r ~ N(0, R),    R = S_xx - A S_yx,

and A', R' of what was made of the same y, it has a closed form,

    E_y W^2 = |m_x - m_x'|^2 + tr (A - A') S_yy (A - A')^T + tr R + tr R' - 2 tr (R^1/2 R' R^1/2)^1/2.                    (1)

The first two terms are what depends on y in another way; the last is the spread that is left when y is known. A regression has
next to none, which is its fault, and pays for it here and not in PSNR. S_yy^-1 is the pseudo-inverse over the leading components
of y, those that hold all but 1e-6 of its variance, at most a tenth as many as there are pictures.

References:
| Conditional Frechet Inception Distance (Soloveitchik et al., 2021) arXiv:2103.11521, Theorem 2
"""

import numpy as np

from nonesuch.evaluate.features import Features, comparison
from nonesuch.evaluate.frechet import frechet_sets
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, recentred

__all__ = ["conditional_frechet", "conditional_frechet_sets"]

_REPLICATES = 20


def conditional_frechet_sets(made: Array, real: Array, given: Array) -> float:
    """Eq. 1 of features of pictures made (n, d), of the true ones (n, d), and of the conditions (n, c) of either, row by row."""
    if not len(made) == len(real) == len(given) or len(made) < 4:
        raise ValueError("the conditional distance takes what was made of the very conditions of the true pictures, at least 4.")
    whole = given - given.mean(0)
    left, scale, _ = np.linalg.svd(whole, full_matrices=False)
    share = np.cumsum(scale**2) / max(float((scale**2).sum()), 1e-300)
    kept = min(int(np.searchsorted(share, 1 - 1e-6)) + 1, max(1, len(given) // 10))
    basis = left[:, :kept]  # orthonormal: y in coordinates where S_yy is 1 / (n - 1)
    means = made.mean(0), real.mean(0)
    ours, theirs = basis.T @ (made - means[0]), basis.T @ (real - means[1])
    depends = float(np.square(ours - theirs).sum()) / (len(given) - 1)
    rest = frechet_sets(made - means[0] - basis @ ours, real - means[1] - basis @ theirs)
    return float(np.square(means[0] - means[1]).sum()) + depends + rest


def conditional_frechet(made: Features, real: Features, given: Features, *, seed: int = 0) -> Score:
    """Score the conditional Frechet distance of pictures made of conditions from the true pictures of the same conditions.

    Row i of all three belongs together. The interval resamples the rows together. Raises ValueError for unequal counts.
    """
    about = comparison(made, real)
    value = conditional_frechet_sets(made.array, real.array, given.array)
    counts = bootstrap_counts(made.n, _REPLICATES, seed, "conditional frechet").astype(int)
    rows = [np.repeat(np.arange(made.n), row) for row in counts]
    replicates = np.array([conditional_frechet_sets(made.array[r], real.array[r], given.array[r]) for r in rows])
    low, high = recentred(value, replicates)
    interval = (max(0.0, low), high)
    return Score(value, "conditional FD", **about, interval=interval, resampled="conditions", better="lower")
