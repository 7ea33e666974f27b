"""From what files say of themselves to one kind of picture: axes, depth, channels and size, with nothing lost unsaid.

A `Plan` is made from all heads before a pixel is decoded, and brings each picture to it. The policies are a table in
docs/data.md; whatever one of them does to a picture is counted in `Plan.remarks`, which every report repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonesuch.core.given import did_you_mean
from nonesuch.data.buckets import Size, chosen_sizes, nearest
from nonesuch.data.formats import Head, Picture
from nonesuch.data.transforms import FITS, asked_size, chosen_size, fitted, scaled_size

LOSSY = "came through JPEG or another lossy format: bits/dim and distances are not comparable with published ones"
_ALPHA = ("L", "LA", "P", "PA", "RGB", "RGBA")  # modes of which a channel beyond grey or colour is alpha
_WHITE = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True)
class Plan:
    """What every picture becomes: (channels, *size) of dtype along axes; alpha: whether the last channel is transparency.

    own: numpy's name of the files' type, which a sample is written in. fit: how sizes are reached, None where all have it.
    sizes: those of several, of which each picture is brought to that of the nearest aspect; () for `size` alone.
    """

    axes: str
    channels: int
    size: tuple[int, ...]
    dtype: str
    own: str
    alpha: bool
    fit: str | None
    remarks: tuple[str, ...]
    sizes: tuple[Size, ...] = ()

    def target(self, head: Head) -> Size:
        """The size a picture is brought to."""
        return nearest(head.size[-len(self.axes) :], self.sizes) if self.sizes else self.size

    def apply(self, picture: Picture, head: Head, name: str) -> np.ndarray:
        """A picture's values (channels, *size). Raises ValueError if it is not what its head said."""
        values = picture.values
        if picture.axes == "thw" and self.axes == "hw":
            values = values[:, 0]
        if values.ndim != 1 + len(self.axes):
            raise ValueError(f"{name} is of axes {picture.axes!r}, not {self.axes!r} as it said.")
        values, target = self._coloured(self._deep(values), has_alpha(head), name), self.target(head)
        if values.shape[1:] != target:
            if self.fit is None:
                was, wanted = (" x ".join(map(str, s)) for s in (values.shape[1:], target))
                raise ValueError(f"{name} is {was}, not {wanted} as it said; give a fit= to bring images to one size.")
            values = fitted(values, target, self.fit, self.axes)
        return np.ascontiguousarray(values, dtype=self.dtype)

    def spacing(self, picture: Picture, head: Head) -> tuple[float, ...] | None:
        """Distance of neighbours after the picture was brought to its size."""
        if picture.spacing is None:
            return None
        spacing, old = picture.spacing[-len(self.axes) :], head.size[-len(self.axes) :]
        if self.fit is None or len(spacing) != len(self.axes):
            return spacing if len(spacing) == len(self.axes) else None
        first = self.axes.startswith("t")
        scaled = scaled_size(old[first:], self.target(head)[first:], self.fit)
        return (*spacing[:first], *(d * o / n for d, o, n in zip(spacing[first:], old[first:], scaled, strict=True)))

    def _deep(self, values: np.ndarray) -> np.ndarray:
        if self.dtype == "uint16" and values.dtype == np.uint8:
            return values.astype(np.uint16) * 257  # 255 * 257 = 65535
        return values if values.dtype == self.dtype else values.astype(self.dtype)

    def _coloured(self, values: np.ndarray, alpha: bool, name: str) -> np.ndarray:
        if alpha and not self.alpha:
            white = float(_WHITE.get(self.dtype, 1))
            share = values[-1:].astype(np.float64) / white
            over = values[:-1] * share + (1 - share) * white
            values = (np.rint(over) if values.dtype.kind in "ui" else over).astype(values.dtype)
        missing = self.channels - len(values)
        if missing and len(values) == 1 + self.alpha:  # grey among colour
            values = np.concatenate([values[:1].repeat(missing, 0), values])
        if len(values) != self.channels:
            raise ValueError(f"{name} has {len(values)} channels, not {self.channels} as it said.")
        return values


