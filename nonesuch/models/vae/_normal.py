"""p(x | z) by a normal distribution of one learned deviation s about every pixel's mean, on a grid of levels.

    P(x) = F((x + step/2 - m) / s) - F((x - step/2 - m) / s),      F the normal distribution function                    (1)

with everything beyond the first and last level belonging to them, so that the levels sum to one. Trained is the density at x
times the step, the squared error and little else; the probability of (1) is what is scored. The mean is 2 sigmoid(.) - 1,
or the feature itself. Continuous pictures have the density.

References:
    Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis, Levine, 2020) arXiv:2006.13202
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds


class Normal(nn.Module):
    """A normal distribution a value; `width` features a pixel, the means, before the sigmoid if they are `squashed`."""

    def __init__(self, spec: ImageSpec, squashed: bool = True) -> None:
        super().__init__()
        self.spec, self.width, self.squashed = spec, spec.channels, squashed
        self.step = 1.0 if spec.levels is None else spec.step
        self.log_s = nn.Parameter(torch.full((1,), math.log(0.5)))  # not a scalar, which sharding refuses

    @property
    def scale(self) -> Tensor:
        """s, at least half a step: below, a density says nothing about levels."""
        return self.log_s[0].clamp_min(math.log(1e-3 if self.spec.levels is None else self.step / 2)).exp()

    def mean(self, features: Tensor) -> Tensor:
        """E[x | features], differentiable; on [-1, 1] if squashed."""
        return features.float().sigmoid() * 2 - 1 if self.squashed else features.float()

    def loss(self, features: Tensor, x: Tensor) -> Tensor:
        """-log of the density times the step, the mean over all values."""
        s = self.scale
        squared = (self.mean(features) - x).square().mean()
        return squared / (2 * s * s) + s.log() + math.log(math.sqrt(2 * math.pi) / self.step)

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log P(x | features) (B,) in nats, of images (B, C, *size), in float64."""
        m, s, half = self.mean(features).double(), self.scale.double(), self.step / 2
        if self.spec.levels is None:
            return -(((x.double() - m) / s).square() / 2 + s.log() + math.log(2 * math.pi) / 2).flatten(1).sum(1)
        x = self.spec.to_levels(x).double() * self.spec.step - 1  # in float64, so that neighbours meet where they should
        a, b = (x + half - m) / s, (x - half - m) / s
        a, b = a.masked_fill(x > 1 - half, math.inf), b.masked_fill(x < -1 + half, -math.inf)
        turned = b > 0  # both in the upper tail, where F is 1 and its digits are gone: by symmetry, taken below
        a, b = torch.where(turned, -b, a), torch.where(turned, -a, b)
        upper, lower = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        log_p: Tensor = upper + torch.log1p(-(lower - upper).exp())  # Eq. 1
        return log_p.flatten(1).sum(1)

    def draw(self, features: Tensor, seeds: Seeds) -> Tensor:
        """Images drawn, on the grid if there is one."""
        mean = self.mean(features)
        x = mean + self.scale * seeds.normal("pixels", *mean.shape[1:], device=mean.device)
        return x if self.spec.levels is None else self.spec.snap(x.clamp(-1, 1))
