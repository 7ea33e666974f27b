"""Pictures of several sizes: which sizes there are, which of them a picture is brought to, and which each batch is of.

A few sizes of about one area a = side^2, all sides multiples of `MULTIPLE`, stand for all aspects: for each height h up to the
side the width nearest to a / h, and each of these turned. A picture goes to the size nearest in log(width / height), is scaled
until it just covers that, and its middle is cut out. While there are more than `MOST` sizes, or one has less than `LEAST` of
the pictures, the rarest is given up and its pictures go to the nearest of the others.

A batch is of one size. The N_j pictures of size j are seen in an order without end, one keyed permutation after another, that is
cut into batches of B, and by the end of epoch e (the first is 1) it has had

    floor(e N_j / B)                                                                                              (1)

of them, in an order within the epoch that is a keyed permutation too. So after e epochs every picture was seen e times, but for
fewer than B places of each size, which open its next batch: nothing is dropped and no batch is short. A size with fewer pictures
than a batch has one in some epochs only. All of this is a function of (seed, clock) and the recipe's batch.

References: NovelAI Improvements on Stable Diffusion (NovelAI, 2022): batches of one aspect, sizes of about one area
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from nonesuch.core.seeds import permutation
from nonesuch.data.augment import pieces

Size = tuple[int, ...]
MULTIPLE = 8  # of which all sides are multiples: what the networks halve three times
MOST, LEAST = 8, 1 / 32  # sizes, and the share of the pictures below which a size is given up
_SIDE = 256  # at most, where none is asked for


def chosen_sizes(sizes: Sequence[Size], asked: Size | None = None) -> tuple[Size, ...]:
    """The sizes (h, w) that pictures of these sizes are brought to, the most usual first.

    asked: a size whose area they shall have; otherwise the area is that of the median picture, at most 256 x 256.
    """
    areas = sorted(h * w for h, w in sizes)
    area = math.prod(asked) if asked else min(areas[len(areas) // 2], _SIDE**2)
    upright = [h * MULTIPLE for h in range(1, max(1, round(math.sqrt(area) / MULTIPLE)) + 1)]
    wide = [(h, max(h, round(area / h / MULTIPLE) * MULTIPLE)) for h in upright]
    kinds = Counter(sizes)
    found = sorted({nearest(size, sorted({*wide, *((w, h) for h, w in wide)})) for size in kinds})
    while True:
        counts: Counter[Size] = Counter()
        for size, n in kinds.items():
            counts[nearest(size, found)] += n
        rarest = min(found, key=lambda s: (counts[s], -abs(math.log(s[0] / s[1])), s))  # of equally rare ones, the longest
        if len(found) == 1 or (len(found) <= MOST and counts[rarest] >= LEAST * len(sizes)):
            return tuple(sorted(found, key=lambda s: (-counts[s], s)))
        found.remove(rarest)


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of these sizes whose aspect is nearest, by the logarithm; of equally near ones the squarest."""
    return min(sizes, key=lambda s: (round(abs(math.log(size[0] * s[1] / (size[1] * s[0]))), 9), abs(math.log(s[0] / s[1])), s))


def turn(counts: tuple[int, ...], batch: int, seed: int, n: int) -> tuple[int, int]:
    """Which size batch n of a run is of, and how many of that size came before; counts: pictures of each size."""

    def before(epoch: int) -> int:
        return sum(epoch * c // batch for c in counts)  # Eq. 1

    low = n * batch // sum(counts)  # before(e) lies in (e N / B - sizes, e N / B]
    high = (n + 1 + len(counts)) * batch // sum(counts) + 1
    epoch = low + bisect_right(range(low, high + 1), n, key=before) - 1
    order, place = _order_of_sizes(counts, batch, seed, epoch), n - before(epoch)
    which = int(order[place])
    return which, epoch * counts[which] // batch + int((order[:place] == which).sum())


def places(seed: int, bucket: int, n: int, which: range) -> Tensor:
    """int64: the pictures, counted within the size, at these places of the endless order of its n pictures."""
    return torch.cat([_order(seed, bucket, n, again)[at] for again, at in pieces(which, n)])


@lru_cache(maxsize=4)
def _order_of_sizes(counts: tuple[int, ...], batch: int, seed: int, epoch: int) -> Tensor:
    each = [(epoch + 1) * c // batch - epoch * c // batch for c in counts]
    sizes = torch.arange(len(counts)).repeat_interleave(torch.tensor(each))
    return sizes[permutation(seed, "sizes", len(sizes), epoch)]


@lru_cache(maxsize=4 * MOST)
def _order(seed: int, bucket: int, n: int, again: int) -> Tensor:
    return permutation(seed, f"order/{bucket}", n, again)
