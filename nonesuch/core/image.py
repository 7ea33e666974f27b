"""What a picture is: its channels, its size, and the grid its values live on.

A picture of `levels` L has values k in {0, ..., L - 1} per channel and pixel. Inside the library an *ordinal* picture is
float32 on [-1, 1], with level k at

    x_k = 2 k / (L - 1) - 1,

so that neighbouring levels are `step` = 2 / (L - 1) apart. A *categorical* picture (tokens) is int64 indices, and a
*continuous* one (latents, embeddings) any float32. `value_range` and `dtype` lead back to the values of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["ordinal", "categorical", "continuous"]
AXES = ("hw", "dhw", "thw", "l", "")


@dataclass(frozen=True)
class ImageSpec:
    """The type of a picture.

    channels: number of channels, at least 1.
    size: pixels along each of `axes`.
    axes: "hw" (image), "dhw" (volume), "thw" (video), "l" (sequence of tokens) or "" (a vector).
    kind: "ordinal", "categorical" or "continuous".
    levels: number of values a pixel can take; None for a continuous picture.
    value_range: the file's own values at the first and last level; (0, levels - 1) when not given.
    unit: the unit of the file's values, such as "HU"; only carried.
    dtype: numpy's name of the file's own type.
    spacing: distance of neighbours along each axis, in mm (seconds along t); only carried.
    sizes: where pictures are of several sizes, all of them, the most usual one, which is `size`, first; () where all have `size`.
    """

    channels: int
    size: tuple[int, ...]
    axes: str = "hw"
    kind: Kind = "ordinal"
    levels: int | None = 256
    value_range: tuple[float, float] | None = None
    unit: str | None = None
    dtype: str = "uint8"
    spacing: tuple[float, ...] | None = None
    sizes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(int(s) for s in self.size))
        object.__setattr__(self, "sizes", tuple(tuple(int(s) for s in size) for size in self.sizes))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
            if len(self.spacing) != len(self.size) or not all(math.isfinite(s) and s > 0 for s in self.spacing):
                raise ValueError(f"spacing needs a positive number an axis, not {self.spacing}.")
        if self.value_range is not None:
            lo, hi = (float(v) for v in self.value_range)
            if lo == hi or not math.isfinite(hi - lo):
                raise ValueError(f"value_range needs two different finite numbers, not {self.value_range}.")
            object.__setattr__(self, "value_range", (lo, hi))
        if self.axes not in AXES:
            raise ValueError(f"axes must be one of {', '.join(map(repr, AXES))}, not {self.axes!r}.")
        if len(self.size) != len(self.axes) or self.channels < 1 or any(s < 1 for s in self.size):
            raise ValueError(f"an image of axes {self.axes!r} needs {len(self.axes)} sizes and a channel; got {self}.")
        if self.sizes and (self.sizes[0] != self.size or any(len(s) != len(self.axes) or min(s) < 1 for s in self.sizes)):
            raise ValueError(f"sizes are all the sizes there are, the usual one {self.size} first; got {self.sizes}.")
        if (self.levels is None) != (self.kind == "continuous"):
            raise ValueError("levels must be None for a continuous image, and a number for every other kind.")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"an image needs at least 2 levels, not {self.levels}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size)."""
        return (self.channels, *self.size)

    @property
    def numel(self) -> int:
        """Dimensions of one picture (of several sizes, of one of `size`): what bits per dimension divides by."""
        return math.prod(self.shape)

    @property
    def step(self) -> float:
        """Distance of neighbouring levels inside, on [-1, 1]."""
        assert self.levels is not None
        return 2.0 / (self.levels - 1)

    def of_size(self, size: tuple[int, ...]) -> ImageSpec:
        """The same kind of picture, all of this one size."""
        return self if not self.sizes and size == self.size else replace(self, size=size, sizes=())

    # -- the three scales: the file's values, levels, and the inside

    def to_levels(self, x: Tensor) -> Tensor:
        """Inside -> int64 levels in [0, levels), the nearest one."""
        if self.kind == "categorical":
            return x
        if self.levels is None:
            raise ValueError("a continuous image has no levels.")
        return ((x.float() + 1) / self.step).round().clamp(0, self.levels - 1).long()

    def from_levels(self, k: Tensor) -> Tensor:
        """int levels -> inside: float32 in [-1, 1] (ordinal), int64 (categorical)."""
        if self.kind == "categorical":
            return k.long()
        return k.float() * self.step - 1

    def from_values(self, values: Tensor) -> Tensor:
        """The file's values -> inside, rounded to the nearest level."""
        if self.kind == "continuous":
            return self._scaled(values.float(), inward=True)
        if self.kind == "categorical":
            return values.long()
        lo, hi = self._range()
        assert self.levels is not None
        k = ((values.double() - lo) / (hi - lo) * (self.levels - 1)).round()
        return self.from_levels(k.clamp(0, self.levels - 1))

    def to_values(self, x: Tensor) -> Tensor:
        """Inside -> the file's values (float64 for ordinal pictures, on the grid)."""
        if self.kind == "continuous":
            return self._scaled(x, inward=False)
        if self.kind == "categorical":
            return x
        lo, hi = self._range()
        assert self.levels is not None
        return self.to_levels(x).double() * (hi - lo) / (self.levels - 1) + lo

    def snap(self, x: Tensor) -> Tensor:
        """The nearest picture on the grid; a continuous one comes back as it is."""
        return x if self.kind == "continuous" else self.from_levels(self.to_levels(x))

    def check(self, x: Tensor, name: str = "x") -> Tensor:
        """Return x (B, C, *size) if it is a batch of such pictures, of any one size where there are `sizes`.

        Raises ValueError with a sentence if it is not.
        """
        if x.shape[1:] != self.shape and not (self.sizes and x.dim() == 2 + len(self.axes) and x.shape[1] == self.channels):
            raise ValueError(f"{name} has shape {tuple(x.shape)}; this model takes (batch, {', '.join(map(str, self.shape))}).")
        if self.kind == "categorical":
            if x.is_floating_point() or (x.numel() and (x.min() < 0 or x.max() >= (self.levels or 0))):
                raise ValueError(f"{name} must hold integers in [0, {self.levels}).")
            return x
        if not x.is_floating_point():
            raise ValueError(f"{name} must be float in [-1, 1], not {x.dtype}; ImageSpec.from_values converts a file's values.")
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinite values; clean the images first.")
        if self.kind == "ordinal" and x.numel() and x.abs().max() > 1 + 1e-4:
            raise ValueError(f"{name} must lie in [-1, 1]; its largest magnitude is {x.abs().max():.3g}.")
        return x

    def _range(self) -> tuple[float, float]:
        return self.value_range or (0.0, float((self.levels or 2) - 1))

    def _scaled(self, x: Tensor, inward: bool) -> Tensor:
        if self.value_range is None:
            return x
        lo, hi = self.value_range
        return (x - lo) / (hi - lo) * 2 - 1 if inward else (x + 1) / 2 * (hi - lo) + lo
