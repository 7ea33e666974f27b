"""Causal blocks one position after another, with what all positions of a generation share prepared once, before the first.

    y_i = block(x_i | x_1, ..., x_{i-1}),   i = 1 ... T,   at the cost of one pass over the T positions

A new position meets every weight once, so for a few pictures a step costs what it costs to read the weights, and the keys and
values so far. Therefore weights are cast once, and laid out once for the processor's product; the modulation is that of the
condition, the same at every position; keys and values are kept in the dtype of the computation. In float32 the arithmetic is that
of the blocks themselves, but for the order of sums. In bf16 a layer's output is rounded after its activation or the residual's
sum instead of before, and attention's weights are rounded to bf16 before they meet the values. Where there is enough to do,
compiled code takes over (positions.py), which rounds less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nonesuch.nn import positions
from nonesuch.nn.norm import layer_norm
from nonesuch.nn.transformer import Block

_WORTH = 1 << 22  # weights times positions from which on the compiled code is built, if it is not yet
_MORE = 48  # positions: copying all so far once in so many costs a few hundredths of reading them each time


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the processor has a layout of its own for the weights of a product in this dtype."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.backends.mkldnn.enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Product:
    """x W^T + b of (B, in) with a layer's weights as they are now, cast and laid out for `rows` pictures at a time."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, rows: int) -> None:
        self.weight = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.packed = packs(self.weight.device, dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), rows)

    def __call__(self, x: Float[Tensor, "b in"]) -> Float[Tensor, "b out"]:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Float[Tensor, "b in"]) -> Float[Tensor, "b out"]:
        """silu of it."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "swish", [], "")
        return F.silu(F.linear(x, self.weight, self.bias))

    def plus(self, x: Float[Tensor, "b in"], y: Float[Tensor, "b out"]) -> Float[Tensor, "b out"]:
        """y and it."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, y, self.weight, self.bias, "add")
        return y + F.linear(x, self.weight, self.bias)


class _Position:
    """One block at one position after another: its products, its modulation, and the keys and values so far."""

    def __init__(self, block: Block, c: Tensor, room: int, dtype: torch.dtype) -> None:
        attention, b = block.attention, len(c)
        self.norm, self.heads, self.width = attention.norm, attention.num_heads, attention.out.in_features
        self.activation = block.activation
        self.qkv, self.out = Product(attention.qkv, dtype, b), Product(attention.out, dtype, b)
        self.mlp_in, self.mlp_out = Product(block.mlp_in, dtype, b), Product(block.mlp_out, dtype, b)
        self.scale1, self.shift1, self.scale2, self.shift2 = (m[:, 0].contiguous() for m in block.modulate(c, dtype))
        self.room = room
        self.k = self.v = torch.empty(b, self.heads, 0, self.width // self.heads, dtype=dtype, device=c.device)

    def __call__(self, x: Tensor, i: int) -> Tensor:
        x = self.out.plus(self._attended(torch.addcmul(self.shift1, self._normal(x), self.scale1), i), x)
        y = torch.addcmul(self.shift2, self._normal(x), self.scale2)
        y = self.mlp_in.silu(y) if self.activation is F.silu else self.activation(self.mlp_in(y))
        return self.mlp_out.plus(y, x)

    def _normal(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,))

    def _attended(self, x: Tensor, i: int) -> Tensor:
        """(B, width) of what position i attends to, itself among them."""
        b, heads, end = len(x), self.heads, i + 1
        qkv = self.qkv(x).view(b, 3 * heads, -1)
        qk = self.norm(qkv[:, : 2 * heads])  # each head's own, so queries and keys together
        if i == self.k.shape[2]:
            self.k, self.v = self._roomier(self.k), self._roomier(self.v)
        self.k[:, :, i], self.v[:, :, i] = qk[:, heads:], qkv[:, 2 * heads :]
        q = qk[:, :heads].unsqueeze(2)
        return F.scaled_dot_product_attention(q, self.k[:, :, :end], self.v[:, :, :end]).reshape(b, self.width)

    def _roomier(self, kept: Tensor) -> Tensor:
        """The same with room for more positions: a little, since heads that lie apart in memory are slower to read."""
        b, heads, length, width = kept.shape
        more = kept.new_empty(b, heads, min(length + _MORE, self.room), width)
        more[:, :, :length] = kept
        return more


