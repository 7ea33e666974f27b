"""A denoiser of whatever schedule as one of noise added to the picture, which is the one thing that walks over levels ask for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nonesuch.core.given import Given
from nonesuch.core.model import Denoiser, Model

_RHO = 7.0  # of the walk over noise levels: Elucidating the Design Space (Karras et al., 2022) arXiv:2206.00364, Eq. 5
_FIRST_T = 1e-3  # where t = 0 has no noise at all


class Noised:
    """A denoiser of any schedule as one of x + s eps: x_t / alpha_t at the t where sigma_t / alpha_t = s."""

    def __init__(self, model: Model, given: Given) -> None:
        assert isinstance(model, Denoiser)
        self.model, self.given = model, given
        t = torch.linspace(0, 1, 4097, dtype=torch.float64)
        alpha, sigma = (v.double().cpu() for v in model.schedule(t))
        level = sigma / alpha
        fine = torch.isfinite(level) & (level > 0) & ((t >= _FIRST_T) | bool(level[0] > 0))
        self.t, self.alpha, self.log_level = t[fine], alpha[fine], level[fine].log()

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest noise level and the highest."""
        return math.exp(float(self.log_level[0])), math.exp(float(self.log_level[-1]))

    def levels(self, steps: int) -> list[float]:
        """`steps` noise levels from the highest to the lowest."""
        return walk(*self.ends, steps)

    def __call__(self, x: Tensor, level: float) -> Tensor:
        """D (R, C, *size) at x (R, C, *size), differentiable."""
        place = torch.tensor(level, dtype=torch.float64).log().clamp(self.log_level[0], self.log_level[-1])
        i = int(torch.searchsorted(self.log_level, place).clamp(1, len(self.t) - 1))
        share = (place - self.log_level[i - 1]) / (self.log_level[i] - self.log_level[i - 1])
        t, alpha = (float(torch.lerp(v[i - 1], v[i], share)) for v in (self.t, self.alpha))
        assert isinstance(self.model, Denoiser)
        d = self.model.denoise(alpha * x, x.new_full((len(x),), t), self.given)
        return d.clamp(-1, 1) if self.model.spec.kind == "ordinal" else d


def walk(lowest: float, highest: float, steps: int) -> list[float]:
    """Noise levels from the highest to the lowest, close together where there is little noise."""
    high, low = highest ** (1 / _RHO), lowest ** (1 / _RHO)
    return [(high + (low - high) * i / max(1, steps - 1)) ** _RHO for i in range(steps)]
