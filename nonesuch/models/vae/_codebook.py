"""A codebook e_1, ..., e_K: every vector z is replaced by the nearest e, and the e go where the z are.

    k(z) = argmin_j |z - e_j|^2 = argmin_j |e_j|^2 - 2 z . e_j                                              Eq. 1, 2 of the paper

The e are learned by gradients of |sg[z] - e|^2, or as the running k-means of appendix A.1: where n_j of a batch have e_j nearest,

    N_j <- g N_j + (1 - g) n_j,     m_j <- g m_j + (1 - g) sum z,     e_j <- m_j / N_j,                    Eq. 6, 7, 8     (1)

whose fixed point is the mean of the z of each code. Of several processes, n and the sums are those of the whole batch. A code
that fewer and fewer z choose (N_j a small share of what an even use would give) is put where a z of the batch is.

References:
    Neural Discrete Representation Learning (van den Oord et al., 2017) arXiv:1711.00937, section 3.2 and appendix A.1
    Jukebox: A Generative Model for Music (Dhariwal et al., 2020) arXiv:2005.00341, section 3.2 (codes restarted)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds


class Codebook(nn.Module):
    """`codes` vectors of `width` numbers. With `decay` they are running means, buffers; without, a parameter."""

    vectors: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, codes: int, width: int, decay: float | None, restart: float) -> None:
        super().__init__()
        self.codes, self.width, self.decay, self.restart = codes, width, decay, restart
        start = Seeds((0,), (0,)).normal("codebook", codes, width)[0]
        if decay is None:
            self.vectors = nn.Parameter(start)
            return
        self.register_buffer("vectors", start)
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("total", start.clone())

    def nearest(self, z: Float[Tensor, "n width"]) -> Int[Tensor, " n"]:
        """The number of the code nearest to each z, in float32 at least."""
        e = self.vectors.detach()
        # The least of a row of neighbours in memory is found five times as fast as that of a column.
        return torch.addmm(e.square().sum(1), z.detach(), e.t(), alpha=-2).min(1).indices  # Eq. 2

    def start(self, z: Float[Tensor, "n width"], seed: int = 0) -> None:
        """Put the codes at so many of the vectors z, drawn; where those are too few, beside them."""
        u = Seeds((seed,), (0,))
        order = u.uniform("codebook/order", len(z))[0].argsort()[: self.codes]
        picked = z[order.to(z.device).repeat(-(-self.codes // len(order)))[: self.codes]].to(self.vectors.dtype)
        noise = u.normal("codebook/beside", self.codes, self.width)[0].to(picked)
        with torch.no_grad():
            self.vectors.copy_(picked + 0.01 * z.std(0, correction=0) * noise)
            if self.decay is not None:
                self.count.fill_(1.0)
                self.total.copy_(self.vectors)

    def tally(self, z: Float[Tensor, "n width"], k: Int[Tensor, " n"]) -> Float[Tensor, "codes more"]:
        """For each code how many z are nearest to it, and their sum: (codes, 1 + width)."""
        with torch.no_grad():
            one = torch.cat([torch.ones_like(z[:, :1]), z], 1)
            return one.new_zeros(self.codes, 1 + self.width).index_add_(0, k, one)

    @torch.no_grad()
    def follow(self, tally: Tensor, z: Tensor, batch: Batch) -> None:
        """One step of (1) by the tally of these processes' vectors z (b * places, width); unused codes are put elsewhere."""
        assert self.decay is not None
        places = len(z) // max(1, len(batch.rows))
        if batch.sum is not None:
            tally = batch.sum(tally)
        even = batch.size * places / self.codes  # how often each code would be chosen if all were alike
        self.count.lerp_(tally[:, 0] / even, 1 - self.decay)  # Eq. 6, in units of `even`
        self.total.lerp_(tally[:, 1:] / even, 1 - self.decay)  # Eq. 7
        if self.restart > 0:
            unused = (self.count < self.restart)[:, None]
            elsewhere = self._drawn(z, batch, places)
            self.total.copy_(torch.where(unused, elsewhere, self.total))
            self.count.masked_fill_(unused[:, 0], 1.0)
        self.vectors.copy_(self.total / self.count.clamp_min(1e-5)[:, None])  # Eq. 8

    def _drawn(self, z: Tensor, batch: Batch, places: int) -> Tensor:
        """One vector of the whole batch for each code (codes, width), drawn once a batch."""
        which = batch.first.integers("codebook/restart", batch.size * places, self.codes, device=z.device)[0]
        row, place = which // places, which % places
        own = (row - batch.rows.start) // batch.rows.step
        here = (own * batch.rows.step + batch.rows.start == row) & (own >= 0) & (own < len(batch.rows))
        found = z[torch.where(here, own * places + place, 0)] * here[:, None]
        return found if batch.sum is None else batch.sum(found)


def perplexity(counts: Float[Tensor, " codes"]) -> Float[Tensor, ""]:
    """exp of the entropy of the codes' use: how many codes an even use would need to be as spread."""
    p = counts / counts.sum()
    spread: Tensor = torch.special.entr(p).sum().exp()
    return spread


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q, to the bit, with z in its stead where gradients are taken (section 3.2)."""
    return q.detach() + (z - z.detach())


def distance(z: Tensor, q: Tensor) -> Tensor:
    """The mean of |z - q|^2 over rows and numbers."""
    return F.mse_loss(z, q)