def has_alpha(head: Head) -> bool:
    """Whether a file's last channel is its transparency."""
    return head.channels in (2, 4) and head.mode.split(";")[0] in _ALPHA


def plan(
    heads: Sequence[Head],
    names: Sequence[str],
    axes: str | None = None,
    fit: str | None = None,
    size: int | Sequence[int] | None = None,
) -> Plan:
    """One kind of picture for all of these files. Raises ValueError with a sentence that names the odd one out."""
    check_fit(fit)
    remarks = [_said(sum(h.lossy for h in heads), len(heads), LOSSY)]
    axes, more = _axes(heads, names, axes)
    dtype, own, deeper = _dtype(heads, names)
    channels, alpha, coloured = _channels(heads, names)
    sizes = [h.size[-len(axes) :] for h in heads]
    several: tuple[Size, ...] = ()
    if fit == "bucket":
        several = _buckets(sizes, axes, size)
        size, fit, several = several[0], "crop", several if len(several) > 1 else ()
    target, fit, resized = _size(sizes, axes, fit, size, several)
    remarks += [more, deeper, *coloured, resized]
    return Plan(axes, channels, target, dtype, own, alpha, fit, tuple(r for r in remarks if r), several)


def check_fit(fit: str | None) -> None:
    """Raise ValueError for a word that is no way of fitting."""
    if fit is not None and fit not in FITS:
        raise ValueError(f"fit {fit!r} is not a way to bring images to one size, or a few; {did_you_mean(fit, FITS)}")


def _said(count: int, n: int, what: str) -> str:
    return f"{count} of {n} images {what}." if count else ""


def _odd(kinds: Sequence[object], names: Sequence[str], what: str, hint: str) -> ValueError:
    usual, most = Counter(kinds).most_common(1)[0]
    odd = next(i for i, k in enumerate(kinds) if k != usual)
    return ValueError(f"{most} of {len(kinds)} images {what} {usual}, {names[odd]} {what} {kinds[odd]}; {hint}")


def _axes(heads: Sequence[Head], names: Sequence[str], asked: str | None) -> tuple[str, str]:
    """The axes of all, and what is said of those that had more frames."""
    found = asked or ("hw" if any(h.axes == "hw" for h in heads) else heads[0].axes)
    if found not in ("hw", "dhw", "thw"):
        raise ValueError(f"axes {found!r} are not those of files of images; {did_you_mean(found, ('hw', 'dhw', 'thw'))}")
    own = ["hw" if h.axes == "thw" and found == "hw" else h.axes for h in heads]
    if any(o != found for o in own):
        if asked and all(o != found for o in own):
            raise ValueError(f"the images have axes {heads[0].axes!r}, not {asked!r}; open them without axes=.")
        raise _odd(own, names, "have axes" if len(set(own)) == 1 else "are of axes", "give a folder of one kind, or axes=.")
    clips = sum(h.axes == "thw" for h in heads) if found == "hw" else 0
    return found, _said(clips, len(heads), 'are clips, of which the first frame is used (axes="thw" takes all)')


def _dtype(heads: Sequence[Head], names: Sequence[str]) -> tuple[str, str, str]:
    """The type of the values in memory, the files' own, and what is said of those that had another."""
    kinds = [np.dtype(h.dtype) for h in heads]
    distinct = set(kinds)
    if len({k.kind == "f" for k in distinct}) > 1:
        words = ["of real numbers" if k.kind == "f" else "of integers" for k in kinds]
        raise _odd(words, names, "are", "bring them to one type first.")
    wide = np.result_type(*distinct)
    if wide.kind == "f":
        rounded = sum(k.itemsize > 4 for k in kinds)
        own = "float64" if wide == np.float64 else str(wide)
        return "float32", own, _said(rounded, len(heads), "are of 64-bit floats and kept as 32-bit ones")
    if wide == np.bool_:
        wide = np.dtype(np.uint8)
    if wide == np.uint64:
        raise _odd([*map(str, kinds), "int64"], [*names, ""], "are of type", "64-bit unsigned integers are not read.")
    if len(distinct) == 1:
        return str(wide), str(wide), ""
    fewer = sum(k != wide for k in kinds)
    what = "have 8 bits among 16 and were multiplied by 257" if distinct == {np.dtype("u1"), np.dtype("u2")} else f"became {wide}"
    return str(wide), str(wide), _said(fewer, len(heads), what)


