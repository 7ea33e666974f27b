"""Degradations y = A x + noise with their operators: what `core.degradation` offers of the linear kind, and the base of all.

Where A is one matrix an axis (channels included), A = A_0 x A_1 x ... x A_d (a Kronecker product), everything follows from the
small factors' singular values A_i = U_i S_i V_i^T:

    A* = A_0^T x ... x A_d^T,        A+ = (V_0 x ... x V_d) (S_0 x ... x S_d)+ (U_0 x ... x U_d)^T,

and a chain of such maps is another, whose factors are the products. The pseudo-inverse leaves out what A weakens by more than
`CUTOFF`, for float32 measurements hold nothing of it; so A A+ A = A to `CUTOFF`. Borders are repeated (... a a | a b c ...), as
in the published sets of small pictures; a border is columns of a matrix, so that the adjoint is exact there too.

References: Cubic Convolution Interpolation for Digital Image Processing (Keys, 1981); MATLAB's imresize, of the same kernel
            Recommendation ITU-R BT.601 (weights of the primaries in luma)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from nonesuch.core.given import did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

CUTOFF = 3e-6  # of the largest singular value
BT601 = (0.299, 0.587, 0.114)
KERNELS = ("bicubic", "area")


class Degradation(ABC):
    """A known way to spoil pictures: frozen, described by JSON, and keyed where it is random."""

    @abstractmethod
    def output(self, spec: ImageSpec) -> ImageSpec:
        """What it makes of pictures of `spec`. Raises ValueError with a sentence if it does not fit them."""

    @abstractmethod
    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        """Spoil checked pictures; `draw` begins the names of all that is drawn."""

    def __call__(self, x: Tensor, seeds: Seeds | int = 0) -> Tensor:
        """Spoiled pictures y of x (B, C, *size) on [-1, 1], noise included; picture i depends on its own seed only.

        Neither clipped nor rounded where A x + noise leaves [-1, 1]. Raises ValueError for pictures that it does not fit.
        """
        if x.dim() < 2 or not x.is_floating_point():
            raise ValueError(f"a degradation spoils float pictures (batch, channels, *size), not {x.dtype} {tuple(x.shape)}.")
        self.output(spec_of(x))
        return self._spoil(x, Seeds.of(seeds, len(x)), self.draws)

    @property
    def draws(self) -> str:
        """How the names of its draws begin: two degradations of one picture are independent."""
        return f"degrade/{type(self).__name__.lower()}"


class Operator(ABC):
    """One linear map of a batch, and what was measured: y (B, ...) is compared with A x; `noise` is y's deviation."""

    y: Tensor
    noise: float

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x of pictures x (B, C, *size); differentiable."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A* y (B, C, *size)."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """A+ y (B, C, *size), the smallest picture among those that explain y best."""


class Linear(Degradation):
    """y = A x + noise; `noise` is the standard deviation of white Gaussian noise in y, where 2 is the range of a picture."""

    noise: float

    @abstractmethod
    def operator(self, spec: ImageSpec, y: Tensor) -> Operator:
        """A for measurements y of pictures of `spec`. Raises ValueError if y is not what `output(spec)` says."""

    def _measured(self, spec: ImageSpec, y: Tensor) -> Tensor:
        wanted = self.output(spec).shape
        if y.dim() != len(wanted) + 1 or tuple(y.shape[1:]) != wanted:
            raise ValueError(
                f"y has shape {tuple(y.shape)}; {type(self).__name__} measures (batch, {', '.join(map(str, wanted))})."
            )
        return y

    def _noisy(self, y: Tensor, seeds: Seeds, draw: str) -> Tensor:
        if not self.noise:
            return y
        return y + self.noise * seeds.normal(f"{draw}/noise", *y.shape[1:], device=y.device).to(y.dtype)


class Separable(Linear):
    """A is one matrix an axis."""

    @abstractmethod
    def factors(self, channels: int, size: tuple[int, ...]) -> list[Tensor | None]:
        """Float64 matrices (new, old) for the channels and each axis of space; None is the identity."""

    def _spoil(self, x: Tensor, seeds: Seeds, draw: str) -> Tensor:
        return self._noisy(SeparableOperator(self, x.shape[1], tuple(x.shape[2:]), x, 0.0)(x), seeds, draw)

    def operator(self, spec: ImageSpec, y: Tensor) -> Operator:
        return SeparableOperator(self, spec.channels, spec.size, self._measured(spec, y), self.noise)


