"""Glow's coupling network as matrix products over tiles of pixels, so that what it computes stays in the processor's cache.

    h = relu(W_1 x + b_1 + c_1),      g = relu(W_2 h + b_2 + c_2),      y = W_3 g + b_3                            (1)

with 3 x 3 convolutions W_1 (few channels to many) and W_3 (many to few) and a product W_2; c_1 and c_2 (B, hidden) are what a
condition adds, if there is one. The forms follow from the shapes. From few channels to many, a convolution is one product with
each pixel's neighbourhood laid out in a row; from many to few, that row would be larger than what it comes from, and the
library's convolution reads each value once. The transpose of the one is the other, so the backward pass has no other form:

    dg = W_3^T (neighbourhoods of dy),      dh = W_2^T dg,      dx = the convolution W_1^T of dh,                   (2)

and each weight's gradient is a product of two matrices that are there already. A tile has as many pictures as keep a hidden layer
of theirs within `_TILE` bytes a thread; sums over tiles are in float32 or better. Nothing but x is kept for the backward pass,
which computes the hidden layers of a tile again: to fetch them from memory takes as long.

When the backward pass is itself to be differentiated, it goes through convolutions that autograd knows, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 1 << 20  # bytes of one hidden layer, a thread
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}
_FUSED: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# W_1 (hidden, C, *3), b_1, W_2 (hidden, hidden, *1), b_2, W_3 (out, hidden, *3), b_3
Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def convolutions(x: Tensor, weights: Weights, told: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Eq. 1 as convolutions: x (B, *size, C) and told (B, 2 hidden) -> y (B, *size, out) in x's dtype."""
    w1, b1, w2, b2, w3, b3 = (w.to(dtype) for w in weights)
    dims = x.dim() - 2
    first, second = (0.0, 0.0) if told is None else told.to(dtype).view(len(x), -1, *[1] * dims).chunk(2, 1)
    h = (_CONV[dims](x.to(dtype).movedim(-1, 1), w1, b1, padding=1) + first).relu()
    g = (F.linear(h.movedim(1, -1), w2.flatten(1), b2).movedim(-1, 1) + second).relu()
    return _CONV[dims](g, w3, b3, padding=1).movedim(1, -1).to(x.dtype)


