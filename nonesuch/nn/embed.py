"""Vectors for times, positions and conditions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.core.given import Category, Given, Number, Schema, Text
from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Conv, Linear


def sinusoidal(value: Float[Tensor, b], width: int, max_period: float = 1e4) -> Float[Tensor, "b width"]:
    """Cosines and sines (B, width) of value (B,) at geometric frequencies from 1 to 1 / max_period.

    References: Attention Is All You Need (Vaswani et al., 2017) arXiv:1706.03762, section 3.5
    """
    half = width // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, device=value.device) / half)
    angle = value.float()[:, None] * frequency
    return F.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, width % 2))


class Fourier(nn.Module):
    """Random Fourier features (B, width) of value (B,), with fixed keyed frequencies.

    References: Fourier Features Let Networks Learn High Frequency Functions (Tancik et al., 2020) arXiv:2006.10739
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, width: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        draw = Seeds((0,), (0,))
        self.register_buffer("frequency", 2 * math.pi * bandwidth * draw.normal("fourier/frequency", width)[0])
        self.register_buffer("phase", 2 * math.pi * draw.uniform("fourier/phase", width)[0])

    def forward(self, value: Float[Tensor, b]) -> Float[Tensor, "b width"]:
        return (value.float()[:, None] * self.frequency + self.phase).cos() * math.sqrt(2)


class GivenEmbedding(nn.Module):
    """The sum (B, width) of a learned vector for each column of a condition; a missing value has a vector of its own.

    An empty schema embeds to zeros and has no parameters. Raises ValueError for a column of images, which a vector cannot carry,
    unless the network reads those elsewhere (`images`: condition.py).
    """

    def __init__(self, schema: Schema, width: int, images: bool = False) -> None:
        super().__init__()
        self.width = width
        layers: dict[str, nn.Module] = {}
        for name, column in schema.columns.items():
            if isinstance(column, Category):
                layers[name] = nn.Embedding(len(column.names) + 1, width)
            elif isinstance(column, Number):
                layers[name] = _NumberEmbedding(width)
            elif isinstance(column, Text):
                layers[name] = _TextEmbedding(column.max_bytes, width)
            elif not images:
                raise ValueError(f"this model cannot be given images, and {name!r} is a column of images.")
        self.names = list(layers)
        self.layers = nn.ModuleList(layers.values())

    def forward(self, given: Given, n: int, device: torch.device) -> Float[Tensor, "{n} {self.width}"]:
        """A condition of n rows -> (n, width) float32."""
        total = torch.zeros(n, self.width, device=device)
        for name, layer in zip(self.names, self.layers, strict=True):
            value = given.columns[name]
            if isinstance(layer, nn.Embedding):
                value = torch.where(value < 0, layer.num_embeddings - 1, value)
            total = total + layer(value)
        return total


class _NumberEmbedding(nn.Module):
    """A standardised number (B,), NaN when missing -> (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features, self.map = Fourier(32, 0.25), Linear(34, width)

    def forward(self, value: Tensor) -> Tensor:
        present = (~torch.isnan(value)).float()
        value = torch.nan_to_num(value)
        out: Tensor = self.map(torch.cat([self.features(value) * present[:, None], torch.stack([value, present], 1)], 1))
        return out


class _TextEmbedding(nn.Module):
    """Bytes (B, T), zero after the end -> (B, width): two convolutions over learned byte vectors, then the mean of the text."""

    def __init__(self, max_bytes: int, width: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(257, width)
        self.position = nn.Embedding(max_bytes, width)
        self.convs = nn.ModuleList(Conv(1, width, width, 5) for _ in range(2))

    def forward(self, value: Tensor) -> Tensor:
        mask = (value > 0).float()[:, None]
        h = (self.bytes(value) + self.position.weight).transpose(1, 2) * mask
        for conv in self.convs:
            h = (h + F.silu(conv(h))) * mask
        return self.bytes.weight[0] + h.sum(2) / mask.sum(2).clamp_min(1)
