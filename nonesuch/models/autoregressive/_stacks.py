"""The two stacks of the gated PixelCNN, over a whole picture at once and walked pixel by pixel.

    below = K * v             rows i - 1, i (or more), columns to both sides                  vertical stack, no activation
    v'    = gate(below + P v + V c)
    g     = gate(L below + R * h + V' c),    h' = h + Q g                                     horizontal stack, columns j - 1, j
    gate(a, b) = tanh(a) sigmoid(b)                                                           (Eqs. 2 and 4)
    features = max(0, sum over layers of S g)

The first layer reads the input, the vertical stack moved down a row and the horizontal one moved a column to the right; so v at
(i, j) is a function of all rows before i, to any width as the layers go on, and h also of the pixels before j in row i: there is
no blind spot. K is a row of k columns and then a column of rows, with nothing between them.

With `lag` = 1 the vertical stack is not moved down at the input: each layer's window ends in the row before instead, and P alone
reads row i. What L hands over still ends in row i - 1, but a row's own neighbours are no longer gathered layer by layer, and
pixels to the upper right stay unseen. It is what some public networks compute, and here so that their weights can be used.

When drawing, a row of the vertical stack and what it hands over is computed at once when the row begins; left for each pixel are
two products a layer. Nothing is computed twice.

References:
    Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016) arXiv:1606.05328, sections 2.1 to 2.3
    Fast Generation for Convolutional Autoregressive Models (Ramachandran et al., 2017) arXiv:1704.06001
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._shifted import move_down
from nonesuch.nn.conv import Dropout, Linear

_GAIN = 1.7  # a gate makes 0.4 of a normal of deviation 1, of which two such maps then make 1 again: nothing fades with depth


def gate(x: Tensor) -> Tensor:
    """(..., 2 C) -> tanh of the first half times the logistic of the second (..., C)  # Eq. 2."""
    a, b = x.chunk(2, -1)
    return a.tanh() * b.sigmoid()


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution without padding of (B, H, W, C), in its input's dtype."""
    assert conv.bias is not None
    return F.conv2d(x.permute(0, 3, 1, 2), conv.weight.to(x.dtype), conv.bias.to(x.dtype)).permute(0, 2, 3, 1)


class Layer(nn.Module):
    """One layer of both stacks: v and h (B, H, W, channels) -> v', h' (none of the last) and features (B, H, W, width)."""

    def __init__(
        self, channels: int, width: int, kernel: int, first: bool, last: bool, given: bool, lag: int, drop: Dropout
    ) -> None:
        super().__init__()
        self.reach, self.first, self.lag = kernel // 2, first, lag
        self.across = nn.Conv2d(channels, width, (1, kernel))
        self.down = nn.Conv2d(width, 2 * width, (self.reach + 1, 1))
        self.here = None if last else Linear(channels, 2 * width)
        for layer in (self.down, self.here):
            if layer is not None:
                layer.gain = _GAIN  # type: ignore[assignment]
        self.link = Linear(2 * width, 2 * width)
        self.along = nn.Conv2d(channels, 2 * width, (1, self.reach + 1))
        self.residual, self.skip = None if last else Linear(width, width), Linear(width, width)
        self.to_v = Linear(width, 2 * width, bias=False) if given and not last else None
        self.to_h = Linear(width, 2 * width, bias=False) if given else None
        self.drop = drop

    def forward(self, v: Tensor, h: Tensor, c: Tensor, keys: Seeds | None) -> tuple[Tensor, Tensor, Tensor]:
        r = self.reach
        middle = _convolved(self.across, F.pad(v, (0, 0, r, r)))
        below = _convolved(self.down, F.pad(middle, (0, 0, 0, 0, r + self.lag, -self.lag)))  # whose last row nobody reads
        z = self.link(below) + _convolved(self.along, F.pad(h, (0, 0, r + self.first, -int(self.first))))
        g = gate(z if self.to_h is None else z + self.to_h(c.to(h.dtype))[:, None, None])  # Eq. 4
        g = self.drop(g.flatten(1, 2), keys).view(g.shape)
        if self.here is not None and self.residual is not None:
            z = below + self.here(v)
            v = gate(z if self.to_v is None else z + self.to_v(c.to(v.dtype))[:, None, None])
            h = self.residual(g) if self.first else h + self.residual(g)
        return v, h, self.skip(g)


