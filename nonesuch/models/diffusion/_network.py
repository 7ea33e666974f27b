"""The network behind D(x; sigma): a U-Net between EDM's scalings, or one that votes for levels where they are few.

With c_skip, c_out, c_in of EDM (table 1), m the mean image and F the network, images of many levels or none have

    D(x) = m + c_skip (x - m) + c_out F(c_in (x - m); 1/4 log sigma).                                             (1)

A pixel of K levels l_k is better served by Bayes' rule: noise is independent between pixels, so exactly

    P(x_i = l_k | x_t)  is proportional to  P(x_i = l_k | x_t without pixel i)  N(x_ti; l_k, sigma^2),            (2)

and D is the mean of that. The network's K outputs add to the logarithm of each pixel's own frequencies of levels, which stand
for the first factor at the start: an untrained network is already the exact denoiser of independent pixels, and no precision is
spent on where the grid lies. The mean of (2) under the frequencies alone is a second input.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364
    Continuous diffusion for categorical data (Dieleman et al., 2022) arXiv:2211.15089 (score interpolation)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.nn.condition import ImageCondition
from nonesuch.nn.conv import Dropout, Linear, depth_to_space, space_to_depth, zero
from nonesuch.nn.embed import Fourier, GivenEmbedding
from nonesuch.nn.moves import told
from nonesuch.nn.norm import LayerNorm
from nonesuch.nn.transformer import Block
from nonesuch.nn.unet import UNet

FEW_LEVELS = 64  # up to here a pixel's levels are voted for


class Perceptron(nn.Module):
    """x + mlp(norm(x)) on (B, T, width), scaled and shifted by c (B, width): a transformer block without its attention."""

    def __init__(self, width: int, dropout: float, name: str, ratio: int = 4) -> None:
        super().__init__()
        self.norm, self.modulation = LayerNorm(width, affine=False), zero(Linear(width, 2 * width))
        self.enter, self.leave = Linear(width, ratio * width), zero(Linear(ratio * width, width))
        self.drop = Dropout(dropout, name)

    def forward(self, x: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        scale, shift = self.modulation(c)[:, None].chunk(2, -1)
        h = F.silu(self.enter(torch.addcmul(shift, self.norm(x), 1 + scale)))
        return x + self.leave(self.drop(h, keys))


class PatchTransformer(nn.Module):
    """(B, channels, *size) and c (B, width) -> (B, out, *size): transformer blocks over patches of `patch` pixels a side.

    A patch that holds the whole image leaves nothing to attend to, and the blocks are perceptrons. A size that the patch does not
    divide is padded with zeros on the way in and cut on the way out.
    """

    def __init__(
        self, channels: int, out: int, size: tuple[int, ...], patch: int, width: int, blocks: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.patch = patch
        self.cells = tuple(-(-s // patch) for s in size)
        self.padding = [v for s, n in zip(size[::-1], self.cells[::-1], strict=True) for v in (0, n * patch - s)]
        self.enter = Linear(channels * patch ** len(size), width)
        self.position = nn.Embedding(math.prod(self.cells), width)
        self.position.gain = 0.5  # type: ignore[assignment]
        self.blocks = nn.ModuleList(
            Block(width, num_heads, dropout=dropout, name=f"block{i}", activation=F.silu)
            if len(self.position.weight) > 1
            else Perceptron(width, dropout, f"block{i}")
            for i in range(blocks)
        )
        self.norm, self.leave = LayerNorm(width), zero(Linear(width, out * patch ** len(size)))

    def forward(self, x: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        cells = space_to_depth(F.pad(x, self.padding), self.patch).flatten(2).transpose(1, 2)
        h = self.enter(cells) + self.position.weight.to(x.dtype)
        c = c.to(x.dtype)
        for block in self.blocks:
            h = block(h, c, keys)
        y = self.leave(self.norm(h)).transpose(1, 2).unflatten(2, self.cells)
        return depth_to_space(y, self.patch)[(..., *[slice(s) for s in x.shape[2:]])]


class Folded(nn.Module):
    """A network of (B, channels, *size) whose cells of `fold` pixels a side are channels: less to convolve, at more width.

    A size that the fold does not divide has its ends padded with zeros on the way in and cut on the way out.

    References: Improving Diffusion Model Efficiency Through Patching (Luhman, Luhman, 2022) arXiv:2207.04316
    """

    def __init__(self, inner: UNet, fold: int) -> None:
        super().__init__()
        self.inner, self.fold = inner, fold

    def forward(self, x: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        size = x.shape[2:]
        x = F.pad(x, [v for s in reversed(size) for v in (0, -s % self.fold)])
        return depth_to_space(self.inner(space_to_depth(x, self.fold), c, keys), self.fold)[(..., *[slice(s) for s in size])]


class Network(nn.Module):
    """(x_t, sigma, given) -> D, and the logits (B, C, K, *size) of each pixel's level where they are few."""

    mean: Tensor
    variance: Tensor
    sigma_data: Tensor
    log_frequency: Tensor
    grid: Tensor

    def __init__(
        self, spec: ImageSpec, schema: Schema, base: int, mults: Sequence[int], blocks: int, attention: Sequence[bool],
        width: int, dropout: float, num_heads: int, patch: int, told_of_moves: bool, fold: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.votes = spec.levels is not None and spec.levels <= FEW_LEVELS
        self.spec = spec
        k = spec.levels if self.votes and spec.levels else 1
        dims = max(1, len(spec.size))  # a vector is a line of one pixel
        self.noise = nn.ModuleList([Fourier(width), Linear(width, width), Linear(width, width)])
        self.condition, self.images = GivenEmbedding(schema, width, images=True), ImageCondition(schema, spec)
        self.moved = Linear(told(len(spec.size)), width, bias=False) if told_of_moves else None
        channels, out = spec.channels * (2 if self.votes else 1) + self.images.channels, spec.channels * k
        self.unet: nn.Module
        if patch:
            self.unet = PatchTransformer(channels, out, spec.size or (1,), patch, width, blocks, num_heads, dropout)
        else:
            cell = fold**dims
            unet = UNet(dims, channels * cell, out * cell, base, mults, blocks, attention, width, dropout, num_heads)
            self.unet = Folded(unet, fold) if fold > 1 else unet
        size = (1,) * len(spec.size) if spec.sizes else spec.size  # of several sizes, statistics are those of a channel
        self.register_buffer("mean", torch.zeros(spec.channels, *size))
        self.register_buffer("variance", torch.full((spec.channels, *size), 0.25))
        self.register_buffer("sigma_data", torch.tensor(0.5))
        if self.votes:
            self.register_buffer("log_frequency", torch.zeros(spec.channels, k, *size))
            self.register_buffer("grid", spec.from_levels(torch.arange(k)), persistent=False)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Take the mean image, the variance and the frequencies of levels from images x (N, C, *size)."""
        self.mean.copy_(x.mean(0))
        self.variance.copy_(x.var(0, unbiased=False))
        self.sigma_data.copy_(self.variance.mean().sqrt().clamp_min(1e-3))
        if self.votes:
            k = len(self.grid)
            counts = F.one_hot(self.spec.to_levels(x), k).sum(0).movedim(-1, 1).double()  # (C, K, *size)
            pooled = counts.reshape(len(counts), k, -1).sum((0, 2)) + 1
            pooled = (pooled / pooled.sum()).view(1, k, *[1] * len(self.spec.size))
            # A dozen images' worth of all pixels' frequencies keeps a level possible that a pixel never showed.
            self.log_frequency.copy_(((counts + 12 * pooled) / (len(x) + 12)).log())

    def forward(
        self, x_t: Tensor, sigma: Tensor, given: Given, dtype: torch.dtype = torch.float32,
        keys: Seeds | None = None, moved: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """D (B, C, *size) of x_t at sigma (B,), and the logits of levels or None.

        In training: keys for dropout, and how each image was moved (B, told), which is nothing (zeros) when it is None.
        """
        rows = [-1, *[1] * (x_t.dim() - 1)]
        s = sigma.to(x_t.dtype).view(rows)
        total = (s**2 + self.sigma_data**2).sqrt()
        centred = (x_t - self.mean) / total  # c_in
        if not self.votes:
            f = self._network(centred, sigma, given, dtype, keys, moved).to(x_t.dtype)
            c_skip, c_out = (self.sigma_data / total) ** 2, s * self.sigma_data / total
            return self.mean + c_skip * (x_t - self.mean) + c_out * f, None  # Eq. 1
        levels = self.grid.to(x_t.dtype).view(1, 1, -1, *[1] * len(self.spec.size))
        own = self.log_frequency - (x_t[:, :, None] - levels) ** 2 / (2 * s[:, :, None] ** 2)  # Eq. 2
        guess = ((own.softmax(2) * levels).sum(2) - self.mean) / self.sigma_data
        f = self._network(torch.cat([centred, guess], 1), sigma, given, dtype, keys, moved)
        logits = own + f.to(x_t.dtype).unflatten(1, (self.spec.channels, -1))
        return (logits.softmax(2) * levels).sum(2), logits

    def _network(
        self, x: Tensor, sigma: Tensor, given: Given, dtype: torch.dtype, keys: Seeds | None, moved: Tensor | None
    ) -> Tensor:
        fourier, first, second = self.noise
        c = second(F.silu(first(fourier(sigma.log() / 4)))) + self.condition(given, len(x), x.device)
        if self.moved is not None and moved is not None:
            c = c + self.moved(moved)
        c = F.silu(c)
        if self.images.channels:
            x = torch.cat([x, self.images(given, tuple(x.shape[2:])).to(x.dtype)], 1)
        flat = x if self.spec.size else x[..., None]
        out: Tensor = self.unet(flat.to(dtype), c, keys).float()
        return out if self.spec.size else out[..., 0]
