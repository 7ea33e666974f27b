"""Convolutions that see only what was read before, gated residual blocks of them, and both again one row or pixel at a time.

Two kinds of window, over pictures (B, H, W, C) with the channels innermost:

    above    2 rows x 3 columns      rows i - 1, i;  columns j - 1, j, j + 1
    corner   2 rows x 2 columns      rows i - 1, i;  columns j - 1, j

An `above` stream whose first layer reads only rows before i keeps row i a function of the rows before i; a `corner` stream whose
first layer reads only pixels before (i, j) keeps that. Hence, when drawing, a row of the `above` stream is computed at once when
its row begins, and of a `corner` window the row before contributes for the whole row at once: left for each pixel is a product
with the two last pixels' features. Nothing is computed twice.

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood (Salimans et al., 2017) arXiv:1701.05517
    Fast Generation for Convolutional Autoregressive Models (Ramachandran et al., 2017) arXiv:1704.06001
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Dropout, Linear

ABOVE, CORNER = (2, 3), (2, 2)


def concat_elu(x: Tensor) -> Tensor:
    """elu of x and of -x side by side (..., 2 C): no unit is ever dead."""
    return F.elu(torch.cat([x, -x], -1))


def move_down(x: Tensor) -> Tensor:
    """Row i of (B, H, W, C) becomes row i + 1; the first is zeros."""
    return F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1]


def move_right(x: Tensor) -> Tensor:
    """Column j of (B, H, W, C) becomes column j + 1; the first is zeros."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


class Shifted(nn.Conv2d):
    """A convolution (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), out) of the window `kernel` that ends in its row."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, out, kernel, stride, (kernel[0] // 2, kernel[1] // 2), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (-(-s // self.stride[0]) for s in x.shape[1:3])
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out = F.conv2d(x.permute(0, 3, 1, 2), self.weight.to(x.dtype), bias, self.stride, self.padding)
        return out.permute(0, 2, 3, 1)[:, :rows, :columns]


class EnlargeAbove(nn.ConvTranspose2d):
    """(B, h, w, C) -> (B, 2 h, 2 w, out): rows 2 r and 2 r + 1 are made of row r, columns 2 c - 1 to 2 c + 1 of column c."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, ABOVE, 2, (0, 1), (0, 1))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        assert self.bias is not None
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, bias, 2, (0, 1), (0, 1)).permute(0, 2, 3, 1)