class Stacks(nn.Module):
    """(B, H, W, channels) -> features (B, H, W, width), of which pixel (i, j) is a function of the input's pixels before it.

    kernel: columns of the first layer's window, of which it has (kernel + 1) / 2 rows; the others have 3 columns and 2 rows.
    """

    def __init__(
        self, channels: int, width: int, layers: int, kernel: int, given: bool, dropout: float = 0.0, lag: int = 0
    ) -> None:
        super().__init__()
        self.width, self.lag = width, lag
        self.layers = nn.ModuleList(
            Layer(
                width if i else channels, width, 3 if i else kernel, not i, i == layers, given, lag,
                Dropout(dropout, f"layer{i}", shared=True),
            )
            for i in range(layers + 1)
        )  # fmt: skip

    def forward(self, x: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        v, h, total = x if self.lag else move_down(x), x, torch.zeros((), dtype=x.dtype, device=x.device)
        for layer in self.layers:
            v, h, skip = layer(v, h, c, keys)
            total = total + skip
        return total.relu()


# -- the same, a row or a pixel at a time ---------------------------------------------------------------------------------------


class _Row:
    """A layer's vertical stack, row after row."""

    def __init__(self, layer: Layer, n: int, width: int, c: Tensor, dtype: torch.dtype) -> None:
        assert layer.across.bias is not None
        assert layer.down.bias is not None
        assert layer.along.bias is not None
        self.reach, self.lag, self.width = layer.reach, layer.lag, width
        self.across = layer.across.weight.permute(0, 3, 2, 1).flatten(1).to(dtype), layer.across.bias.to(dtype)
        self.down = layer.down.weight.permute(0, 2, 3, 1).flatten(1).to(dtype), layer.down.bias.to(dtype)
        self.here = None if layer.here is None else (layer.here.weight.to(dtype), layer.here.bias.to(dtype))
        # what the link hands over starts each pixel of the horizontal stack, and so do all constants of it
        self.link, bias = layer.link.weight.to(dtype), (layer.link.bias + layer.along.bias).to(dtype)
        self.to_h = bias if layer.to_h is None else layer.to_h(c.to(dtype))[:, None] + bias
        self.to_v = None if layer.to_v is None else layer.to_v(c.to(dtype))[:, None]
        size = n, width, layer.across.out_channels
        self.middles = [c.new_zeros(size, dtype=dtype) for _ in range(layer.reach + 1)]
        self.below = c.new_zeros(1, dtype=dtype)

    def next(self, v: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The input's row (n, W, C), or none yet -> the layer's own (none of the last), and what it hands over."""
        before = self.below
        if v is not None:
            padded = F.pad(v, (0, 0, self.reach, self.reach))
            window = torch.cat([padded[:, t : t + self.width] for t in range(2 * self.reach + 1)], -1)
            self.middles = [*self.middles[1:], F.linear(window, *self.across)]
        self.below = F.linear(torch.cat(self.middles, -1), *self.down)
        start = F.linear(self.below, self.link) + self.to_h
        if v is None or self.here is None:
            return None, start
        z = (before if self.lag else self.below) + F.linear(v, *self.here)
        return gate(z if self.to_v is None else z + self.to_v), start


class Walk:
    """`Stacks` of a picture that becomes known pixel by pixel: every activation is computed once, when first needed.

    `row` begins row i, `pixel` gives the features (n, width) at (i, j), and `tell` says what the input at (i, j) became.
    """

    def __init__(self, net: Stacks, c: Tensor, size: tuple[int, int], dtype: torch.dtype) -> None:
        layers: list[Layer] = list(net.layers)  # type: ignore[arg-type]
        n, self.columns = len(c), size[1]
        self.lag, self.i = net.lag, -1
        self.rows = [_Row(layer, n, size[1], c, dtype) for layer in layers]
        self.reach = [layer.reach for layer in layers]
        self.along = [layer.along.weight.permute(3, 2, 1, 0).flatten(0, 2).to(dtype).contiguous() for layer in layers]
        residuals = [q.residual for q in layers if q.residual is not None]
        self.residual = [(q.weight.to(dtype).T.contiguous(), q.bias.to(dtype)) for q in residuals]
        self.skip = torch.cat([q.skip.weight.T for q in layers]).to(dtype)
        self.bias = torch.stack([q.skip.bias for q in layers]).sum(0).to(dtype)
        # the inputs of each layer in this row, after the zeros to the left of the picture
        self.inputs = [c.new_zeros(n, size[1] + q.reach + q.first, q.along.in_channels, dtype=dtype) for q in layers]
        self.gated = c.new_zeros(n, len(layers), net.width, dtype=dtype)

    def row(self) -> None:
        """Begin the next row: the whole vertical stack of it, and what it hands to each pixel of the horizontal one."""
        self.i += 1
        seen = self.inputs[0][:, -self.columns :]
        v = None if self.lag and not self.i else seen
        self.start = []
        for row in self.rows:
            v, start = row.next(v)
            self.start.append(start)

    def pixel(self, j: int) -> Tensor:
        """The network's features at column j of this row: (n, width)."""
        h = None
        for i, (start, row, reach) in enumerate(zip(self.start, self.inputs, self.reach, strict=True)):
            if h is not None:
                row[:, j + reach] = h
            g = gate(torch.addmm(start[:, j], row[:, j : j + reach + 1].flatten(1), self.along[i]))
            self.gated[:, i] = g
            if i < len(self.residual):
                weight, bias = self.residual[i]
                h = torch.addmm(bias if h is None else h + bias, g, weight)
        return torch.addmm(self.bias, self.gated.flatten(1), self.skip).relu_()

    def tell(self, j: int, x: Tensor) -> None:
        """The input (n, channels) at column j of this row."""
        self.inputs[0][:, j + self.reach[0] + 1] = x
