"""Is a picture a copy of a training image? Its nearest training image against its nearest held-out image, both moved into place.

A copy need not be equal: it may be mirrored, moved by a few pixels, lit otherwise, compressed. So a picture q is held against an
image t after the best of both mirror images and all moves of up to `MARGIN` of the side, by what a change of light (one gain, one
offset a channel) leaves unexplained,

    r(q, t) = 1 - max(0, max_{f, u} corr(q, f t(. - u)))^2,                                                            (1)

and the statistic is how much better the nearest training image explains it than the nearest image that was never trained on,

    s(q) = (min_train r(q, t) + e) / (min_held-out r(q, h) + e).                                                       (2)

The ratio cancels what makes a picture near to everything (a blurred or a plain one), as Lowe's does. The same ratio of distances
in the features of `evaluate.features` is the second statistic, for copies that no move explains.

A threshold is an order statistic of s over real held-out images: with m of them, the share of further ones below the r-th
smallest is Beta(r, m + 1 - r), and r is the largest for which that share is at most the statistic's part of `FALSE` with 95 %
confidence (three quarters to pixels, where copies show, a quarter to features). Where m is too small for any, the tail of the k
smallest, a tenth of them, is continued as a power,

    threshold = s_(k+1) (m share / k)^H,        H = mean_{i <= k} log s_(k+1) / s_(i).                                 (3)

It is checked on held-out images that took no part.

Only the images most alike at low resolution, `CANDIDATES` of each set, are moved and compared; held-out images are treated the
same, so what this misses it misses in both.

References:
| Distinctive Image Features from Scale-Invariant Keypoints (Lowe, 2004), section 7.1
| Extracting Training Data from Diffusion Models (Carlini et al., 2023) arXiv:2301.13188, section 4.2: distances by neighbourhood
| Order Statistics (David & Nagaraja, 2003), section 7.2: tolerance intervals
| Estimation of Parameters and Large Quantiles Based on the k Largest Observations (Weissman, 1978)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nonesuch.core.given import Category
from nonesuch.core.image import ImageSpec
from nonesuch.data.dataset import Data, Images, content_hashes
from nonesuch.evaluate._pairs import centred, squared_distances, tiles
from nonesuch.evaluate.features import Extractor, fit_extractor, shifted
from nonesuch.evaluate.score import Array, keyed
from nonesuch.train import memory
from nonesuch.train.device import has_bf16

FALSE = 0.01  # share of real held-out images that may be flagged
MARGIN = 14  # a move is up to a 14th of the side
SIDE_PX, SIDE_3D_PX = 32, 16  # pictures are averaged down to this before they are compared
CANDIDATES = 8
_SOFT = 0.12  # of either neighbour in a pixel: the noise of JPEG weighs less, and what a move brings in still little
_LOW_PX = 8  # side of what candidates are found by
_FLOOR = 1e-4  # e of Eq. 2: less than this share of a picture's variance is rounding
_TILE = 1 << 24


@dataclass(frozen=True)
class Frame:
    """How pictures of one size are made small and cut: `side` of the small picture, and the `margin` they are moved by."""

    side: tuple[int, ...]
    margin: int

    @classmethod
    def of(cls, spec: ImageSpec) -> Frame:
        """Raises ValueError for pictures that cannot be moved: tokens, vectors, several sizes, or under 6 pixels a side."""
        if spec.kind == "categorical" or len(spec.size) < 2:
            raise ValueError("copies are looked for in pictures, volumes and clips, not in tokens or vectors.")
        if spec.sizes:
            raise ValueError("copies are looked for among pictures of one size; open the data with fit='crop'.")
        most = SIDE_PX if len(spec.size) == 2 else SIDE_3D_PX
        side = tuple(min(s, most) for s in spec.size)
        if min(side) < 6:
            raise ValueError(f"copies are looked for in pictures of at least 6 pixels a side, not {min(side)}.")
        return cls(side, math.ceil(min(side) / MARGIN))

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(s - 2 * self.margin for s in self.side)

    def small(self, x: Tensor) -> Tensor:
        """(n, C, *size) -> (n, C, *side) float32, softened a little."""
        x = x.float()
        if tuple(x.shape[2:]) != self.side:
            x = (F.adaptive_avg_pool2d if len(self.side) == 2 else F.adaptive_avg_pool3d)(x, self.side)
        for axis in range(len(self.side)):
            step = [int(a == axis) for a in range(len(self.side))]
            x = (1 - 2 * _SOFT) * x + _SOFT * (shifted(x, step) + shifted(x, [-s for s in step]))
        return x

    def cut(self, x: Tensor, at: tuple[int, ...]) -> Tensor:
        """The window at that place of small pictures."""
        for axis, (start, length) in enumerate(zip(at, self.window, strict=True), x.dim() - len(at)):
            x = x.narrow(axis, start, length)
        return x

    def places(self, step: int) -> Iterator[tuple[int, ...]]:
        """Where windows may begin, every `step` pixels of an axis."""
        return itertools.product(range(0, 2 * self.margin + 1, step), repeat=len(self.side))

    def low(self, windows: Tensor) -> Tensor:
        """Windows (n, C, *window) at low resolution, without their light: (n, d) unit vectors, or zeros for a plain one."""
        size = tuple(min(w, _LOW_PX) for w in self.window)
        if size != self.window:
            windows = (F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d)(windows, size)
        return unlit(windows)


def unlit(x: Tensor) -> Tensor:
    """(n, C, *window) without the mean of each channel, of unit length: (n, d); zeros for a plain one."""
    flat = x.flatten(2)
    flat = (flat - flat.mean(2, keepdim=True)).flatten(1)
    norm = flat.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-3 * math.sqrt(flat.shape[1]), flat / norm.clamp_min(1e-12), torch.zeros_like(flat))


class Index:
    """Images to look for copies of: kept small, and at low resolution for finding candidates."""

    def __init__(self, images: Images, frame: Frame, chunk: int = 4096) -> None:
        self.frame = frame
        parts = [frame.small(images.inside(slice(i, i + chunk))) for i in range(0, len(images), chunk)]
        self.small = torch.cat(parts).half()  # 11 bits: as many as a picture of 8 needs
        centre = (frame.margin,) * len(frame.side)
        low = torch.cat([frame.low(frame.cut(part.float(), centre)) for part in self.small.split(chunk)])
        self.low = low.bfloat16() if has_bf16(torch.device("cpu")) else low

    def __len__(self) -> int:
        return len(self.small)

    def nearest(
        self, x: Tensor, *, itself: Tensor | None = None, tell: Callable[[int], None] | None = None
    ) -> tuple[Array, np.ndarray]:
        """r of Eq. 1 to the nearest image, float64 (n,), and which one it is, int64; x (n, C, *size).

        itself: (n,) which of the images x are, where they are some of them: none is its own neighbour.
        """
        rest, found = np.ones(len(x)), np.zeros(len(x), dtype=np.int64)
        for start in range(0, len(x), 128):
            rows = slice(start, min(len(x), start + 128))
            small = self.frame.small(x[rows].cpu())
            which = self._candidates(small, None if itself is None else itself[rows])
            r = self._residual(small, which)
            best = r.argmin(1)
            rest[rows] = r.gather(1, best[:, None])[:, 0].double().numpy()
            found[rows] = which.gather(1, best[:, None])[:, 0].numpy()
            if tell:
                tell(rows.stop)
        return rest, found

    def _candidates(self, small: Tensor, itself: Tensor | None) -> Tensor:
        """(n, k) the images most alike at low resolution, over mirror images and moves."""
        frame, n = self.frame, len(small)
        step = max(1, frame.margin - 1)
        views = [frame.low(frame.cut(y, at)) for y in (small, small.flip(-1)) for at in frame.places(step)]
        queries = torch.cat(views).to(self.low.dtype)
        k = min(CANDIDATES, len(self) - (itself is not None))
        value, index = torch.full((n, k), -torch.inf), torch.zeros((n, k), dtype=torch.int64)
        width = max(1024, _TILE // len(queries))
        for start in range(0, len(self), width):
            likeness = (queries @ self.low[start : start + width].T).view(len(views), n, -1).amax(0).float()
            if itself is not None:
                mine = ((itself >= start) & (itself < start + likeness.shape[1])).nonzero()[:, 0]
                likeness[mine, itself[mine] - start] = -torch.inf
            top, where = likeness.topk(min(k, likeness.shape[1]), 1)
            both, places = torch.cat([value, top], 1), torch.cat([index, where + start], 1)
            value, order = both.topk(k, 1)
            index = places.gather(1, order)
        return index

    def _residual(self, small: Tensor, which: Tensor) -> Tensor:
        """r of Eq. 1 of each picture and its candidates, (n, k)."""
        frame = self.frame
        centre = (frame.margin,) * len(frame.side)
        queries = torch.stack([unlit(frame.cut(y, centre)) for y in (small, small.flip(-1))])
        images = self.small[which.flatten()].float()
        best = torch.zeros(which.shape)
        for at in frame.places(1):
            windows = unlit(frame.cut(images, at)).view(*which.shape, -1)
            best = torch.maximum(best, torch.einsum("fnd,nkd->fnk", queries, windows).amax(0))  # a negative one explains nothing
        return (1 - best.square()).clamp_min(0)  # Eq. 1


def ratio(train: Array, held_out: Array, floor: float = _FLOOR) -> Array:
    """Eq. 2."""
    return np.asarray((train + floor) / (held_out + floor))


def threshold(s: Array, share: float) -> float:
    """What at most `share` of further real images lie below: an order statistic of s (m,), or where m is too small Eq. 3."""
    ordered, m = np.sort(s), len(s)
    if rank := rank_of(m, share):
        return float(ordered[rank - 1])
    k = max(2, m // 10)
    hill = np.log(ordered[k] / ordered[:k].clip(1e-12)).mean()
    return float(ordered[k] * (m * share / k) ** hill)  # Eq. 3


def rank_of(m: int, share: float) -> int:
    """The largest r for which the r-th smallest of m cuts off at most `share` of others with 95 % confidence; 0 if none does."""
    from scipy.stats import beta

    ranks = np.arange(1, int(share * m) + 1)
    return int((beta.ppf(0.95, ranks, m + 1 - ranks) <= share).sum())


@dataclass(frozen=True)
class Found:
    """What was found of n pictures: the statistics of Eq. 2 in pixels and in features (None without a feature network); the
    nearest training and held-out image of each in both spaces (2, n); what Eq. 1 leaves to both in pixels; exact copies."""

    pixels: Array
    features: Array | None
    train: np.ndarray
    held_out: np.ndarray
    rest_train: Array
    rest_held_out: Array
    exact: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, which: np.ndarray | slice) -> Found:
        features = None if self.features is None else self.features[which]
        return Found(
            self.pixels[which], features, self.train[:, which], self.held_out[:, which], self.rest_train[which],
            self.rest_held_out[which], self.exact[which],
        )  # fmt: skip


class Detector:
    """Says of pictures whether they are copies of training images, at thresholds set on half of the held-out ones looked at."""

    def __init__(
        self, data: Data, *, looked_at: int = 4000, seed: int = 0, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        if len(data.train) < 2:
            raise ValueError(f"copies need at least 2 training images, not {len(data.train)}.")
        memory.keep()
        self.frame, self.spec = Frame.of(data.spec), data.spec
        tell("reading the images")
        order = torch.from_numpy(keyed("copies", seed).permutation(len(data.test)))
        self.train, self.held_out = data.train, data.test[order]
        self._hashes = set(content_hashes(data.train.levels))
        self._places = [Index(split, self.frame) for split in (self.train, self.held_out)]
        tell("training the feature network on the training images")
        self.extractor, self.note = _extractor(data, seed)
        self._seen = [self._features(split) for split in (self.train, self.held_out)] if self.extractor else []
        tell("comparing held-out images")
        first = self.held_out[: min(looked_at, len(self.held_out))]
        found = self._found(first.x.float(), same=True)
        self.leaked = int(found.exact.sum())
        kept = np.flatnonzero(~found.exact)  # an image on both sides tells nothing of what is usual
        if len(kept) < 20:
            raise ValueError(f"copies need at least 20 held-out images to compare with, not {len(kept)}; give more images.")
        self.calibration, self.check = found[kept[::2]], found[kept[1::2]]
        parts = (0.75 * FALSE, 0.25 * FALSE) if self.extractor else (FALSE, 0.0)
        both = (self.calibration.pixels, self.calibration.features)
        self.thresholds = [None if s is None else threshold(s, part) for s, part in zip(both, parts, strict=True)]

    def judge(self, x: Tensor, tell: Callable[[int], None] | None = None) -> Found:
        """Compare pictures x (n, C, *size) in [-1, 1] with all training and held-out images."""
        return self._found(self.spec.check(x.float().cpu()), tell=tell)

    def judge_training(self, index: Tensor) -> Found:
        """The same for some of the training images, each against the others."""
        return self._found(self.train[index].x.float(), itself=index)

    def flagged(self, found: Found) -> np.ndarray:
        """bool (n,): below a threshold, or equal to a training image."""
        return self.by(found)[0] | self.by(found)[1] | found.exact

    def by(self, found: Found) -> tuple[np.ndarray, np.ndarray]:
        """Flagged in pixels, flagged in features."""
        pixels, features = self.thresholds
        assert pixels is not None
        none = np.zeros(len(found), dtype=bool)
        return found.pixels < pixels, none if found.features is None else found.features < features

    def sure(self, found: Found) -> np.ndarray:
        """bool (n,): better explained in pixels than any of the held-out images looked at."""
        return found.pixels < min(self.calibration.pixels.min(), self.check.pixels.min())

    # -- both spaces

    def _found(
        self, x: Tensor, *, same: bool = False, itself: Tensor | None = None, tell: Callable[[int], None] | None = None
    ) -> Found:
        """same: x are the first of the held-out images; itself: x are these training images."""
        own = (itself, torch.arange(len(x)) if same else None)
        near = [
            index.nearest(x, itself=o, tell=tell if place else None)
            for place, (index, o) in enumerate(zip(self._places, own, strict=True))
        ]
        exact = np.zeros(len(x), dtype=bool)
        if itself is None:
            exact = np.array([h in self._hashes for h in content_hashes(self._levels(x))])
        features, places = None, [[near[0][1]], [near[1][1]]]
        if self.extractor:
            both = [self._nearest_features(x, points, o) for points, o in zip(self._seen, own, strict=True)]
            features = ratio(both[0][0], both[1][0], floor=1e-9)
            for place, (_, index) in zip(places, both, strict=True):
                place.append(index)
        return Found(
            ratio(near[0][0], near[1][0]), features, np.stack(places[0]), np.stack(places[1]), near[0][0], near[1][0], exact
        )

    def _levels(self, x: Tensor) -> Tensor:
        return x if self.spec.kind == "continuous" else self.spec.to_levels(x).to(self.train.levels.dtype)

    def _features(self, images: Images, chunk: int = 4096) -> Array:
        assert self.extractor
        parts = [self.extractor.features(images.inside(slice(i, i + chunk)).float()).array for i in range(0, len(images), chunk)]
        return np.concatenate(parts)

    def _nearest_features(self, x: Tensor, points: Array, itself: Tensor | None) -> tuple[Array, np.ndarray]:
        """Distance in features to the nearest of the points, over both mirror images, and which it is."""
        assert self.extractor
        found = [_nearest(self.extractor.features(y).array, points, itself) for y in (x, x.flip(-1))]
        mirrored = found[1][0] < found[0][0]
        return tuple(np.where(mirrored, b, a) for a, b in zip(*found, strict=True))  # type: ignore[return-value]


def _nearest(queries: Array, points: Array, itself: Tensor | None) -> tuple[Array, np.ndarray]:
    """`nearest`, where query i is not to find point itself[i]."""
    moved_queries, moved_points = centred(queries, points)
    distance, first = np.empty(len(queries)), np.empty(len(queries), dtype=np.int64)
    for rows in tiles(len(queries), len(points)):
        d2 = squared_distances(moved_queries[rows], moved_points)
        if itself is not None:
            d2[np.arange(len(d2)), itself[rows].numpy()] = np.inf
        first[rows] = d2.argmin(1)
        distance[rows] = np.sqrt(np.square(queries[rows] - points[first[rows]]).sum(1))
    return distance, first


def _extractor(data: Data, seed: int) -> tuple[Extractor | None, str]:
    """The feature network, trained on the training split, or the sentence that says why there is none."""
    split = data.train[:20_000]
    try:
        for name, column in data.schema.columns.items():
            if isinstance(column, Category):
                return fit_extractor(split.x, split.labels(name), name=data.name, seed=seed, classes=len(column.names)), ""
        return fit_extractor(split.x, name=data.name, seed=seed), ""
    except ValueError as error:
        return None, str(error)
