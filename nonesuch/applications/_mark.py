"""An invisible mark in the pixels of a picture, and a test for it whose rate of false alarms is derived, not measured.

The mark is a tile of 64 x 64, repeated over the picture and added to its luminance. It is band-limited noise: on a set K of n
frequencies, half of those with 5 <= |k| <= 18 cycles a tile (wavelengths of 3.6 to 13 pixels, which JPEG keeps), all of one
magnitude, with phases phi_k drawn from the key. Its strength follows the local deviation s of the luminance, where the eye
tolerates most:

    y'(x) = y(x) + a clip(s(x), 4, 20) w(x + d),        w(x) = Re sum_{k in K} e^{i (2 pi k x / 64 + phi_k)}, scaled to rms 1.

To find it, the luminance is whitened, r = (y - mean) / (s + 2) over 9 x 9, added up over all tiles into one, and transformed; of
each frequency only the phase theta_k is kept. For every one of the 64^2 shifts d, which makes it indifferent to cropping,

    S(d) = sum_{k in K} cos(theta_k - phi_k + 2 pi k d / 64).

**The null distribution is known for every picture.** If the picture was made without the key, the phi_k are uniform and
independent of it, and so are the angles, whatever the picture: S(d) is a sum of n independent cosines of uniform angles, with
E e^{lambda S} = I_0(lambda)^n. By Chernoff's bound, and Boole's over the shifts,

    P(max_d S(d) >= s)  <=  p(s) = 64^2 min_lambda exp(n log I_0(lambda) - lambda s),

and a mark is called found where p <= 1e-3. Every lambda gives a bound, so a grid of them will do.

The writer knows the picture, so it helps itself (informed embedding): d is the shift at which the picture itself agrees with the
tile best, and a is the least of a ladder that is found, after a quantisation as of JPEG at quality 75, at Z_AIM deviations of S
under the null (found begins at about 5.6); never so much that the peak signal-to-noise ratio falls below 38.5 dB. Pictures that
allow no such mark (flat black or white ones) stay as they are and say so.

It survives JPEG down to quality 30, changes of brightness, contrast and colour, noise, blur of two pixels, halving and doubling
again, and cropping to 128 x 128 (docs/provenance.md has the table). **It does not survive** being left at another size (by 2 % is
enough), rotation by a degree, mirroring, a generative model that redraws the picture, or anyone who wants it gone: the key is
public, so it can be subtracted, or added to any picture. It says "probably made by this library", never "not made by it", and
carries one bit: no name, no number.

References:
    Secure Spread Spectrum Watermarking for Multimedia (Cox, Kilian, Leighton, Shamoon, 1997), IEEE Trans. Image Processing 6(12)
    Quantization Index Modulation: a class of provably good methods (Chen, Wornell, 2001), IEEE Trans. Information Theory 47(4)
    Improved Spread Spectrum: A New Modulation Technique for Robust Watermarking (Malvar, Florencio, 2003)
    Phase-Only Matched Filtering (Horner, Gianino, 1984), Applied Optics 23(6); Digital compression (ITU-T T.81, 1992), Annex K
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

NAME = "phase tile 64, version 1"
FALSE_ALARMS = 1e-3
SIDE, LEAST_SIDE = 64, 256
Z_AIM, LEAST_PSNR_DB = 15.0, 38.5

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG's
_LOWEST, _HIGHEST = 5.0, 18.0  # cycles a tile
_FLOOR, _CEILING = 4.0, 20.0  # of the local deviation, in levels
_WHITE, _REACH = 2.0, 4
_MOST_SIDE = 2048  # of the middle that is looked at: more adds time, and nothing to the answer
_LADDER = tuple(0.04 * 1.2**k for k in range(14))
_LAMBDAS = np.concatenate([np.linspace(0.0, 4.0, 401), np.geomspace(4.1, 600.0, 200)])
_TABLE_50 = np.array(
    [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
     [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
     [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]]
)  # fmt: skip


@dataclass(frozen=True)
class Detection:
    """p: how often, at most, an unmarked picture shows so much; z: the statistic in its deviations; found: p <= FALSE_ALARMS."""

    p: float
    z: float

    @property
    def found(self) -> bool:
        return self.p <= FALSE_ALARMS


def unmarked(spec: ImageSpec) -> str:
    """Why pictures of this kind are not marked, as a clause for an Origin; "" if they are."""
    if spec.kind != "ordinal" or spec.levels != 256 or spec.dtype != "uint8" or (spec.value_range or (0, 255)) != (0, 255):
        return "none: not of 8 bits and 256 levels"
    if spec.axes != "hw" or spec.channels not in (1, 3, 4):
        return "none: not a grey or colour picture"
    if spec.unit or spec.spacing:
        return "none: measured in mm or units, such as medical pictures"
    if min(spec.size) < LEAST_SIDE:
        return f"none: smaller than {LEAST_SIDE}x{LEAST_SIDE}"
    return ""


def marked(values: np.ndarray, key: int = 0) -> tuple[np.ndarray, str]:
    """uint8 (1, 3 or 4, H, W), at least 256 x 256, with the mark in it, and the mark's name; alpha stays as it is.

    A picture in which no mark can be hidden comes back as it is, with a clause that says so. Raises ValueError for others.
    """
    if values.dtype != np.uint8 or values.ndim != 3 or len(values) not in (1, 3, 4) or min(values.shape[1:]) < LEAST_SIDE:
        raise ValueError(
            f"only 8-bit grey or colour pictures from {LEAST_SIDE}x{LEAST_SIDE} up are marked, not {values.dtype} {values.shape}."
        )
    luma = _luma(values)
    white, deviation = _whitened(luma)
    agreement, _ = _statistics(white, key)
    shift = np.unravel_index(int(agreement.argmax()), agreement.shape)
    added = np.clip(deviation, _FLOOR, _CEILING) * _spread(_tile(key), shift, luma.shape)
    best: np.ndarray | None = None
    for strength in _LADDER:
        tried = values.copy()
        colours = slice(0, min(3, len(values)))
        tried[colours] = np.clip(np.rint(values[colours] + strength * added), 0, 255).astype(np.uint8)
        if _psnr_db(values[colours], tried[colours]) < LEAST_PSNR_DB:
            break
        best = tried
        if _detected(_quantised(_luma(tried)), key).z >= Z_AIM:
            return best, NAME
    if best is not None and _detected(_luma(best), key).p <= FALSE_ALARMS**2:
        return best, NAME
    return values, "none: too flat, or too close to black and white, to hide one"


def detect(values: np.ndarray, key: int = 0) -> Detection:
    """Whether uint8 (C, H, W), of any size from 64 x 64 up, carries the mark; of 2 channels the first counts."""
    if values.dtype != np.uint8 or values.ndim != 3 or min(values.shape[1:]) < SIDE:
        raise ValueError(f"a mark is looked for in 8-bit pictures from {SIDE}x{SIDE} up, not in {values.dtype} {values.shape}.")
    top, left = (max(0, (side - _MOST_SIDE) // 2) for side in values.shape[1:])
    return _detected(_luma(values[:, top : top + _MOST_SIDE, left : left + _MOST_SIDE]), key)


def false_alarm(statistic: float, n: int, places: int) -> float:
    """A bound of P(the largest of `places` sums of n cosines of uniform angles >= statistic), by Chernoff and Boole."""
    exponents = n * np.log(np.i0(_LAMBDAS)) - _LAMBDAS * statistic
    return float(min(1.0, places * math.exp(min(0.0, float(exponents.min())))))


def _detected(luma: np.ndarray, key: int) -> Detection:
    agreement, n = _statistics(_whitened(luma)[0], key)
    most = float(agreement.max())
    return Detection(false_alarm(most, n, agreement.size), most / math.sqrt(n / 2))


@lru_cache(maxsize=8)
def _phases(key: int) -> np.ndarray:
    """e^{i phi_k} on K, 0 elsewhere, complex (64, 64) in the order of fft2; K holds one of each pair k, -k."""
    k = np.fft.fftfreq(SIDE, 1 / SIDE)
    down, across = np.meshgrid(k, k, indexing="ij")
    radius = np.hypot(down, across)
    chosen = ((across > 0) | ((across == 0) & (down > 0))) & (radius >= _LOWEST) & (radius <= _HIGHEST)
    turns = Seeds((key,), (0,)).uniform("mark", SIDE * SIDE)[0].double().numpy().reshape(SIDE, SIDE)
    return np.where(chosen, np.exp(2j * np.pi * turns), 0)


def _tile(key: int) -> np.ndarray:
    tile = np.fft.ifft2(_phases(key)).real
    return tile / tile.std()


def _spread(tile: np.ndarray, shift: tuple[np.intp, ...], size: tuple[int, ...]) -> np.ndarray:
    """The tile, shifted and repeated, over a picture of that size."""
    moved = np.roll(tile, tuple(int(s) for s in shift), (0, 1))
    return np.tile(moved, tuple(-(-s // SIDE) for s in size))[: size[0], : size[1]]


def _statistics(white: np.ndarray, key: int) -> tuple[np.ndarray, int]:
    """S(d) for every shift (64, 64), and n. A frequency without a phase (of a flat picture) counts 0, which p allows for."""
    phases = _phases(key)
    padded = np.pad(white, [(0, -s % SIDE) for s in white.shape])
    folded = padded.reshape(padded.shape[0] // SIDE, SIDE, padded.shape[1] // SIDE, SIDE).sum((0, 2))
    spectrum = np.fft.fft2(folded)
    size = np.abs(spectrum)
    turned = np.where(size > 1e-9, spectrum / np.maximum(size, 1e-9), 0) * phases.conj()
    return np.fft.ifft2(turned).real * SIDE**2, int((phases != 0).sum())


def _luma(values: np.ndarray) -> np.ndarray:
    return values[0].astype(np.float64) if len(values) < 3 else np.tensordot(_LUMA, values[:3].astype(np.float64), 1)


def _whitened(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The luminance less its local mean over its local deviation, and that deviation."""
    mean = _blurred(luma)
    deviation = np.sqrt(np.maximum(_blurred(luma * luma) - mean * mean, 0))
    return (luma - mean) / (deviation + _WHITE), deviation


