"""The two networks of a hierarchical variational autoencoder: up over the picture, and down through the stochastic layers.

Layer l of the way down takes a state h and standard normal noise e_l, and makes the next state of both. Drawing e_l from N(0, 1)
samples the prior: the layer's latent is mu(h) + sigma(h) e_l, whose mean and deviation are part of the layers around it. The
posterior is written in the same noise,

    q(e_l | e_<l, x) = N(m_l, s_l^2),     KL_l = sum 1/2 (m_l^2 + s_l^2 - 1) - log s_l,                              (1)

which is the posterior relative to the prior of NVAE, Eq. 2. It starts as the prior (m = 0, s = 1), so the KL starts at zero.

References:
    Very Deep VAEs (Child, 2020) arXiv:2011.10650, figure 3
    Ladder Variational Autoencoders (Sonderby et al., 2016) arXiv:1602.02282
    NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat, Kautz, 2020) arXiv:2007.03898, section 3.2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Conv, channels_last, zero
from nonesuch.nn.norm import ChannelNorm
from nonesuch.nn.unet import ResBlock

_LOG_S = (-6.0, 2.0)  # the posterior's log deviation stays here
_POSITIONS = 1 << 12  # up to so many pixels, each has a learned vector of its own


def pyramid(size: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Sizes from the finest to the coarsest, each half of the one before, rounded up."""
    sizes = [tuple(size)]
    for _ in range(levels - 1):
        sizes.append(tuple(math.ceil(s / 2) for s in sizes[-1]))
    return sizes


def kernel(size: Sequence[int]) -> int:
    """A convolution's width: a single pixel has no neighbours to look at."""
    return 1 if max(size) == 1 else 3


class Bottom(nn.Module):
    """The way up: images (B, C, *size) -> one map of activations for each resolution, finest first."""

    def __init__(self, channels: int, width: int, blocks: int, sizes: Sequence[tuple[int, ...]], dropout: float) -> None:
        super().__init__()
        self.sizes, dims = list(sizes), len(sizes[0])
        self.enter = Conv(dims, channels, width, kernel(sizes[0]))
        self.stages = nn.ModuleList(
            nn.ModuleList(ResBlock(dims, width, width, width, dropout, f"up{i}.{j}", kernel(size)) for j in range(blocks))
            for i, size in enumerate(sizes)
        )

    def forward(self, x: Tensor, c: Tensor, keys: Seeds | None) -> list[Tensor]:
        """x (B, channels, *size), c (B, width), and the keys of dropout, or None."""
        h, out = self.enter(channels_last(x)), []
        for stage, size in zip(self.stages, self.sizes, strict=True):
            h = F.interpolate(h, size, mode="area") if h.shape[2:] != size else h
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, c, keys)
            out.append(h)
        return out


class Layer(nn.Module):
    """One stochastic layer: noise, from the prior or moved to the posterior, enters the state before a residual block."""

    def __init__(self, size: Sequence[int], width: int, latents: int, dropout: float, name: str) -> None:
        super().__init__()
        dims, k = len(size), kernel(size)
        self.posterior = ResBlock(dims, 2 * width, width, width, dropout, f"{name}/posterior", k)
        self.norm, self.moments = ChannelNorm(width), zero(Conv(dims, width, 2 * latents, 1))
        self.inject = Conv(dims, latents, width, 1)
        self.after = ResBlock(dims, width, width, width, dropout, f"{name}/after", k)

    def forward(self, h: Tensor, noise: Tensor, c: Tensor, keys: Seeds | None, seen: Tensor | None) -> tuple[Tensor, ...]:
        """State h, noise (B, latents, *size), and the picture's activations or None for the prior -> next h, e, m, log s."""
        m, log_s = torch.zeros_like(noise), torch.zeros_like(noise)
        if seen is not None:
            q = self.posterior(torch.cat([h, seen], 1), c, keys)
            m, log_s = self.moments(F.silu(self.norm(q))).float().chunk(2, 1)
            log_s = log_s.clamp(*_LOG_S)
        e = m + log_s.exp() * noise
        h = h + self.inject(channels_last(e.to(h.dtype)))
        return self.after(h, c, keys), e, m, log_s


@dataclass(frozen=True)
class Descent:
    """What the way down gives: features (B, out, *size) of p(x | e); the noise e, its posterior's m and log s, all (B, total)."""

    features: Tensor
    e: Tensor
    m: Tensor
    log_s: Tensor

    def kl(self) -> Tensor:
        """KL(q || p) of every latent (B, total), given those above it (Eq. 1)."""
        return 0.5 * (self.m.square() + (2 * self.log_s).exp() - 1) - self.log_s

    def log_ratio(self) -> Tensor:
        """log p(e) - log q(e | x) (B,) of the noise that was drawn."""
        standard = (self.e - self.m) * (-self.log_s).exp()
        return (0.5 * (standard.square() - self.e.square()) + self.log_s).sum(1)


class TopDown(nn.Module):
    """The way down: noise (B, total) and a condition -> features of the picture; `blocks` stochastic layers a resolution."""

    def __init__(
        self, out: int, width: int, latents: int, blocks: Sequence[int], sizes: Sequence[tuple[int, ...]], dropout: float
    ) -> None:
        super().__init__()
        self.sizes, dims = list(sizes), len(sizes[0])
        places = [s if math.prod(s) <= _POSITIONS else (1,) * dims for s in sizes]
        self.positions = nn.ParameterList(torch.zeros(1, width, *place) for place in places)
        self.stages = nn.ModuleList(
            nn.ModuleList(Layer(sizes[i], width, latents, dropout, f"down{i}.{j}") for j in range(n))
            for i, n in enumerate(blocks)
        )
        self.last = ResBlock(dims, width, width, width, dropout, "last", kernel(sizes[0]))
        self.norm, self.leave = ChannelNorm(width), zero(Conv(dims, width, out, 1))
        self.shapes = [(latents, *sizes[i]) for i in reversed(range(len(sizes))) for _ in range(blocks[i])]  # in drawing order
        self.total = sum(math.prod(s) for s in self.shapes)

    def forward(
        self, noise: Tensor, c: Tensor, dtype: torch.dtype, seen: Sequence[Tensor] | None = None, keys: Seeds | None = None
    ) -> Descent:
        """noise (B, total) standard normal, coarsest layer first; `seen`: activations of the way up, for the posterior."""
        pieces = iter(noise.split([math.prod(s) for s in self.shapes], 1))
        shapes, drawn = iter(self.shapes), []
        h = torch.zeros(len(noise), self.positions[0].shape[1], *self.sizes[-1], dtype=dtype, device=noise.device)
        for i in reversed(range(len(self.sizes))):
            h = F.interpolate(h, self.sizes[i], mode="nearest") if h.shape[2:] != self.sizes[i] else h
            h = channels_last(h + self.positions[i].to(dtype))
            for layer in self.stages[i]:  # type: ignore[attr-defined]
                e = next(pieces).view(len(noise), *next(shapes))
                h, *found = layer(h, e, c, keys, None if seen is None else seen[i])
                drawn.append(torch.stack([v.flatten(1) for v in found]))
        features = self.leave(F.silu(self.norm(self.last(h, c, keys)))).float()
        e, m, log_s = torch.cat(drawn, 2) if drawn else noise.new_zeros(3, len(noise), 0)
        return Descent(features, e, m, log_s)