@dataclass(frozen=True)
class SeparableOperator(Operator):
    """The operator of a `Separable` map of pictures of these channels and this size."""

    of: Separable
    channels: int
    size: tuple[int, ...]
    y: Tensor
    noise: float

    def matrices(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor | None, ...]:
        """The factors: of the channels and of each axis of space; None is the identity."""
        return _matrices(self.of, self.channels, self.size, dtype, str(device))

    def __call__(self, x: Tensor) -> Tensor:
        for axis, a in enumerate(self.matrices(x.dtype, x.device), 1):
            x = x if a is None else _along(x, a, axis)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for axis, a in enumerate(self.matrices(y.dtype, y.device), 1):
            y = y if a is None else _along(y, a.T, axis)
        return y

    def pinv(self, y: Tensor) -> Tensor:
        parts = _singular(self.of, self.channels, self.size)
        z, scale = y.double(), torch.ones((), dtype=torch.float64)
        for axis, part in enumerate(parts, 1):
            if part is None:
                scale = scale[..., None]
                continue
            u, s, _ = part
            z, scale = _along(z, u.T.to(y.device), axis), scale[..., None] * s
        weak = scale <= CUTOFF * scale.max()
        z = z * torch.where(weak, 0.0, 1 / torch.where(weak, 1.0, scale)).to(y.device)
        for axis, part in enumerate(parts, 1):
            z = z if part is None else _along(z, part[2].to(y.device), axis)
        return z.to(y.dtype)


def _along(x: Tensor, a: Tensor, axis: int) -> Tensor:
    """The matrix applied along one axis."""
    return (x.movedim(axis, -1) @ a.T).movedim(-1, axis)


@lru_cache(maxsize=16)
def _factors(of: Separable, channels: int, size: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    return tuple(of.factors(channels, size))


@lru_cache(maxsize=16)
def _matrices(of: Separable, channels: int, size: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor | None, ...]:
    return tuple(a if a is None else a.to(device, dtype) for a in _factors(of, channels, size))


@lru_cache(maxsize=16)
def _singular(of: Separable, channels: int, size: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor, Tensor] | None, ...]:
    """U (new, r), S (r,), V (old, r) of every factor."""
    found: list[tuple[Tensor, Tensor, Tensor] | None] = []
    for a in _factors(of, channels, size):
        if a is None:
            found.append(None)
            continue
        u, s, vt = torch.linalg.svd(a, full_matrices=False)
        found.append((u, s, vt.T))
    return tuple(found)


def spec_of(x: Tensor) -> ImageSpec:
    """What a tensor (B, C, *size) says of its pictures: 8-bit, of its channels and size."""
    axes = {2: "", 3: "l", 4: "hw", 5: "dhw"}.get(x.dim())
    if axes is None:
        raise ValueError(f"pictures are (batch, channels, *size) with at most three axes of space, not {tuple(x.shape)}.")
    return ImageSpec(x.shape[1], tuple(x.shape[2:]), axes)


def of_values(spec: ImageSpec, name: str) -> ImageSpec:
    """The spec, if its pictures have values that can be spoiled; ValueError for categories."""
    if spec.kind == "categorical":
        raise ValueError(f"{name} spoils pictures of values, and these are of categories.")
    return spec


def unbounded(spec: ImageSpec) -> ImageSpec:
    """The same pictures without a grid: their values may lie between the levels and beyond the range."""
    if spec.kind == "continuous":
        return spec
    span = spec.value_range or (0.0, float((spec.levels or 2) - 1))
    return replace(spec, kind="continuous", levels=None, value_range=span, dtype="float32")