def _layers(block: Block) -> tuple[nn.Linear, ...]:
    return block.attention.qkv, block.attention.out, block.mlp_in, block.mlp_out


def _rows(block: Block, c: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Scale and shift of its two normalisations, (B, width) each."""
    return [m[:, 0].float().contiguous() for m in block.modulate(c, dtype)]


class _Many:
    """All blocks for many rows: torch's products, and compiled code between them."""

    def __init__(self, blocks: Sequence[Block], c: Tensor, kept: positions.Kept) -> None:
        self.between = positions.Between(kept)
        self.products = [[Product(layer, kept.dtype, len(c)) for layer in _layers(block)] for block in blocks]
        self.rows = [_rows(block, c, kept.dtype) for block in blocks]

    def __call__(self, x: Tensor, i: int) -> Tensor:
        normal, attend = self.between.modulate, self.between.attend
        for n, ((qkv, out, inner, outer), rows) in enumerate(zip(self.products, self.rows, strict=True)):
            x = out.plus(attend(n, qkv(normal(x, *rows[:2])), i), x)
            x = outer.plus(inner.silu(normal(x, *rows[2:])), x)
        return x


def _at_once(rows: int, weights: int, dtype: torch.dtype) -> bool:
    """Whether blocks of so many weights are better done in one call a position than by torch's products.

    With AMX (tiles) torch's are ten times as fast, but a call costs 16 microseconds, and few rows cost what reading the weights
    costs: the numbers follow from that and were not tried. Without, torch's are no faster up to where it says so (Zen 4).
    """
    tiles = dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return rows <= 4 or rows * weights <= 1 << 22 if tiles else rows <= 64


def _built(blocks: Sequence[Block], c: Tensor, room: int, dtype: torch.dtype) -> Callable[[Tensor, int], Tensor] | None:
    """All blocks by compiled code, if it knows them and there is enough to do for building it to be worth while."""
    forms = {(b.activation, b.attention.norm, b.attention.num_heads, b.mlp_in.weight.shape) for b in blocks}
    if len(forms) != 1 or c.device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return None
    activation, norm, heads, (_, width) = forms.pop()
    weights = sum(layer.weight.numel() for layer in _layers(blocks[0]))
    if activation is not F.silu or norm is not layer_norm or room * len(blocks) * weights < _WORTH:
        return None
    if positions.library(dtype) is None:
        return None
    kept = positions.Kept(len(c), width, heads, len(blocks), room, dtype)
    if not _at_once(len(c), weights, dtype):
        return _Many(blocks, c, kept)
    return positions.Stack(
        kept, [[(layer.weight, layer.bias) for layer in _layers(b)] for b in blocks], [_rows(b, c, dtype) for b in blocks]
    )


class Decoding:
    """x_i (B, width) -> y_i (B, width) through causal blocks under the condition c (B, width), for at most `room` positions."""

    def __init__(self, blocks: Iterable[Block], c: Float[Tensor, "b width"], room: int, dtype: torch.dtype) -> None:
        blocks = list(blocks)
        if not all(block.attention.causal for block in blocks):
            raise ValueError("only causal blocks go position by position: the others see the positions to come.")
        self.room, self.length = room, 0
        built = _built(blocks, c, room, dtype)
        self._parts = [built] if built else [_Position(block, c, room, dtype) for block in blocks]

    def __call__(self, x: Float[Tensor, "b width"]) -> Float[Tensor, "b width"]:
        """The next position."""
        if self.length == self.room:
            raise ValueError(f"there is room for {self.room} positions, and all have been taken.")
        for part in self._parts:
            x = part(x, self.length)
        self.length += 1
        return x
