"""Glow's flow of (B, C, *size): K steps a scale of ActNorm, invertible 1x1 convolution and affine coupling, then a learned prior.

A step takes the channels z of each pixel through

    z <- W (exp(s) (z + b)),      W = P L (U + diag(r exp(d)))                                                    (1)
    y_keep = z_keep,      y_move = exp(a) z_move + t,      (t, a) = net(z_keep, c)                                 (2)

with P a permutation and r signs, both fixed, L unit lower and U strictly upper triangular: log |det W| = sum d, and nothing is
ever decomposed again. ActNorm and W are one matrix; the K of a scale are made together, and for the inverse by two triangular
solves a call, in float64. The scale is bounded, |a| < 2, so that no network can undo the precision of the inverse.

What leaves after a scale is normal, given what stays (and c):  eps = (z - m) exp(-l),  (m, l) = net(z_stay, c)             (3)

so the flow ends in eps, standard normal at every scale. At the start all networks are silent and W is a rotation.

The published form differs in four things. The scale is a sigmoid, and after the shift; l is not bounded; what leaves is the half
that the last coupling moved; and priors and the last layers of networks have weights of their own for places beyond the picture:

    y_move = exp(a) (z_move + t),      a = log sigmoid(raw + 2)                                                    (4)

Pixels are kept with channels innermost, (B, *size, C), so that Eq. 1 is one product and convolutions read what is there.

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma, Dhariwal, 2018) arXiv:1807.03039
    Density Estimation using Real NVP (Dinh, Sohl-Dickstein, Bengio, 2016) arXiv:1605.08803, sections 3.4 to 3.6
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.models.flow._coupling import halving, squeeze, unsqueeze
from nonesuch.models.flow._products import network
from nonesuch.nn.conv import Conv, Linear, channels_last, zero

_LARGEST = 2.0  # of |a|, the log of a coupling's scale
_WIDEST = 5.0  # of |l|, the log of a prior's deviation
_OPEN = 2.0  # added to what the sigmoid of the published form is taken of, which is then near 1 at first
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def bounded(a: Tensor, most: float) -> Tensor:
    """a near 0, and within (-most, most) everywhere."""
    return most * (a / most).tanh()


class Mixes(nn.Module):
    """Eq. 1, `count` times over `channels`: ActNorms and invertible 1x1 convolutions in LU form, all made at once."""

    order: Tensor
    sign: Tensor

    def __init__(self, count: int, channels: int, name: str) -> None:
        super().__init__()
        rotation = torch.linalg.qr(Seeds.of(0, count).normal(f"{name}/rotation", channels, channels).double())[0]
        p, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal(dim1=1, dim2=2)
        self.shift = nn.Parameter(torch.zeros(count, channels))
        self.log_scale = nn.Parameter(torch.zeros(count, channels))
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())
        self.register_buffer("sign", diagonal.sign().float())
        self.register_buffer("order", p.argmax(2))  # row i of W is row order[i] of L U

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U with their diagonals, (count, C, C) each."""
        lower = self.lower.tril(-1) + torch.eye(self.lower.shape[1], dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + (self.sign * self.log_diagonal.exp()).diag_embed()

    def rotations(self) -> Tensor:
        """W (count, C, C)."""
        lower, upper = self.factors()
        return (lower @ upper).gather(1, self.order[:, :, None].expand_as(lower))

    def log_det(self) -> Tensor:
        """log |det| of all, a pixel."""
        return (self.log_scale + self.log_diagonal).sum()

    def forward(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Matrices (C, C) and biases (C,) of `count` maps y = A z + b."""
        a = self.rotations() * self.log_scale.exp()[:, None]
        return a.unbind(0), (a @ self.shift[:, :, None])[..., 0].unbind(0)

    def inverses(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same of z = A y + b: two triangular solves for all maps."""
        lower, upper = (f.double() for f in self.factors())
        eye = torch.eye(lower.shape[1], dtype=torch.float64, device=lower.device).expand_as(lower)
        half = torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, half, upper=True)
        inverse = inverse.gather(2, self.order[:, None].expand_as(inverse))
        a = (inverse * (-self.log_scale.double()).exp()[:, :, None]).to(self.shift.dtype)
        return a.unbind(0), (-self.shift).unbind(0)

    @torch.no_grad()
    def adapt(self, k: int, z: Tensor) -> None:
        """Let the k-th ActNorm take the statistics of z (B, *size, C), which then has mean 0 and deviation 1."""
        values = z.flatten(0, -2).double()
        self.shift[k] = -values.mean(0)
        self.log_scale[k] = -values.var(0, unbiased=False).clamp_min(1e-12).log() / 2


class Edge(nn.Module):
    """What `out` outputs of a convolution of 3 a side get from each of its places that is beyond the picture; 0 at first."""

    def __init__(self, dims: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, 1, *[3] * dims))

    def forward(self, size: Sequence[int]) -> Tensor:
        """(1, *size, out)."""
        beyond = F.pad(self.weight.new_zeros(1, 1, *size), [1, 1] * len(size), value=1.0)
        return _CONV[len(size)](beyond, self.weight).movedim(1, -1)