def an_axis(value: float | Sequence[float], axes: int, name: str) -> tuple[float, ...]:
    """One number for each axis of space; ValueError if there are other than one or `axes` of them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or not axes:
        raise ValueError(f"{name} {value} does not fit pictures of {axes} axes; give one number, or one an axis.")
    return values


def _still(spec: ImageSpec, value: object, name: str) -> None:
    if spec.axes.startswith("t") and not isinstance(value, Sequence):
        raise ValueError(
            f"{name} of clips needs a number an axis, time first: ({1 if name == 'Downsample' else 0}, {value}, {value})."
        )


def not_negative(noise: float) -> None:
    """Raise ValueError for a deviation that is none."""
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is a standard deviation, 0 or more, not {noise}.")


@dataclass(frozen=True)
class Downsample(Separable):
    """Every axis made shorter by `factor` (a whole number, or one an axis), antialiased.

    kernel: "bicubic", as MATLAB's imresize(x, 1 / factor), or "area", the mean of factor x factor pixels. An axis of n pixels
    becomes one of ceil(n / factor): where factor does not divide n, the last pixel's window reaches over the border; bicubic
    repeats the border there, area averages what is left.
    """

    factor: int | tuple[int, ...] = 2
    kernel: str = "bicubic"
    noise: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.factor, list):
            object.__setattr__(self, "factor", tuple(self.factor))
        for factor in self.factor if isinstance(self.factor, tuple) else (self.factor,):
            if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
                raise ValueError(f"Downsample takes a whole factor, at least 1 (2 halves every side), not {self.factor!r}.")
        if self.kernel not in KERNELS:
            raise ValueError(f"Downsample has no kernel {self.kernel!r}; {did_you_mean(self.kernel, KERNELS)}")
        not_negative(self.noise)

    def output(self, spec: ImageSpec) -> ImageSpec:
        _still(of_values(spec, "Downsample"), self.factor, "Downsample")
        factors = an_axis(self.factor, len(spec.size), "Downsample's factor")
        for size in spec.sizes or (spec.size,):
            if any(f > n for n, f in zip(size, factors, strict=True)):
                said = " x ".join(map(str, size))
                raise ValueError(
                    f"Downsample({self.factor}) leaves nothing of a picture of {said}; take a factor below its sides."
                )

        def fewer(size: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(-(-n // int(f)) for n, f in zip(size, factors, strict=True))

        spacing = None if spec.spacing is None else tuple(s * f for s, f in zip(spec.spacing, factors, strict=True))
        sizes = tuple(dict.fromkeys(map(fewer, spec.sizes)))
        found = replace(spec, size=fewer(spec.size), spacing=spacing, sizes=sizes)
        return unbounded(found) if self.noise or self.kernel == "bicubic" else found

    def factors(self, channels: int, size: tuple[int, ...]) -> list[Tensor | None]:
        axes = an_axis(self.factor, len(size), "Downsample's factor")
        build = cubic_matrix if self.kernel == "bicubic" else _area_matrix
        return [None, *(None if f == 1 else build(n, -(-n // int(f)), 1 / f) for n, f in zip(size, axes, strict=True))]


def cubic_matrix(old: int, new: int, scale: float) -> Tensor:
    """(new, old) weights of MATLAB's imresize by `scale`, float64: Keys' kernel, widened by 1 / scale where scale < 1."""
    narrow = min(scale, 1.0)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = math.ceil(4 / narrow) + 2
    place = (centre - 2 / narrow).floor()[:, None] + torch.arange(taps, dtype=torch.float64)
    d = ((centre[:, None] - place) * narrow).abs()
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2  # Keys (1981), eq. 15
    return bordered(place.long(), torch.where(d <= 1, near, torch.where(d <= 2, far, torch.zeros_like(d))), old)


def _area_matrix(old: int, new: int, scale: float) -> Tensor:
    factor = round(1 / scale)
    rows = torch.arange(old) // factor == torch.arange(new)[:, None]
    return rows.double() / rows.sum(1, keepdim=True)


def bordered(place: Tensor, weights: Tensor, old: int) -> Tensor:
    """(new, old) matrix of weights (new, taps) on pixels `place` (new, taps), the border repeated; rows sum to one."""
    out = torch.zeros(len(place), old, dtype=torch.float64)
    return out.scatter_add_(1, place.clamp(0, old - 1), weights / weights.sum(1, keepdim=True))


@dataclass(frozen=True)
class Blur(Separable):
    """A Gaussian blur of deviation `sigma` pixels (or one an axis; 0 leaves an axis), cut at 4 sigma; borders are repeated."""

    sigma: float | tuple[float, ...] = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, list):
            object.__setattr__(self, "sigma", tuple(self.sigma))
        if any(not (math.isfinite(s) and s >= 0) for s in (self.sigma if isinstance(self.sigma, tuple) else (self.sigma,))):
            raise ValueError(f"Blur takes a deviation in pixels, 0 or more, not {self.sigma}.")
        not_negative(self.noise)

    def output(self, spec: ImageSpec) -> ImageSpec:
        _still(of_values(spec, "Blur"), self.sigma, "Blur")
        an_axis(self.sigma, len(spec.size), "Blur's sigma")
        return unbounded(spec) if self.noise else spec

    def factors(self, channels: int, size: tuple[int, ...]) -> list[Tensor | None]:
        axes = an_axis(self.sigma, len(size), "Blur's sigma")
        return [None, *(gaussian_matrix(n, s) if s else None for n, s in zip(size, axes, strict=True))]


def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """(n, n) weights of a Gaussian blur of `sigma` pixels."""
    reach = max(1, math.ceil(4 * sigma))
    offset = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    return bordered(torch.arange(n)[:, None] + offset, weights.expand(n, -1), n)


@dataclass(frozen=True)
class Grayscale(Separable):
    """One channel: the luma of ITU-R BT.601 of three channels (red, green, blue), the mean of any other number."""

    noise: float = 0.0

    def __post_init__(self) -> None:
        not_negative(self.noise)

    def output(self, spec: ImageSpec) -> ImageSpec:
        if of_values(spec, "Grayscale").channels == 1:
            raise ValueError("Grayscale takes pictures of several channels, and these have one already.")
        found = replace(spec, channels=1)
        return unbounded(found) if self.noise else found

    def factors(self, channels: int, size: tuple[int, ...]) -> list[Tensor | None]:
        weights = BT601 if channels == 3 else (1 / channels,) * channels
        return [torch.tensor([weights], dtype=torch.float64), *[None] * len(size)]


@dataclass(frozen=True)
class Noise(Separable):
    """White Gaussian noise of standard deviation `noise`, where 2 is the range of a picture: A is the identity."""

    noise: float = 0.1

    def __post_init__(self) -> None:
        not_negative(self.noise)

    def output(self, spec: ImageSpec) -> ImageSpec:
        return unbounded(of_values(spec, "Noise"))

    def factors(self, channels: int, size: tuple[int, ...]) -> list[Tensor | None]:
        return [None] * (1 + len(size))
