"""The discrete noise of DDPM: T steps of variance beta_k, and what follows from them in closed form.

    q(x_k | x) = N(sqrt(abar_k) x, 1 - abar_k),      abar_k = prod_{s <= k} (1 - beta_s),      abar_0 = 1              (Eq. 4)
    var_k = (1 - abar_{k-1}) / (1 - abar_k) beta_k,  the variance of q(x_{k-1} | x_k, x)                              (Eq. 7)

With it for the model's own variance, one step of the bound is a squared error of the image,

    L_{k-1} = w_k E||x - xhat||^2,      w_k = (abar_{k-1} / (1 - abar_{k-1}) - abar_k / (1 - abar_k)) / 2,               (1)

for the two means differ by sqrt(abar_{k-1}) beta_k / (1 - abar_k) (x - xhat) (Eq. 7), and that squared over 2 var_k is (1).
In units of the noise, ||eps - epshat||^2 = abar_k / (1 - abar_k) ||x - xhat||^2, Eq. 12 stands there.

References:
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Betas:
    """T variances in a line from `first` to `last`; all tables are float64."""

    timesteps: int
    first: float
    last: float

    def __post_init__(self) -> None:
        if self.timesteps < 2 or not 0 < self.first <= self.last < 1:
            raise ValueError(f"noise needs at least 2 timesteps and 0 < beta_first <= beta_last < 1, not {self}.")

    @cached_property
    def log_abar(self) -> Tensor:
        """log abar_k (T + 1,), from k = 0."""
        beta = torch.linspace(self.first, self.last, self.timesteps, dtype=torch.float64)
        return torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)])

    def scales(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma (float64, of k's shape) at steps k in [0, T]; between two steps log abar goes in a line."""
        k = k.double().clamp(0, self.timesteps)
        below = k.floor().long().clamp(max=self.timesteps - 1)
        table = self.log_abar.to(k.device)
        log = torch.lerp(table[below], table[below + 1], k - below)
        return (log / 2).exp(), (-torch.expm1(log)).sqrt()

    def ratio(self, k: Tensor) -> Tensor:
        """sigma / alpha (float64, of k's shape) at steps k in [0, T]: the noise beside an image that has not shrunk."""
        alpha, sigma = self.scales(k)
        return sigma / alpha

    def step_of(self, ratio: float) -> float:
        """k in [0, T] where sigma / alpha is `ratio`, between two steps as a rule: the inverse of `ratio`."""
        log = -math.log1p(ratio**2)
        above = int(torch.searchsorted(-self.log_abar, -log).clamp(1, self.timesteps))  # log abar falls
        low, high = self.log_abar[above - 1 : above + 1].tolist()
        return min(max(above - 1 + (log - low) / (high - low), 0.0), float(self.timesteps))

    @cached_property
    def decoder_std(self) -> float:
        """sigma_1 of Eq. 13: var_1 is zero, so var_2 stands for it."""
        one, two = self.log_abar[1:3]
        beta = -torch.expm1(two - one)
        return float((torch.expm1(one) / torch.expm1(two) * beta).sqrt())

    @cached_property
    def weights(self) -> Tensor:
        """w_k of Eq. 1 at k = 2, ..., T, as (T - 1,)."""
        snr = 1 / torch.expm1(-self.log_abar[1:])
        return (snr[:-1] - snr[1:]) / 2

    @cached_property
    def shares(self) -> Tensor:
        """Probabilities (T - 1,) to draw k = 2, ..., T with, in proportion to what a unit error of the noise costs."""
        cost = self.weights * torch.expm1(-self.log_abar[2:])
        return cost / cost.sum()
