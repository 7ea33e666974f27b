"""One training run as values: what the loop needs besides a model and its data. The clock counts images."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Literal

from nonesuch.core.given import did_you_mean

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Private:
    """What a run may give away of any one training picture: (epsilon, delta)-differential privacy (train/private.py).

    epsilon: the most that the whole run spends; delta: None is 1 / N^1.1 for N training pictures, and never 1 / N or more; clip:
    the largest norm of one picture's gradient, to which longer ones are cut.
    """

    epsilon: float
    delta: float | None = None
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.clip < math.inf and (self.delta is None or 0 < self.delta < 1)):
            raise ValueError("privacy needs epsilon > 0, 0 < delta < 1 and clip > 0, such as epsilon=8.")

    @classmethod
    def parse(cls, text: str) -> Private:
        """Read "epsilon=8" or "epsilon=8,delta=1e-5,clip=0.5". Raises ValueError for anything else."""
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            try:
                found[name] = float(value)
            except ValueError:
                raise ValueError(f"privacy is asked for as epsilon=8, and delta= and clip= if wanted, not {text!r}.") from None
        known = [f.name for f in fields(cls)]
        for name in found:
            if name not in known:
                raise ValueError(f"privacy has no {name!r}; {did_you_mean(name, known)}")
        if "epsilon" not in found:
            raise ValueError("privacy needs an epsilon, such as epsilon=8.")
        return cls(**found)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    images: the run's length (0: from a time budget); batch: images a step; lr: peak learning rate of Adam with `betas`,
    `eps` and decoupled `weight_decay`; warmup: share of the run over which it rises; decay: how it falls to zero after;
    clip: largest norm of an objective's gradient; average_half_life: of the exponential average, in images, and never more
    than `average_share` of the images seen; hide: probability that a row's condition is hidden; held_out:
    share of the training images only to watch with (None: see `watch.hold_out`); augment: names of `nonesuch.data.augment`, such
    as "flip", all of which the model will draw too; seed: of everything.
    """

    images: int = 0
    batch: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: float = 0.02
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = 1.0
    average_half_life: int = 2**16
    average_share: float = 0.05
    hide: float = 0.1
    held_out: float | None = None
    augment: tuple[str, ...] = ()
    private: Private | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.images < 0 or self.lr <= 0 or not 0 <= self.hide < 1:
            raise ValueError("a recipe needs batch >= 1, images >= 0, lr > 0 and 0 <= hide < 1.")

    def lr_at(self, images: int) -> float:
        """The learning rate when the clock reads `images`."""
        done = min(1.0, images / max(1, self.images))
        if done < self.warmup:
            return self.lr * (images + self.batch) / (self.warmup * self.images + self.batch)
        left = (1 - done) / (1 - self.warmup) if self.warmup < 1 else 1.0
        shapes = {"cosine": 0.5 - 0.5 * math.cos(math.pi * left), "linear": left, "constant": 1.0}
        return self.lr * max(shapes[self.decay], 1e-3)

    def average_decay(self, images: int) -> float:
        """The weight of the old average in one step: 0.5 ** (batch / half-life)."""
        half_life = min(self.average_half_life, self.average_share * (images + self.batch))
        return float(0.5 ** (self.batch / max(half_life, 1e-8)))


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of images, or seconds to be turned into one by measurement."""

    images: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str | int | Budget) -> Budget:
        """Read "5m", "90s", "1h" (time) or "8Mi", "200k", 50000 (images). Raises ValueError for anything else."""
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"(-?[0-9]*\.?[0-9]+) *([A-Za-z]*)", str(text).strip())
        unit = match[2] if match else ""
        if not match or unit not in {**_UNITS, **_SECONDS}:
            raise ValueError(f"the budget {text!r} is neither a time (90s, 5m, 1h) nor a number of images (200k, 8Mi).")
        amount = float(match[1])
        if amount <= 0:
            raise ValueError(f"the budget must be positive, not {text}.")
        return cls(seconds=amount * _SECONDS[unit]) if unit in _SECONDS else cls(images=max(1, round(amount * _UNITS[unit])))
