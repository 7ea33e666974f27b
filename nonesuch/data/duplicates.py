"""Pictures that are the same, and pictures that are nearly the same: exact by a hash of values, near by a perceptual print.

A print is the picture's grey thumbnail a (16 x 16, antialiased), standardised. Two pictures are *near* if one explains the
other up to a change of light and a small shift, crop or change of scale, to first order a regression on six terms,

    b = g a + o + u . grad a + s (x . grad a) + residual,       rho = |residual|^2 / |b without its plane|^2,          (1)

with rho below NEAR, and below a twentieth of what rho is to the neighbours of a typical picture of this set: digits resemble one
another more than photographs do, and only a gap tells a copy from a likeness (Lowe's ratio test). The plane (mean and linear
shading) is left out on both sides, for every sky is explained by every other sky; a picture with nothing else has no near
duplicates. Neighbours are found in the low frequencies of the thumbnail's cosine transform: by one product up to MANY pictures,
by a tree beyond, and never more than NEIGHBOURS of each, so that neither time nor memory grows with the square.

References:
    Implementation and Benchmarking of Perceptual Image Hash Functions (Zauner, 2010)
    Distinctive Image Features from Scale-Invariant Keypoints (Lowe, 2004), section 7.1
    An Iterative Image Registration Technique (Lucas, Kanade, 1981)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIDE = 16  # of a thumbnail
FREQUENCIES = 5  # kept along each axis, the constant included
NEAR = 0.05  # largest share of a picture that its near duplicate leaves unexplained
GAP = 0.05  # and largest ratio of that to what a neighbour leaves
FAINT = 4 / 255  # of the set's range: of two near duplicates, one has at least this much contrast, the other two thirds of it
SMALLEST_PX = 12  # pictures with a shorter side than this are too small to tell likeness from copy
NEIGHBOURS = 16
RADIUS = 0.45  # of unit vectors of frequencies; beyond it nothing near was measured
MANY = 1 << 13  # pictures; beyond it a tree finds the neighbours
_TINT = 0.12  # of the set's range: pictures whose colours lie further apart are not copies, whatever their shapes


@dataclass(frozen=True)
class Print:
    """digest: hash of values, type and shape; shape: (256,) float16, the standardised thumbnail; mean, deviation: its own;
    tint: means of the first three channels less the grey mean, or zeros; side_px: the picture's shorter side."""

    digest: str
    shape: np.ndarray
    mean: float
    deviation: float
    tint: tuple[float, float, float]
    side_px: int


def digest(values: np.ndarray) -> str:
    """A hash of the values, type and shape of a decoded picture."""
    start = f"{values.dtype.str}{values.shape}".encode()
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16, person=start[:16]).hexdigest()


