"""Variational dequantization: a learned density over the inside of the cell that a picture on a grid stands for.

With F the first bijection (`_marginal`), level k of a pixel is the cell [F_k, F_k + m_k) of the unit interval. A conditional flow
draws w from q(w | x), and then

    u = Phi(w),      z_0 = Phi^-1(F_k + m_k u)                                                                    (1)

is a point of the line inside the picture's cell; the main flow has a density p(z_0). As dz_0/dw = m_k N(w) / N(z_0),

    log P(x) = log int_cell p(z_0) dz_0 >= E_q[ log p(z_0) + sum log(m_k N(w) / N(z_0)) - log q(w | x) ]          (2)

with equality when q is the posterior of z_0 given its cell. When both flows are the identity, (2) is sum log m_k: the pixels'
histogram. With weights w_i of several draws, log mean exp is a tighter bound.

References:
    Flow++ (Ho, Chen, Srinivas, Duan, Abbeel, 2019) arXiv:1902.00275, section 3.1
    Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2015) arXiv:1509.00519, Eq. 8
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonesuch.models.flow._coupling import Conditioner, DenseConditioner, Networks, Scale, halving, squeeze, unsqueeze
from nonesuch.models.flow._spline import Spline

_SAFE = 1e-15  # of float64's unit interval, so that no quantile is infinite


class Dequantizer(nn.Module):
    """q(w | x): couplings on normal noise that see features of the picture."""

    def __init__(self, channels: int, size: Sequence[int], pairs: int, spline: Spline, nets: Networks) -> None:
        super().__init__()
        self.factors = halving(size)
        channels = channels * math.prod(self.factors)
        size = tuple(s // f for s, f in zip(size, self.factors, strict=True))
        self.dense = nets.is_dense((channels, *size))
        context = nets.dense if self.dense else nets.hidden
        self.features = (
            DenseConditioner(2 * channels * math.prod(size), context, nets, gain=1.0)
            if self.dense
            else Conditioner(2 * channels, context, size, nets, gain=1.0)
        )
        self.scale = Scale(channels, size, pairs, spline, nets, "dequantize", context)

    def forward(
        self, seen: Tensor, noise: Tensor, c: Tensor, dtype: torch.dtype, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features of the picture (B, 2 C, *size) and noise (B, C, *size) -> w and log |det dw/dnoise| (B,)."""
        seen = squeeze(seen, self.factors).to(dtype)
        context = self.features(seen.flatten(1) if self.dense else seen, None, c, masks)
        w, log_det = self.scale(squeeze(noise, self.factors), c, dtype, context, masks)
        return unsqueeze(w, self.factors), log_det


def into_cell(w: Tensor, low: Tensor, length: Tensor) -> Tensor:
    """Eq. 1: w -> z_0, in float64."""
    return torch.special.ndtri((low + length * torch.special.ndtr(w.double())).clamp(_SAFE, 1 - _SAFE))
