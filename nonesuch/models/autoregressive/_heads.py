"""What one token's outputs mean: a distribution over levels, all of it normalised exactly in float32.

    Categorical   p(k) = softmax(l)_k.  For ordinal pixels l is a cosine series over the levels whose high frequencies are damped,
                  so that neighbouring levels share evidence until the data says otherwise.
    Logistics     the discretized mixture of logistics (PixelCNN++ Eqs. 1-3): with sigma the logistic function, a level x of
                  channel c, step d between levels, and mu_c shifted by the channels before it,
                  P(x) = sum_k pi_k [sigma((x + d/2 - mu_kc) / s_kc) - sigma((x - d/2 - mu_kc) / s_kc)],
                  where the first term is 1 at the last level and the second 0 at the first.

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood (Salimans et al., 2017) arXiv:1701.05517
    Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016) arXiv:1601.06759, section 3.1 (softmax)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.image import ImageSpec


def invert(logits: Tensor, u: Tensor) -> Tensor:
    """int64 (...): the level at which the distribution function of softmax(logits (..., L)) passes u (...) in (0, 1)."""
    cdf = logits.softmax(-1).cumsum(-1)
    return (u[..., None] * cdf[..., -1:] > cdf).sum(-1).clamp(max=logits.shape[-1] - 1)


class Categorical(nn.Module):
    """Any distribution over the levels of a token of one value."""

    basis: Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        assert spec.levels is not None
        levels, self.draws = spec.levels, 1  # uniforms a value
        if spec.kind == "ordinal":
            m, k = torch.arange(1, levels)[:, None], torch.arange(levels)[None]
            waves = torch.cos(math.pi * m * (k + 0.5) / levels) / (1 + m / 4)
            ends = torch.eye(levels)[[0, -1]]  # black and white stand out of any smooth curve
            self.register_buffer("basis", torch.cat([ends, waves]), persistent=False)
        else:
            self.register_buffer("basis", torch.zeros(0, levels), persistent=False)
        self.size = len(self.basis) or levels

    def _all(self, out: Tensor) -> Tensor:
        return (out @ self.basis if len(self.basis) else out).log_softmax(-1)

    def log_prob(self, out: Tensor, k: Tensor) -> Tensor:
        """log P of tokens k (B, T, 1) under outputs (B, T, size): (B, T)."""
        return self._all(out).gather(-1, k)[..., 0]

    def logits(self, out: Tensor, k: Tensor, channel: int) -> Tensor:
        """log P of each level (B, L) under one token's outputs (B, size)."""
        return self._all(out)

    def draw(self, out: Tensor, k: Tensor, channel: int, u: Tensor) -> Tensor:
        """A level (B,) from one token's outputs (B, size) and uniforms u (B, 1)."""
        return invert(self._all(out), u[:, 0])


class _Parts(NamedTuple):
    log_weight: Tensor  # (..., K), normalised
    mean: Tensor  # (..., K, C), on [-1, 1]
    log_scale: Tensor  # (..., K, C)
    slope: Tensor  # (..., K, C, C): how much channel c (row) leans on the earlier channel j (column)


class Logistics(nn.Module):
    """A mixture of K logistics over the channels of a pixel, discretized to the levels; channels lean on earlier ones."""

    def __init__(self, spec: ImageSpec, mixtures: int) -> None:
        super().__init__()
        assert spec.levels is not None
        self.spec, self.mixtures, self.draws = spec, mixtures, 2
        self.pairs = spec.channels * (spec.channels - 1) // 2
        self.size = mixtures * (1 + 2 * spec.channels + self.pairs)
        self.min_log_scale = math.log(spec.step) - 3  # far below a step: any level can be certain

    def _parts(self, out: Tensor) -> _Parts:
        K, C = self.mixtures, self.spec.channels
        weight, mean, scale, slope = out.split([K, K * C, K * C, K * self.pairs], -1)
        # At zero outputs the components stand in a row over the range, each broad enough for channels that disagree.
        centre = (torch.arange(K, device=out.device) + 0.5) / K * 2 - 1
        log_scale = scale.unflatten(-1, (K, C)) - math.log(4)
        full = out.new_zeros(*out.shape[:-1], K, C, C)
        if self.pairs:
            row, column = torch.tril_indices(C, C, -1, device=out.device)
            full[..., row, column] = slope.unflatten(-1, (K, self.pairs)).tanh()
        means = mean.unflatten(-1, (K, C)) + centre[:, None]
        return _Parts(weight.log_softmax(-1), means, log_scale.clamp_min(self.min_log_scale), full)

    def _mean(self, parts: _Parts, x: Tensor, channel: int) -> Tensor:
        """(..., K): the means of one channel given the earlier ones of x (..., C)  # Eq. 3."""
        earlier = (parts.slope[..., channel, :channel] * x[..., None, :channel]).sum(-1)
        return parts.mean[..., channel] + earlier

    def _component(self, mean: Tensor, log_scale: Tensor, k: Tensor) -> Tensor:
        """log of each logistic's mass on level k, broadcast."""
        x, half = self.spec.from_levels(k), self.spec.step / 2
        narrow = torch.exp(-log_scale)
        upper, lower = (x + half - mean) * narrow, (x - half - mean) * narrow
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), with no cancellation in any tail  # Eq. 2
        first, last = k == 0, k == (self.spec.levels or 0) - 1
        above = F.logsigmoid(upper).masked_fill(last, 0.0)
        below = F.logsigmoid(-lower).masked_fill(first, 0.0)
        width = torch.log(-torch.expm1(-self.spec.step * narrow)).masked_fill(first | last, 0.0)
        return above + below + width

    def _joint(self, parts: _Parts, k: Tensor, channels: int) -> Tensor:
        """(..., K): log weight of each component times its mass on the first `channels` channels of k (..., C)."""
        x, total = self.spec.from_levels(k), parts.log_weight
        for c in range(channels):
            total = total + self._component(self._mean(parts, x, c), parts.log_scale[..., c], k[..., c, None])
        return total

    def log_prob(self, out: Tensor, k: Tensor) -> Tensor:
        """log P of tokens k (B, T, C) under outputs (B, T, size): (B, T)  # Eq. 1."""
        return self._joint(self._parts(out), k, self.spec.channels).logsumexp(-1)

    def logits(self, out: Tensor, k: Tensor, channel: int) -> Tensor:
        """log P of each level (B, L) of one channel given the earlier channels of k (B, C)."""
        parts = self._parts(out)
        mean = self._mean(parts, self.spec.from_levels(k), channel)[:, None]
        every = torch.arange(self.spec.levels or 0, device=out.device)[None, :, None]
        mass = self._component(mean, parts.log_scale[:, None, :, channel], every)  # (B, L, K)
        return (self._joint(parts, k, channel).log_softmax(-1)[:, None] + mass).logsumexp(-1)

    def draw(self, out: Tensor, k: Tensor, channel: int, u: Tensor) -> Tensor:
        """A level (B,) of one channel given the earlier channels of k (B, C), from uniforms u (B, 2).

        The component is drawn from its weight after the earlier channels, the level by inverting the logistic and rounding,
        which has exactly the discretized distribution.
        """
        parts = self._parts(out)
        which = invert(self._joint(parts, k, channel), u[:, 0])[:, None]
        mean = self._mean(parts, self.spec.from_levels(k), channel).gather(1, which)[:, 0]
        scale = parts.log_scale[..., channel].gather(1, which)[:, 0].exp()
        return self.spec.to_levels(mean + scale * (u[:, 1].log() - torch.log1p(-u[:, 1])))