def print_of(values: np.ndarray) -> Print:
    """The print of a picture (channels, *size) of any numbers; of a volume or video, that of its middle slice."""
    flat = values
    while flat.ndim > 3:
        flat = flat[:, flat.shape[1] // 2]
    flat = flat.reshape(len(flat), 1, -1) if flat.ndim < 3 else flat
    height, width = flat.shape[1:]
    thin = flat[:3, :: max(1, height // 256), :: max(1, width // 256)].astype(np.float32)
    channels = np.nan_to_num(thin, posinf=0, neginf=0).reshape(len(thin), *thin.shape[1:])
    means = channels.mean((1, 2), dtype=np.float64)
    colours = len(flat) >= 3  # two channels are grey with alpha
    grey = channels.mean(0) if colours else channels[0]
    small = _weights(grey.shape[0]) @ grey @ _weights(grey.shape[1]).T
    mean, deviation = float(small.mean()), float(small.std())
    shape = ((small - mean) / (deviation or 1)).astype(np.float16).ravel()
    tint = tuple(float(m - means.mean()) for m in means) if colours else (0.0, 0.0, 0.0)
    return Print(digest(values), shape, mean, deviation, tint, min(height, width))  # type: ignore[arg-type]  # numpy scalars


def same(digests: Sequence[str]) -> list[list[int]]:
    """Groups of two and more indices whose digests are equal, each in order."""
    groups: dict[str, list[int]] = {}
    for i, one in enumerate(digests):
        groups.setdefault(one, []).append(i)
    return [g for g in groups.values() if len(g) > 1]


def near(prints: Sequence[Print]) -> list[tuple[int, int, float]]:
    """Pairs i < j that are near and not the same, with their rho of (1), the nearest first."""
    places, contrast = _eligible(prints)
    if len(places) < 2:
        return []
    shapes = np.stack([prints[i].shape for i in places]).astype(np.float32)
    tints = np.array([prints[i].tint for i in places], np.float32)
    low = _frequencies(shapes)
    distance, neighbour = _neighbours(low, low, RADIUS)
    first, rank = np.nonzero(np.isfinite(distance))
    second = neighbour[first, rank]
    one_way = first < second
    pairs = np.unique(np.stack([np.minimum(first, second), np.maximum(first, second)], 1)[one_way | (first > second)], axis=0)
    close = np.abs(tints[pairs[:, 0]] - tints[pairs[:, 1]]).max(1, initial=0) <= _TINT * _range(prints)
    pairs = pairs[close & (contrast[pairs].max(1, initial=0) > FAINT * _range(prints))]
    rho = np.minimum(_unexplained(shapes, pairs), _unexplained(shapes, pairs[:, ::-1]))
    pairs, rho = pairs[rho < NEAR], rho[rho < NEAR]
    likeness = _likeness(shapes, low, np.unique(pairs))
    kept = [(int(a), int(b), float(r)) for (a, b), r in zip(pairs, rho, strict=True) if r < GAP * max(likeness[a], likeness[b])]
    return sorted(((places[a], places[b], r) for a, b, r in kept), key=lambda p: (p[2], p[:2]))


def clusters(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The groups that pairs chain together, each in order."""
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root.setdefault(i, i) != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in pairs:
        root[find(max(find(a), find(b)))] = min(find(a), find(b))
    groups: dict[int, list[int]] = {}
    for i in sorted(root):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def _eligible(prints: Sequence[Print]) -> tuple[list[int], np.ndarray]:
    """The first picture of each digest, where it is large enough and has more contrast than noise has; and that contrast."""
    if not prints:
        return [], np.zeros(0)
    seen: set[str] = set()
    faint, places, contrasts = FAINT * _range(prints) / 1.5, [], []
    for i, one in enumerate(prints):
        if one.side_px >= SMALLEST_PX and one.digest not in seen:
            seen.add(one.digest)
            contrast = float(_plain(one.shape[None])[0].std()) * one.deviation if one.deviation > faint else 0.0
            if contrast > faint:
                places.append(i)
                contrasts.append(contrast)
    return places, np.array(contrasts)


def _range(prints: Sequence[Print]) -> float:
    """The range of the values of this set, about: six deviations, or the means' own range."""
    means, deviations = np.array([p.mean for p in prints]), np.array([p.deviation for p in prints])
    low, high = np.quantile(means - 2 * deviations, 0.01), np.quantile(means + 2 * deviations, 0.99)
    return float(high - low)


# -- the thumbnail's algebra -------------------------------------------------------------------------------------------

_y, _x = (g.ravel().astype(np.float32) for g in np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j])
_PLANE = np.linalg.qr(np.stack([np.ones_like(_x), _x, _y], 1))[0].astype(np.float32)


@lru_cache(maxsize=256)
def _weights(n: int) -> np.ndarray:
    """(SIDE, n): triangles as wide as two cells of the thumbnail, so that nothing finer than a cell is folded into it."""
    centre, place, half = (np.arange(SIDE) + 0.5) * n / SIDE, np.arange(n) + 0.5, max(n / SIDE, 1.0)
    weight = np.maximum(0, 1 - np.abs(place[None] - centre[:, None]) / half)
    return np.asarray(weight / weight.sum(1, keepdims=True), np.float32)


def _plain(shapes: np.ndarray) -> np.ndarray:
    """Thumbnails without their mean and linear shading."""
    flat = shapes.astype(np.float32)
    return np.asarray(flat - (flat @ _PLANE) @ _PLANE.T)


def _frequencies(shapes: np.ndarray) -> np.ndarray:
    """(n, 24) float32: the low frequencies of plain thumbnails of unit length, the constant left out."""
    plain = _plain(shapes)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True).clip(1e-6)
    place = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    basis = np.cos(np.arange(FREQUENCIES)[:, None] * place) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    low = np.einsum("fi,nij,gj->nfg", basis, plain.reshape(-1, SIDE, SIDE), basis, optimize=True)
    return low.reshape(len(shapes), -1)[:, 1:].astype(np.float32)


def _neighbours(queries: np.ndarray, among: np.ndarray, radius: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) distances, infinite beyond the radius, and indices of the nearest; a picture itself is one of its neighbours."""
    k = min(NEIGHBOURS + 1, len(among))
    if len(among) > MANY:
        from scipy.spatial import cKDTree

        # eps: sure within half the radius, where copies lie, and likely beyond it
        distance, index = cKDTree(among).query(queries, k=k, distance_upper_bound=radius, eps=1.0, workers=2)
        return distance, np.minimum(index, len(among) - 1)
    distances, indices = [], []
    square = (among**2).sum(1)
    for start in range(0, len(queries), 256):
        part = queries[start : start + 256]
        apart = np.sqrt(((part**2).sum(1)[:, None] + square - 2 * part @ among.T).clip(0))
        index = np.argpartition(apart, k - 1, axis=1)[:, :k]
        distance = np.take_along_axis(apart, index, 1)
        distances.append(np.where(distance <= radius, distance, np.inf))
        indices.append(index)
    return np.concatenate(distances), np.concatenate(indices)


def _unexplained(shapes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """rho of (1) for pairs (n, 2): what the first leaves unexplained of the second."""
    out = [np.zeros(0)]
    for start in range(0, len(pairs), 2048):
        part = pairs[start : start + 2048]
        a, b = (shapes[part[:, i]].astype(np.float64) for i in (0, 1))
        down, right = np.gradient(a.reshape(-1, SIDE, SIDE), axis=(1, 2))
        down, right = down.reshape(a.shape), right.reshape(a.shape)
        terms = np.stack([a, np.ones_like(a), right, down, _x * right, _y * down], -1)
        square = np.einsum("npi,npj->nij", terms, terms) + 1e-6 * np.eye(6)
        factors = np.linalg.solve(square, np.einsum("npi,np->ni", terms, b)[..., None])
        rest = b - (terms @ factors)[..., 0]
        out.append((rest**2).sum(1) / (_plain(b) ** 2).sum(1).clip(1e-9))  # (1)
    return np.concatenate(out)


def _likeness(shapes: np.ndarray, low: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(n,) for the pictures `of`: the median rho to their neighbours, or a quarter of a typical picture's where that is more."""
    typical = np.unique(np.linspace(0, len(low) - 1, min(len(low), 200)).astype(int))
    every = np.union1d(of, typical)
    _, index = _neighbours(low[every], low)
    pairs = np.stack([np.repeat(every, index.shape[1]), index.ravel()], 1)
    rho = _unexplained(shapes, pairs).reshape(index.shape)
    rho[index == every[:, None]] = np.nan  # itself
    median = np.nanmedian(rho, 1) if len(low) > 3 else np.ones(len(every))
    usual = float(np.median(median[np.searchsorted(every, typical)]))
    out = np.full(len(low), np.nan)
    out[every] = np.maximum(median, usual / 4)
    return out
