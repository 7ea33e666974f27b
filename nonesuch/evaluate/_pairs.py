"""Distances between all pairs of two sets of vectors, in tiles: the memory is bounded whatever the number of images.

`reaches` and `within` decide which vectors lie within which distances. Their tiles are quick, and no decision is left to a
tile that its rounding could change. With u = 2^-24 and c = (d + 2) u / (1 - (d + 2) u), in whatever order a dot product of d
terms is summed in float32,

    |float32 tile - |a - b|^2| <= 2 c |a| |b| + 8 u (|a| + |b|)^2                                                     (1)

(Higham 2002, section 3.1), where a and b are from a common centre. Where the processor multiplies bfloat16 matrices, the tile's
product is one of vectors a' and b' rounded to 8 bits, and rounded so itself; by Cauchy and Schwarz it is then off by at most

    2 (|a - a'| |b| + |a'| |b - b'|) + 2 2^-8 |a'| |b'|                                                               (2)

more. A pair whose tile is nearer to its threshold than this is decided by the float64 sum of squared differences. The result is
that of deciding every pair so.

References:
| Accuracy and Stability of Numerical Algorithms (Higham, 2002), second edition
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nonesuch.evaluate.score import Array
from nonesuch.train.device import has_bf16

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


@dataclass(frozen=True)
class Vectors:
    """Vectors as given (n, d), and rounded from a centre, divided by a power of two so that no length exceeds 1."""

    given: Array
    centre: Array
    scale: float
    near: torch.Tensor  # float32 or bfloat16
    square: Array  # (n,), the lengths' squares, of `near` before it was rounded
    off: Array  # (n,), how far it was moved by rounding to bfloat16; that to float32 is in Eq. 1

    def between(self, mine: np.ndarray, other: "Vectors", theirs: np.ndarray) -> Array:
        """|a - b|^2 of pairs by index, float64 sums of squared differences: symmetric to the last bit, 0 for a copy."""
        out = np.empty(len(mine))
        for rows in slices(len(mine), pieces(self.given)):
            difference = np.subtract(self.given[mine[rows]], other.given[theirs[rows]], dtype=np.float64)
            out[rows] = np.square(difference, out=difference).sum(1)
        return out

    def slack(self, other: "Vectors", mine: Any = slice(None), theirs: Any = None, *, careful: bool = False) -> Array:
        """The most by which tiles of pairs are off, Eq. 1 and 2: by index, or of each vector with any of the other set.

        careful: of float64 tiles instead.
        """
        d, unit = len(self.centre), 2.0**-53 if careful else 2.0**-24
        c = (d + 2) * unit / (1 - (d + 2) * unit)
        off_a, off_b = (0.0, 0.0) if careful else (self.off[mine], other.off.max() if theirs is None else other.off[theirs])
        square_b = other.square.max() if theirs is None else other.square[theirs]
        a, b = np.sqrt(self.square[mine]) + off_a, np.sqrt(square_b) + off_b
        moved = 2.0**-52 * np.linalg.norm(self.centre) / self.scale  # what subtracting the centre may have rounded
        most = 2 * c * a * b + 8 * unit * (a + b) ** 2 + 8 * moved * (a + b + moved) + 1e-30
        if self.near.dtype == torch.bfloat16 and not careful:
            most += 2 * (off_a * b + a * off_b) + 2 * 2.0**-8 * (1 + c) * a * b
        return most * self.scale**2

    def exactly(self, which: Any) -> Array:
        """Some of the vectors from the centre, float64."""
        return np.subtract(self.given[which], self.centre, dtype=np.float64)


def vectors(*sets: Array, dtype: torch.dtype | None = None) -> list[Vectors]:
    """Sets of vectors ready for tiles, from the mean of the first; dtype: of products, by the processor if not given."""
    dtype = dtype or (torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32)
    centre = sets[0].mean(0, dtype=np.float64)
    farthest = max(float(np.abs(limit - centre).max()) for x in sets for limit in (x.min(0), x.max(0)))
    scale = float(2.0 ** np.ceil(np.log2(farthest * np.sqrt(len(centre))))) if farthest > 0 else 1.0
    out = []
    for x in sets:
        near, square, off = torch.empty(x.shape, dtype=dtype), np.empty(len(x)), np.zeros(len(x))
        for rows in slices(len(x), pieces(x)):
            part = np.subtract(x[rows], centre, dtype=np.float64)
            part /= scale
            near[rows], square[rows] = torch.from_numpy(part), np.einsum("id,id->i", part, part)
            if dtype == torch.bfloat16:
                part -= near[rows].double().numpy()
                off[rows] = np.sqrt(np.einsum("id,id->i", part, part))
        out.append(Vectors(x, centre, scale, near, square, off))
    return out


def pieces(x: Array) -> int:
    """Rows of which a float64 copy stays in a core's own cache."""
    return max(1, 2**15 // x.shape[1])


def tile(a: Vectors, rows: slice, b: Vectors, columns: slice) -> torch.Tensor:
    """About |a_i - b_j|^2 of a tile, float32, in units of scale^2."""
    one, two = (torch.from_numpy(square.astype(np.float32)) for square in (a.square[rows], b.square[columns]))
    if a.near.dtype == torch.float32:
        return torch.addmm(two[None], a.near[rows], b.near[columns].T, alpha=-2).add_(one[:, None])
    return (a.near[rows] @ b.near[columns].T).float().mul_(-2).add_(one[:, None]).add_(two)


def slices(n: int, step: int) -> list[slice]:
    """[0, n) in pieces of `step`."""
    return [slice(i, min(n, i + step)) for i in range(0, n, step)]


def reaches(x: Vectors, k: int, side: int = 2048, spare: int = 16) -> Array:
    """Squared distance of each vector to its k-th nearest other one, as `between` measures it, (n,).

    Each tile of the upper triangle serves its rows and its columns. The k + spare nearest of the tiles are kept, and of these
    those that rounding leaves in question are measured; where `spare` are too few, float64 tiles take over.
    """
    n = len(x.square)
    kept = min(n, k + spare)
    value = torch.full((n, kept), torch.inf)
    index = torch.zeros((n, kept), dtype=torch.int64)

    def keep(rows: slice, start: int, d2: torch.Tensor) -> None:
        least, where = below(d2, value[rows, -1], min(kept, d2.shape[1]))
        both, found = torch.cat([value[rows], least], 1), torch.cat([index[rows], where + start], 1)
        value[rows], order = both.topk(kept, 1, largest=False)
        index[rows] = found.gather(1, order)

    for i, rows in enumerate(all_ := slices(n, side)):
        for columns in all_[i:]:
            d2 = tile(x, rows, x, columns)
            if rows == columns:
                d2.fill_diagonal_(torch.inf)
            else:
                keep(columns, rows.start, d2.t().contiguous())
            keep(rows, columns.start, d2)
    near, which = value.double().numpy() * x.scale**2, index.numpy()
    mine = np.arange(n)
    out, limit = kth(x, mine, near, which, x.slack(x, mine[:, None], which), k)
    more = np.flatnonzero(near[:, -1] - x.slack(x) <= limit) if kept < n - 1 else mine[:0]
    for part in slices(len(more), max(1, TILE_BYTES // (8 * n))):
        rows = more[part]
        near = np.concatenate([squared_distances(x.exactly(rows), x.exactly(columns)) for columns in all_], 1)
        near[np.arange(len(rows)), rows] = np.inf
        slack = x.slack(x, rows, careful=True)[:, None]
        out[rows] = kth(x, rows, near, np.broadcast_to(mine, near.shape), slack, k)[0]
    return out


def below(d2: torch.Tensor, most: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of each row below `most` and their columns, padded with inf; the `kept` least where all are."""
    if bool(most.isinf().any()):
        return d2.topk(kept, 1, largest=False, sorted=False)
    row, column = (d2 < most[:, None]).nonzero(as_tuple=True)
    count = row.bincount(minlength=len(d2))
    place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    shape = (len(d2), int(count.max()))
    least, where = torch.full(shape, torch.inf), torch.zeros(shape, dtype=torch.int64)
    least[row, place], where[row, place] = d2[row, column], column
    return least, where


def kth(x: Vectors, rows: np.ndarray, near: Array, which: np.ndarray, slack: Array, k: int) -> tuple[Array, Array]:
    """The k-th smallest exact distance of some vectors from those of the vectors `which`, and the most that `slack` lets it be.

    It lies between the k-th smallest of what the distances are at least and of what they are at most: others are not measured.
    """
    low, high = near - slack, near + slack
    least, most = (np.partition(bound, k - 1, axis=1)[:, k - 1] for bound in (low, high))
    measured = np.where(high < least[:, None], -np.inf, np.inf)
    row, column = np.nonzero((low <= most[:, None]) & (high >= least[:, None]) & np.isfinite(near))
    measured[row, column] = x.between(rows[row], x, which[row, column])
    return np.partition(measured, k - 1, axis=1)[:, k - 1], most


def within(a: Vectors, b: Vectors, *limits: Array, side: int = 2048) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Tile by tile, for each of the limits, the pairs i, j with |a_i - b_j|^2 <= limit as `between` measures it.

    limits: (n, 1) or (1, m) each.
    """
    for rows in slices(len(a.square), side):
        for columns in slices(len(b.square), side):
            d2 = tile(a, rows, b, columns).numpy()
            shape = (len(a.square), len(b.square))
            yield tuple(decided(a, rows, b, columns, d2, np.broadcast_to(one, shape)[rows, columns]) for one in limits)


def decided(a: Vectors, rows: slice, b: Vectors, columns: slice, d2: np.ndarray, limit: Array) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of one tile within the limit: by the tile, what it leaves open by float64, what that leaves open by `between`."""
    high = (limit[:1] if limit.strides[0] == 0 else limit[:, :1]) + a.slack(b, rows).max()
    high = np.nextafter((high / a.scale**2).astype(np.float32), np.float32(np.inf))
    i, j = np.divmod(np.flatnonzero(d2 <= high), d2.shape[1])
    goal, near = limit[i, j], d2[i, j].astype(np.float64) * a.scale**2
    i, j = i + rows.start, j + columns.start
    slack = a.slack(b, i, j)
    if np.count_nonzero(abs(near - goal) <= slack) > d2.size // 50:
        near = squared_distances(a.exactly(rows), b.exactly(columns))[i - rows.start, j - columns.start]
        slack = a.slack(b, i, j, careful=True)
    inside, unsure = near <= goal - slack, np.flatnonzero(abs(near - goal) <= slack)
    inside[unsure] = a.between(i[unsure], b, j[unsure]) <= goal[unsure]
    return i[inside], j[inside]
