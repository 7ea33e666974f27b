"""Multi-head attention over a sequence, with normalised queries and keys.

References:
    Attention Is All You Need (Vaswani et al., 2017) arXiv:1706.03762, Eq. 1
    Scaling Vision Transformers to 22 Billion Parameters (Dehghani et al., 2023) arXiv:2302.05442 (query-key normalisation)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.nn.conv import Linear, zero
from nonesuch.nn.norm import rms_norm


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(width)) v of (B, heads, T, width), by the exact path that is fastest there.

    Measured on one core with AMX, in ms. torch's fused kernel for CPUs works in tiles, which is its gain where scores do not fit
    the cache; one wide head is faster as two matrix products with a softmax between them, with gradients more so: forward and
    backward of (64, 1, 256, 128) takes 50 ms fused in bf16, 83 in float32, and 37 as products.

        (B, heads, T, width)    fused bf16   products bf16   fused fp32   products fp32
        (16, 1, 256, 256)          2.8           1.9            8.6           9.4
        (16, 1, 16, 256)           0.08          0.13           0.06          0.07
        (16, 4, 64, 64)            0.6           0.5            0.9           0.8
        (16, 4, 256, 64)           5.0          13.1           10.9          28.2
    """
    _, heads, t, width = q.shape
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and heads == 1 and width >= 128 and 64 <= t <= 1024
    if not plain or causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    nothing = q.new_empty(()).expand(len(q), t, k.shape[2])
    scores = torch.baddbmm(nothing, q[:, 0], k[:, 0].transpose(1, 2), beta=0, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v[:, 0])[:, None]


class Attention(nn.Module):
    """(B, T, width) -> (B, T, width). `causal` lets position i see j <= i (one position after another: `nn/decoding.py`).

    `norm` normalises each head's queries and keys. The output layer starts at zero.
    """

    def __init__(self, width: int, num_heads: int, causal: bool = False, norm: Callable[[Tensor], Tensor] = rms_norm) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"the width {width} must be a multiple of num_heads {num_heads}.")
        self.num_heads, self.causal, self.norm = num_heads, causal, norm
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = zero(Linear(width, width))

    def forward(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        q, k, v = self._heads(x)
        return self._merge(self._attend(q, k, v, self.causal))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.norm(q), self.norm(k), v

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        # On a CPU the float32 kernel is the faster one even where bf16 matrix products win (DESIGN section 6).
        if q.device.type == "cpu" and q.dtype != torch.float32:
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def _merge(self, heads: Tensor) -> Tensor:
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out
