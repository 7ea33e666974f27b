"""The monotone rational-quadratic spline: a flexible bijection of the line with an analytic inverse.

K bins cover [-B, B] on both axes; outside the map is the identity. In the bin of width w and height h that starts at (a, b), with
slopes d0 and d1 at its ends, mean slope s = h / w and t = (x - a) / w,

    y = b + h (s t^2 + d0 t (1 - t)) / (s + (d0 + d1 - 2 s) t (1 - t))                                            (1)
    dy/dx = s^2 (d1 t^2 + 2 s t (1 - t) + d0 (1 - t)^2) / (s + (d0 + d1 - 2 s) t (1 - t))^2                       (2)

and t is a root of a quadratic in y (3). Here raw parameters of zero give the identity for any layout of the bins; we lay them
out on the quantiles of the standard normal, so that every bin has the same share of what comes in.

References:
    Neural Spline Flows (Durkan, Bekasov, Murray, Papamakarios, 2019) arXiv:1906.04032, section 3.1 and appendix A
    Monotone Piecewise Rational Interpolation (Gregory, Delbourgo, 1982)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST = 1e-3  # smallest share of a bin on either axis, and smallest slope: keeps both directions well conditioned
_ONE = math.log(math.expm1(1 - _LEAST))  # softplus of it is a slope of one


class Spline(nn.Module):
    """Rational-quadratic splines of `bins` bins on [-bound, bound], identity outside; `count` raw parameters a value."""

    layout: Tensor

    def __init__(self, bins: int, bound: float) -> None:
        super().__init__()
        if bins < 2 or bound <= 0:
            raise ValueError(f"a spline needs at least 2 bins and a positive bound, not {bins} and {bound}.")
        self.bins, self.bound, self.count = bins, bound, 3 * bins - 1
        inner = torch.special.ndtri(torch.arange(1, bins, dtype=torch.float64) / bins)
        edges = torch.cat([inner.new_tensor([-bound]), inner, inner.new_tensor([bound])])
        share = (edges.diff() / (2 * bound)).float()
        self.register_buffer("layout", share.log(), persistent=False)

    def forward(self, x: Tensor, raw: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """x (B, M) and raw (B, count, M) -> y (B, M) and log dy/dx (B, M); with `inverse`, x from y and log dx/dy."""
        inside = x.abs() < self.bound
        value = torch.where(inside, x, torch.zeros_like(x))
        # Widths and heights side by side, (B, 2, K, M); then where each bin ends and begins.
        share = (raw[:, : 2 * self.bins].unflatten(1, (2, self.bins)) + self.layout.to(raw.dtype)[:, None]).softmax(2)
        extent = (2 * self.bound * (1 - _LEAST * self.bins)) * share + 2 * self.bound * _LEAST
        end = extent.cumsum(2) - self.bound
        slopes = F.pad(_LEAST + F.softplus(raw[:, 2 * self.bins :] + _ONE), (0, 0, 1, 1), value=1.0)
        here = (value[:, None] >= end[:, int(inverse), :-1]).sum(1, keepdim=True)
        both = here[:, None].expand(-1, 2, -1, -1)
        width, height = extent.gather(2, both)[:, :, 0].unbind(1)
        right, top = end.gather(2, both)[:, :, 0].unbind(1)
        d0, d1 = slopes.gather(1, torch.cat([here, here + 1], 1)).unbind(1)
        y, log_slope = (_backward if inverse else _forward)(value, width, height, right - width, top - height, d0, d1)
        return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))


def _forward(x: Tensor, w: Tensor, h: Tensor, a: Tensor, b: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    t, s = ((x - a) / w).clamp(0, 1), h / w
    both = t * (1 - t)
    below = s + (d0 + d1 - 2 * s) * both
    y = b + h * (s * t * t + d0 * both) / below  # Eq. 1
    return y, _log_slope(t, both, s, below, d0, d1)


def _backward(y: Tensor, w: Tensor, h: Tensor, a: Tensor, b: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    s, rise = h / w, y - b
    bend = d0 + d1 - 2 * s
    qa, qb, qc = h * (s - d0) + rise * bend, h * d0 - rise * bend, -s * rise
    t = 2 * qc / (-qb - (qb * qb - 4 * qa * qc).clamp_min(0).sqrt())  # Eq. 3, in the form that does not cancel
    t = t.clamp(0, 1)
    both = t * (1 - t)
    return a + w * t, -_log_slope(t, both, s, s + bend * both, d0, d1)


def _log_slope(t: Tensor, both: Tensor, s: Tensor, below: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    return 2 * (s.log() - below.log()) + (d1 * t * t + 2 * s * both + d0 * (1 - t).square()).log()  # Eq. 2