def _blurred(values: np.ndarray) -> np.ndarray:
    """Means over squares of 9 x 9, mirrored at the edges."""
    width = 2 * _REACH + 1
    for axis in (0, 1):
        edges = [(0, 0), (0, 0)]
        edges[axis] = (_REACH + 1, _REACH)
        total = np.pad(values, edges, mode="reflect").cumsum(axis)
        upper, lower = np.split(total, [width], axis)[1], np.split(total, [total.shape[axis] - width], axis)[0]
        values = (upper - lower) / width
    return values


def _quantised(luma: np.ndarray) -> np.ndarray:
    """The luminance as JPEG at quality 75 keeps it: the DCT of blocks of 8 x 8, rounded to half the steps of Annex K."""
    i = np.arange(8)
    cosines = np.cos(np.pi * (2 * i[None] + 1) * i[:, None] / 16) * np.where(i[:, None] == 0, math.sqrt(1 / 8), 0.5)
    steps = np.maximum(1, (_TABLE_50 + 1) // 2)
    high, wide = luma.shape
    padded = np.pad(luma - 128, [(0, -s % 8) for s in luma.shape], mode="edge")
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8).swapaxes(1, 2)
    kept = np.rint(cosines @ blocks @ cosines.T / steps) * steps
    out = (cosines.T @ kept @ cosines).swapaxes(1, 2).reshape(padded.shape) + 128
    return np.clip(np.rint(out), 0, 255)[:high, :wide]


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