def _channels(heads: Sequence[Head], names: Sequence[str]) -> tuple[int, bool, list[str]]:
    """Channels of all, whether the last is transparency, and what is said of those that had others."""
    n, clear = len(heads), [has_alpha(h) for h in heads]
    alpha = all(clear)
    colours = [h.channels - c for h, c in zip(heads, clear, strict=True)]
    said = [] if alpha else [_said(sum(clear), n, "have transparency, which the others lack, and were laid over white")]
    if len(set(colours)) > 1:
        if set(colours) != {1, 3}:
            raise _odd([h.channels for h in heads], names, "have channels:", "bring them to one mode first.")
        said.append(_said(colours.count(1), n, "are grey among colour and became colour"))
    return max(colours) + alpha, alpha, said


def _buckets(sizes: Sequence[Size], axes: str, size: int | Sequence[int] | None) -> tuple[Size, ...]:
    """The sizes there shall be of pictures; size: what has the area of them all."""
    if axes != "hw":
        raise ValueError(f"fit 'bucket' is for images, and these have axes {axes!r}; use crop, pad or resize.")
    return chosen_sizes(sizes, None if size is None else asked_size(size, axes, sizes))


def _size(
    sizes: Sequence[Size], axes: str, fit: str | None, size: int | Sequence[int] | None, several: tuple[Size, ...]
) -> tuple[Size, str | None, str]:
    """The size of all (or the most usual of several), how it is reached (None where all have it), and what is said of that."""
    if size is None and len(set(sizes)) == 1:
        return sizes[0], None, ""
    target = chosen_size(sizes, axes) if size is None else asked_size(size, axes, sizes)
    fit = fit or "crop"
    first = axes.startswith("t")
    goals = [nearest(s, several) if several else target for s in sizes]
    counts = Counter(goals)
    other = [(s, goal) for s, goal in zip(sizes, goals, strict=True) if s != goal]
    if not other:
        return target, None, ""
    scales = [[n / o for n, o in zip(scaled_size(s[first:], t[first:], fit), s[first:], strict=True)] for s, t in other]
    larger, smaller = [max(s) for s in scales if max(s) > 1.001], [min(s) for s in scales if min(s) < 0.999]
    parts = [f"{len(smaller)} made smaller, down to {min(smaller):.2g} times"] if smaller else []
    parts += [f"{len(larger)} made larger, up to {max(larger):.2g} times"] if larger else []
    kept = [
        np.prod([n / (o * k) for n, o, k in zip(t[first:], s[first:], scale, strict=True)])
        for (s, t), scale in zip(other, scales, strict=True)
    ]
    if fit == "crop" and min(kept) < 0.999:
        parts.append(f"up to {1 - min(kept):.0%} of an image's area cut off")
    if first and any(s[0] != target[0] for s, _ in other):
        parts.append(f"clips of {min(s[0] for s in sizes)} to {max(s[0] for s in sizes)} frames brought to {target[0]}")
    word = {"crop": "scaled and cropped", "pad": "scaled and padded", "resize": "resized"}[fit]
    goal = " x ".join(map(str, target))
    if several:
        each = ", ".join(f"{' x '.join(map(str, s))}: {counts[s]:,}" for s in several)
        goal = f"the nearest in aspect of {len(several)} sizes, {each}"
    text = _said(len(other), len(sizes), f"were {word} to {goal}")
    return target, fit, text[:-1] + f" ({'; '.join(parts)})." if parts else text
