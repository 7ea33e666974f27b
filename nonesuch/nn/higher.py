"""A convolution and a leaky rectifier whose derivatives of every order are single quick calls, for losses made of gradients.

A convolution y = x * w is linear in x and in w, and so are its two derivatives; the three maps are closed under differentiation:

    y(x, w)                 dx = I(g, w),   dw = W(x, g)
    I(g, w)  (by input)     dg = y(h, w),   dw = W(h, g)           for h, the gradient of what I gave
    W(x, g)  (by weight)    dx = I(g, h),   dg = y(x, h)

torch's own second derivative of a convolution goes group by group through copies; on a processor it takes longer than all the
rest of a step with gradient penalties. The leaky rectifier is linear on either side of zero, so its gradient is a product with a
mask, and so is that one's. All orders are checked against autograd in float64.

A custom function cannot see which gradients were asked for, and forms all of them: `of_input_only` says that those of the weights
are not wanted, which halves the first backward pass of a penalty on grad_x.

References:
    Which Training Methods for GANs do actually Converge? (Mescheder, Geiger, Nowozin, 2018) arXiv:1801.04406 (such a penalty)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nonesuch.nn import native
from nonesuch.nn.conv import Conv as _Conv


class _Wanted:
    """Whether gradients of weights are formed; one for all threads, since a GPU's backward pass runs in one of its own."""

    weights = True


@contextmanager
def of_input_only() -> Iterator[None]:
    """Within, first derivatives of `Conv` are taken with respect to its input only."""
    _Wanted.weights = False
    try:
        yield
    finally:
        _Wanted.weights = True


@dataclass(frozen=True)
class _Form:
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def _derivative(g: Tensor, x: Tensor, w: Tensor, form: _Form, mask: list[bool]) -> tuple[Tensor, ...]:
    sizes = [w.shape[0]] if mask[2] else None
    result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        g, x, w, sizes, form.stride, form.padding, form.dilation, False, [0] * len(form.stride), form.groups, mask
    )
    return result


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, form: _Form) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.form, ctx.biased = form, b is not None
        return torch.convolution(x, w, b, form.stride, form.padding, form.dilation, False, [0] * len(form.stride), form.groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # one output, one gradient
        x, w = ctx.saved_tensors
        dx = _ByInput.apply(g, w, x, ctx.form) if ctx.needs_input_grad[0] else None
        if not (_Wanted.weights and ctx.needs_input_grad[1]):
            return dx, None, None, None
        dw, db = _ByWeight.apply(x, g, w, ctx.biased, ctx.form)
        return dx, dw, db, None


class _ByInput(Function):
    """I(g, w), shaped as x, of which only the shape is used."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, x: Tensor, form: _Form) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.form = form
        return _derivative(g, x, w, form, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # one output, one gradient
        g, w = ctx.saved_tensors
        dg = _Convolve.apply(h, w, None, ctx.form) if ctx.needs_input_grad[0] else None
        dw = _ByWeight.apply(h, g, w, False, ctx.form)[0] if ctx.needs_input_grad[1] and _Wanted.weights else None
        return dg, dw, None, None


class _ByWeight(Function):
    """W(x, g), shaped as w, of which only the shape is used; and the sums of g over all but its channels, if `biased`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, w: Tensor, biased: bool, form: _Form) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, g)
        ctx.form = form
        _, dw, db = _derivative(g, x, w, form, [False, True, biased])
        return dw, db if biased else None

    @staticmethod
    def backward(ctx: Any, h: Tensor, hb: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # two outputs
        x, g = ctx.saved_tensors
        dx = _ByInput.apply(g, h, x, ctx.form) if ctx.needs_input_grad[0] else None
        dg = _Convolve.apply(x, h, hb, ctx.form) if ctx.needs_input_grad[1] else None
        return dx, dg, None, None, None


class Conv(_Conv):
    """`nn.conv.Conv`, the same numbers, for networks whose gradients are themselves differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        if self.pointwise:  # a matrix product, of which torch's own derivatives of every order are quick
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        form = _Form(self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]  # tuples of numbers by now
        out: Tensor = _Convolve.apply(x, self.weight.to(x.dtype), bias, form)
        return out


def _sided(g: Tensor, x: Tensor, slope: float) -> Tensor:
    """g where x is above zero, slope g elsewhere: one compiled pass, or two vectorised ones, quicker in bf16 than torch's one."""
    if native.sides(x, g):
        return native.sided(x, g, slope)
    return torch.lerp(torch.ops.aten.threshold_backward(g, x, 0), g, slope)


class _Leaky(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        y = native.sided(x, x, slope) if native.sides(x, x) else torch.nn.functional.leaky_relu(x, slope)
        ctx.save_for_backward(y)  # which has the sign of x
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # one output, one gradient
        return _Sided.apply(g, ctx.saved_tensors[0], ctx.slope), None


class _Sided(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.slope = slope
        return _sided(g, y, slope)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # one output, one gradient
        return _Sided.apply(h, ctx.saved_tensors[0], ctx.slope), None, None


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """max(x, slope x) for 0 < slope < 1; its second derivative in x is zero (but at 0)."""
    out: Tensor = _Leaky.apply(x, slope)
    return out
