"""Distances between all pairs of two sets of vectors, in tiles: the memory is bounded whatever the number of images."""

from collections.abc import Iterator

import numpy as np

from nonesuch.evaluate.score import Array

TILE_BYTES = 64 * 2**20


def tiles(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows whose (rows, columns) float64 tile fits into `TILE_BYTES`."""
    step = max(1, TILE_BYTES // (8 * max(1, columns)))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def squared_distances(a: Array, b: Array) -> Array:
    """|a_i - b_j|^2, (n, d) x (m, d) -> (n, m), never below zero; about 1e-15 of the largest squared norm is lost to rounding."""
    d2 = a @ b.T
    d2 *= -2
    d2 += np.einsum("id,id->i", a, a)[:, None]
    d2 += np.einsum("jd,jd->j", b, b)[None]
    return np.maximum(d2, 0, out=d2)


def centred(a: Array, b: Array) -> tuple[Array, Array]:
    """Both sets moved by the mean of the second: distances stay, and the rounding of the expanded square becomes small."""
    mean = b.mean(0)
    return a - mean, b - mean


def nearest(queries: Array, points: Array, *, k: int = 1, same: bool = False) -> tuple[Array, np.ndarray]:
    """Distance to the k-th nearest point, and which one is the first: (n,) and (n,) int.

    With `same` the two sets are one and a vector is no neighbour of itself. Distances are recomputed from the difference for
    the pair that was found, so that an exact copy has distance exactly 0.
    """
    if k > len(points) - same:
        raise ValueError(
            f"The {k}-th nearest neighbour needs more than the {len(points)} vectors given; lower k or give more images."
        )
    moved_queries, moved_points = centred(queries, points)
    distance, first = np.empty(len(queries)), np.empty(len(queries), dtype=np.int64)
    for rows in tiles(len(queries), len(points)):
        d2 = squared_distances(moved_queries[rows], moved_points)
        if same:
            index = np.arange(rows.start, rows.stop)
            d2[index - rows.start, index] = np.inf
        first[rows] = d2.argmin(1)
        kth = first[rows] if k == 1 else np.argpartition(d2, k - 1, axis=1)[:, k - 1]
        distance[rows] = np.sqrt(np.square(queries[rows] - points[kth]).sum(1))
    return distance, first
