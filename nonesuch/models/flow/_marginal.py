"""The first bijection of a picture on a grid: the distribution function of each pixel, learned by counting.

Level k of a pixel becomes the cell [F(k), F(k + 1)) of the unit interval, whose length is the share of level k among the
training pictures, given the class where there is one. A value spread evenly over its cell has the pixel's own histogram as
density, with the sharp edges that a smooth flow cannot make; what the flow after it has to learn is how pixels depend on one
another. Counts n are smoothed in three steps, each towards the one before, with b and a pseudo-counts:

    p_0(k) ~ n(k) + 1
    p_1(k | pixel) ~ n(k | pixel) + b p_0(k)
    p_2(k | pixel, class) ~ n(k | pixel, class) + a p_1(k | pixel)

A picture that was counted has made its own cells longer than those of a new one. So the rest of the model learns from pictures
placed in the table that lacks them: with W counts and pseudo-counts in all, level k's cell [F, F + m) of its own picture is

    F' = F W / (W - 1),      m' = (m W - 1) / (W - 1).                                                            (1)

References:
    A Hierarchical Dirichlet Language Model (MacKay, Peto, 1995)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec

_PIXEL, _CLASS = 5.0, 20.0  # pseudo-counts b and a
_LEFT = 0.02  # least share of a cell that its own picture leaves: it may be one that was not counted


class Histogram(nn.Module):
    """F of every channel, pixel and class: uniform until `count` has seen the data. All in float64, for cells are small.

    `limit` is the largest number of entries; a table that would be larger is shared between pixels, then between classes.
    """

    edges: Tensor
    weight: Tensor

    def __init__(self, spec: ImageSpec, schema: Schema, limit: int) -> None:
        super().__init__()
        assert spec.levels is not None
        self.levels, self.channels, self.total = spec.levels, spec.channels, spec.numel // spec.channels
        found = [(n, len(c.names)) for n, c in schema.columns.items() if isinstance(c, Category)]
        self.column, classes = found[0] if found else ("", 0)
        cells = self.channels * (self.levels + 1)
        shared = [(classes, self.total), (classes, 1), (0, 1)]
        self.classes, self.pixels = next((s for s in shared if (s[0] + 1) * s[1] * cells <= limit), (0, 1))
        rows = torch.linspace(0, 1, self.levels + 1, dtype=torch.float64)
        self.register_buffer("weight", torch.full((self.classes + 1,), 1e12, dtype=torch.float64))  # counts and pseudo-counts
        self.register_buffer("edges", rows.expand(self.classes + 1, self.channels, self.pixels, -1).clone())

    def rows(self, given: Given, n: int) -> Tensor:
        """Which of the tables each image uses (n,): that of its class, or the last when it is missing."""
        if not self.classes:
            return torch.zeros(n, dtype=torch.int64, device=self.edges.device)
        value = given.columns[self.column]
        return torch.where(value < 0, self.classes, value)

    def cells(self, k: Tensor, rows: Tensor, own: bool = False) -> tuple[Tensor, Tensor]:
        """The lower ends and the lengths (B, C, pixels) of the cells of levels k (B, C, *size).

        own: the pictures are among those that were counted, and each is to see the table without itself (Eq. 1).
        """
        k = k.flatten(2)
        at = (rows[:, None, None] * self.channels + torch.arange(self.channels, device=k.device)[:, None]) * self.pixels
        if self.pixels > 1:
            at = at + torch.arange(self.pixels, device=k.device)
        at = at * (self.levels + 1) + k
        flat = self.edges.flatten()
        low = flat[at]
        length = flat[at + 1] - low
        if own:
            weight = self.weight[rows][:, None, None]
            low = low * weight / (weight - 1)
            length = torch.maximum(length * weight - 1, length * weight * _LEFT) / (weight - 1)
        return low, length

    def find(self, f: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The level k and the place u in [0, 1] in its cell, both (B, C, pixels), of f (B, C, pixels); u is differentiable."""
        tables = self.edges[rows]
        values = f.detach().reshape(len(f), self.channels, self.pixels, -1).contiguous()
        k = torch.searchsorted(tables, values, right=True).sub_(1).clamp_(0, self.levels - 1).view(f.shape)
        low, length = self.cells(k, rows)
        return k, ((f - low) / length).clamp(0, 1)

    @torch.no_grad()
    def count(self, k: Tensor, given: Given) -> None:
        """Count the levels k (N, C, *size) of the training pictures."""
        shape = (self.classes + 1, self.channels, self.pixels, self.levels)
        n = torch.zeros(shape, dtype=torch.float64, device=k.device).flatten()
        rows = self.rows(given, len(k))
        channel = torch.arange(self.channels, device=k.device)[:, None]
        pixel = torch.arange(self.total, device=k.device) % self.pixels
        for part in torch.arange(len(k), device=k.device).split(max(1, (1 << 22) // (self.channels * self.total))):
            at = (rows[part][:, None, None] * self.channels + channel) * self.pixels + pixel
            n += torch.bincount((at * self.levels + k[part].flatten(2)).flatten(), minlength=len(n))
        n = n.view(shape)
        every = n.sum(0, keepdim=True)
        p = _share(every.sum(2, keepdim=True) + 1)
        p = _share(every + _PIXEL * p)
        p = torch.cat([_share(n[:-1] + _CLASS * p), p])
        self.weight[:-1] = n[:-1, 0, 0].sum(-1) + _CLASS
        self.weight[-1] = every[0, 0, 0].sum() + _PIXEL
        self.edges[..., 1:] = p.cumsum(-1)
        self.edges[..., -1] = 1


def _share(n: Tensor) -> Tensor:
    return n / n.sum(-1, keepdim=True)
