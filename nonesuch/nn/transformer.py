"""A transformer block whose normalisations are modulated by a condition; causal or not.

References:
    Scalable Diffusion Models with Transformers (Peebles, Xie, 2022) arXiv:2212.09748 (adaLN-zero modulation)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.nn.attention import Attention
from nonesuch.nn.conv import Dropout, Linear, zero
from nonesuch.nn.norm import LayerNorm, rms_norm

gelu = partial(F.gelu, approximate="tanh")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (B, T, width); c (B, width) scales, shifts and gates both.

    `name` keys the dropouts, and `shared_dropout` drops the same units at all positions; `norm` is that of queries and keys.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        name: str = "block",
        ratio: int = 4,
        activation: Callable[[Tensor], Tensor] = gelu,
        shared_dropout: bool = False,
        norm: Callable[[Tensor], Tensor] = rms_norm,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.norm1, self.norm2 = LayerNorm(width, affine=False), LayerNorm(width, affine=False)
        self.attention = Attention(width, num_heads, causal, norm)
        self.mlp_in, self.mlp_out = Linear(width, ratio * width), zero(Linear(ratio * width, width))
        self.modulation = zero(Linear(width, 4 * width))
        self.drop1, self.drop2 = (Dropout(dropout, f"{name}/{i}", shared_dropout) for i in (1, 2))

    def forward(
        self, x: Float[Tensor, "b t width"], c: Float[Tensor, "b width"], keys: Seeds | None = None
    ) -> Float[Tensor, "b t width"]:
        scale1, shift1, scale2, shift2 = self.modulate(c, x.dtype)
        x = x + self.drop1(self.attention(torch.addcmul(shift1, self.norm1(x), scale1)), keys)
        return x + self.drop2(self._mlp(torch.addcmul(shift2, self.norm2(x), scale2)), keys)

    def modulate(self, c: Float[Tensor, "b width"], dtype: torch.dtype) -> tuple[Float[Tensor, "b 1 width"], ...]:
        """Scale and shift of the first normalisation and of the second, the same at all positions."""
        scale1, shift1, scale2, shift2 = self.modulation(F.silu(c).to(dtype))[:, None].chunk(4, -1)
        return 1 + scale1, shift1, 1 + scale2, shift2

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_out(self.activation(self.mlp_in(x)))
        return out
