"""p(x | z) for pixels on a grid of levels, independent between pixels given the decoder's features.

`Categorical` gives each of L levels a probability of its own. `LogisticMixture` knows that neighbouring levels are alike, which
is worth more than freedom when pictures are few: 0.09 bits/dim on the 17 levels of 1,400 digits. A level x gets the mass that a
mixture of K logistic distributions has within half a step of it, the first and last level everything beyond,

    P(x) = sum_k w_k [s((x + step/2 - m_k) / s_k) - s((x - step/2 - m_k) / s_k)],      s the sigmoid.                  (1)

The components are shared by a pixel's channels, and the mean of a channel moves with the channels before it. With a > b,

    log (s(a) - s(b)) = log s(a) + log s(-b) + log(1 - exp(b - a))                                                   (2)

holds exactly, loses no digits in the tails, and drops the terms of an end that is infinite. Both sum to one over the levels.

References:
    PixelCNN++ (Salimans et al., 2017) arXiv:1701.05517, section 2
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

CATEGORICAL_LEVELS = 8  # up to here a level has a probability of its own, unless asked for otherwise


class Categorical:
    """A softmax over levels at every pixel and channel; `width` features a pixel."""

    def __init__(self, spec: ImageSpec) -> None:
        assert spec.levels is not None
        self.spec, self.levels, self.width = spec, spec.levels, spec.channels * spec.levels

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log P(x | features) (B,) in nats, of images (B, C, *size)."""
        log_p = self._logits(features).log_softmax(-1)
        return log_p.gather(-1, self.spec.to_levels(x)[..., None]).flatten(1).sum(1)

    def draw(self, features: Tensor, seeds: Seeds) -> Tensor:
        """Images on the grid, drawn."""
        return self.spec.from_levels(seeds.categorical(self._logits(features), "pixels"))

    def mean(self, features: Tensor) -> Tensor:
        """E[x | features], differentiable; of categories, which have no mean, the likeliest."""
        logits = self._logits(features)
        if self.spec.kind == "categorical":
            return logits.argmax(-1)
        return logits.softmax(-1) @ self.spec.from_levels(torch.arange(self.levels, device=logits.device))

    def _logits(self, features: Tensor) -> Tensor:
        """(B, width, *size) -> (B, C, *size, levels)."""
        b, _, *size = features.shape
        return features.float().reshape(b, self.spec.channels, self.levels, *size).movedim(2, -1)


class LogisticMixture:
    """`components` discretized logistics a pixel (Eq. 1); `width` features a pixel."""

    def __init__(self, spec: ImageSpec, components: int) -> None:
        c = spec.channels
        self.spec, self.components = spec, components
        self.pairs = [(i, j) for i in range(c) for j in range(i)]  # the mean of channel i moves with channel j
        self.width = components * (1 + 2 * c + len(self.pairs))

    def log_prob(self, features: Tensor, x: Tensor) -> Tensor:
        """log P(x | features) (B,) in nats, of images (B, C, *size)."""
        log_w, mean, scale, mix = self._split(features)
        x = self.spec.snap(x)[:, None]  # (B, 1, C, *size)
        moved = list(mean.unbind(2))
        for p, (i, j) in enumerate(self.pairs):
            moved[i] = moved[i] + mix[:, :, p] * x[:, :, j]
        centred, half = x - torch.stack(moved, 2), self.spec.step / 2
        first, last = x < -1 + half, x > 1 - half
        above = F.logsigmoid((centred + half) / scale).masked_fill(last, 0.0)
        below = F.logsigmoid((half - centred) / scale).masked_fill(first, 0.0)
        inner = torch.log(-torch.expm1(-2 * half / scale)).masked_fill(first | last, 0.0)
        log_p = log_w + (above + below + inner).sum(2)  # Eq. 2
        return log_p.logsumexp(1).flatten(1).sum(1)

    def draw(self, features: Tensor, seeds: Seeds) -> Tensor:
        """Images on the grid, drawn."""
        log_w, mean, scale, mix = self._split(features)
        which = seeds.categorical(log_w.movedim(1, -1), "component")[:, None, None]  # (B, 1, 1, *size)

        def picked(values: Tensor) -> Tensor:
            return torch.take_along_dim(values, which.expand(-1, -1, values.shape[2], *which.shape[3:]), 1)[:, 0]

        mean, scale, mix = picked(mean), picked(scale), picked(mix)
        noise = seeds.uniform("pixels", *mean.shape[1:], device=mean.device).logit()
        drawn: list[Tensor] = []
        for i in range(self.spec.channels):
            moved = mean[:, i]
            for p, (a, j) in enumerate(self.pairs):
                moved = moved + mix[:, p] * drawn[j] if a == i else moved
            drawn.append(self.spec.snap((moved + scale[:, i] * noise[:, i]).clamp(-1, 1)))
        return torch.stack(drawn, 1)

    def mean(self, features: Tensor) -> Tensor:
        """The mixture's mean, cut to [-1, 1], differentiable."""
        log_w, mean, _, mix = self._split(features)
        moved = list(mean.unbind(2))
        for p, (i, j) in enumerate(self.pairs):
            moved[i] = moved[i] + mix[:, :, p] * moved[j]
        return (log_w.exp()[:, :, None] * torch.stack(moved, 2)).sum(1).clamp(-1, 1)

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log weights (B, K, *size); means, scales (B, K, C, *size) and the channels' influences (B, K, pairs, *size)."""
        b, _, *size = features.shape
        k, c = self.components, self.spec.channels
        each = features.float().reshape(b, k, 1 + 2 * c + len(self.pairs), *size)
        # Components start spread over the range; a scale is between a tenth of a step and a few ranges.
        spread = torch.linspace(-1, 1, k + 2, device=each.device)[1:-1].view(1, k, 1, *[1] * len(size))
        log_scale = (each[:, :, 1 + c : 1 + 2 * c] - 1.5).clamp(math.log(self.spec.step / 10), 2.0)
        return each[:, :, 0].log_softmax(1), each[:, :, 1 : 1 + c] + spread, log_scale.exp(), each[:, :, 1 + 2 * c :].tanh()
