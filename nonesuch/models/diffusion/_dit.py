"""The transformer of DiT: an image as a sequence of square patches, each block modulated and gated by time and condition.

    c       = MLP(frequencies(k)) + embedding of the condition
    h      <- h + gate_1 attention((1 + scale_1) norm(h) + shift_1)
    h      <- h + gate_2 MLP((1 + scale_2) norm(h) + shift_2),        shifts, scales, gates = W silu(c) + b, all zero at first
    output  = W'((1 + scale) norm(h) + shift), a patch a position

Positions are told by fixed waves along either axis, so there is nothing in a position that has to be learned.

References:
    Scalable Diffusion Models with Transformers (Peebles, Xie, 2022) arXiv:2212.09748, section 3.2 (adaLN-Zero)
    An Image is Worth 16x16 Words (Dosovitskiy et al., 2020) arXiv:2010.11929
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.nn.condition import ImageCondition
from nonesuch.nn.conv import Dropout, Linear, depth_to_space, space_to_depth, zero
from nonesuch.nn.embed import GivenEmbedding
from nonesuch.nn.transformer import gelu

_FREQUENCIES, _EPS = 256, 1e-6


def waves(height: int, width: int, channels: int) -> Float[Tensor, "{height*width} channels"]:
    """Sines and cosines of the column, then of the row, of every position in reading order, at geometric frequencies."""
    quarter = channels // 4
    frequency = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    column = torch.arange(width, dtype=torch.float64).repeat(height)
    row = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    angles = [place[:, None] * frequency for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1).float()


def frequencies(k: Float[Tensor, b]) -> Float[Tensor, "b 256"]:
    """Cosines, then sines, of steps k (B,) at geometric frequencies from 1 to 1 / 10,000."""
    half = _FREQUENCIES // 2
    angle = k.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half, device=k.device) / (half - 1))
    return torch.cat([angle.cos(), angle.sin()], 1)


class Block(nn.Module):
    """A block on (B, T, width), told of c (B, width), which is silu(c) already."""

    def __init__(self, width: int, num_heads: int, ratio: int, eps: float, dropout: float, name: str) -> None:
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.modulation = zero(Linear(width, 6 * width))
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.mlp_in, self.mlp_out = Linear(width, ratio * width), Linear(ratio * width, width)
        self.drop = Dropout(dropout, name, shared=True)

    def forward(self, h: Float[Tensor, "b t width"], c: Float[Tensor, "b width"], keys: Seeds | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, -1)
        width = h.shape[-1:]
        h = torch.addcmul(h, gate1, self._attend(torch.addcmul(shift1, F.layer_norm(h, width, eps=_EPS), 1 + scale1)))
        inner = self.mlp_in(torch.addcmul(shift2, F.layer_norm(h, width, eps=self.eps), 1 + scale2))
        return torch.addcmul(h, gate2, self.drop(self.mlp_out(gelu(inner)), keys))

    def _attend(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # where the float32 kernel is the quicker one
            q, k, v = q.float(), k.float(), v.float()
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).to(x.dtype).transpose(1, 2).flatten(2))
        return out


class DiTNetwork(nn.Module):
    """(B, channels, H, W), steps (B,) from 0 and a condition -> (B, out, H, W). H and W must be multiples of `patch`."""

    positions: Tensor

    def __init__(
        self, spec: ImageSpec, out: int, patch: int, width: int, depth: int, num_heads: int, ratio: int,
        eps: float, dropout: float, schema: Schema,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.grid = patch, (spec.size[0] // patch, spec.size[1] // patch)
        self.register_buffer("positions", waves(*self.grid, width), persistent=False)
        self.images = ImageCondition(schema, spec)
        self.enter = Linear((spec.channels + self.images.channels) * patch**2, width)
        self.time1, self.time2 = Linear(_FREQUENCIES, width), Linear(width, width)
        self.condition = GivenEmbedding(schema, width, images=True)
        self.blocks = nn.ModuleList(Block(width, num_heads, ratio, eps, dropout, f"block{i}") for i in range(depth))
        self.modulation, self.leave = zero(Linear(width, 2 * width)), zero(Linear(width, out * patch**2))

    def embed(self, k: Float[Tensor, b], given: Given) -> Float[Tensor, "b width"]:
        """silu(c) in float32."""
        c: Tensor = self.time2(F.silu(self.time1(frequencies(k))))
        return F.silu(c + self.condition(given, len(k), k.device))

    def forward(
        self, x: Float[Tensor, "b c h w"], k: Float[Tensor, b], given: Given, keys: Seeds | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b out h w"]:  # fmt: skip
        """All in `dtype` but the embedding and what leaves, which keep that of x."""
        whole = torch.cat([x, self.images(given).to(x.dtype)], 1) if self.images.channels else x
        c, patches = self.embed(k, given), space_to_depth(whole, self.patch).flatten(2).transpose(1, 2)
        h = (self.enter(patches) + self.positions).to(dtype)
        told = c.to(dtype)
        for block in self.blocks:
            h = block(h, told, keys)
        shift, scale = self.modulation(c)[:, None].chunk(2, -1)
        h = torch.addcmul(shift, F.layer_norm(h.to(x.dtype), h.shape[-1:], eps=_EPS), 1 + scale)
        return depth_to_space(self.leave(h).transpose(1, 2).unflatten(2, self.grid), self.patch)