def network(x: Tensor, weights: Weights, told: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Eq. 1: x (B, *size, C) and told (B, 2 hidden) -> y (B, *size, out) in x's dtype, computed in `dtype`."""
    if x.device.type != "cpu":
        return convolutions(x, weights, told, dtype)
    if torch.is_grad_enabled():
        y: Tensor = _Products.apply(x, told, dtype, *weights)
        return y
    return _forward(x, told, _hidden_layers(weights, dtype), *weights[4:])


class _Around:
    """Neighbourhoods of the pixels of (b, *size, C) as rows (b pixels, 3^d C), zero beyond the border, in buffers used again."""

    def __init__(self, most: int, size: Sequence[int], channels: int, dtype: torch.dtype) -> None:
        self.size, self.width = tuple(size), 3 ** len(size) * channels
        self.framed = torch.zeros(most, *[s + 2 for s in size], channels, dtype=dtype)
        self.rows = torch.empty(most * math.prod(size), self.width, dtype=dtype)
        view = self.framed
        for axis in range(1, len(size) + 1):
            view = view.unfold(axis, 3, 1)
        self.view = view.movedim(len(size) + 1, -1)  # (most, *size, *3, C)
        self.inside = self.framed
        for axis, s in enumerate(size, 1):
            self.inside = self.inside.narrow(axis, 1, s)

    def __call__(self, x: Tensor) -> Tensor:
        b = len(x)
        self.inside[:b].copy_(x)
        rows = self.rows[: b * math.prod(self.size)]
        rows.view(b, *self.view.shape[1:]).copy_(self.view[:b])
        return rows


def _rows_in(w: Tensor, dtype: torch.dtype) -> Tensor:
    """W (out, C, *3) -> (out, 3^d C): the weight of a row of neighbours."""
    return w.movedim(1, -1).to(dtype, memory_format=torch.contiguous_format).flatten(1)


def _rows_back(w: Tensor, dtype: torch.dtype) -> Tensor:
    """W (out, hidden, *3) -> (3^d out, hidden): its transpose's, for a neighbour is one the other way round."""
    return w.flatten(2).permute(2, 0, 1).to(dtype, memory_format=torch.contiguous_format).flip(0).flatten(0, 1)


def _filter_back(w: Tensor, dtype: torch.dtype) -> Tensor:
    """W (hidden, C, *3) -> (C, hidden, *3): its transpose's."""
    turned = w.flatten(2).permute(1, 2, 0).to(dtype, memory_format=torch.contiguous_format).flip(1)
    return turned.view(w.shape[1], *w.shape[2:], -1).movedim(-1, 1)


def _convolve(x: Tensor, size: Sequence[int], w: Tensor, bias: Tensor | None) -> Tensor:
    """x (b pixels, hidden) -> (b, *size, out)."""
    return _CONV[len(size)](x.view(-1, *size, x.shape[-1]).movedim(-1, 1), w, bias, padding=1).movedim(1, -1)


def _inner(w: Tensor, dtype: torch.dtype) -> Tensor:
    dims = w.dim() - 2
    return w.to(dtype, memory_format=_LAYOUT.get(dims, torch.contiguous_format))


def _layer(x: Tensor, w: Tensor, b: Tensor, told: Tensor | None) -> Tensor:
    """relu(W x + b), and what the condition adds (b, hidden) before; x (b pixels, K)."""
    if told is not None:
        h = F.linear(x, w, b)
        h.view(len(told), -1, h.shape[1]).add_(told[:, None])
        return h.relu_()
    if x.dtype == torch.bfloat16 and _FUSED is not None and torch.backends.mkldnn.enabled:
        return _FUSED(x, w, b, "relu", [], "")
    return F.linear(x, w, b).relu_()


class _Tiles:
    """Eq. 1 for one tile of pictures after the other, with W_1, b_1, W_2 and b_2 as `_hidden_layers` gives them."""

    def __init__(self, x: Tensor, told: Tensor | None, layers: Sequence[Tensor]) -> None:
        self.x, self.size = x, x.shape[1:-1]
        self.m1, self.b1, self.m2, self.b2 = layers
        self.hidden, dtype = len(self.m2), self.m2.dtype
        self.told = (None, None) if told is None else told.to(dtype).chunk(2, 1)
        each = max(1, _TILE * torch.get_num_threads() // (math.prod(self.size) * self.hidden * dtype.itemsize))
        self.parts = [slice(i, min(i + each, len(x))) for i in range(0, len(x), each)]
        self.around = _Around(min(len(x), each), self.size, x.shape[-1], dtype)

    def layers(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbourhoods of x, valid until the next tile, h and g, of the pictures of a tile; (b pixels, .) each."""
        first, second = (None if c is None else c[part] for c in self.told)
        rows = self.around(self.x[part])
        h = _layer(rows, self.m1, self.b1, first)
        return rows, h, _layer(h, self.m2, self.b2, second)


def _hidden_layers(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    w1, b1, w2, b2, _, _ = weights
    return _rows_in(w1, dtype), b1.to(dtype), w2.flatten(1).to(dtype), b2.to(dtype)


def _forward(x: Tensor, told: Tensor | None, layers: Sequence[Tensor], w3: Tensor, b3: Tensor) -> Tensor:
    w3, b3 = _inner(w3, layers[0].dtype), b3.to(layers[0].dtype)
    tiles = _Tiles(x, told, layers)
    y = x.new_empty(*x.shape[:-1], len(w3))
    for part in tiles.parts:
        y[part] = _convolve(tiles.layers(part)[2], tiles.size, w3, b3)
    return y


class _Products(torch.autograd.Function):
    """Eq. 1 with the backward pass of Eq. 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, told: Tensor | None, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        ctx.layers = _hidden_layers(weights, dtype)
        ctx.save_for_backward(x, told, *weights)
        return _forward(x, told, ctx.layers, *weights[4:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, told, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # the slope is to be differentiated again
            return _known_to_autograd(ctx, dy, x, told, weights)
        w1, w2, w3 = weights[::2]
        dtype = ctx.layers[0].dtype
        tiles = _Tiles(x, told, ctx.layers)
        back, m3 = _filter_back(w1, dtype), _rows_back(w3, dtype)
        around = _Around(len(x[tiles.parts[0]]), tiles.size, dy.shape[-1], dtype)
        sums: list[Tensor | None] = [None] * 5  # of the weights' slopes and of two biases'
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dtold = None if told is None else torch.empty_like(told)
        for part in tiles.parts:
            rows, h, g = tiles.layers(part)
            d3 = around(dy[part])
            d2 = _silence(d3 @ m3, g)
            d1 = _silence(d2 @ tiles.m2, h)
            for i, found in enumerate((d1.t() @ rows, d2.t() @ h, d3.t() @ g, d1.sum(0), d2.sum(0))):
                sums[i] = _add(sums[i], found)
            if dx is not None:
                dx[part] = _convolve(d1, tiles.size, back, None)
            if dtold is not None:
                dtold[part] = torch.cat([d.view(len(dy[part]), -1, tiles.hidden).sum(1) for d in (d1, d2)], 1)
        dm1, dm2, dm3, db1, db2 = (s for s in sums if s is not None)
        dw1 = dm1.view(tiles.hidden, *w1.shape[2:], -1).movedim(-1, 1)
        dw3 = dm3.view(-1, *w3.shape[:2]).flip(0).permute(1, 2, 0).view(w3.shape)
        return dx, dtold, None, dw1, db1, dm2.view(w2.shape), db2, dw3, dy.flatten(0, -2).sum(0)


def _add(total: Tensor | None, found: Tensor) -> Tensor:
    """The sum so far, in float32 or better."""
    return found.to(torch.promote_types(found.dtype, torch.float32)) if total is None else total.add_(found)


def _silence(d: Tensor, h: Tensor) -> Tensor:
    """d where h > 0, in place."""
    return torch.ops.aten.threshold_backward.grad_input(d, h, 0, grad_input=d)


def _known_to_autograd(ctx: Any, dy: Tensor, x: Tensor, told: Tensor | None, weights: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The same slopes with a graph of their own."""
    inputs = [x, told, *weights]
    wanted = [v for v, needed in zip(inputs, (ctx.needs_input_grad[:2] + ctx.needs_input_grad[3:]), strict=True) if needed]
    y = convolutions(x, tuple(weights), told, ctx.layers[0].dtype)  # type: ignore[arg-type]
    found = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, dy, create_graph=True), strict=True))
    dx, dtold, *rest = (found.get(id(v)) for v in inputs)
    return dx, dtold, None, *rest
