"""A prior over the codes of a picture: p(k | given) = prod_i p(k_i | k_1, ..., k_{i-1}, given), in reading order.

`Causal` is a transformer, which sees all codes before; `Uniform` gives each of K codes 1/K, as in the paper while the autoencoder
is trained. The codes are those of an encoder that learns at the same time, and nothing of the prior's loss reaches it.

References:
    Neural Discrete Representation Learning (van den Oord et al., 2017) arXiv:1711.00937, section 3.3
    Attention Is All You Need (Vaswani et al., 2017) arXiv:1706.03762
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nonesuch.core.given import Given, Schema
from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Dropout, Linear, zero
from nonesuch.nn.decoding import Decoding
from nonesuch.nn.embed import GivenEmbedding
from nonesuch.nn.norm import LayerNorm
from nonesuch.nn.transformer import Block


class Uniform(nn.Module):
    """Every code is as likely as any other, whatever is given."""

    def __init__(self, codes: int, length: int) -> None:
        super().__init__()
        self.codes, self.length = codes, length

    def log_prob(self, k: Int[Tensor, "b t"], given: Given, dtype: torch.dtype, keys: Seeds | None = None) -> Float[Tensor, b]:
        return torch.full((len(k),), -self.length * math.log(self.codes), device=k.device)

    def draw(
        self, given: Given, seeds: Seeds, dtype: torch.dtype, device: torch.device, temperature: float = 1.0
    ) -> Int[Tensor, "b t"]:
        return seeds.integers("codes", self.codes, self.length, device=device)


class Causal(nn.Module):
    """A causal transformer over `length` codes, its blocks modulated by what is given."""

    def __init__(
        self, codes: int, length: int, schema: Schema, width: int, depth: int, num_heads: int, dropout: float
    ) -> None:  # fmt: skip
        super().__init__()
        self.length = length
        self.code, self.position = nn.Embedding(codes, width), nn.Embedding(length, width)
        self.embed = GivenEmbedding(schema, width)
        self.drop = Dropout(dropout, "prior", shared=True)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, True, dropout, f"prior{i}", shared_dropout=True) for i in range(depth)
        )
        self.norm, self.leave = LayerNorm(width), zero(Linear(width, codes))

    def forward(self, k: Int[Tensor, "b t"], given: Given, dtype: torch.dtype, keys: Seeds | None = None) -> Tensor:
        """Logits (B, length, codes) float32; those at i see the codes before i."""
        c = self.embed(given, len(k), k.device)
        h = self.drop(self._enter(F.pad(self.code(k[:, :-1]), (0, 0, 1, 0)), self.position.weight, c, dtype), keys)
        for block in self.blocks:
            h = block(h, c, keys)
        return self._leave(h)

    def log_prob(self, k: Int[Tensor, "b t"], given: Given, dtype: torch.dtype, keys: Seeds | None = None) -> Float[Tensor, b]:
        """log p(k | given) in nats (B,)."""
        logits = self(k, given, dtype, keys)
        return -F.cross_entropy(logits.flatten(0, 1), k.flatten(), reduction="none").view(k.shape).sum(1)

    @torch.no_grad()
    def draw(
        self, given: Given, seeds: Seeds, dtype: torch.dtype, device: torch.device, temperature: float = 1.0
    ) -> Int[Tensor, "b t"]:
        """Codes (B, length), one position after another; the logits are divided by `temperature`."""
        c, drawn = self.embed(given, len(seeds), device), []
        decoding = Decoding(self.blocks, c, self.length, dtype)  # type: ignore[arg-type]  # a list of Blocks
        seen = torch.zeros_like(self.code.weight[:1]).expand(len(seeds), -1)
        for i in range(self.length):
            logits = self._leave(decoding((seen + self.position.weight[i] + c).to(dtype)))
            k = seeds.categorical(logits / temperature, "codes", step=i) if temperature > 0 else logits.argmax(1)
            drawn.append(k)
            seen = self.code(k)
        return torch.stack(drawn, 1)

    def _enter(self, seen: Tensor, position: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
        return (seen + position + c[:, None]).to(dtype)

    def _leave(self, h: Tensor) -> Tensor:
        logits: Tensor = self.leave(self.norm(h).float())
        return logits