class Network(nn.Module):
    """The conditioner of Eq. 2, (B, channels, *size) -> (B, out, *size): 3 x 3, 1 x 1 and 3 x 3 convolutions, zero at first.

    The condition c (B, width) shifts both hidden layers; `width` 0: there is none. edge: the last sees where the picture ends.
    """

    def __init__(self, dims: int, channels: int, out: int, hidden: int, width: int, edge: bool = False) -> None:
        super().__init__()
        self.enter = Conv(dims, channels, hidden)
        self.mix = Conv(dims, hidden, hidden, 1)
        self.leave = zero(Conv(dims, hidden, out))
        self.told = Linear(width, 2 * hidden, bias=False) if width else None
        self.edge = Edge(dims, out) if edge else None

    def forward(self, x: Tensor, c: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, *size, channels) -> (B, *size, out), in x's dtype but computed in `dtype`."""
        layers = (self.enter, self.mix, self.leave)
        told = None if self.told is None or c is None else self.told(c.to(dtype))
        y = network(x, tuple(w for layer in layers for w in (layer.weight, layer.bias)), told, dtype)
        return y if self.edge is None else y + self.edge(x.shape[1:-1])


class Steps(nn.Module):
    """K steps at one resolution, on z (B, *size, C)."""

    def __init__(self, count: int, channels: int, dims: int, hidden: int, width: int, name: str, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.moved = channels // 2
        self.kept = channels - self.moved
        self.mixes = Mixes(count, channels, name)
        sizes = (self.kept, 2 * self.moved, hidden, width, published)
        self.nets = nn.ModuleList(Network(dims, *sizes) for _ in range(count))

    def _affine(self, net: nn.Module, keep: Tensor, c: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """t, of Eq. 4 exp(a) t, and a of Eq. 2, (B, *size, moved) each."""
        t, a = net(keep, c, dtype).chunk(2, -1)
        if self.published:
            a = F.logsigmoid(a + _OPEN)  # Eq. 4
            return t * a.exp(), a
        return t, bounded(a, _LARGEST)

    def forward(self, z: Tensor, c: Tensor | None, dtype: torch.dtype, adapt: bool = False) -> tuple[Tensor, Tensor]:
        """y and the log det (B,); with `adapt`, each ActNorm takes the statistics of what reaches it."""
        pixels = math.prod(z.shape[1:-1])
        matrices, biases = self.mixes()
        logs = []
        for k, net in enumerate(self.nets):
            if adapt:
                self.mixes.adapt(k, z)
                matrices, biases = self.mixes()
            keep, move = F.linear(z, matrices[k], biases[k]).split([self.kept, self.moved], -1)  # Eq. 1
            t, a = self._affine(net, keep, c, dtype)
            z = torch.cat([keep, torch.addcmul(t, move, a.exp())], -1)  # Eq. 2
            logs.append(a.flatten(1).sum(1))
        return z, torch.stack(logs).sum(0) + pixels * self.mixes.log_det()

    def inverse(self, y: Tensor, c: Tensor | None, dtype: torch.dtype) -> Tensor:
        """z before `forward`."""
        matrices, biases = self.mixes.inverses()
        for k in reversed(range(len(self.nets))):
            keep, move = y.split([self.kept, self.moved], -1)
            t, a = self._affine(self.nets[k], keep, c, dtype)
            y = F.linear(torch.cat([keep, (move - t) * (-a).exp()], -1), matrices[k], biases[k])
        return y


class Prior(nn.Module):
    """m and l of Eq. 3 for `leaving` channels, given the `staying` ones (none at the last scale) and c; 0 at first."""

    def __init__(self, dims: int, staying: int, leaving: int, width: int, published: bool = False) -> None:
        super().__init__()
        self.leaving, self.published = leaving, published
        self.seen = zero(Conv(dims, staying, 2 * leaving)) if staying else None
        self.bias = None if staying else nn.Parameter(torch.zeros(2 * leaving))
        self.told = zero(Linear(width, 2 * leaving, bias=False)) if width else None
        self.edge = Edge(dims, 2 * leaving) if published else None

    def forward(self, stay: Tensor, c: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """stay (B, *size, staying) -> m and l, which broadcast to (B, *size, leaving)."""
        if self.seen is not None:
            out = self.seen(channels_last(stay.to(dtype).movedim(-1, 1))).movedim(1, -1).to(stay.dtype)
        else:
            assert self.bias is not None
            out = self.bias.expand(*stay.shape[:-1], -1)
        if self.told is not None and c is not None:
            out = out + self.told(c.to(stay.dtype)).view(len(stay), *[1] * (stay.dim() - 2), -1)
        if self.edge is not None:
            out = out + self.edge(stay.shape[1:-1])
        m, raw = out.chunk(2, -1)
        return m, raw if self.published else bounded(raw, _WIDEST)


class StepsAndPriors(nn.Module):
    """The flow of (B, C, *size) to eps (B, C x pixels): squeeze, K steps, half of the channels leave; then again, coarser.

    It ends after `scales` scales, or when no axis is even. Raises ValueError where a scale has one channel, which nothing moves.
    """

    def __init__(
        self, channels: int, size: Sequence[int], scales: int, steps: int, hidden: int, width: int, published: bool = False
    ) -> None:
        super().__init__()
        self.published = published
        asked = f"{channels} channel{'s' if channels > 1 else ''} of {' x '.join(map(str, size))}"
        self.factors: list[tuple[int, ...]] = []
        self.leaving: list[tuple[int, ...]] = []  # the shape (*size, C) that leaves after each scale
        self.scales, self.priors = nn.ModuleList(), nn.ModuleList()
        for i in range(scales):
            factors = halving(size)
            channels, size = channels * math.prod(factors), tuple(s // f for s, f in zip(size, factors, strict=True))
            if channels < 2:
                raise ValueError(
                    f"Glow's couplings need two channels after squeezing, and {asked} has no even side to squeeze: "
                    f"crop or pad the pictures to an even side, or use flow/nsf."
                )
            self.scales.append(Steps(steps, channels, len(size), hidden, width, f"scale{i}", published))
            last = i + 1 == scales or max(halving(size)) == 1
            leaves = channels if last else channels // 2
            self.priors.append(Prior(len(size), channels - leaves, leaves, width, published))
            self.factors.append(factors)
            self.leaving.append((*size, leaves))
            channels -= leaves
            if last:
                break

    def forward(self, x: Tensor, c: Tensor | None, dtype: torch.dtype, adapt: bool = False) -> tuple[Tensor, Tensor]:
        """eps (B, C x pixels) and the log det (B,); the networks compute in `dtype`, all else in x's."""
        gone: list[Tensor] = []
        total = x.new_zeros(len(x))
        for scale, prior, factors in zip(self.scales, self.priors, self.factors, strict=True):
            z, log_det = scale(squeeze(x, factors).movedim(1, -1).contiguous(), c, dtype, adapt)
            leave, stay = self._halves(z, prior.leaving)
            m, log_width = prior(stay, c, dtype)
            gone.append(((leave - m) * (-log_width).exp()).flatten(1))  # Eq. 3
            total = total + log_det - log_width.flatten(1).sum(1)
            x = stay.movedim(-1, 1)
        return torch.cat(gone, 1), total

    def _halves(self, z: Tensor, leaving: int) -> tuple[Tensor, Tensor]:
        """What leaves and what stays of z (B, *size, C)."""
        staying = z.shape[-1] - leaving
        return z.split([staying, leaving], -1)[::-1] if self.published else z.split([leaving, staying], -1)

    def inverse(self, eps: Tensor, c: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x (B, C, *size) of eps."""
        parts = eps.split([math.prod(s) for s in self.leaving], 1)
        stay: Tensor | None = None
        steps = list(zip(self.scales, self.priors, self.factors, self.leaving, parts, strict=True))
        for scale, prior, factors, shape, part in reversed(steps):
            here = part.reshape(-1, *shape)
            z = here[..., :0] if stay is None else stay.movedim(1, -1)
            m, log_width = prior(z, c, dtype)
            left = here * log_width.exp() + m
            z = torch.cat([z, left] if self.published else [left, z], -1)
            stay = unsqueeze(scale.inverse(z, c, dtype).movedim(-1, 1), factors)
        assert stay is not None
        return stay
