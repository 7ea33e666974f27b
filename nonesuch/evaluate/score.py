"""A score is a number with everything needed to read it: what was measured, on how many images, how sure, and how good it could
be.

    FD[digits-cnn, n=1400] = 3.21 (95 % 2.94 to 3.49, floor 1.10, lower is better)

* **interval**: 95 %, and `resampled` says over what. Distances between finite sets are biased upwards, and resampling with
  replacement adds the same bias a second time, so the spread of the replicates is put around the value itself (`recentred`): the
  interval is for the expected score *at this n*, the same thing the floor and another model's score at this n are.
* **floor**: the same score with real images in the place of the samples, at the same n: the best to expect (a ceiling where
  higher is better).
* **kind**: for likelihoods, whether the number is exact, a bound or an estimate.

References:
| An Introduction to the Bootstrap (Efron & Tibshirani, 1993), chapters 10 and 13
| On the Effectiveness of Bias Correction: Effectively Unbiased FID and Inception Score (Chong & Forsyth, 2020) arXiv:1911.07023
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

__all__ = ["Array", "Score", "bootstrap_counts", "bootstrap_mean", "keyed", "recentred"]


@dataclass(frozen=True)
class Score:
    """One measured number and what it takes to read it.

    `n` counts the images that are judged, `counts` the other sets that took part, `interval` is (low, high) at 95 %,
    `floor` what real images reach at the same n, `better` is "lower", "higher" or "" (neither).
    """

    value: float
    name: str
    n: int
    extractor: str = ""
    extractor_hash: str = ""
    counts: Mapping[str, int] = field(default_factory=dict, hash=False)
    interval: tuple[float, float] | None = None
    resampled: str = ""
    floor: float | None = None
    kind: str = ""
    better: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "floor", None if self.floor is None else float(self.floor))
        if self.n < 1:
            raise ValueError(f"A score needs at least one image, and {self.name} was given n={self.n}.")
        if self.better not in ("", "lower", "higher"):
            raise ValueError(f"better is 'lower', 'higher' or '', not {self.better!r}.")

    @property
    def title(self) -> str:
        """The name with extractor and count, as it is to be printed: `FD[digits-cnn, n=1400]`."""
        extractor = f"{self.extractor}, " if self.extractor else ""
        return f"{self.name}[{extractor}n={self.n}]"

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        notes = [self.kind] if self.kind else []
        if self.interval is not None:
            notes.append(f"95 % {digits(self.interval[0])} to {digits(self.interval[1])}")
        if self.floor is not None:
            notes.append(f"floor {digits(self.floor)}")
        if self.better:
            notes.append(f"{self.better} is better")
        return f"{self.title} = {digits(self.value)}{unit}" + (f" ({', '.join(notes)})" if notes else "")

    def __repr__(self) -> str:
        parts = [digits(self.value), f"name={self.title!r}"]
        parts += [f"kind={self.kind!r}"] if self.kind else []
        parts += [f"n={self.n}"]
        parts += [f"interval=({digits(self.interval[0])}, {digits(self.interval[1])})"] if self.interval else []
        parts += [f"floor={digits(self.floor)}"] if self.floor is not None else []
        return f"Score({', '.join(parts)})"

    def to_json(self) -> dict[str, Any]:
        """Everything the score holds as plain values; what is not finite becomes None, for JSON has no word for it."""
        finite = {
            name: None if value is None or not math.isfinite(value) else float(value)
            for name, value in (("value", self.value), ("floor", self.floor))
        }
        return {
            "title": self.title, "name": self.name, "value": finite["value"], "unit": self.unit, "kind": self.kind, "n": self.n,
            "counts": dict(self.counts), "extractor": self.extractor, "extractor_sha256": self.extractor_hash,
            "interval": None if self.interval is None else [float(v) if math.isfinite(v) else None for v in self.interval],
            "resampled": self.resampled, "floor": finite["floor"], "better": self.better,
        }  # fmt: skip

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Score":
        """Read back what `to_json` wrote."""
        interval = entry["interval"]
        bounds = None if interval is None else tuple(math.nan if v is None else v for v in interval)
        value = math.nan if entry["value"] is None else entry["value"]
        same = {key: entry[key] for key in ("name", "n", "extractor", "counts", "resampled", "floor", "kind", "better", "unit")}
        return cls(value=value, extractor_hash=entry["extractor_sha256"], interval=bounds, **same)


def digits(value: float) -> str:
    """Four significant digits, without an exponent between 0.001 and a million."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.3e}"


def keyed(*key: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) that is a function of its key alone: nothing global is read or moved."""
    text = json.dumps(key).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(text).digest()[:16], "little")))


def bootstrap_counts(n: int, replicates: int, *key: int | str) -> Array:
    """How often each of n images is drawn in each replicate, (replicates, n); every row sums to n."""
    drawn = keyed("bootstrap", n, *key).integers(0, n, (replicates, n)) + np.arange(replicates)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n).astype(np.float64)


def recentred(value: float, replicates: Array) -> tuple[float, float]:
    """The 95 % interval of the replicates' spread, put around `value` (see the head of this file)."""
    low, high = np.quantile(replicates, (0.025, 0.975)) - replicates.mean()
    return float(value + low), float(value + high)


def bootstrap_mean(values: Array, *key: int | str, replicates: int = 1000) -> tuple[float, float]:
    """The 95 % percentile interval of a mean over images, (n,) -> (low, high)."""
    values = np.asarray(values, dtype=np.float64)
    at_once = max(1, 4_000_000 // len(values))  # bounded memory for any number of images
    parts = range(0, replicates, at_once)
    counts = (bootstrap_counts(len(values), min(at_once, replicates - start), start, *key) for start in parts)
    means = np.concatenate([part @ values for part in counts]) / len(values)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
