"""Noise levels of the variance-exploding process x_t = x + sigma(t) eps, and the three ways to walk or draw them.

    time           sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho,  t in [0, 1]    (EDM, Eq. 5)
                   whose limit for infinite rho is sigma_min^(1 - t) sigma_max^t, uniform in log sigma
    information    v(sigma) = 1/2 log(1 + sigma_data^2 / sigma^2)
    log-normal     log(sigma / sigma_data) ~ N(mean, std^2)                                                        (EDM, table 1)

`alpha_t` is 1 throughout. v is what x_t tells about a Gaussian pixel of deviation sigma_data, in nats. As dv / d log sigma =
-sigma_data^2 / (sigma^2 + sigma_data^2) and EDM's loss weight is lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2,

    int sigma^-2 E||x - D||^2 d log sigma = (v_max - v_min) E_{v uniform} [lambda E||x - D||^2],                    (1)

whose left side is the diffusion term of the likelihood: EDM's loss at noise levels uniform in v *is* maximum likelihood.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364
    Variational Diffusion Models (Kingma et al., 2021) arXiv:2107.00630, Eq. 17 and 18
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevels:
    """The range of noise [sigma_min, sigma_max] for data of deviation sigma_data, and the walk's curvature rho, or math.inf."""

    sigma_min: float
    sigma_max: float
    sigma_data: float = 0.5
    rho: float = 7.0

    def sigma(self, t: Tensor) -> Tensor:
        """sigma at t in [0, 1], of t's shape; t = 0 is sigma_min."""
        if math.isinf(self.rho):
            return self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho

    def time(self, sigma: Tensor) -> Tensor:
        """t of a noise level: the inverse of `sigma`."""
        if math.isinf(self.rho):
            return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (sigma ** (1 / self.rho) - low) / (high - low)

    def steps(self, n: int) -> list[float]:
        """n noise levels from sigma_max down to sigma_min, evenly spaced in t (EDM, Eq. 5)."""
        return self.sigma(torch.linspace(1, 0, n, dtype=torch.float64)).tolist() if n > 1 else [self.sigma_max]

    def information(self, sigma: float) -> float:
        """v(sigma), in nats."""
        return 0.5 * math.log1p((self.sigma_data / sigma) ** 2)

    @property
    def information_range(self) -> float:
        """v(sigma_min) - v(sigma_max): the factor of Eq. 1."""
        return self.information(self.sigma_min) - self.information(self.sigma_max)

    def by_information(self, u: Tensor) -> Tensor:
        """The noise level at share u in [0, 1] of the information: uniform u gives the density of Eq. 1."""
        v = self.information(self.sigma_max) + u.double() * self.information_range
        return (self.sigma_data / torch.expm1(2 * v).sqrt()).clamp(self.sigma_min, self.sigma_max)

    def log_normal(self, u: Tensor, mean: float, std: float) -> Tensor:
        """The noise level at quantile u in (0, 1) of EDM's log-normal, kept within the range."""
        sigma = self.sigma_data * torch.exp(mean + std * torch.special.ndtri(u.double()))
        return sigma.clamp(self.sigma_min, self.sigma_max)

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma), which makes the loss of an untrained network 1 at every noise level."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