class EnlargeCorner(Linear):
    """(..., C) -> (..., 2, 2, out): each pixel becomes the four of its cell."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, 4 * out)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(-1, (2, 2, -1))

    def picture(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, 2 h, 2 w, out)."""
        return self(x).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Gated(nn.Module):
    """x + a sigmoid(b), where (a, b) is two shifted convolutions deep in x and what stands beside it (PixelCNN++, section 2.4).

    corner: the window. beside: whether the other stream is read; skip: whether an earlier layer is. All are (B, H, W, width),
    but what is passed for `x`'s activation, `beside` and `skip` is the concat_elu of it (2 width), which several layers share.
    """

    def __init__(
        self, width: int, corner: bool, beside: bool, skip: bool, given: bool, dropout: float = 0.0, name: str = "gated"
    ) -> None:
        super().__init__()
        kernel = CORNER if corner else ABOVE
        self.conv1, self.conv2 = Shifted(2 * width, width, kernel), Shifted(2 * width, 2 * width, kernel)
        self.conv2.gain = 0.1  # type: ignore[assignment]
        self.beside = Linear(2 * width, width, bias=False) if beside else None
        self.skip = Linear(2 * width, width, bias=False) if skip else None
        self.given = Linear(width, 2 * width, bias=False) if given else None
        self.drop = Dropout(dropout, name, shared=True)

    def forward(
        self, x: Tensor, e: Tensor, c: Tensor, keys: Seeds | None, beside: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        h = self.conv1(e)
        h = h if self.beside is None else h + self.beside(beside)
        h = h if self.skip is None else h + self.skip(skip)
        h = self.drop(concat_elu(h).flatten(1, 2), keys).view(*h.shape[:3], -1)
        h = self.conv2(h)
        h = h if self.given is None else h + self.given(c.to(h.dtype))[:, None, None]
        a, b = h.chunk(2, -1)
        return torch.addcmul(x, a, b.sigmoid())


# -- the same, a row or a pixel at a time ---------------------------------------------------------------------------------------


class Rows:
    """An `above` convolution that is fed row after row (n, W, C)."""

    def __init__(self, conv: Shifted, n: int, width: int, dtype: torch.dtype) -> None:
        weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = weight, None if conv.bias is None else conv.bias.to(dtype)
        self.stride = (1, conv.stride[1])
        self.two = weight.new_zeros(n, 2, width, conv.in_channels)

    def put(self, x: Tensor) -> None:
        self.two[:, 0] = self.two[:, 1]
        self.two[:, 1] = x

    def out(self) -> Tensor:
        """(n, ceil(W / stride), out) of the last two rows."""
        return F.conv2d(self.two.permute(0, 3, 1, 2), self.weight, self.bias, self.stride, (0, 1))[:, :, 0].transpose(1, 2)


class GatedRows:
    """A `Gated` of the `above` stream, row after row."""

    def __init__(self, block: Gated, c: Tensor, width: int, dtype: torch.dtype) -> None:
        self.first, self.second = (Rows(conv, len(c), width, dtype) for conv in (block.conv1, block.conv2))
        self.skip = None if block.skip is None else block.skip.weight.to(dtype)
        self.given = None if block.given is None else block.given(c.to(dtype))[:, None]

    def next(self, x: Tensor, e: Tensor, skip: Tensor | None) -> Tensor:
        self.first.put(e)
        h = self.first.out()
        if self.skip is not None and skip is not None:
            h = h + F.linear(skip, self.skip)
        self.second.put(concat_elu(h))
        h = self.second.out()
        a, b = (h if self.given is None else h + self.given).chunk(2, -1)
        return torch.addcmul(x, a, b.sigmoid())


class Corner:
    """A `corner` convolution that is fed pixel after pixel (n, C): `begin` a row, then for each column `put` and `out`."""

    def __init__(self, conv: Shifted, n: int, width: int, dtype: torch.dtype) -> None:
        weight = conv.weight.to(dtype).permute(2, 3, 1, 0)  # (rows, columns, C, out)
        self.before, self.here = weight.flatten(1, 2).contiguous().unbind(0)
        assert conv.bias is not None
        self.bias, self.stride = conv.bias.to(dtype), conv.stride[1]
        self.row = weight.new_zeros(n, width + 1, conv.in_channels)  # column j stands at j + 1

    def begin(self, more: Tensor | None = None) -> None:
        """The row before is complete: what it contributes to each window of the next, and the bias, and `more`."""
        s = self.stride
        pairs = torch.cat([self.row[:, :-1:s], self.row[:, 1::s]], -1)
        self.start = pairs @ self.before + (self.bias if more is None else more + self.bias)

    def put(self, j: int, x: Tensor) -> None:
        self.row[:, j + 1] = x

    def out(self, j: int) -> Tensor:
        """(n, out) of the window that ends at column j."""
        return torch.addmm(self.start[:, j // self.stride], self.row[:, j : j + 2].flatten(1), self.here)


class GatedPixels:
    """A `Gated` of the `corner` stream, pixel after pixel."""

    def __init__(self, block: Gated, c: Tensor, width: int, dtype: torch.dtype) -> None:
        self.first, self.second = (Corner(conv, len(c), width, dtype) for conv in (block.conv1, block.conv2))
        assert block.beside is not None
        self.beside = block.beside.weight.to(dtype)
        self.skip = None if block.skip is None else block.skip.weight.to(dtype).T.contiguous()
        self.given = None if block.given is None else block.given(c.to(dtype))[:, None]

    def begin(self, beside: Tensor) -> None:
        """Before a row: `beside` (n, W, 2 width) is the other stream's row."""
        self.first.begin(F.linear(beside, self.beside))
        self.second.begin(self.given)

    def next(self, j: int, x: Tensor, e: Tensor, skip: Tensor | None) -> Tensor:
        self.first.put(j, e)
        h = self.first.out(j)
        if self.skip is not None and skip is not None:
            h = torch.addmm(h, skip, self.skip)
        self.second.put(j, concat_elu(h))
        a, b = self.second.out(j).chunk(2, -1)
        return torch.addcmul(x, a, b.sigmoid())
