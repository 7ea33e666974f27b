"""bf16 convolutions and linear maps on a CPU for inference: weights kept in the order its kernels read, and a sum fused in.

    y = base + conv(x) + b        accumulated in float32 and rounded once, where eager operations round twice

torch's own calls reorder the weights each time and pass over y again for the sum. The operations are those that torch.compile
emits; they are not public, so `usable` asks once whether they are here and give what torch.nn.functional gives, and callers go
the plain way where it says no.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.nn.conv import channels_last

_OPS = torch.ops.mkldnn


@cache
def usable() -> bool:
    """Whether this torch and this processor have them, tried on a convolution and a linear map of known result."""
    try:
        if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.no_grad():
            x = torch.arange(2 * 32 * 16, dtype=torch.float32).view(2, 32, 4, 4).sin().bfloat16()
            x = x.contiguous(memory_format=torch.channels_last)
            conv, line = nn.Conv2d(32, 32, 3, padding=1).bfloat16(), nn.Linear(32, 32).bfloat16()
            base, rows, flat = x.cos(), x.permute(0, 2, 3, 1), pack_linear(line.weight, x.permute(0, 2, 3, 1))
            wanted = F.conv2d(x.float(), conv.weight.float(), conv.bias.float(), padding=1)  # type: ignore[union-attr]
            mapped = F.linear(rows.float(), line.weight.float(), line.bias.float())
            weight = pack(conv.weight, x)
            pairs = [
                (convolve(x, weight, conv.bias), wanted),
                (convolve(x, weight, conv.bias, base=base.clone()), wanted + base),
                (linear(rows, flat, line.bias), mapped),
                (linear(rows, flat, line.bias, rows.cos()), mapped + rows.cos()),
            ]
            right = [torch.allclose(found.float(), expected, atol=0.05) for found, expected in pairs]
            return all(right)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def pack(weight: Tensor, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    """A bf16 weight (out, in, height, width) in the order that suits inputs like x; opaque, for `convolve` alone."""
    form = ([padding] * 2, [stride] * 2, [1, 1], 1, list(x.shape))
    out: Tensor = _OPS._reorder_convolution_weight(channels_last(weight.detach()), *form)
    return out


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 1, base: Tensor | None = None
) -> Tensor:
    """conv(x) + bias with the packed weight, or base += conv(x) + bias, which is returned."""
    form = (weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1)
    out: Tensor
    if base is None:
        out = _OPS._convolution_pointwise(x, *form, "none", [], "")
    else:
        out = _OPS._convolution_pointwise_.binary(base, x, *form, "add", None, None, [], None)
    return out


def phases(weight: Tensor) -> list[Tensor]:
    """The four (out, in, 2, 2) by which a 3 x 3 convolution of an image whose pixels were doubled meets the image itself.

    Of two neighbouring taps that read copies of one pixel, the sum reads the pixel: rows (w0, w1 + w2) for even rows of the
    result and (w0 + w1, w2) for odd ones, and so for columns; 16 products a pixel and channel where there were 36.
    """
    rows = [weight[:, :, :1], weight[:, :, 1:2], weight[:, :, 2:]]
    halves = [torch.cat([rows[0], rows[1] + rows[2]], 2), torch.cat([rows[0] + rows[1], rows[2]], 2)]
    columns = [(h[..., :1], h[..., 1:2], h[..., 2:]) for h in halves]
    return [v for a, b, c in columns for v in (torch.cat([a, b + c], 3), torch.cat([a + b, c], 3))]


def double(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The convolution of upsample(x), from x and the packed `phases` of the weight."""
    n, _, h, w = x.shape
    out: Tensor | None = None
    for i, weight in enumerate(weights):
        row, column = divmod(i, 2)
        y = convolve(x, weight, bias).permute(0, 2, 3, 1)  # of 2 x 2 with a pixel around: one row and column more than x
        out = x.new_empty(n, h, 2, w, 2, y.shape[-1]) if out is None else out
        out[:, :, row, :, column] = y[:, row : row + h, column : column + w]
    assert out is not None
    return out.view(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def pack_linear(weight: Tensor, x: Tensor) -> Tensor:
    """A bf16 weight (out, in) in the order that suits inputs like x; opaque, for `linear` alone."""
    out: Tensor = _OPS._reorder_linear_weight(weight.detach(), x.numel() // x.shape[-1])
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """x W^T + bias over the last axis with the packed weight, or base + that."""
    out: Tensor
    if base is None:
        out = _OPS._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        out = _OPS._linear_pointwise.binary(x, base, weight, bias, "add")
    return out
